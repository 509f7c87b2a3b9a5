"""The loss and gradients of one rank of a sharded loss against one process, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda.distributed import ClassShard, sharded_sampled_softmax_loss

from .rank_threads import dense

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
    device: torch.device | str = "cpu",
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
    counts = (samples.log_expected_count, samples.target_log_expected_count)
    h, weight, bias, target, *drawn = (
        x.to(device) for x in (h, weight, bias, target, samples.ids, *counts)
    )
    samples = ssc.Samples(*drawn)
    per_class, per_row, exclude = (
        None if x is None else x.to(device) for x in (per_class, per_row, exclude)
    )

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
    own, mine = slice(begin, begin + rows[rank]), shard.classes.to(device)
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


# Cases of error_of_rank for processes: (sizes, options, algorithm, sparse_grad, replacement,
# replicated).
PROCESS_CASES: dict[str, tuple[Any, ...]] = {
    f"{algorithm}, {name}, {sizes}": (sizes, OPTIONS[name], algorithm, sparse, not sparse, False)
    for algorithm in ("fetch", "gather")
    for name, sizes, sparse in (
        ("plain", "uneven", True),
        ("plain", "few classes", False),
        ("hits, temperature", "empty batch", True),
        ("nce", "uneven", False),
        ("margins", "uneven", True),
        ("two targets", "empty batch", False),
        ("exclude", "uneven", True),
        ("weights, sum", "few classes", True),
        ("none", "uneven", False),
    )
}
