"""TorchScript can compile none of this: said at once, and what to use in its place."""

from __future__ import annotations

from typing import NoReturn

import torch


def refuse_torchscript(name: str) -> NoReturn:
    """The error of `torch.jit.script` and `torch.jit.trace`."""
    raise RuntimeError(
        f"{name} can't be compiled by torch.jit, which is deprecated: use torch.compile, or"
        " torch.export for inference"
    )


def check_not_traced(name: str) -> None:
    """RuntimeError while `torch.jit.trace` records."""
    if not torch.compiler.is_compiling() and torch._C._is_tracing():
        refuse_torchscript(name)


class NotScriptable:
    """A module that `torch.jit.script` refuses, also as a part of another one."""

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_torchscript(type(self).__name__)
