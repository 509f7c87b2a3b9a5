"""The kernels of general negatives on the bench, with torch's CPU tensors in and out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .simt_bench import Bench
from .simt_loss import Path, accumulator, name_of


class Problem(NamedTuple):
    """The tensors of negative_rows, in its order."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target_logit: Tensor
    hits: Tensor
    counted: Tensor | None
    ids: Tensor
    log_expected_count: Tensor | None


class Options(NamedTuple):
    inv_temperature: float = 0.8
    softcap: float = 0.0
    remove_hits: bool = True
    sigmoid: bool = False


def make_problem(
    batch: int, dim: int, samples: int, classes: int, hits: int, dtype: torch.dtype
) -> Problem:
    """Random numbers. Row 1, where there is one, does not count and is NaN; sample 2 is masked."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(batch, dim, generator=g)
    count = torch.randn(samples, generator=g)
    counted = torch.arange(batch) != 1
    h[~counted] = torch.nan
    count[2:3] = torch.inf
    return Problem(
        h.to(dtype),
        (torch.randn(classes, dim, generator=g) / dim**0.5).to(dtype),
        torch.randn(classes, generator=g).to(dtype),
        torch.randn(batch, generator=g).to(accumulator(dtype)),
        torch.randint(-1, classes, (batch, hits), generator=g),
        counted,
        torch.randint(classes, (samples,), generator=g),
        count,
    )


def layouts(bench: Bench, shape: tuple[int, int, int], dtype: torch.dtype, mp: int) -> list[int]:
    """Bytes and rows of a chunk, of the losses and of the gradients."""
    out = bench.buffer("layouts", torch.full((4,), -7), "out")
    bench.call(f"negative_layouts_{name_of(dtype)}", *shape, mp, out)
    return out.tolist()


def run(
    bench: Bench,
    p: Problem,
    o: Options,
    row_scale: Tensor | None = None,
    *,
    path: Path | None = None,
    multiprocessors: int = 4,
    chunk_rows: int = -1,
) -> list[Tensor]:
    """Loss and peak; with factors of the rows, gradients of input, weight [C, D] and bias [C]."""
    dtype, (batch, dim) = p.input.dtype, p.input.shape
    path = path or Path(dtype)
    classes, samples = p.weight.shape[0], p.ids.shape[0]
    for name, tensor in p._asdict().items():
        if tensor is not None:
            bench.buffer(name, tensor, "in")

    def output(name: str, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
        fill = torch.nan if dtype.is_floating_point else 0
        return bench.buffer(name, torch.full(shape, fill, dtype=dtype), "out")

    sizes = layouts(bench, (batch, dim, samples), dtype, multiprocessors)
    size = sizes[0 if row_scale is None else 2]
    arguments = [
        *p,
        *(batch, dim, classes, samples, p.hits.shape[1], *o),
        output("labels", batch, dtype=torch.int64),
        *(bench.capability(path.major, path.tf32), path.tf32, multiprocessors, chunk_rows),
        output("workspace", size, dtype=torch.uint8),
    ]
    if row_scale is None:
        results = output("results", 2, batch, dtype=accumulator(dtype))
        bench.call(f"negative_rows_{name_of(dtype)}", *arguments, results)
        return list(results)
    sorted_ids, order = p.ids.sort(stable=True)
    grads = [output("grad_input", batch, dim), output("grad_weight", samples, dim)]
    grads.append(output("grad_bias", samples))
    rows = output("grad_classes", samples, dtype=torch.int64)
    for name, tensor in [("row_scale", row_scale), ("sorted", sorted_ids), ("order", order)]:
        bench.buffer(name, tensor, "in")
    bench.call(
        f"negative_grads_{name_of(dtype)}", *arguments, row_scale, sorted_ids, order, *grads, rows
    )
    return [grads[0], *(torch.zeros(classes, *g.shape[1:], dtype=torch.float64).index_add_(
        0, rows, g.double()) for g in grads[1:])]  # fmt: skip
