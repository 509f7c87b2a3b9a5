"""Advice about the memory of the class matrix."""

from __future__ import annotations

from torch import Tensor

from .ops import library

__all__ = ["prefer_huge_pages"]


def prefer_huge_pages(tensor: Tensor) -> Tensor:
    """Ask the operating system for 2 MiB pages under a large tensor; return the same tensor.

    A step touches a few thousand rows from all over the class matrix, and with 4 KiB pages each of
    them costs a page walk that no prefetch hides. Best called before the tensor is first written:
    pages that exist stay small until the kernel merges them. It is advice only: no value changes,
    and on other devices, other systems and without the compiled library nothing happens.
    `SampledSoftmaxLoss` does this for its own weight.

    Args:
        tensor: any tensor; contiguous ones on the CPU are advised.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> weight = ssc.prefer_huge_pages(torch.empty(100_000, 64)).uniform_(-0.1, 0.1)
        >>> weight.shape
        torch.Size([100000, 64])
    """
    if tensor.device.type == "cpu" and library.library_loaded():
        library.advise_huge_pages(tensor.detach())
    return tensor
