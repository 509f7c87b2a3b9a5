"""Collectives that gradients go back through.

All ranks compute one loss, the sum of what each returns: the gradient of a value that ranks share
is the sum of the gradients that they have for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from .agreement import Agreement
from .ranks import Ranks

# Below this sum of a rank, exp(N) - 1 is computed as such, which keeps the digits of small ones.
_SMALL = 1.0
# Up to this, exp stays far inside of float32.
_MODERATE = 30.0


class _Announce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, agreement: Agreement, phase: str) -> Tensor:
        ctx.agreement, ctx.phase = agreement, phase
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        ctx.agreement.open(ctx.phase, grad.device)
        return grad, None, None


def announced(loss: Tensor, agreement: Agreement, phase: str) -> Tensor:
    """The loss; its backward pass begins with a header, so that ranks enter it together."""
    if not (agreement.needed and loss.requires_grad):
        return loss
    return _Announce.apply(loss, agreement, phase)  # type: ignore[no-untyped-call, no-any-return]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, sizes: Sequence[int]) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        return ranks.gather_rows(x, sizes, "input rows")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return ctx.ranks.scatter_sum(grad, ctx.sizes, "gradients of input rows"), None, None


def gather_rows(x: Tensor, ranks: Ranks, sizes: Sequence[int]) -> Tensor:
    """The rows of all ranks."""
    if ranks.size == 1:
        return x
    return _GatherRows.apply(x, ranks, sizes)  # type: ignore[no-untyped-call, no-any-return]


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        return ctx.ranks.all_reduce(grad, "gradients of input rows"), None


def replicated_rows(x: Tensor, ranks: Ranks) -> Tensor:
    """Rows that all ranks have alike; each has a part of their gradient, and gets the whole."""
    if ranks.size == 1:
        return x
    return _Replicated.apply(x, ranks)  # type: ignore[no-untyped-call, no-any-return]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, what: str) -> Tensor:
        ctx.ranks, ctx.what = ranks, what
        return ranks.all_reduce(x, what)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return ctx.ranks.all_reduce(grad, f"gradients of {ctx.what}"), None, None


def sum_over_ranks(x: Tensor, ranks: Ranks, what: str) -> Tensor:
    """The sum over ranks, on each of them."""
    if ranks.size == 1:
        return x
    return _Sum.apply(x, ranks, what)  # type: ignore[no-untyped-call, no-any-return]


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        largest = ranks.all_reduce(part, "maxima of partial sums", ReduceOp.MAX)
        # (exp(N_r) - 1) exp(-a) with a = max N_r, without inf · 0 and without losing small ones.
        small = torch.exp(-largest) * torch.expm1(part.clamp(max=_SMALL))
        share = torch.where(part < _SMALL, small, torch.exp(part - largest) - torch.exp(-largest))
        total = ranks.all_reduce(share, "partial sums")
        moderate = torch.log1p(total * torch.exp(largest.clamp(max=_MODERATE)))
        large = largest + torch.log(total + torch.exp(-largest))
        combined = torch.where(largest < _MODERATE, moderate, large)
        ctx.save_for_backward(part, combined)
        ctx.ranks = ranks
        return combined

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        part, combined = ctx.saved_tensors
        grad = ctx.ranks.all_reduce(grad, "gradients of rows")
        return grad * torch.exp(part - combined), None


def combine(part: Tensor, ranks: Ranks) -> Tensor:
    """N [B] = log(1 + sum over all samples of exp(z - r)) from N_r of each rank's samples.

    exp(N) - 1 is the sum of exp(N_r) - 1, taken relative to the largest.
    """
    if ranks.size == 1:
        return part
    return _Combine.apply(part, ranks)  # type: ignore[no-untyped-call, no-any-return]


class _OwnRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, sizes: Sequence[int]) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        begin = sum(sizes[: ranks.rank])
        return x[begin : begin + sizes[ranks.rank]].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        whole = ctx.ranks.gather_rows(grad.contiguous(), ctx.sizes, "gradients of input rows")
        return whole, None, None


def own_rows(x: Tensor, ranks: Ranks, sizes: Sequence[int]) -> Tensor:
    """This rank's part of rows that all ranks have alike, and whose gradient all get whole."""
    if ranks.size == 1:
        return x
    return _OwnRows.apply(x, ranks, sizes)  # type: ignore[no-untyped-call, no-any-return]


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, sizes: Sequence[int] | None) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        if sizes is None:
            return ranks.all_reduce(x, "losses")
        return ranks.gather_rows(x, sizes, "losses of rows")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (grad,) = grads
        if ctx.sizes is None:
            return grad, None, None
        begin = sum(ctx.sizes[: ctx.ranks.rank])
        return grad[begin : begin + ctx.sizes[ctx.ranks.rank]], None, None


def shared_result(x: Tensor, ranks: Ranks, sizes: Sequence[int] | None) -> Tensor:
    """A result that all ranks have alike: the sum of their parts, or with `sizes` their rows.

    All go on from it in the same way, so that each has the whole gradient already.
    """
    if ranks.size == 1:
        return x
    return _Shared.apply(x, ranks, sizes)  # type: ignore[no-untyped-call, no-any-return]
