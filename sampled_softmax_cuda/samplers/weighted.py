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
from .base import Sampler, check_num_classes

_SMALLEST = torch.finfo(torch.float64).tiny
_LARGEST = torch.finfo(torch.float64).max


class WeightedSampler(Sampler):
    """Draws class k with probability (weights[k] + smoothing)^power / sum of all.

    An alias table (csrc/core/alias_table.h) built in O(C) makes a draw O(1). The table and the
    probabilities are buffers, so `.to(device)` and `state_dict` take them along; they are kept as
    int64, 16 bytes per class, which no `.half()` or `.bfloat16()` of a surrounding module rounds.

    Args:
        weights: [C] not negative, finite, at least one positive; need not sum to 1. A class of
            weight 0 is never drawn, and as a target its logit is not corrected.
        power: exponent of the weights, e.g. 0.75 for word counts.
        smoothing: added to every weight before the power is taken. Default 0. `update` keeps both.

    Raises:
        ValueError: weights that are not as above, a power that is not finite, a negative smoothing.
            TypeError: weights that are not a Tensor.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.WeightedSampler(torch.tensor([3.0, 0.0, 1.0]))
        >>> sampler.log_prob(torch.tensor([0, 1, 2])).exp()
        tensor([0.7500, 0.0000, 0.2500])
    """

    table: Tensor
    probability_bits: Tensor

    def __init__(self, weights: Tensor, power: float = 1.0, smoothing: float = 0.0) -> None:
        super().__init__()
        if not isinstance(power, (int, float)) or not math.isfinite(power):
            raise ValueError(f"WeightedSampler: power must be a finite number, got {power!r}")
        self.power = float(power)
        if not isinstance(smoothing, (int, float)) or not 0 <= smoothing < math.inf:
            raise ValueError(f"WeightedSampler: smoothing must be a number >= 0, got {smoothing!r}")
        self.smoothing = float(smoothing)
        probabilities = self._normalise(weights)
        self.num_classes = probabilities.shape[0]
        self.num_drawable = int(torch.count_nonzero(probabilities))
        self.register_buffer("table", _ops.build_alias_table(probabilities).to(weights.device))
        bits = probabilities.view(torch.int64)
        self.register_buffer("probability_bits", bits.to(weights.device))

    @classmethod
    def from_counts(
        cls, counts: Tensor, *, power: float = 1.0, smoothing: float = 1.0
    ) -> WeightedSampler:
        """Draw class k with probability (counts[k] + smoothing)^power / sum of all.

        Args:
            counts: [C] integers or floats, how often each class was seen.
            power: e.g. 0.75, the exponent of word2vec, between counts and uniform. Default 1.
            smoothing: default 1, so that a class that was never seen can still be drawn, and has a
                finite correction as a target.

        Raises:
            ValueError, TypeError: as the constructor.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.WeightedSampler.from_counts(torch.tensor([6, 0, 0]))
            >>> sampler.log_prob(torch.tensor([0, 1, 2])).exp()
            tensor([0.7778, 0.1111, 0.1111])
        """
        return cls(counts, power, smoothing)

    @classmethod
    def from_targets(
        cls,
        target: Tensor,
        num_classes: int,
        *,
        power: float = 1.0,
        smoothing: float = 1.0,
        ignore_index: int = -100,
    ) -> WeightedSampler:
        """`from_counts` of the classes in `target`, such as all targets of a training set.

        Args:
            target: int64 of any shape; ignore_index and ids outside [0, num_classes) don't count.
            num_classes: C.
            power, smoothing: as in `from_counts`.
            ignore_index: a target that doesn't count. Default -100.

        Raises:
            ValueError, TypeError: as the constructor; a target that is not int64.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> target = torch.tensor([[2, 2], [0, -100]])
            >>> sampler = ssc.WeightedSampler.from_targets(target, 3, smoothing=0.0)
            >>> sampler.log_prob(torch.tensor([0, 1, 2])).exp()
            tensor([0.3333, 0.0000, 0.6667])
        """
        if not isinstance(target, Tensor) or target.dtype != torch.int64:
            got = target.dtype if isinstance(target, Tensor) else type(target).__name__
            raise TypeError(f"WeightedSampler.from_targets: target must be int64, got {got}")
        check_num_classes("WeightedSampler.from_targets", num_classes, 2**62)
        ids = target.detach().reshape(-1)
        ids = ids[(ids >= 0) & (ids < num_classes) & (ids != ignore_index)]
        return cls(torch.bincount(ids, minlength=num_classes), power, smoothing)

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
        smoothing = f", smoothing={self.smoothing:g}" if self.smoothing else ""
        return f"num_classes={self.num_classes}, power={self.power:g}{smoothing}"

    def _normalise(self, weights: object) -> Tensor:
        """Probabilities, float64 [C] on the CPU, a tensor of their own; 0 where the weight is.

        A pass over tens of megabytes costs more than the arithmetic: each one here is needed.
        """
        name = "WeightedSampler"
        if not isinstance(weights, Tensor):
            raise TypeError(f"{name}: weights must be a Tensor, got {type(weights).__name__}")
        if weights.is_complex() or weights.dtype == torch.bool:
            raise TypeError(f"{name}: weights must be real numbers, got {weights.dtype}")
        if weights.dim() != 1 or weights.numel() == 0:
            raise ValueError(f"{name}: weights must be [C], C >= 1, got {list(weights.shape)}")
        w = torch.empty(weights.shape[0], dtype=torch.float64, device="cpu")
        prefer_huge_pages(w)
        w.copy_(weights.detach())
        least, largest = (float(x) for x in w.aminmax())
        if not (least >= 0 and largest < math.inf):
            first = int((~(torch.isfinite(w) & (w >= 0))).nonzero()[0])
            raise ValueError(
                f"{name}: weights must be finite and not negative, got {float(w[first])} at"
                f" [{first}]"
            )
        if self.smoothing > 0:
            w += self.smoothing
            least, largest = least + self.smoothing, largest + self.smoothing
        if largest == 0:
            raise ValueError(f"{name}: weights must have a positive sum, got {w.shape[0]} zeros")
        # Quotients of other types than float64 stay in its range, and so do those of a least weight
        # that does; otherwise no positive weight may become 0.
        positive = None
        if self.power != 1.0 or largest > _LARGEST / w.shape[0]:
            positive = w > 0
            # Scaled to at most 1 after the power: neither it nor the sum overflows.
            w /= largest if self.power >= 0 else float(torch.where(positive, w, largest).min())
            if self.power != 1.0:
                w.pow_(self.power)
        elif weights.dtype == torch.float64 and least / largest / w.shape[0] < _SMALLEST:
            positive = w > 0
        if positive is None:
            return w.div_(ordered_sum(w))
        w.masked_fill_(~positive, 0.0)
        return w.div_(ordered_sum(w)).clamp_(min=_SMALLEST).masked_fill_(~positive, 0.0)

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
        self.num_drawable = int(torch.count_nonzero(self.probability_bits))
        self._refresh_plans()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._weights_changed()
