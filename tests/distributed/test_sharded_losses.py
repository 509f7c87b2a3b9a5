"""Classes over ranks against one process: loss and gradients of every option, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, distributed

import sampled_softmax_cuda as ssc
from helpers.largest import Largest
from helpers.rank_threads import dense, run_ranks
from sampled_softmax_cuda.distributed import (
    ClassShard,
    ShardedSampledSoftmaxLoss,
    gather,
    sharded_sampled_softmax_loss,
)

# (C, D, S, rows of a rank): uneven shards; hardly more classes than ranks; ranks without rows.
SIZES = {
    "uneven": (101, 7, 40, lambda rank: 5),
    "few classes": (5, 3, 6, lambda rank: rank),
    "empty batch": (64, 8, 64, lambda rank: (3, 0, 9, 1)[rank % 4]),
    "no rows at all": (20, 4, 5, lambda rank: 0),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hits, temperature": {"temperature": 0.3, "remove_accidental_hits": False},
    "uncorrected": {"correction": "none"},
    "negatives corrected": {"correction": "negatives"},
    "nce": {"objective": "nce"},
    "gbce": {"objective": "gbce"},
    "negative sampling": {"objective": "negative_sampling"},
    "softcap": {"softcap": 2.0},
    "cosine": {"cosine": True, "temperature": 0.1},
    "margins": {"cosine": True, "objective": ssc.Softmax(margin=0.2, angular_margin=0.3)},
    "z_loss": {"z_loss": 0.1},
    "reweighted": {"objective": ssc.Softmax(reweighted=True)},
    "smoothing": {"objective": ssc.Softmax(label_smoothing=0.1)},
    "two targets": {"targets": 2},
    "two targets, nce": {"targets": 2, "objective": "nce"},
    "class_weight": {"class_weight": True},
    "exclude": {"exclude": True},
    "weights, sum": {"class_weight": True, "sample_weight": True, "reduction": "sum"},
    "none": {"reduction": "none", "sample_weight": True},
}


def error_of_rank(
    rank: int,
    size: int,
    sizes: str,
    given: dict[str, Any],
    algorithm: str,
    sparse: bool,
    replacement: bool,
    replicated: bool,
) -> float:
    """The largest difference from one process, of the loss and all gradients of a rank."""
    classes, width, num_samples, rows_of = SIZES[sizes]
    rows = [rows_of(0)] * size if replicated else [rows_of(r) for r in range(size)]
    total = rows[0] if replicated else sum(rows)
    g = torch.Generator().manual_seed(1)
    f64: dict[str, Any] = {"generator": g, "dtype": torch.float64}
    weight, bias = torch.randn(classes, width, **f64), torch.randn(classes, **f64)
    h, target = torch.randn(total, width, **f64), torch.randint(classes, (total,), generator=g)
    target[1:2] = -100
    options = dict(given)
    if options.pop("targets", 1) > 1:
        target = torch.stack((target, torch.randint(classes, target.shape, generator=g)), dim=1)
    per_class = torch.rand(classes, **f64) + 0.1 if options.pop("class_weight", False) else None
    per_row = torch.rand(total, **f64) if options.pop("sample_weight", False) else None
    exclude = None
    if options.pop("exclude", False):
        exclude = torch.randint(-1, classes, (total, 3), generator=g)
    if not replacement:
        num_samples = min(num_samples, classes - 1)
    sampler = ssc.LogUniformSampler(classes)
    samples = sampler.sample(target, num_samples, replacement=replacement, generator=g)

    whole = [x.clone().requires_grad_() for x in (h, weight, bias)]
    expected = ssc.sampled_softmax_loss(
        whole[0],
        whole[1],
        target,
        samples,
        bias=whole[2],
        class_weight=per_class,
        sample_weight=per_row,
        exclude=exclude,
        **options,
    )
    expected.sum().backward()

    shard = ClassShard(classes)
    begin = 0 if replicated else sum(rows[:rank])
    own, mine = slice(begin, begin + rows[rank]), shard.classes
    parts = [x.clone().requires_grad_() for x in (h[own], weight[mine], bias[mine])]
    part = ssc.Samples(
        samples.ids, samples.log_expected_count, samples.target_log_expected_count[own]
    )
    loss = sharded_sampled_softmax_loss(
        parts[0],
        parts[1],
        target[own],
        part,
        shard=shard,
        bias=parts[2],
        class_weight=None if per_class is None else per_class[mine],
        sample_weight=None if per_row is None else per_row[own],
        exclude=None if exclude is None else exclude[own],
        algorithm=algorithm,
        sparse_grad=sparse,
        input_layout="replicated" if replicated else "sharded",
        **options,
    )
    loss.sum().backward()

    reduction = options.get("reduction", "mean")
    value, of_rows, of_shard = loss.detach(), 1.0, 1.0
    if replicated:
        pass
    elif reduction == "none":
        expected, of_shard = expected[own], float(size)
    else:
        value = value.clone()
        distributed.all_reduce(value)
        mean = reduction == "mean"
        value = value / size if mean else value
        of_rows, of_shard = (1.0 / size, 1.0) if mean else (1.0, float(size))
    differences: list[Tensor] = [
        value - expected.detach(),
        dense(parts[0].grad, parts[0]) * of_rows - dense(whole[0].grad, whole[0])[own],
        dense(parts[1].grad, parts[1]) * of_shard - dense(whole[1].grad, whole[1])[mine],
        dense(parts[2].grad, parts[2]) * of_shard - dense(whole[2].grad, whole[2])[mine],
    ]
    assert sparse == bool(parts[1].grad is not None and parts[1].grad.is_sparse)
    return max(float(d.abs().max()) if d.numel() else 0.0 for d in differences)


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
    # Each of 8 ranks has about as many of the 1000 most frequent classes of 10^9.
    shard = ClassShard(10**9)
    counts = torch.bincount(shard.row_of(torch.arange(1000)) * 8 // 10**9, minlength=8)
    assert counts.min() >= 120 and counts.max() <= 130
