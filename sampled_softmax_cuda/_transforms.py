"""Whether torch.func's transforms or forward-mode AD are at work, and on which tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of torch.func is at work; Dynamo knows the answer too."""


def transformed(*tensors: Tensor | None) -> bool:
    """Whether these tensors may carry more than a gradient: a tangent, a batch, a level of grad."""
    if transforming():
        return True
    if forward_ad._current_level < 0:
        return False
    # A tracer doesn't see which tensors have tangents.
    return torch.compiler.is_compiling() or any(map(_has_tangent, tensors))


def _has_tangent(tensor: Tensor | None) -> bool:
    if tensor is None:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor below torch.func's wrappers: all values of a batch, which checks may look at."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor
