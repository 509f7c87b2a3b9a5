"""Who must be asked before rows of a parameter are read: the optimizer that lets untouched rows lag
behind. An optimizer registers its parameters here, and whoever reads rows calls `settle`."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ._parallel import active_ddp


class Settler(Protocol):
    """An optimizer whose rows owe steps."""

    def lags(self, parameter: Tensor, all_rows: bool) -> bool:
        """Whether rows of the parameter, or all, must be settled before they are read."""

    def settle_parameter(self, parameter: Tensor, ids: Tensor | None) -> None:
        """Let the rows `ids` of a parameter, or all, pay what they owe; ids that are no rows are
        left out."""


_DRIFT = (
    "SampledSoftmaxLoss: with skipped='replay' rows catch up when a rank reads them, so that under"
    " DistributedDataParallel the weights of ranks come to differ by rounding: use skipped='decay'"
    " or 'freeze' there"
)

_settlers: Any = WeakIdKeyDictionary()  # parameter -> weak references to optimizers

# An attribute of a registered parameter, on which torch.compile guards, so that graphs that read
# others stay whole: whether each row must be settled before it is read, or only all together.
_EACH_ROW = "_sampled_softmax_settles_each_row"


def register(parameter: Tensor, settler: Settler, each_row: bool) -> None:
    """Ask `settler` from now on before all rows of `parameter` are read, or also before single
    ones."""
    others = [reference for reference in _settlers.get(parameter, []) if reference() is not None]
    if others:
        each_row = each_row or getattr(parameter, _EACH_ROW, False)
    if all(reference() is not settler for reference in others):
        others.append(weakref.ref(settler))
    _settlers[parameter] = others
    setattr(parameter, _EACH_ROW, each_row)


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="rows that lag behind are brought up to date outside of graphs"
)
def _settle(
    parameters: tuple[Tensor | None, ...], ids: Callable[[], tuple[Tensor, ...]] | None
) -> None:
    rows = None
    for parameter in parameters:
        if parameter is None:
            continue
        for reference in _settlers.get(parameter, ()):
            settler = reference()
            if settler is None or not settler.lags(parameter, ids is None):
                continue
            if rows is None and ids is not None:
                if active_ddp() is not None:
                    warnings.warn(_DRIFT, stacklevel=3)
                rows = torch.cat([x.reshape(-1) for x in ids()])
            settler.settle_parameter(parameter, rows)


def settle(
    parameters: tuple[Tensor | None, ...], ids: Callable[[], tuple[Tensor, ...]] | None = None
) -> None:
    """Bring rows of these parameters up to date before they are read: those that `ids` returns, of
    any shapes, or all of them. Costs nothing where no row lags behind."""
    for parameter in parameters:
        each_row = getattr(parameter, _EACH_ROW, None)
        if each_row or (each_row is not None and ids is None):
            _settle(parameters, ids)
            return
