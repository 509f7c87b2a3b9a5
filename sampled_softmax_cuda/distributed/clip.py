"""Clipping of gradients of which every rank has a part."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from .._arguments import describe
from ..optim.clip import check_norm, gradient_values
from .call import Layout
from .owners import shard_layouts

_NAME = "distributed.clip_grad_norm_"

Clipped = Tensor | nn.Module


@torch.no_grad()
def clip_grad_norm_(
    parameters: Clipped | Iterable[Clipped],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ over the gradients of all ranks: one norm, and one factor, so
    that ranks stay equal; collective.

    The rows of heads are counted over the ranks of their class group, once for all replicas.
    DTensors, such as those of `fully_shard`, are counted over their own mesh. All other gradients
    are taken for those of one process, equal on all ranks, as under DistributedDataParallel. The
    norm is that of `sampled_softmax_cuda.optim.clip_grad_norm_` in one process.

    Args:
        parameters: modules, parameters or both; which of them are shards of a
            `ShardedSampledSoftmaxLoss` is known, but not of parameters of your own that
            `sharded_sampled_softmax_loss` takes. Those without a gradient are left out, but all
            ranks must pass the same ones.
        max_norm: the largest norm of all gradients together, at least 0.
        norm_type: p of the p-norm, above 0, such as 2.0 (default), 1.0 or float("inf").
        error_if_nonfinite: RuntimeError if the norm is inf or NaN, on all ranks; waits for a GPU.
        foreach: as torch's.

    Returns:
        The norm before clipping, a scalar, the same on all ranks. Nothing waits for it.

    Raises:
        TypeError, ValueError: arguments that are not as above or, on the CPU, differ between ranks.
        RuntimeError: on the CPU, a rank that does something else meanwhile.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> body = torch.nn.Linear(16, 16)
        >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64, sparse_grad=True)
        >>> head(body(torch.randn(8, 16)), torch.randint(1000, (8,))).backward()
        >>> norm = ssc.distributed.clip_grad_norm_([body, head], 0.01)
        >>> round(float(ssc.distributed.clip_grad_norm_([body, head], 0.01)), 4)
        0.01
    """
    max_norm, norm_type = check_norm(_NAME, max_norm, norm_type)
    known = _parameters(parameters)
    shards = shard_layouts(known)
    plain: list[Tensor] = []
    # In the order of the parameters, which is that of the exchanges, the same on all ranks.
    on_ranks: dict[int, tuple[Layout, list[Tensor]]] = {}
    on_meshes: dict[object, list[Tensor]] = {}
    for p in known:
        if p in shards:
            on_ranks.setdefault(id(shards[p].ranks.group), (shards[p], []))[1].append(p)
        elif isinstance(p.grad, DTensor):
            on_meshes.setdefault((p.grad.device_mesh, p.grad.placements), []).append(p.grad)
        else:
            plain.append(p)
    for layout, rows in on_ranks.values():
        if rows[0].device.type == "cpu":  # a GPU would be waited for
            same = {"max_norm": max_norm, "norm_type": norm_type, "the number of shards": len(rows)}
            layout.agreement.open("clip_grad_norm_", rows[0].device, options=same)
    values = gradient_values(plain)
    norms = [get_total_norm(values, norm_type, foreach=foreach)] if values else []
    for grads in on_meshes.values():
        norm = get_total_norm(grads, norm_type, foreach=foreach)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        values += [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
    for layout, rows in on_ranks.values():
        own = gradient_values(rows)  # none on a rank without rows
        norm = get_total_norm(own, norm_type, foreach=foreach)
        double = any(p.dtype == torch.float64 for p in rows)
        norm = norm.to(rows[0].device, torch.float64 if double else torch.float32)
        # The norm of norms: no power of them is formed that could overflow.
        norms.append(_joined(list(layout.ranks.gather(norm, "norms of gradients")), norm_type))
        values += own
    if not norms:
        return torch.tensor(0.0)
    total = _joined(norms, norm_type)
    if error_if_nonfinite and not bool(total.isfinite()):
        raise RuntimeError(
            f"{_NAME}: the norm of all gradients is {float(total)}: look for the step that made"
            " them inf or NaN, or use error_if_nonfinite=False"
        )
    coefficient = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(coefficient.to(value.device))
    return total


def _parameters(given: Clipped | Iterable[Clipped]) -> list[Tensor]:
    """The parameters of modules and those that are given, each once."""
    items = [given] if isinstance(given, (Tensor, nn.Module)) else list(given)
    found: dict[Tensor, None] = {}
    for item in items:
        if isinstance(item, nn.Module):
            found.update(dict.fromkeys(item.parameters()))
        elif isinstance(item, Tensor):
            found[item] = None
        else:
            raise TypeError(
                f"{_NAME}: parameters must be modules and tensors, got {describe(item)}"
            )
    return list(found)


def _joined(norms: list[Tensor], norm_type: float) -> Tensor:
    """The norm of norms, on the device of the first."""
    dtype = norms[0].dtype
    for norm in norms[1:]:
        dtype = torch.promote_types(dtype, norm.dtype)
    same = torch.stack([norm.to(norms[0].device, dtype) for norm in norms])
    joined: Tensor = torch.linalg.vector_norm(same, norm_type)
    return joined
