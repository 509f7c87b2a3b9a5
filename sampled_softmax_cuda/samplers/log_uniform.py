"""Zipf's law, for classes sorted by falling frequency."""

from __future__ import annotations

from ..reference.sample import LogUniform
from ._inclusion import log_uniform_tries
from .base import Sampler, check_num_classes


class LogUniformSampler(Sampler):
    """Draws class k with probability log((k + 2) / (k + 1)) / log(num_classes + 1).

    About 1 / k: the proposal for words sorted by falling frequency. Nothing is stored, and nothing
    takes time or memory that grows with the number of classes.

    Args:
        num_classes: C, below 2^52.

    Raises:
        ValueError, TypeError: num_classes is not an int in [1, 2^52).

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.LogUniformSampler(50_000)
        >>> float(sampler.log_prob(torch.tensor(0)).exp())
        0.06406...
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = check_num_classes("LogUniformSampler", num_classes, 2**52 - 1)

    def _proposal(self) -> LogUniform:
        return LogUniform(self.num_classes)

    def _solve_tries(self, num_samples: int) -> float:
        return log_uniform_tries(self.num_classes, num_samples)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}"
