"""Weights whose rows are spread over processes, for functions that take them whole."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ._parallel import is_dtensor, refuse_dtensor


def gathered(fn: str, weight: Any, bias: Any, sparse_grad: bool = False) -> tuple[Any, Any]:
    """The weight and the bias with all rows: a DTensor, `Shard(0)` or `Replicate()` over each
    dimension of its mesh, is gathered; collective.

    Its gradient is a DTensor again, the average over the mesh: what `fully_shard` makes of rows of
    the batch that differ between processes, and the gradient itself where all have the same.
    Everything else is returned as it is.

    Raises:
        TypeError: a DTensor that lies otherwise, or one that should have a row-sparse gradient.
    """
    return _gathered(fn, "weight", weight, sparse_grad), _gathered(fn, "bias", bias, sparse_grad)


def _gathered(fn: str, name: str, value: Any, sparse_grad: bool) -> Any:
    if not is_dtensor(value):
        return value
    if not all(place.is_replicate() or place.is_shard(0) for place in value.placements):
        refuse_dtensor(fn, name, value)
    if sparse_grad:
        raise TypeError(
            f"{fn}: sparse_grad=True, but {name} is a DTensor, which has dense gradients only: use"
            " ssc.distributed.ShardedSampledSoftmaxLoss, whose ranks own their rows, or"
            " sparse_grad=False; see docs/distributed.md"
        )
    mesh = value.device_mesh
    partial = sys.modules["torch.distributed.tensor"].Partial()
    whole: Tensor = value.full_tensor(grad_placements=[partial] * mesh.ndim)
    if whole.requires_grad and torch.is_grad_enabled():
        # By a factor, because gloo has no average.
        whole.register_hook(lambda grad: grad / mesh.size())  # type: ignore[no-untyped-call]
    return whole
