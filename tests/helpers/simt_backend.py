"""The backend "simt": tensors of the CPU stand for a GPU's, and csrc/simt runs the CUDA kernels.

csrc/ops/cuda/*.cpp are compiled a second time over the executor (tests/simt_ops), as
torch.ops.sampled_softmax_simt. Here they take the place of the CPU's kernels in the dispatcher, so
that everything above them, from the public functions to autograd, runs as it does on a GPU. The
backend "ptx" is the same with torch.ops.sampled_softmax_ptx, over an executor of PTX (tests/ptx).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sampled_softmax_cuda._rules import device_rules
from sampled_softmax_cuda.ops.library import use_backend
from sampled_softmax_cuda.ops.trust import use_self_check

from .simt_bench import module_path, require, use_executor


@functools.cache
def operators_of(executor: str) -> dict[str, Any]:
    """The operators over the executor by name; without them the test is skipped, in CI it fails."""
    with use_executor(executor):
        require("ops")
        torch.ops.load_library(str(module_path("ops")))
    namespace = f"sampled_softmax_{executor}"
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith(f"{namespace}::")]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    short = [name.partition("::")[2] for name in names if has_kernel(name, "CPU")]
    return {name: getattr(getattr(torch.ops, namespace), name).default for name in short}


@contextmanager
def use_simt(executor: str = "simt", self_check: str = "0", **replaced: Any) -> Iterator[None]:
    """Inside, the package computes on tensors of the CPU as it does on those of a GPU.

    Args:
        self_check: as SSC_SELF_CHECK; tests have no use for one at each first use.
        replaced: operators in place of those over the executor.
    """
    operators = {**operators_of(executor), **replaced}
    stand_ins = torch.library.Library("sampled_softmax", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the CPU's kernels are covered is the point
        for name, operator in operators.items():
            stand_ins.impl(name, operator, "CPU")
    try:
        rules = device_rules(frozenset(operators))
        with use_backend("native"), rules, use_self_check(self_check):
            yield
    finally:
        stand_ins._destroy()
