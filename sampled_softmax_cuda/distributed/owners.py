"""Which parameters are shards: the weights and biases of the heads that there are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .call import Layout

_heads: weakref.WeakSet[OwnsShards] = weakref.WeakSet()
_lock = threading.Lock()  # ranks may be threads


class OwnsShards(nn.Module):
    """A module whose `weight` and `bias` are rows of a matrix that lies on several ranks."""

    layout: Layout

    # Copies and pickles come here too.
    def __new__(cls, *_: Any, **__: Any) -> Any:
        head = super().__new__(cls)
        announce(head)
        return head

    def shards(self) -> list[nn.Parameter]:
        """The parameters that have this rank's rows."""
        own = self.__dict__.get("_parameters", {})
        return [own[name] for name in ("weight", "bias") if own.get(name) is not None]


def announce(head: Any) -> None:
    """Let `shard_layouts` know of a head."""
    with _lock:
        _heads.add(head)


def shard_layouts(parameters: Iterable[Tensor]) -> dict[Tensor, Layout]:
    """How those of the parameters lie that are shards."""
    wanted = set(parameters)
    with _lock:
        heads = list(_heads)
    return {p: head.layout for head in heads for p in head.shards() if p in wanted}
