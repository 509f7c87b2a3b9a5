"""Where torch can take a row-sparse gradient: said before the forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._transforms import transformed

_PAGE = "see docs/sparse_gradients.md"

# torch takes a row-sparse gradient back through these; and an Expand that changes no shape.
_TAKE_SPARSE = frozenset(
    f"{name}Backward{number}"
    for name in ("Add", "Sub", "Rsub", "Neg", "Mul", "Clone", "Alias", "Expand", "Squeeze")
    for number in range(3)
)


def _refusing_node(node: Any) -> Any:
    """The nearest node behind a tensor's `grad_fn` that takes no row-sparse gradient, or None."""
    kind = type(node).__name__
    if kind == "AccumulateGrad" or isinstance(node, torch.autograd.function.BackwardCFunction):
        return None
    behind = [function for function, _ in node.next_functions if function is not None]
    divided = kind == "DivBackward0" and len(behind) == 1  # by a constant
    if kind not in _TAKE_SPARSE and not divided:
        return node
    return next(filter(None, map(_refusing_node, behind)), None)


def check_takes_sparse(fn: str, name: str, parameter: Tensor | None) -> None:
    """ValueError if a row-sparse gradient cannot go on to what `parameter` is computed from.

    torch would say so in the backward pass, in words of its own. Not under torch.compile, which
    keeps no record of how its inputs were computed.
    """
    if parameter is None or torch.compiler.is_compiling() or parameter.grad_fn is None:
        return
    node = _refusing_node(parameter.grad_fn) if torch.is_grad_enabled() else None
    if node is not None:
        raise ValueError(
            f"{fn}: sparse_grad=True needs the parameter itself as {name}, got a tensor computed by"
            f" {type(node).__name__.split('Backward')[0]}, through which torch takes no sparse"
            f" gradient back; make the result a parameter of its own, or pass sparse_grad=False;"
            f" {_PAGE}"
        )


def sparse_grad_fits(fn: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether gradients can be row-sparse. ValueError where they are wanted and cannot be."""
    if transformed(input, weight, bias):
        parameters = (weight,) if bias is None else (weight, bias)
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            raise ValueError(
                f"{fn}: sparse_grad must be False under torch.func and with tangents of"
                " torch.autograd.forward_ad, which know dense gradients only, got True"
            )
        return False
    check_takes_sparse(fn, "weight", weight)
    check_takes_sparse(fn, "bias", bias)
    return True
