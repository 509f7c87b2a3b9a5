"""The facts by which two builds of this package in one process may differ.

A kernel for Hugging Face's `kernels` (tools/hf_kernel.py) has values of its own here, so that its
operators meet neither those of the installed package nor those of another such kernel.
"""

from __future__ import annotations

NAMESPACE = "sampled_softmax"  # of torch's operators; SSC_NAMESPACE in CMakeLists.txt
VERSION: str | None = None  # None: that of the installed distribution


def operator_name(name: str) -> str:
    """The name of an operator as torch.library takes it, with its namespace."""
    return f"{NAMESPACE}::{name}"
