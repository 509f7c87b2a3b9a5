"""Steps in the backward pass: each gradient is used and freed as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

from .base import RowOptimizer

Kind = TypeVar("Kind", bound=RowOptimizer)


def in_backward(
    parameters: nn.Module | Tensor | Iterable[Tensor], optimizer: type[Kind], **options: Any
) -> Kind:
    """Make an optimizer whose steps are taken in the backward pass.

    As soon as the gradient of a parameter is complete, the parameter takes its step and the
    gradient is freed, so that no two gradients are there at once. `loss.backward()` is the whole
    step then; `optimizer.step()` has nothing left to do. Learning rate schedulers and state_dict
    work as usual. Clipping by a norm of all gradients, GradScaler and several backward passes
    before a step need gradients that stay: they can't be combined with this.

    Args:
        parameters: a module, or parameters.
        optimizer: the class, such as `sampled_softmax_cuda.optim.AdamW`.
        **options: its options, such as lr.

    Returns:
        The optimizer. `optimizer.leave_backward()` ends it: gradients stay from then on.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> head = ssc.SampledSoftmaxLoss(16, 1000, num_samples=64, sparse_grad=True)
        >>> optimizer = ssc.optim.in_backward(head, ssc.optim.Adagrad, lr=0.1)
        >>> head(torch.randn(8, 16), torch.randint(1000, (8,))).backward()
        >>> head.weight.grad is None
        True
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, RowOptimizer)):
        raise TypeError(
            "optim.in_backward: optimizer must be a class of sampled_softmax_cuda.optim, got"
            f" {optimizer!r}; options such as lr come after it"
        )
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    elif isinstance(parameters, Tensor):
        parameters = [parameters]
    made = optimizer(list(parameters), **options)
    made.enter_backward()
    return made
