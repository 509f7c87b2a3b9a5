"""Zipf's law, for classes sorted by falling frequency."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import proposals
from ..proposals import Proposal
from ._inclusion import log_uniform_tries
from .base import check_num_classes
from .ranked import RankedSampler


class LogUniformSampler(RankedSampler):
    """Draws the class of rank r with probability log((r + 2) / (r + 1)) / log(num_classes + 1).

    About 1 / r: the proposal for words sorted by falling frequency, whose rank is their id. Nothing
    is stored then, and nothing takes time or memory that grows with the number of classes.

    Args:
        num_classes: C, below 2^52.
        order: [C] int64, the classes by falling frequency, such as `counts.argsort(descending=
            True)`, for ids that are not sorted; it may lack the padding. With it, the sampler is a
            table of 16 bytes per class. None (default): the ids are sorted.
        padding_idx: a class that is no class and is never drawn, as in the loss; those behind it
            move up one rank. A table too. None (default): every class is one.
        persistent: whether the state_dict has that table. Default False: the arguments make it.

    Raises:
        ValueError, TypeError: arguments that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.LogUniformSampler(50_000)
        >>> float(sampler.log_prob(torch.tensor(0)).exp())
        0.06406...
        >>> counts = torch.tensor([3, 90, 20])
        >>> sampler = ssc.LogUniformSampler(3, order=counts.argsort(descending=True))
        >>> sampler.log_prob(torch.tensor([1, 2, 0])).exp()
        tensor([0.5000, 0.2925, 0.2075])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        order: Tensor | None = None,
        padding_idx: int | None = None,
        persistent: bool = False,
    ) -> None:
        super().__init__()
        num_classes = check_num_classes("LogUniformSampler", num_classes, 2**52 - 1)
        self._begin(num_classes, order, padding_idx, persistent)

    def _formula(self) -> Proposal:
        return proposals.log_uniform(self.num_classes)

    def _probabilities(self, count: int) -> Tensor:
        rank = torch.arange(count, dtype=torch.float64, device="cpu")
        return torch.log1p(1.0 / (rank + 1.0)) / math.log(count + 1)

    def _solve_formula(self, num_samples: int) -> float:
        return log_uniform_tries(self.num_classes, num_samples)
