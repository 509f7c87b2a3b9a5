"""Optimizers of shards: their states in state dicts that fit any number of ranks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from .._arguments import describe
from ..optim.base import RowOptimizer
from .call import Layout
from .modules import ShardedSampledSoftmaxLoss
from .state import MULTIPLIER, as_dtensor, other_order, own_rows_of, rows_of_all

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

_NAME = "distributed.register_optimizer"

# Row k belongs to class k.
_BY_CLASS = 1

_heads: weakref.WeakKeyDictionary[torch.optim.Optimizer, list[ShardedSampledSoftmaxLoss]] = (
    weakref.WeakKeyDictionary()
)


def register_optimizer(
    optimizer: Optimizer, head: ShardedSampledSoftmaxLoss, *heads: ShardedSampledSoftmaxLoss
) -> Optimizer:
    """Let the state_dict of an optimizer fit any number of ranks, as that of its heads does.

    In `optimizer.state_dict()` every state of a head's parameters that has its rows, such as
    moments, sums and row-wise rates, is a DTensor [C, ...], `Shard(0)`; `load_state_dict` takes it
    back. So torch.distributed.checkpoint saves it on some ranks and loads it on others, through its
    `get_state_dict` and `set_state_dict`. Rows that lag behind are settled first.

    Without it each rank has a part of its own under the same name, and a checkpoint keeps that of
    one rank and gives it to all.

    Args:
        optimizer: of `sampled_softmax_cuda.optim` or torch.optim, with the heads' parameters and
            any others. Those of `sampled_softmax_cuda.optim` and SparseAdam make their states here,
            for a checkpoint to be loaded into; for others `get_state_dict` does it.
        head, heads: whose shards the optimizer trains.

    Returns:
        The optimizer. A copy of it has to be registered again.

    Raises:
        TypeError, ValueError: arguments that are not as above, or a head without a parameter in
            the optimizer.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64, sparse_grad=True)
        >>> optimizer = ssc.optim.Adagrad(head.parameters(), lr=0.1)
        >>> optimizer = ssc.distributed.register_optimizer(optimizer, head)
        >>> optimizer.state_dict()["state"][0]["sum"].shape  # over ranks: a DTensor
        torch.Size([1000, 16])
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{_NAME}: optimizer must be a torch.optim.Optimizer, got {describe(optimizer)}"
        )
    for one in (head, *heads):
        if not isinstance(one, ShardedSampledSoftmaxLoss):
            raise TypeError(
                f"{_NAME}: every head must be a ShardedSampledSoftmaxLoss, got {describe(one)}"
            )
    known = _heads.get(optimizer, [])
    added = [one for one in (head, *heads) if all(one is not other for other in known)]
    _layouts(optimizer, added)
    _make_states(optimizer)
    if optimizer not in _heads:
        optimizer.register_state_dict_post_hook(_saved)
        optimizer.register_load_state_dict_pre_hook(_loaded)
    _heads[optimizer] = known + added
    return optimizer


def _layouts(
    optimizer: torch.optim.Optimizer, heads: list[ShardedSampledSoftmaxLoss]
) -> dict[Tensor, Layout]:
    """How the parameters of an optimizer lie that belong to heads.

    Raises:
        ValueError: a head without any.
    """
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    found: dict[Tensor, Layout] = {}
    for number, head in enumerate(heads):
        own = [p for p in head.shards() if p in trained]
        if not own:
            raise ValueError(
                f"{_NAME}: no parameter of head {number} is in the optimizer: make the optimizer"
                " of head.parameters(), after the head was moved or materialised"
            )
        found.update((p, head.layout) for p in own)
    return found


def _make_states(optimizer: torch.optim.Optimizer) -> None:
    """Make the states that the first step would make, where torch.distributed.checkpoint can't: it
    takes a step with dense zeros, which counts and which SparseAdam refuses."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p.is_meta for p in parameters):
        return
    if isinstance(optimizer, RowOptimizer):
        optimizer.make_states()
    elif isinstance(optimizer, torch.optim.SparseAdam):
        for p in parameters:
            if p.requires_grad and len(optimizer.state[p]) == 0:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": 0, **zeros}


def _numbered(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]
) -> Iterator[tuple[Any, Tensor, Layout]]:
    """(number in a state_dict, parameter, layout) of the parameters that belong to heads."""
    layouts = _layouts(optimizer, _heads[optimizer])
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=False):
        for p, number in zip(group["params"], saved["params"], strict=False):
            if p in layouts:
                yield number, p, layouts[p]


def _row_state(name: str, value: Any, p: Tensor) -> Tensor | None:
    """A state that has the rows of its parameter, dense; None for one that has none.

    Raises:
        ValueError: a state of which it is not known how it lies over ranks.
    """
    if not isinstance(value, Tensor):
        if isinstance(value, (list, tuple, dict)):
            raise ValueError(
                f"{_NAME}: the state {name!r} is a {type(value).__name__}, of which no rank knows"
                " its rows: use an optimizer that has tensors as states"
            )
        return None
    if value.dim() == 0:
        return None
    if value.shape not in (p.shape, p.shape[:1]):
        raise ValueError(
            f"{_NAME}: the state {name!r} is {list(value.shape)}, without a row for each of this"
            f" rank's {p.shape[0]} rows {list(p.shape)}: use an optimizer whose states have the"
            " parameter's shape or one number for each row"
        )
    return value.to_dense() if value.is_sparse else value  # momentum of torch's SGD is sparse


def _saved(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state_dict with DTensors in place of this rank's rows."""
    states = dict(state_dict["state"])
    for number, p, layout in _numbered(optimizer, state_dict):
        if not states.get(number):
            continue
        entry = dict(states[number])
        for name, value in entry.items():
            rows = _row_state(name, value, p)
            if rows is not None:
                entry[name] = as_dtensor(rows, layout.shard)
        entry[MULTIPLIER] = torch.tensor(layout.shard.multiplier, device="cpu")
        states[number] = entry
    return {**state_dict, "state": states}


