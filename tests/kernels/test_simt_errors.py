"""Errors of the CUDA runtime are returned once, and by the call that failed."""

from __future__ import annotations

import pytest
import torch

from helpers.simt_bench import Bench, SimtError, require

pytestmark = pytest.mark.usefixtures("executor")

INVALID_VALUE = 1  # cudaErrorInvalidValue


@pytest.fixture
def bench() -> Bench:
    require("plain")
    bench = Bench("plain")
    last_error(bench)
    return bench


def last_error(bench: Bench) -> int:
    out = bench.buffer("error", torch.zeros(1, dtype=torch.int32), "out")
    bench.call("last_error", out)
    return int(out)


def assert_a_good_launch_is_good(bench: Bench) -> None:
    out = bench.buffer("out", torch.zeros(1, dtype=torch.int32), "out")
    bench.call("mark", out, 32)
    assert int(out) == 1


def test_too_much_shared_memory_is_refused_once(bench: Bench) -> None:
    with pytest.raises(SimtError):
        bench.call("allow_shared", 1 << 20)
    assert_a_good_launch_is_good(bench)
    assert last_error(bench) == 0


def test_a_refused_launch_is_reported_once(bench: Bench) -> None:
    out = bench.buffer("out", torch.zeros(1, dtype=torch.int32), "out")
    with pytest.raises(SimtError):
        bench.call("mark", out, 2048)
    assert_a_good_launch_is_good(bench)
    assert last_error(bench) == 0


def test_an_error_that_another_has_left_is_not_ours(bench: Bench) -> None:
    bench.call("leave_an_error")
    assert_a_good_launch_is_good(bench)
    assert last_error(bench) == INVALID_VALUE, "and it stays for who asks for it"
