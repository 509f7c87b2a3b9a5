"""A proposal by weights, of which every rank has those of its own rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._arguments import as_float, fail_tensor
from .shard import ClassShard
from .tables import ShardedTable


class ShardedWeightedSampler(ShardedTable):
    """A `WeightedSampler` of which every rank has its own rows: 16 bytes for each class it owns.

    No rank ever needs the weights of all classes. Where one has them, `WeightedSampler.shard` makes
    it too.

    Args:
        weights: [C_r], those of `shard.classes` in this order, as in `WeightedSampler`; on some
            ranks they may all be zero.
        shard: which classes are whose; that of a head with the same `num_classes`, `mesh` and
            `class_order` fits.
        power, smoothing, padding_idx, persistent: as in `WeightedSampler`.

    The state_dict has `weights`, float64 [C] after smoothing and power, as a DTensor `Shard(0)`,
    which torch.distributed.checkpoint loads into any number of ranks.

    Raises:
        ValueError, TypeError: arguments that are not as above.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> shard = ssc.distributed.ClassShard(1000)  # one process: all classes
        >>> weights = 1.0 / (shard.classes + 1)
        >>> sampler = ssc.distributed.ShardedWeightedSampler(weights, shard)
        >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64, sampler)
        >>> head.draw
        'composed'
    """

    def __init__(
        self,
        weights: Tensor,
        shard: ClassShard,
        power: float = 1.0,
        smoothing: float = 0.0,
        *,
        padding_idx: int | None = None,
        persistent: bool = True,
    ) -> None:
        super().__init__(shard, padding_idx)
        self.power = as_float(self._name, "power", power)
        self.smoothing = as_float(self._name, "smoothing", smoothing)
        if not math.isfinite(self.power):
            raise ValueError(f"{self._name}: power must be a finite number, got {power}")
        if not 0 <= self.smoothing < math.inf:
            raise ValueError(f"{self._name}: smoothing must be a number >= 0, got {smoothing}")
        self._set_state(torch.device("cpu"), persistent)
        self._set_table(self._weights(weights))

    @property
    def weights(self) -> Tensor:
        """float64 [C_r], the weights of this rank's rows after smoothing and power."""
        if self.table is None:
            shard = self.class_shard
            return torch.zeros(shard.num_rows, dtype=torch.float64, device=shard.ranks.device)
        return self.table._probabilities() * self._mass

    def update(self, weights: Tensor) -> None:
        """Draw from other weights from now on; to be called on all ranks.

        Args:
            weights: [C_r], as in the constructor.

        Raises:
            ValueError, TypeError: as the constructor.
        """
        self._set_table(self._weights(weights))
        self._revision += 1

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, power={self.power:g}, smoothing={self.smoothing:g}"

    def _weights(self, weights: Tensor) -> Tensor:
        """The weights [C_r] after smoothing and power, float64 on their device."""
        if not isinstance(weights, Tensor):
            fail_tensor(self._name, "weights", weights)
        if weights.is_complex() or weights.dtype == torch.bool:
            raise TypeError(f"{self._name}: weights must be real numbers, got {weights.dtype}")
        rows = self.class_shard.num_rows
        if weights.shape != (rows,):
            raise ValueError(
                f"{self._name}: weights must be those of this rank's classes, [C_r={rows}] in the"
                f" order of shard.classes, got {list(weights.shape)}; WeightedSampler(weights)"
                ".shard(shard) takes those of all classes"
            )
        if weights.is_meta:
            raise ValueError(f"{self._name}: weights must have values, got some on meta")
        w = weights.detach().to(torch.float64)
        bad = ~(torch.isfinite(w) & (w >= 0))
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise ValueError(
                f"{self._name}: weights must be finite and not negative, got {float(w[at])} at"
                f" [{at}]"
            )
        w = w + self.smoothing
        w = torch.where(w > 0, w**self.power, 0.0)
        if self.padding_idx is not None:
            w = w.masked_fill((self.class_shard.classes == self.padding_idx).to(w.device), 0.0)
        return w

    def _rows(self) -> dict[str, Tensor]:
        return {"weights": self.weights}

    def _take_rows(self, rows: dict[str, Tensor]) -> None:
        weights = rows["weights"].to(torch.float64)
        if not bool((weights >= 0).all()):
            raise ValueError("weights must not be negative")
        self._set_table(weights.to(self._device() or weights.device))
