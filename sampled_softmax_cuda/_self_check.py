"""The table of `python -m sampled_softmax_cuda --self-check`: all kernels of all devices here."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._info import build_info
from .ops import library
from .ops.self_check import FAMILIES, dtypes_of
from .ops.trust import run_check

HOW_TO_REPORT = (
    "Please report this: open an issue with this table and what `python -m sampled_softmax_cuda`\n"
    "prints. Until then SSC_BACKEND=reference computes everything in PyTorch, right but slower."
)


def self_check() -> Iterator[tuple[str, bool]]:
    """Lines of the table as they come, each with False if it is about kernels that are wrong."""
    info = build_info()
    yield f"sampled_softmax_cuda {info['version']}, torch {info['torch']}", True
    for device in _devices():
        if isinstance(device, str):
            yield device, True
            continue
        isa = f"kernels for {info['cpu_isa']}"
        on_gpu = device.type == "cuda"
        yield f"{device}: {torch.cuda.get_device_name(device) if on_gpu else isa}", True
        for family in FAMILIES:
            for dtype in dtypes_of(family):
                message, error, seconds = run_check(family, device, dtype)
                kind = "" if family == "draws" else str(dtype).removeprefix("torch.")
                verdict = message or f"right, {100 * error:.2g}% of the error allowed"
                yield f"  {family:<10} {kind:<9} {1000 * seconds:6.0f} ms  {verdict}", not message


def _devices() -> Iterator[torch.device | str]:
    """Devices with kernels, or a line that says why there are none."""
    if not library.library_loaded():
        yield f"cpu: no kernels, {library.native_reason()}"
        return
    yield torch.device("cpu")
    if not library.cuda_loaded():
        yield f"cuda: no kernels, {library.cuda_reason()}"
    elif not torch.cuda.is_available():
        yield "cuda: no GPU"
    else:
        yield from (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
