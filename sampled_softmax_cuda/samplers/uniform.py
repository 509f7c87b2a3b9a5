"""Every class alike."""

from __future__ import annotations

from ..reference.sample import Uniform
from ._inclusion import uniform_tries
from .base import Sampler, check_num_classes


class UniformSampler(Sampler):
    """Draws every class with probability 1 / num_classes.

    Args:
        num_classes: C, any number below 2^63.

    Raises:
        ValueError, TypeError: num_classes is not a positive int.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.UniformSampler(2**40)
        >>> sampler.sample(torch.tensor([7]), 4).ids.shape
        torch.Size([4])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = check_num_classes("UniformSampler", num_classes, 2**63 - 1)

    def _proposal(self) -> Uniform:
        return Uniform(self.num_classes)

    def _solve_tries(self, num_samples: int) -> float:
        return uniform_tries(self.num_classes, num_samples)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}"
