"""Content of memory that was never filled: of tables, of probabilities and of ids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

C = 33  # classes
LARGEST = 2**63 - 1

TABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda table: table.random_(),
    "all 2^63-1": lambda table: table.fill_(LARGEST),
    "all -1": lambda table: table.fill_(-1),
}
BITS = {
    "nan": torch.nan,
    "negative": -0.25,
    "inf": torch.inf,
    "-inf": -torch.inf,
    "huge": 1e300,
}
OUTSIDE = [-1, C, 2**40, -(2**62), LARGEST]
