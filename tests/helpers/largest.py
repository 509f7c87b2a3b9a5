"""The size of the largest tensor that some code makes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, strided
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Remembers the largest dense tensor of a thread, in numbers of 8 bytes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.layout == strided:
                self.largest = max(self.largest, x.untyped_storage().nbytes() // 8)
        return result
