"""A computation over rows in chunks, each of which runs again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..losses.gradients import sparse_rows
from .gradients import add_rows

Run = Callable[[int, Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]
"""The number of a chunk, its rows of the input, weight and bias to tensors of as many rows; the
first of them is differentiable. All ranks call it equally often, in the same order."""


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Run,
        chunks: Sequence[slice],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        kind = input.device.type
        ctx.autocast = {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }
        ctx.run, ctx.chunks = run, chunks
        ctx.save_for_backward(input, weight, bias)
        parts = [run(i, input[rows], weight, bias) for i, rows in enumerate(chunks)]
        results = tuple(torch.cat(part) for part in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        input, *tables = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        of_input = torch.zeros_like(input) if wanted[0] else None
        totals: list[Tensor | None] = [None, None]
        for i, rows in enumerate(ctx.chunks):
            leaves = [
                None if x is None else x.detach().requires_grad_(needed)
                for x, needed in zip((input[rows], *tables), wanted, strict=True)
            ]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                found = ctx.run(i, *leaves)[0]
            asked = [x for x in leaves if x is not None and x.requires_grad]
            parts = iter(torch.autograd.grad(found, asked, grads[0][rows], allow_unused=True))
            of_chunk = [next(parts) if x is not None and x.requires_grad else None for x in leaves]
            if of_input is not None and of_chunk[0] is not None:
                of_input[rows] = of_chunk[0]
            totals = [_sum(a, b) for a, b in zip(totals, of_chunk[1:], strict=True)]
        return None, None, of_input, *totals


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """The sum of two gradients of a table, both dense or both sparse."""
    if total is None or part is None:
        return part if total is None else total
    if not total.is_sparse:
        return total.add_(part)
    rows = torch.cat((total._indices()[0], part._indices()[0]))
    rows, place = torch.unique(rows, return_inverse=True)
    values = add_rows(place, torch.cat((total._values(), part._values())), len(rows))
    return sparse_rows(rows[None], values, total)


def in_chunks(
    run: Run, chunks: Sequence[slice], input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """The results of all chunks one after the other; what a chunk needs is not kept for the
    backward pass, which runs it again.

    Args:
        run: computes a chunk.
        chunks: the rows [b] of this rank, in order; a chunk may have none.
        input: [b, D]
    """
    return _Chunks.apply(run, chunks, input, weight, bias)  # type: ignore[no-untyped-call, no-any-return]
