"""The bytes and the number of exchanges of a sharded step equal the cost model's."""

from __future__ import annotations

import pytest
import torch
from rank_traffic import Traffic, counted
from scale_out_model import Step

from helpers.rank_threads import run_ranks
from sampled_softmax_cuda.distributed import ShardedSampledSoftmaxLoss

C, D, S, B = 300_000, 64, 1024, 96


def sent_by_rank(
    rank: int, size: int, traffic: Traffic, algorithm: str, sampler: str
) -> tuple[int, dict[str, int]]:
    """Bytes and collectives of a step after the first."""
    head = ShardedSampledSoftmaxLoss(
        D, C, S, sampler, algorithm=algorithm, seed=1, bias=False, replacement=False
    )
    g = torch.Generator().manual_seed(rank)
    for _ in range(2):
        traffic.clear()
        h = torch.randn(B, D, generator=g, requires_grad=True)
        head(h, torch.randint(C, (B,), generator=g)).backward()
    return traffic.total, dict(traffic.calls)


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_bytes_are_those_of_the_model(size: int, sampler: str) -> None:
    step = Step(C, D, B, S, size, 4)
    for algorithm, expected in (("fetch", step.fetch), ("gather", step.gather)):
        with counted() as traffic:
            found = run_ranks(size, sent_by_rank, traffic, algorithm, sampler)
        mean = sum(sent for sent, _ in found) / size
        assert mean == pytest.approx(expected, rel=0.02), algorithm
        # No rank sends much more than others, with the most frequent classes on all of them.
        assert max(sent for sent, _ in found) < 1.1 * mean


def test_a_step_has_few_exchanges() -> None:
    for algorithm, expected in (
        # headers; how many rows, which, they themselves, and their gradients
        ("fetch", {"all-gather": 2, "all-to-all": 4}),
        # headers, input, targets and their counts; their logits, maxima and sums, and the gradients
        # of both; the input's gradient
        ("gather", {"all-gather": 5, "all-reduce": 5, "reduce-scatter": 1}),
    ):
        with counted() as traffic:
            found = run_ranks(2, sent_by_rank, traffic, algorithm, "uniform")
        assert [calls for _, calls in found] == [expected] * 2


@pytest.mark.parametrize(("rows", "samples", "chosen"), [(96, 64, "fetch"), (16, 64, "gather")])
def test_auto_takes_what_sends_less(rows: int, samples: int, chosen: str) -> None:
    step = Step(C, D, rows, samples, 3, 4)
    assert step.fetch_wins == (chosen == "fetch")
    assert min(("fetch", "gather"), key=lambda name: getattr(step, name)) == chosen

    def exchanges(rank: int, size: int, traffic: Traffic) -> dict[str, int]:
        head = ShardedSampledSoftmaxLoss(D, C, samples, "uniform", seed=1)
        traffic.clear()
        head(torch.randn(rows, D, requires_grad=True), torch.randint(C, (rows,))).backward()
        return dict(traffic.calls)

    with counted() as traffic:
        found = run_ranks(3, exchanges, traffic)
    assert {"reduce-scatter" in calls for calls in found} == {chosen == "gather"}
