"""Which kernels of a device are trusted: those whose self-check has passed.

The CPU's kernels run in the tests on the hardware that they are for. Those of a GPU are checked on
the user's own: before the first use of a family (`FAMILY_OF`) in a dtype, `self_check.examine` runs
a tiny problem. If a result differs or a launch fails, a warning says so, once, and the reference
serves this family and dtype on this device from then on.

    SSC_SELF_CHECK=1        the default
    SSC_SELF_CHECK=0        trust all kernels
    SSC_SELF_CHECK=strict   an error in place of the warning and the reference

A traced graph, fake tensors, the meta device and a CUDA graph's capture can't run a check: they
take what is known by then, and the kernels where nothing is.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from .._rules import has_values

MODES = ("1", "0", "strict")
REPORT = "please report it with what `python -m sampled_softmax_cuda --self-check` prints"

# The operators of Python's routes -> what is checked before the first of them runs.
FAMILY_OF = {
    "sample": "draws",
    "log_counts": "draws",
    "loss_rows": "loss",
    "negatives_rows": "negatives",
    "exact_loss_rows": "exact",
    "logits": "exact",
    "row_update": "updates",
}

_Key = tuple[str, torch.device, torch.dtype]


def _mode_from_environment() -> str:
    mode = os.environ.get("SSC_SELF_CHECK") or "1"
    if mode not in MODES:
        raise ValueError(f"SSC_SELF_CHECK must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


_mode = _mode_from_environment()
_verdicts: dict[_Key, bool] = {}
_num_refused = 0  # torch.compile guards on it, which it could not do for a dict of devices
_lock = threading.Lock()


def trusted(operator: str, tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether the operator's kernels may serve, after a check at their first use.

    Args:
        tensor: any of the arguments, for its device.
        dtype: that of the weight or the parameter; int64 for draws.

    Raises:
        RuntimeError: they failed the check, and SSC_SELF_CHECK=strict.
    """
    if torch.compiler.is_compiling():
        key = (FAMILY_OF[operator], tensor.device, dtype)
        return _num_refused == 0 or bool(_not_refused(*key))
    key = (FAMILY_OF[operator], tensor.device, dtype)
    verdict = _verdicts.get(key)
    return _first_use(key, tensor) if verdict is None else verdict


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _not_refused(family: str, device: torch.device, dtype: torch.dtype) -> bool:
    return _verdicts.get((family, device, dtype), True)


def _first_use(key: _Key, tensor: Tensor) -> bool:
    if _mode == "0" or not has_values(tensor) or _capturing(tensor):
        return True
    with _lock:
        if key not in _verdicts:
            _decide(key)
    return _verdicts[key]


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _decide(key: _Key) -> None:
    global _num_refused
    message, _, _ = run_check(*key, True)  # in one thread
    if message:
        text = (
            f"sampled_softmax_cuda: the kernels of {describe(*key)} failed their check: {message};"
            f" {REPORT}"
        )
        if _mode == "strict":
            raise RuntimeError(f"{text} (SSC_SELF_CHECK=1 goes on with the PyTorch reference)")
        _verdicts[key] = False
        _num_refused += 1
        text += "; the PyTorch reference serves instead from now on: right, but slower"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    else:
        _verdicts[key] = True


def describe(family: str, device: torch.device, dtype: torch.dtype) -> str:
    """Such as "loss in float32 on cuda:0 (NVIDIA H200)"."""
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    in_dtype = "" if family == "draws" else f" in {str(dtype).removeprefix('torch.')}"
    return f"{family}{in_dtype} on {device}{name}"


def run_check(
    family: str, device: torch.device, dtype: torch.dtype, one_thread: bool = False
) -> tuple[str, float, float]:
    """Check the kernels now, whatever is known of them.

    It runs in a thread of its own, which has none of the caller's modes: autocast, inference mode,
    transforms, dispatch modes, hooks of saved tensors, streams.

    Args:
        one_thread: PyTorch starts no others for the CPU's part, which is too small to gain by it
            and would wait for them on a busy machine.

    Returns:
        what differs, "" for nothing; the worst error as a share of what is allowed; and seconds.
    """
    from .self_check import examine  # which is above this module

    results = []

    def run() -> None:
        begin = time.perf_counter()
        if one_thread:
            _keep_to_one_thread()
        finding = examine(family, device, dtype)
        results.append((finding.message, finding.error, time.perf_counter() - begin))

    thread = threading.Thread(target=run, name="sampled_softmax_cuda self-check")
    thread.start()
    thread.join()
    return results[0]


def _keep_to_one_thread() -> None:
    """OpenMP's number of threads for this thread alone; torch's function sets it for all."""
    torch.get_num_threads()  # sets this thread's to torch's default, which it would do later
    with suppress(OSError, AttributeError):  # a torch without OpenMP
        ctypes.CDLL(torch._C.__file__).omp_set_num_threads(1)


@contextmanager
def use_self_check(mode: str) -> Iterator[None]:
    """Inside, checks are as SSC_SELF_CHECK says, and start anew.

    Args:
        mode: one of `MODES`.
    """
    global _mode, _verdicts, _num_refused
    if mode not in MODES:
        raise ValueError(f"use_self_check: mode must be one of {', '.join(MODES)}, got {mode!r}")
    before = _mode, _verdicts, _num_refused
    _mode, _verdicts, _num_refused = mode, {}, 0
    try:
        yield
    finally:
        _mode, _verdicts, _num_refused = before
