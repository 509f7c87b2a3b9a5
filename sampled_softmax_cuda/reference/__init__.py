"""The compiled kernels' twins in plain, readable PyTorch, on any device.

Tests compare the kernels with these, and they serve where no kernel does: when the library is not
built, with SSC_BACKEND=reference, and on devices without kernels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..samples import KeyedSamples, Samples
from .row_update import gradient_faults, row_update

__all__ = ["gradient_faults", "row_update", "sampled_softmax_loss"]


def sampled_softmax_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples | KeyedSamples,
    **options: Any,
) -> Any:
    """`sampled_softmax_cuda.sampled_softmax_loss` in plain PyTorch: same arguments and results.

    Differentiable twice when `sparse_grad` is False.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> h, weight = torch.ones(2, 3), torch.zeros(10, 3)
        >>> samples = ssc.Samples(torch.tensor([0, 1, 2]))
        >>> ssc.reference.sampled_softmax_loss(h, weight, torch.tensor([7, 8]), samples)  # log 4
        tensor(1.3863)
    """
    from ..losses.problem import check_ids, finish, make_problem
    from .problem import reference

    name = "reference.sampled_softmax_loss"
    problem = make_problem(name, input, weight, target, samples, **options)
    check_ids(name, problem)
    return finish(problem, *reference(problem))
