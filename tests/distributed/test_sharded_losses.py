"""Classes over ranks against one process: loss and gradients of every option, in float64."""

from __future__ import annotations

import pytest
import torch

from helpers.largest import Largest
from helpers.rank_losses import OPTIONS, error_of_rank
from helpers.rank_threads import run_ranks
from sampled_softmax_cuda.distributed import ClassShard, ShardedSampledSoftmaxLoss, gather


@pytest.mark.parametrize("algorithm", ["fetch", "gather"])
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_one_process(algorithm: str, options: str) -> None:
    if algorithm == "gather" and options == "smoothing":
        with pytest.raises(ValueError, match="label_smoothing: the mean of all logits"):
            run_ranks(2, error_of_rank, "uneven", OPTIONS[options], algorithm, False, True, False)
        return
    for size, sizes, sparse, replacement in (
        (1, "uneven", True, True),
        (2, "uneven", False, False),
        (3, "empty batch", True, True),
        (4, "few classes", True, False),
        (2, "no rows at all", False, True),
    ):
        case = (sizes, OPTIONS[options], algorithm, sparse, replacement, False)
        assert max(run_ranks(size, error_of_rank, *case)) < 1e-11, (size, *case)


@pytest.mark.parametrize("algorithm", ["fetch", "gather"])
@pytest.mark.parametrize("options", ["plain", "nce", "cosine", "weights, sum", "none"])
def test_equals_one_process_with_replicated_input(algorithm: str, options: str) -> None:
    case = ("uneven", OPTIONS[options], algorithm, True, True, True)
    assert max(run_ranks(3, error_of_rank, *case)) < 1e-11


@pytest.mark.parametrize("algorithm", ["fetch", "gather"])
def test_equals_one_process_with_sixteen_ranks(algorithm: str) -> None:
    case = ("empty batch", OPTIONS["plain"], algorithm, True, False, False)
    assert max(run_ranks(16, error_of_rank, *case)) < 1e-11


@pytest.mark.parametrize("options", [o for o in OPTIONS if o != "smoothing"])
def test_gathers_in_chunks(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, sizes, sparse, numbers in (
        (2, "uneven", False, 28),
        (3, "empty batch", True, 50),
        (4, "few classes", True, 1),
    ):
        monkeypatch.setattr(gather, "MOST_GATHERED", numbers)
        case = (sizes, OPTIONS[options], "gather", sparse, True, False)
        assert max(run_ranks(size, error_of_rank, *case)) < 1e-11, (size, *case)


def largest_of_gather(rank: int, size: int, rows: int, sparse: bool) -> int:
    head = ShardedSampledSoftmaxLoss(64, 100, 8, algorithm="gather", sparse_grad=sparse, seed=0)
    h, target = torch.randn(rows, 64, requires_grad=True), torch.randint(100, (rows,))
    with Largest() as seen:
        head(h, target).backward()
        head.eval()(h, target).backward()
    return seen.largest


@pytest.mark.parametrize("sparse", [True, False])
def test_memory_of_gathered_rows_is_bounded(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MOST_GATHERED", 2**16)
    rows, ranks = 1024, 4
    bound = rows * 64 // 2 + 1000  # a rank's own rows, in numbers of 8 bytes, or the gathered ones
    assert max(run_ranks(ranks, largest_of_gather, rows, sparse)) < bound
    monkeypatch.setattr(gather, "MOST_GATHERED", 2**26)
    assert min(run_ranks(ranks, largest_of_gather, rows, sparse)) > 3 * bound


def test_order_of_classes_is_a_permutation_that_balances() -> None:
    for classes in (1, 2, 3, 10, 97, 1000, 1_000_003):
        shard = ClassShard(classes)
        ids = torch.arange(min(classes, 5000))
        assert torch.equal(shard.class_of(shard.row_of(ids)), ids)
        assert int(shard.row_of(ids).max()) < classes
    shard = ClassShard(1_000_003)
    for narrow in (torch.int8, torch.int16, torch.int32, torch.float32):  # their products overflow
        for name in ("row_of", "class_of", "owner_of"):
            with pytest.raises(TypeError, match=r"ClassShard\.\w+: .* must be int64"):
                getattr(shard, name)(torch.arange(100, dtype=narrow))
    # Each of 8 ranks has about as many of the 1000 most frequent classes of 10^9.
    shard = ClassShard(10**9)
    counts = torch.bincount(shard.row_of(torch.arange(1000)) * 8 // 10**9, minlength=8)
    assert counts.min() >= 120 and counts.max() <= 130
