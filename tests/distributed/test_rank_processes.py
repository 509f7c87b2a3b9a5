"""A sharded head on several processes over gloo: equal to one process, and faults of one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import rank_process
from helpers.rank_losses import PROCESS_CASES
from helpers.rank_process import FAULTS, GUILTY, TIMEOUT, Seen
from helpers.run_processes import run_processes

RANKS = 3


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_processes_equal_one_process(size: int, tmp_path: Path) -> None:
    for found in run_processes(size, rank_process.run_losses, tmp_path):
        assert list(found) == list(PROCESS_CASES)
        assert max(found.values()) < 1e-11, found


@pytest.fixture(scope="module", params=["fetch", "gather"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From the name of a fault to what each rank has seen of it."""
    folder = tmp_path_factory.mktemp("faults")
    found = run_processes(RANKS, rank_process.run_faults, folder, request.param)
    return lambda fault: [Seen(*of_rank[fault]) for of_rank in found if fault in of_rank]


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("bad_target", "IndexError", r"target must be in \[0, C=60\).*got 60 \(on rank 1 of 3\)"),
        ("other_options", "ValueError", "temperature must be the same on all ranks.*0.5 on rank 1"),
        ("skipped_backward", "RuntimeError", "ranks are at different places.*skips a batch"),
        (
            "eval_on_one",
            "ValueError",
            "loss must be the same on all ranks, got 'sampled, as in.*eval mode' on rank 1",
        ),
    ],
)
def test_all_ranks_raise_the_same_error(seen: Any, fault: str, kind: str, text: str) -> None:
    ranks = seen(fault)
    assert len(ranks) == RANKS
    assert {rank.kind for rank in ranks} == {kind}
    assert len({rank.text for rank in ranks}) == 1
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(ranks[0].text)
    assert max(rank.seconds for rank in ranks) < TIMEOUT / 6  # 0.1 on cores of their own


def test_the_others_raise_when_a_rank_is_killed(seen: Any) -> None:
    ranks = seen("killed")
    assert len(ranks) == RANKS - 1, f"rank {GUILTY} was to die"
    for rank in ranks:
        assert rank.kind == "RuntimeError"
        assert "another rank has stopped" in rank.text
        assert rank.seconds < TIMEOUT / 6


def test_every_fault_is_looked_at() -> None:
    assert set(FAULTS) == {
        "bad_target",
        "other_options",
        "skipped_backward",
        "eval_on_one",
        "killed",
    }