def _loaded(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state_dict with this rank's rows in place of those of all ranks."""
    states = dict(state_dict["state"])
    for number, _, layout in _numbered(optimizer, state_dict):
        if not states.get(number):
            continue
        entry = dict(states[number])
        multiplier = entry.pop(MULTIPLIER, None)
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                called = f"{_NAME}: the state {name!r} of parameter {number}"
                entry[name] = _own_rows(called, value, layout, multiplier)
        states[number] = entry
    return {**state_dict, "state": states}


def _own_rows(called: str, value: Tensor, layout: Layout, multiplier: Any) -> Tensor:
    """This rank's rows of a state of all ranks."""
    shard = layout.shard
    order = shard.multiplier if multiplier is None else int(multiplier)
    plain = not isinstance(value, DTensor)
    if plain and multiplier is None and shard.multiplier != _BY_CLASS:
        raise ValueError(
            f"{called} is a plain tensor of which it is not known in which order its rows are: pass"
            " that of an optimizer of a single process to load_full_optimizer_state_dict"
        )
    if order != shard.multiplier and not (plain and order == _BY_CLASS):
        raise ValueError(f"{called}: {other_order(order, shard)}")
    if value.is_sparse:  # momentum of torch's SGD
        value = value.to_dense()
    by_class = plain and order == _BY_CLASS
    rows = own_rows_of(called, value, shard, by_class)
    # A view would keep the rows of all other ranks.
    return rows.clone() if plain and not by_class and shard.ranks.size > 1 else rows


def full_optimizer_state_dict(
    optimizer: torch.optim.Optimizer, *, on_all_ranks: bool = False
) -> dict[str, Any]:
    """The state_dict of a registered optimizer with the rows of all classes in their order, on the
    CPU; collective.

    Args:
        optimizer: one that was given to `register_optimizer`.
        on_all_ranks: whether all ranks get it, or the first one alone (default), and the others an
            empty dictionary: it takes the memory of all classes.

    Returns:
        A state_dict for the same optimizer over the parameters of a `SampledSoftmaxLoss` that has
        loaded `head.full_state_dict()`. States of other parameters are as `state_dict()` has them.

    Raises:
        ValueError: an optimizer that was not registered.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64)
        >>> optimizer = torch.optim.Adagrad(head.parameters(), lr=0.1)
        >>> optimizer = ssc.distributed.register_optimizer(optimizer, head)
        >>> full = ssc.distributed.full_optimizer_state_dict(optimizer)
        >>> alone = ssc.SampledSoftmaxLoss(16, 1000, 64)
        >>> torch.optim.Adagrad(alone.parameters()).load_state_dict(full)
    """
    _check_registered("distributed.full_optimizer_state_dict", optimizer)
    state_dict = optimizer.state_dict()
    states = dict(state_dict["state"])
    numbered = list(_numbered(optimizer, state_dict))
    places = [ranks.rank for _, _, x in numbered for ranks in (x.ranks, x.replicas)]
    keep = on_all_ranks or not any(places)
    for number, _, layout in numbered:
        entry = dict(states.get(number, {}))
        entry.pop(MULTIPLIER, None)
        for name, value in sorted(entry.items()):
            if isinstance(value, Tensor) and value.dim() > 0:
                local = value.to_local() if isinstance(value, DTensor) else value
                entry[name] = rows_of_all(local, layout.shard, f"states {name!r}", keep)
        if entry:
            states[number] = entry
    return {**state_dict, "state": states} if keep else {}


def load_full_optimizer_state_dict(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]
) -> None:
    """Load into a registered optimizer the state_dict of one over all classes in their order, such
    as that of a `SampledSoftmaxLoss` in a single process; each rank copies its own rows.

    Args:
        optimizer: one that was given to `register_optimizer`.
        state_dict: with plain tensors [C, ...]; the same on all ranks.

    Raises:
        ValueError: an optimizer that was not registered, or states that do not fit.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> alone = ssc.SampledSoftmaxLoss(16, 1000, 64)
        >>> saved = torch.optim.Adagrad(alone.parameters(), lr=0.1).state_dict()
        >>> head = ssc.distributed.ShardedSampledSoftmaxLoss(16, 1000, 64)
        >>> optimizer = torch.optim.Adagrad(head.parameters())
        >>> optimizer = ssc.distributed.register_optimizer(optimizer, head)
        >>> ssc.distributed.load_full_optimizer_state_dict(optimizer, saved)
    """
    _check_registered("distributed.load_full_optimizer_state_dict", optimizer)
    states = dict(state_dict["state"])
    for number, _, _ in _numbered(optimizer, state_dict):
        if states.get(number):
            states[number] = {**states[number], MULTIPLIER: _BY_CLASS}
    optimizer.load_state_dict({**state_dict, "state": states})


def _check_registered(fn: str, optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer) or optimizer not in _heads:
        raise ValueError(f"{fn}: optimizer must be registered by register_optimizer first")
