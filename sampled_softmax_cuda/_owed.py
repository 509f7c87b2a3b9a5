"""Who must be asked before rows of a parameter are read: the optimizer that lets untouched rows lag
behind. An optimizer registers its parameters here, and whoever reads rows asks `settle`."""

from __future__ import annotations

import weakref
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Settler(Protocol):
    """An optimizer whose rows owe steps."""

    def settle_parameter(self, parameter: Tensor, ids: Tensor | None, to_read: bool) -> None:
        """Let the rows `ids` of a parameter, or all, pay what they owe; ids that are no rows are
        left out. to_read: only if reading them would be wrong otherwise."""


_settlers: WeakIdKeyDictionary = WeakIdKeyDictionary()

# Whether any parameter is registered: a plain bool, on which torch.compile guards.
_any = False


def register(parameter: Tensor, settler: Settler) -> None:
    """Ask `settler` from now on before rows of `parameter` are read."""
    global _any
    _settlers[parameter] = weakref.ref(settler)
    _any = True


@torch.compiler.disable(reason="rows that lag behind are brought up to date outside of graphs")
def _settle(parameters: tuple[Tensor | None, ...], ids: tuple[Tensor, ...] | None) -> None:
    for parameter in parameters:
        reference = None if parameter is None else _settlers.get(parameter)
        settler = None if reference is None else reference()
        if settler is not None:
            rows = None if ids is None else torch.cat([x.reshape(-1) for x in ids])
            settler.settle_parameter(parameter, rows, True)


def settle(parameters: tuple[Tensor | None, ...], ids: tuple[Tensor, ...] | None) -> None:
    """Bring rows of these parameters up to date before they are read: `ids`, or all of them."""
    if _any:
        _settle(parameters, ids)
