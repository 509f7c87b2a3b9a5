"""Every class alike."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import proposals
from ..proposals import Proposal
from ._inclusion import uniform_tries
from .base import check_num_classes
from .ranked import RankedSampler


class UniformSampler(RankedSampler):
    """Draws every class with the same probability, 1 / num_classes.

    Args:
        num_classes: C, any number below 2^63.
        padding_idx: a class that is no class and is never drawn, as in the loss; the others then
            have 1 / (num_classes - 1), in a table of 16 bytes per class. None (default): all are.
        persistent: whether the state_dict has that table. Default False: the arguments make it.

    Raises:
        ValueError, TypeError: arguments that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.UniformSampler(2**40)
        >>> sampler.sample(torch.tensor([7]), 4).ids.shape
        torch.Size([4])
    """

    def __init__(
        self, num_classes: int, *, padding_idx: int | None = None, persistent: bool = False
    ) -> None:
        super().__init__()
        num_classes = check_num_classes("UniformSampler", num_classes, 2**63 - 1)
        self._begin(num_classes, None, padding_idx, persistent)

    def _formula(self) -> Proposal:
        return proposals.uniform(self.num_classes)

    def _probabilities(self, count: int) -> Tensor:
        return torch.full((count,), 1.0 / count, dtype=torch.float64, device="cpu")

    def _solve_formula(self, num_samples: int) -> float:
        return uniform_tries(self.num_classes, num_samples)
