"""Any distribution over the classes, by an alias table."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..memory import prefer_huge_pages
from ..reference.sample import Weighted
from . import _ops
from ._inclusion import ordered_sum, solve_tries
from .base import Sampler

_SMALLEST = torch.finfo(torch.float64).tiny


class WeightedSampler(Sampler):
    """Draws class k with probability weights[k]^power / sum of all.

    An alias table (csrc/core/alias_table.h) built in O(C) makes a draw O(1). The table and the
    probabilities are buffers, so `.to(device)` and `state_dict` take them along; they are kept as
    int64, 16 bytes per class, which no `.half()` or `.bfloat16()` of a surrounding module rounds.

    Args:
        weights: [C] not negative, finite, at least one positive; need not sum to 1. A class of
            weight 0 is never drawn.
        power: exponent of the weights, e.g. 0.75 for word counts.

    Raises:
        ValueError: weights that are not as above, or a power that is not finite. TypeError: weights
            that are not a Tensor.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.WeightedSampler(torch.tensor([3.0, 0.0, 1.0]))
        >>> sampler.log_prob(torch.tensor([0, 1, 2])).exp()
        tensor([0.7500, 0.0000, 0.2500])
    """

    table: Tensor
    probability_bits: Tensor

    def __init__(self, weights: Tensor, power: float = 1.0) -> None:
        super().__init__()
        if not isinstance(power, (int, float)) or not math.isfinite(power):
            raise ValueError(f"WeightedSampler: power must be a finite number, got {power!r}")
        self.power = float(power)
        probabilities = self._normalise(weights)
        self.num_classes = probabilities.shape[0]
        self.num_drawable = int((probabilities > 0).sum())
        self.register_buffer("table", _ops.build_alias_table(probabilities).to(weights.device))
        bits = prefer_huge_pages(torch.empty(self.num_classes, dtype=torch.int64))
        bits.copy_(probabilities.view(torch.int64))
        self.register_buffer("probability_bits", bits.to(weights.device))

    def update(self, weights: Tensor) -> None:
        """Draw from other weights from now on; the buffers are overwritten in place.

        Args:
            weights: [C], as in the constructor, on any device.

        Raises:
            ValueError, TypeError: as the constructor, or a number of weights that is not C.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.WeightedSampler(torch.ones(2))
            >>> sampler.update(torch.tensor([1.0, 3.0]))
            >>> sampler.log_prob(torch.tensor([0, 1])).exp()
            tensor([0.2500, 0.7500])
        """
        probabilities = self._normalise(weights)
        if probabilities.shape[0] != self.num_classes:
            raise ValueError(
                f"WeightedSampler: weights must be [C={self.num_classes}], got"
                f" {list(weights.shape)}"
            )
        self.table.copy_(_ops.build_alias_table(probabilities))
        self.probability_bits.copy_(probabilities.view(torch.int64))
        self._weights_changed()

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, power={self.power:g}"

    def _normalise(self, weights: object) -> Tensor:
        """Probabilities, float64 [C] on the CPU; 0 exactly where the weight is."""
        name = "WeightedSampler"
        if not isinstance(weights, Tensor):
            raise TypeError(f"{name}: weights must be a Tensor, got {type(weights).__name__}")
        if weights.is_complex() or weights.dtype == torch.bool:
            raise TypeError(f"{name}: weights must be real numbers, got {weights.dtype}")
        if weights.dim() != 1 or weights.numel() == 0:
            raise ValueError(f"{name}: weights must be [C], C >= 1, got {list(weights.shape)}")
        w = weights.detach().to("cpu", torch.float64)
        bad = ~(torch.isfinite(w) & (w >= 0))
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"{name}: weights must be finite and not negative, got {float(w[first])} at"
                f" [{first}]"
            )
        positive = w > 0
        if not bool(positive.any()):
            raise ValueError(f"{name}: weights must have a positive sum, got {w.shape[0]} zeros")
        # Scaled to at most 1 after the power is taken, so that neither it nor the sum overflows.
        w = w / (w.max() if self.power >= 0 else w[positive].min())
        if self.power != 1.0:
            w = torch.where(positive, w.pow(self.power), 0.0)
        q = w / ordered_sum(w)
        return torch.where(positive, q.clamp(min=_SMALLEST), 0.0)

    def _proposal(self) -> Weighted:
        return Weighted(self.table, self.probability_bits)

    def _solve_tries(self, num_samples: int) -> float:
        if num_samples == self.num_drawable:
            return math.inf
        q = self.probability_bits.detach().cpu().view(torch.float64)
        return solve_tries(torch.log1p(-q[q > 0]), num_samples)

    def _device(self) -> torch.device:
        return self.table.device

    def _weights_changed(self) -> None:
        self.num_drawable = int((self.probability_bits != 0).sum())
        self._refresh_plans()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._weights_changed()
