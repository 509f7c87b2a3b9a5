"""Any distribution over the classes, by an alias table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import proposals
from .._arguments import as_float, as_int, check_int64, fail_tensor
from .._checks import check_padding_idx
from ..memory import prefer_huge_pages
from ..ops.sample import build_alias_table
from ..proposals import Proposal
from ._inclusion import list_tries, ordered_sum
from ._state import lasting
from ._table_check import check_alias_table
from .base import check_num_classes
from .keyed import KeyedSampler

_SMALLEST = torch.finfo(torch.float64).tiny
_LARGEST = torch.finfo(torch.float64).max


class WeightedSampler(KeyedSampler):
    """Draws class k with probability (weights[k] + smoothing)^power / sum of all.

    An alias table (csrc/core/alias_table.h) built in O(C) makes a draw O(1). The table and the
    probabilities, int64, 16 bytes per class, are taken along by `.to(device)` and `state_dict`, but
    are no buffers: no cast of a surrounding module rounds them, no DistributedDataParallel sends
    them around, no average of models mixes them. A table that is loaded, or that something else has
    written, is checked once, in O(C), before it is drawn from.

    Args:
        weights: [C] not negative, finite, at least one positive; need not sum to 1. A class of
            weight 0 is never drawn, and as a target its logit is not corrected; any other has a q
            of at least 2.2e-308.
        power: exponent of the weights, e.g. 0.75 for word counts.
        smoothing: added to every weight before the power is taken. Default 0. `update` keeps both.
        padding_idx: a class that is no class, as in the loss, and is never drawn, whatever its
            weight. None (default): every class is one.
        persistent: whether the state_dict has the table. Default True; False as of a buffer: a
            checkpoint need not have it, and whoever loads one builds the sampler.

    Weights on the meta device have no values: a draw is then a RuntimeError until
    `load_state_dict`, or, after `to_empty` or `.to(device)`, `update`, has given some.

    Raises:
        ValueError: weights that are not as above, a power that is not finite, a negative smoothing.
            TypeError: weights that are not a Tensor, a persistent that is not a bool.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.WeightedSampler(torch.tensor([3.0, 0.0, 1.0]))
        >>> sampler.log_prob(torch.tensor([0, 1, 2])).exp()
        tensor([0.7500, 0.0000, 0.2500])
    """

    _STATE = ("table", "probability_bits")

    table: Tensor
    """int64 [C], the alias table."""
    probability_bits: Tensor
    """int64 [C], the bits of the float64 probabilities."""

    def __init__(
        self,
        weights: Tensor,
        power: float = 1.0,
        smoothing: float = 0.0,
        *,
        padding_idx: int | None = None,
        persistent: bool = True,
    ) -> None:
        super().__init__()
        self.power = as_float("WeightedSampler", "power", power)
        if not math.isfinite(self.power):
            raise ValueError(f"WeightedSampler: power must be a finite number, got {power}")
        self.smoothing = as_float("WeightedSampler", "smoothing", smoothing)
        if not 0 <= self.smoothing < math.inf:
            raise ValueError(f"WeightedSampler: smoothing must be a number >= 0, got {smoothing}")
        _check_weights(weights)
        self.num_classes = weights.shape[0]
        if padding_idx is not None:
            self.padding_idx = check_padding_idx("WeightedSampler", padding_idx, self.num_classes)
        self._num_drawable = 0
        if weights.is_meta:
            nothing = torch.empty(self.num_classes, dtype=torch.int64, device="meta")
            table, bits = nothing, nothing
        else:
            with lasting():
                table, bits = self._build(self._normalise(weights))
        self._set_state(weights.device, persistent, table=table, probability_bits=bits)
        if not weights.is_meta:
            self._stamp()

    @property
    def num_drawable(self) -> int:
        """The number of classes with q > 0."""
        self._settle()
        return self._num_drawable

    @classmethod
    def from_counts(
        cls,
        counts: Tensor,
        *,
        power: float = 1.0,
        smoothing: float = 1.0,
        padding_idx: int | None = None,
        persistent: bool = True,
    ) -> WeightedSampler:
        """Draw class k with probability (counts[k] + smoothing)^power / sum of all.

        Args:
            counts: [C] integers or floats, how often each class was seen.
            power: e.g. 0.75, the exponent of word2vec, between counts and uniform. Default 1.
            smoothing: default 1, so that a class that was never seen can still be drawn, and has a
                finite correction as a target.
            padding_idx, persistent: as in the constructor.

        Raises:
            ValueError, TypeError: as the constructor.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.WeightedSampler.from_counts(torch.tensor([6, 0, 0]))
            >>> sampler.log_prob(torch.tensor([0, 1, 2])).exp()
            tensor([0.7778, 0.1111, 0.1111])
        """
        return cls(counts, power, smoothing, padding_idx=padding_idx, persistent=persistent)

    @classmethod
    def from_targets(
        cls,
        target: Tensor,
        num_classes: int,
        *,
        power: float = 1.0,
        smoothing: float = 1.0,
        ignore_index: int = -100,
        padding_idx: int | None = None,
        persistent: bool = True,
    ) -> WeightedSampler:
        """`from_counts` of the classes in `target`, such as all targets of a training set.

        Args:
            target: int64 of any shape; ignore_index and ids outside [0, num_classes) don't count.
            num_classes: C.
            power, smoothing: as in `from_counts`.
            ignore_index: a target that doesn't count. Default -100.
            padding_idx, persistent: as in the constructor.

        Raises:
            ValueError, TypeError: as the constructor; a target that is not int64.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> target = torch.tensor([[2, 2], [0, -100]])
            >>> sampler = ssc.WeightedSampler.from_targets(target, 3, smoothing=0.0)
            >>> sampler.log_prob(torch.tensor([0, 1, 2])).exp()
            tensor([0.3333, 0.0000, 0.6667])
        """
        name = "WeightedSampler.from_targets"
        check_int64(name, "target", target)
        num_classes = check_num_classes(name, num_classes, 2**62)
        ignore_index = as_int(name, "ignore_index", ignore_index)
        ids = target.detach().reshape(-1)
        ids = ids[(ids >= 0) & (ids < num_classes) & (ids != ignore_index)]
        counts = torch.bincount(ids, minlength=num_classes)
        return cls(counts, power, smoothing, padding_idx=padding_idx, persistent=persistent)

    def update(self, weights: Tensor) -> None:
        """Draw from other weights from now on; the tensors are overwritten in place.

        Args:
            weights: [C], as in the constructor, on any device but meta.

        Raises:
            ValueError, TypeError: as the constructor, or a number of weights that is not C.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.WeightedSampler(torch.ones(2))
            >>> sampler.update(torch.tensor([1.0, 3.0]))
            >>> sampler.log_prob(torch.tensor([0, 1])).exp()
            tensor([0.2500, 0.7500])
        """
        _check_weights(weights)
        if weights.is_meta:
            raise ValueError("WeightedSampler: weights must have values, got some on meta")
        with lasting():
            probabilities = self._normalise(weights)
            if probabilities.shape[0] != self.num_classes:
                raise ValueError(
                    f"WeightedSampler: weights must be [C={self.num_classes}], got"
                    f" {list(weights.shape)}"
                )
            table, bits = self._build(probabilities)
            self._overwrite(table=table, probability_bits=bits)
            self._accept({})

    def extra_repr(self) -> str:
        smoothing = f", smoothing={self.smoothing:g}" if self.smoothing else ""
        return f"num_classes={self.num_classes}, power={self.power:g}{smoothing}"

    def _build(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """The table and the bits of the probabilities, on the CPU; counts those that are > 0."""
        self._num_drawable = int(torch.count_nonzero(probabilities))
        return build_alias_table(probabilities), probabilities.view(torch.int64)

    def _normalise(self, weights: Tensor) -> Tensor:
        """Probabilities, float64 [C] on the CPU, a tensor of their own; 0 where the weight is.

        A pass over tens of megabytes costs more than the arithmetic: each one here is needed.
        """
        name = "WeightedSampler"
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
        if self.padding_idx is not None:
            w[self.padding_idx] = 0.0
            least, largest = 0.0, float(w.max())
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

    def _proposal(self) -> Proposal:
        self._settle()
        return proposals.weighted(self.table, self.probability_bits, self._num_drawable)

    def _solve_tries(self, num_samples: int) -> float:
        return list_tries(self._probabilities().cpu(), num_samples)

    def _draws_of_all(self) -> float:
        q = self._probabilities()
        return 1.0 / float(q[q > 0].min())

    def _probabilities(self) -> Tensor:
        return self._known("probability_bits").view(torch.float64)

    def _derive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in values.items():
            if value.shape != (self.num_classes,) or value.dtype != torch.int64:
                raise ValueError(
                    f"{name} must be int64 [C={self.num_classes}], got {value.dtype}"
                    f" {list(value.shape)}"
                )
        q = values["probability_bits"].view(torch.float64)
        return {"_num_drawable": check_alias_table(values["table"], q)}

    def _advice(self, problem: str) -> str:
        return f"{super()._advice(problem)}, or, on a device with memory, by update(weights)"


def _check_weights(weights: object) -> None:
    """weights are [C] real numbers."""
    name = "WeightedSampler"
    if not isinstance(weights, Tensor):
        fail_tensor(name, "weights", weights)
    if weights.is_complex() or weights.dtype == torch.bool:
        raise TypeError(f"{name}: weights must be real numbers, got {weights.dtype}")
    if weights.dim() != 1 or weights.numel() == 0:
        raise ValueError(f"{name}: weights must be [C], C >= 1, got {list(weights.shape)}")
