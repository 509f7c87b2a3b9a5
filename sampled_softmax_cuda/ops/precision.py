"""How float32 matrices may be multiplied: PyTorch's own setting, as the operators take it.

`on_cpu` and `on_cuda` are read from torch whenever somebody asks this module for them.
torch.compile can't trace torch's getters, nor does it notice every change of a setting; but it
guards attributes of modules that a function has read, and so traces again.
"""

from __future__ import annotations

import torch

# The numbers of csrc/core/products.h.
IEEE, TF32, BF16 = 0, 1, 2
NUMBER_OF = {"tf32": TF32, "bf16": BF16}

on_cpu: str
on_cuda: str


def __getattr__(name: str) -> str:
    if name == "on_cpu":
        return torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined, no-any-return]
    if name == "on_cuda":
        return torch.backends.cuda.matmul.fp32_precision  # type: ignore[no-any-return]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
