"""The autograd of operators, under torch.func's transforms as well.

Kernels know one derivative, the reverse one, so they serve outside of transforms, and inside one
level of reverse mode: `torch.func.grad`, `vjp`, `jacrev`. Everything else (`jvp`, `jacfwd`,
`hessian`, `vmap`, tangents of `torch.autograd.forward_ad`, transforms under torch.compile) is
computed by the reference, which is plain PyTorch and has every derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from .._build import operator_name
from .._transforms import transforming
from .library import operators

NO_DOUBLE_BACKWARD = (
    "sampled_softmax_loss: a second derivative (create_graph=True, double backward) is not"
    " supported by the compiled kernels; use sampled_softmax_cuda.reference.sampled_softmax_loss,"
    " or SSC_BACKEND=reference"
)

_functions: dict[str, type[torch.autograd.Function]] = {}


def refuse_double_backward() -> None:
    """RuntimeError if this backward pass is to be differentiated itself."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(NO_DOUBLE_BACKWARD)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # a generator would take longer
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def kernel_serves(operator: str) -> bool:
    """Whether the operator's kernel serves under the transforms that are at work."""
    if operator not in _functions or torch.compiler.is_compiling():
        return False
    stack = get_interpreter_stack() or []
    in_reverse = [level.key() == TransformType.Grad for level in stack]
    return in_reverse == [True] and forward_ad._current_level < 0


def operator(name: str) -> Callable[..., Any]:
    """The operator of this name, in the form that the transforms at work can see through."""
    if transforming():
        return _functions[name].apply
    return getattr(operators, name)  # type: ignore[no-any-return]


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """`torch.library.register_autograd`, and the same gradient under torch.func.

    torch makes a Function of the two that torch.func refuses; this one it takes.
    """
    torch.library.register_autograd(operator_name(name), backward, setup_context=setup_context)
    _functions[name] = _make_function(name, backward, setup_context)


class _Record(SimpleNamespace):
    """In place of a ctx: keeps what a `setup_context` puts there."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.constant = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.materialize = value


class _Backward(torch.autograd.Function):
    """A backward pass as a Function: torch.func always asks for a graph of it, and only who goes
    back through that graph is refused."""

    @staticmethod
    def forward(
        backward: Callable[..., Any], record: _Record, num_saved: int, *tensors: Any
    ) -> Any:
        ctx = _Record(**{**vars(record), "saved_tensors": tensors[:num_saved]})
        return backward(ctx, *tensors[num_saved:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """One after the other, as `jacrev` asks for: the kernels have no batches of batches."""
        parts = []
        for place in range(info.batch_size):
            pairs = zip(inputs, in_dims, strict=True)
            one = [value if dim is None else value.select(dim, place) for value, dim in pairs]
            parts.append(_Backward.apply(*one))  # type: ignore[no-untyped-call]
        columns = list(zip(*parts, strict=True))
        result = tuple(None if c[0] is None else torch.stack(c) for c in columns)
        return result, tuple(None if c is None else 0 for c in result)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(NO_DOUBLE_BACKWARD)


def _make_function(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> type[torch.autograd.Function]:
    def forward(*arguments: Any) -> Any:
        return getattr(operators, name)(*arguments)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        record = _Record(constant=(), materialize=True)
        setup_context(record, inputs, output)
        ctx.save_for_backward(*record.saved_tensors)
        ctx.mark_non_differentiable(*record.constant)
        ctx.set_materialize_grads(record.materialize)
        record.saved_tensors = record.constant = ()
        ctx.record = record

    def back(ctx: Any, *grads: Tensor | None) -> Any:
        ctx.record.needs_input_grad = ctx.needs_input_grad
        saved = ctx.saved_tensors
        return _Backward.apply(backward, ctx.record, len(saved), *saved, *grads)  # type: ignore[no-untyped-call]

    members = {"forward": forward, "setup_context": setup, "backward": back}
    methods = {key: staticmethod(member) for key, member in members.items()}
    return type(f"Func_{name}", (torch.autograd.Function,), methods)
