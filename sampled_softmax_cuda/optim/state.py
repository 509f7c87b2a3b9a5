"""Memory of an optimizer's state."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from ..memory import prefer_huge_pages

# Below this size, memory is written at once.
_LAZY_BYTES = 1 << 20


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; large ones on the CPU take memory from the operating system as rows are written."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LAZY_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return prefer_huge_pages(torch.frombuffer(pages, dtype=dtype)).view(shape)
