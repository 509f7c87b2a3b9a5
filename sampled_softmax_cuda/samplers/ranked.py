"""Samplers by a formula over the ranks of classes, 0 to C - 1, with or without a table."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from .._arguments import check_int64
from .._checks import check_padding_idx
from ..proposals import Proposal
from .base import DrawOptions
from .keyed import KeyedSampler, Plan
from .weighted import WeightedSampler


class RankedSampler(KeyedSampler):
    """The probability of a class depends on its rank alone.

    The rank is the id itself, and nothing is stored; or the place in an order of the classes, or
    among those that are not padding: then the probabilities are listed in an alias table.
    """

    listed: WeightedSampler | None

    _ranks: Proposal
    """The formula's proposal, made once: small steps feel what every draw makes anew."""

    def _begin(
        self, num_classes: int, order: Tensor | None, padding_idx: int | None, persistent: bool
    ) -> None:
        self.num_classes = num_classes
        self.listed = None
        self._ranks = self._formula()
        if padding_idx is not None:
            self.padding_idx = check_padding_idx(self._name, padding_idx, num_classes)
            if num_classes == 1:
                raise ValueError(f"{self._name}: padding_idx={padding_idx} leaves no class of C=1")
        if order is None and padding_idx is None:
            return
        ids = _ranked_ids(self._name, order, num_classes, self.padding_idx)
        q = torch.zeros(num_classes, dtype=torch.float64, device="cpu")
        q[ids] = self._probabilities(ids.numel())
        device = torch.get_default_device() if order is None else order.device
        self.listed = WeightedSampler(q, persistent=persistent).to(device)

    @abstractmethod
    def _formula(self) -> Proposal:
        """The distribution whose ranks are the ids."""

    @abstractmethod
    def _probabilities(self, count: int) -> Tensor:
        """q of the ranks 0 to count - 1, float64 on the CPU."""

    @abstractmethod
    def _solve_formula(self, num_samples: int) -> float:
        """`_solve_tries` of the formula."""

    @property
    def num_drawable(self) -> int:
        """The number of classes with q > 0."""
        return self.num_classes if self.listed is None else self.listed.num_drawable

    def _proposal(self) -> Proposal:
        return self._ranks if self.listed is None else self.listed._proposal()

    def _plan(self, options: DrawOptions) -> Plan:
        return super()._plan(options) if self.listed is None else self.listed._plan(options)

    def _solve_tries(self, num_samples: int) -> float:
        if self.listed is None:
            return self._solve_formula(num_samples)
        return self.listed._solve_tries(num_samples)

    def _device(self) -> torch.device | None:
        return None if self.listed is None else self.listed._device()

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"num_classes={self.num_classes}{padding}"


def _ranked_ids(name: str, order: Tensor | None, num_classes: int, padding: int | None) -> Tensor:
    """The classes by rank, int64 on the CPU, without the padding.

    Raises:
        ValueError: an order that does not hold every class once; it may lack the padding.
    """
    if order is None:
        ids = torch.arange(num_classes, device="cpu")
    else:
        check_int64(name, "order", order)
        ids = order.detach().cpu()
    if padding is not None:
        ids = ids[ids != padding]
    expected = num_classes - (padding is not None)
    if ids.dim() != 1 or ids.numel() != expected:
        raise ValueError(
            f"{name}: order must be [C={num_classes}], every class once, the most frequent first,"
            f" got {[] if order is None else list(order.shape)}"
        )
    inside = ids[(ids >= 0) & (ids < num_classes)]
    if torch.unique(inside).numel() != expected:
        raise ValueError(
            f"{name}: order must hold every class in [0, C={num_classes}) once: it has"
            f" {torch.unique(inside).numel()} of them"
        )
    return ids
