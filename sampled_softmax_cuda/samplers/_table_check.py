"""Whether an alias table is one, and that of its probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 1 << 16  # classes whose numbers stay in a cache
_SUM_TOLERANCE = 1e-6
# A class's share of a table is a sum of up to C roundings, and off by units of 2^(b - 64) / C.
_ABSOLUTE, _RELATIVE = 1e-12, 1e-9


def check_alias_table(table: Tensor, q: Tensor) -> int:
    """The number of classes of positive probability, if all is right. Waits for a GPU once.

    Args:
        table: int64 [C], as of csrc/core/alias_table.h.
        q: float64 [C], on the same device.

    Raises:
        ValueError: probabilities that are none, or a table that would draw others.
    """
    num_classes = table.shape[0]
    share, largest_alias = _shares(table)
    chunks = zip(torch.split(share, _CHUNK), torch.split(q, _CHUNK), strict=True)
    extremes, sums = zip(*(_facts(*chunk) for chunk in chunks), strict=True)
    facts = torch.cat((torch.stack(extremes).amax(dim=0), torch.stack(sums).sum(dim=0)))
    minus_least, most, error, total, drawable = facts.tolist()
    if not (minus_least <= 0 and most < math.inf):
        first = int((~(torch.isfinite(q) & (q >= 0))).nonzero()[0])
        raise ValueError(
            f"its probabilities must be finite and not negative, got {float(q[first])} at [{first}]"
        )
    if total == 0:
        raise ValueError(f"it has no values yet: all {num_classes} probabilities are 0")
    if abs(total - 1.0) > _SUM_TOLERANCE:
        raise ValueError(f"its probabilities must sum to 1, got {total}")
    if int(largest_alias) >= num_classes:
        raise ValueError(
            f"its table must name classes in [0, num_classes={num_classes}), got"
            f" {int(largest_alias)}"
        )
    if error > _ABSOLUTE:
        raise ValueError(
            "its table is not that of its probabilities: a class would be drawn with a probability"
            f" that is off by {error:.3g}"
        )
    return int(drawable)


def _facts(share: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Extremes (-min q, max q, max error of a share) and sums (q, q > 0) over some classes."""
    error = (share - q).abs_().sub_(q, alpha=_RELATIVE)
    error.masked_fill_((q == 0) & (share > 0), 1.0)
    least, most = q.aminmax()
    return (
        torch.stack((-least, most, error.amax())),
        torch.stack((q.sum(), torch.count_nonzero(q).to(torch.float64))),
    )


def _shares(table: Tensor) -> tuple[Tensor, Tensor]:
    """The probability that a table gives each class, float64 [C], and its largest alias."""
    num_classes = table.shape[0]
    alias_bits = num_classes.bit_length()
    bucket = float(1 << (64 - alias_bits))
    share = torch.zeros(num_classes, dtype=torch.float64, device=table.device)
    largest = []
    for start in range(0, num_classes, _CHUNK):
        entries = table[start : start + _CHUNK]
        threshold = (entries >> alias_bits) & ((1 << (64 - alias_bits)) - 1)
        alias = entries & ((1 << alias_bits) - 1)
        largest.append(alias.amax())
        own = threshold.to(torch.float64) / bucket
        share[start : start + _CHUNK] += own
        share.index_add_(0, alias.clamp_(max=num_classes - 1), 1.0 - own)
    return share.div_(num_classes), torch.stack(largest).amax()
