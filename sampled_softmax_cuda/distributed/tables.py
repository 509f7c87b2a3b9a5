"""Alias tables of which every rank has its own rows: weights that are given, or counts of targets.

A rank draws from its own table. How many draws it makes is dealt by a key that all ranks share, in
proportion to the mass Q_r of its table ("composed"), or is the same for all ("stratified"). A class
of probability q on rank r is then expected S Q_r (q / Q_r) = S q times, or S_r q / Q_r times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .._checks import check_padding_idx
from ..samplers import WeightedSampler
from ..samplers._state import lasting
from ..samplers.base import UNLIMITED, DrawOptions
from ..samplers.mixed import split_samples
from .shard import ClassShard
from .sharded_sampler import Keys, OwnDraw, ShardedSampler
from .state import as_dtensor, own_rows_of


class _Parts(NamedTuple):
    """The facts that all ranks know of the table of each."""

    masses: list[float]
    """The sums of their weights."""
    drawable: list[int]
    """How many of their classes can come."""

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return math.fsum(self.masses)


class ShardedTable(ShardedSampler):
    """The base of samplers with an alias table of own rows: 16 bytes for each.

    `table` is None where no class of this rank can come.
    """

    table: WeightedSampler | None

    def __init__(self, shard: ClassShard, padding_idx: int | None) -> None:
        super().__init__(shard, None)
        if padding_idx is not None:
            self.padding_idx = check_padding_idx(self._name, padding_idx, shard.num_classes)
        self.table = None
        self._mass = 0.0
        self._parts: _Parts | None = None
        self._revision = 0

    @property
    def num_drawable(self) -> int:
        """The number of classes with q > 0, as far as is known before the first draw."""
        return self.num_classes if self._parts is None else sum(self._parts.drawable)

    def refresh(self, device: torch.device) -> None:
        """Exchange the masses of the tables, if one has changed."""
        if self._parts is not None:
            return
        drawable = 0 if self.table is None else self.table.num_drawable
        mine = torch.tensor([self._mass, drawable], dtype=torch.float64, device=device)
        masses, numbers = self.class_shard.ranks.gather(mine, "masses of tables").T.tolist()
        parts = _Parts(masses, [int(n) for n in numbers])
        if not 0 < parts.total < math.inf:
            raise ValueError(
                f"{self._name}: weights of all ranks must have a positive and finite sum, got"
                f" {parts.total}"
            )
        self._parts = parts

    def own_draw(
        self, target: Tensor, options: DrawOptions, keys: Keys, stratified: bool
    ) -> OwnDraw:
        self.refresh(target.device)
        assert self._parts is not None
        num_samples = options.num_samples
        if stratified:
            sizes = self._strata(options, self._parts)
        elif not options.replacement:
            self.refuse_distinct()
        else:
            sizes = _dealt(num_samples, self._parts.masses, keys.common)
        rank = self.class_shard.ranks.rank
        table, mine = self.table, sizes[rank]
        rows = torch.empty(0, dtype=torch.int64, device=target.device)
        if table is None:
            return OwnDraw(rows, None, sizes, never)
        if mine > 0:
            drawn = table._begin_draw(target, options._replace(num_samples=mine), keys.own)
            if stratified:
                return OwnDraw(drawn.ids, None, sizes, drawn.log_count)
            rows = drawn.ids
        q = table._probabilities()
        expected = num_samples * (self._parts.masses[rank] / self._parts.total)
        return OwnDraw(rows, None, sizes, lambda k: (q[k] * expected).log().to(torch.float32))

    def refuse_distinct(self) -> NoReturn:
        """ValueError: the first S distinct classes of all tables are on no rank."""
        raise ValueError(
            f"{self._name}: replacement=False and draw='composed' do not go together, since which"
            " classes are the first S distinct ones can't be told rank by rank: use"
            " draw='stratified'"
        )

    def own_log_prob(self, rows: Tensor) -> Tensor:
        self.refresh(rows.device)
        assert self._parts is not None
        if self.table is None:
            return never(rows)
        share = self._parts.masses[self.class_shard.ranks.rank] / self._parts.total
        return (self.table._probabilities()[rows] * share).log().to(torch.float32)

    def _own_revision(self) -> int:
        return self._revision

    def _strata(self, options: DrawOptions, parts: _Parts) -> list[int]:
        """S_r of every rank: equal shares, less where a rank has fewer distinct classes."""
        num_samples, replacement, _ = options
        there = sum(n > 0 for n in parts.drawable)
        most = [UNLIMITED if replacement and n > 0 else n for n in parts.drawable]
        if num_samples < there:
            raise ValueError(
                f"{self._name}: num_samples must be at least {there} with draw='stratified', one"
                f" for each rank that has classes, got {num_samples}: draw more, or use"
                " draw='composed'"
            )
        if num_samples > sum(most):
            raise ValueError(
                f"{self._name}: num_samples must be at most {sum(most)}, the number of classes with"
                f" positive probability, without replacement, got {num_samples}"
            )
        return split_samples(num_samples, [1.0] * len(most), most)

    def _set_table(self, weights: Tensor) -> None:
        """Draw from other weights [C_r] of the own rows, not negative; zero for the padding.

        Whatever the masses of other ranks are, they are asked for at the next draw.
        """
        mass = float(weights.sum(dtype=torch.float64))
        if not mass < math.inf:
            raise ValueError(
                f"{self._name}: weights must be finite and have a finite sum, got {mass}: divide"
                " them by their largest"
            )
        with lasting():
            if mass == 0:
                self.table = None
            elif self.table is None:
                self.table = WeightedSampler(weights, persistent=False).to(weights.device)
            else:
                self.table.update(weights)
        self._mass, self._parts = mass, None

    def __repr__(self) -> str:
        return f"{self._name}({self.extra_repr()})"  # the same on all ranks, without the table

    def _device(self) -> torch.device | None:
        return None if self.table is None else self.table._device()

    # --- state ------------------------------------------------------------------------------------

    def _rows(self) -> dict[str, Tensor]:
        """The tensors [C_r] that are saved of the own rows, by name."""
        raise NotImplementedError

    def _take_rows(self, rows: dict[str, Tensor]) -> None:
        """Go on from saved rows; ValueError if they can't be right."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.persistent:
            for name, rows in self._rows().items():
                destination[prefix + name] = as_dtensor(rows, self.class_shard)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own, saved, names = dict(state_dict), {}, self._rows() if self.persistent else ()
        try:
            for name in names:
                value = own.pop(prefix + name, None)
                if value is None and strict and name not in self._STATE:
                    missing_keys.append(prefix + name)
                elif value is not None:
                    saved[name] = own_rows_of(prefix + name, value, self.class_shard, False)
                    if name in self._STATE:
                        own[prefix + name] = saved[name]
            super()._load_from_state_dict(
                own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
            if len(saved) < len(names) or not names:
                return
            self._take_rows(saved)
        except ValueError as error:
            error_msgs.append(f'While loading "{prefix[:-1]}" ({self._name}): {error}')
            return
        self._revision += 1


def never(rows: Tensor) -> Tensor:
    """log n of classes that cannot come."""
    return torch.full(rows.shape, -torch.inf, device=rows.device)


def _dealt(num_samples: int, masses: list[float], common: torch.Generator) -> list[int]:
    """How many of S independent draws fall to each rank."""
    weights = torch.tensor(masses, dtype=torch.float64, device=common.device)
    ranks = torch.multinomial(weights, num_samples, replacement=True, generator=common)
    return torch.bincount(ranks, minlength=len(masses)).tolist()
