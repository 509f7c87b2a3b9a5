"""Samplers of one distribution, whose draws are functions of a key: for the batch or each row."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .._arguments import as_bool
from ..ops import sample as ops
from ..options import Inclusion
from ..proposals import Method, Proposal
from ..samples import KeyedSamples, Samples
from . import _checks
from ._state import lasting
from .base import Draw, DrawOptions, Sampler

# Rejection takes t draws, the race about as long as this many draws per class.
_RACE_DRAWS_PER_CLASS = 4

# The draws behind inclusion="estimated": fixed keys, so that every process estimates the same t.
_ESTIMATE_SEED = 0x5353_4345_5354
_ESTIMATE_DRAWS = 10

# The operators count at most 2^62 draws, which an expected number beyond this one might exceed.
_MOST_COUNTED = 2.0**57


class Plan(NamedTuple):
    """How S samples are drawn, and the t of their expected counts (None: as observed)."""

    method: Method
    tries: Tensor | None


_WITH_REPLACEMENT = Plan(Method.WITH_REPLACEMENT, None)


class KeyedSampler(Sampler):
    """A sampler of one distribution; a draw is a pure function of its key."""

    def __init__(self) -> None:
        super().__init__()
        self._plans: dict[tuple[int, str], Plan] = {}

    @property
    def draws_rows(self) -> bool:
        return self.draws

    @abstractmethod
    def _proposal(self) -> Proposal:
        """The distribution, as the operators take it."""

    @abstractmethod
    def _solve_tries(self, num_samples: int) -> float:
        """t with sum of 1 - (1 - q)^t = num_samples < num_drawable; inf if they are equal."""

    def sample(
        self,
        target: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
        per_row: bool = False,
        exclude: Tensor | None = None,
        num_true: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Samples:
        """As `Sampler.sample`."""
        if as_bool(f"{self._name}.sample", "per_row", per_row):
            how = DrawOptions(num_samples, replacement, inclusion)
            return self._draw_rows("sample", target, how, exclude, num_true, generator, True)[1]
        if exclude is not None or num_true is not None:
            argument = "num_true" if exclude is None else "exclude"
            raise ValueError(
                f"{self._name}.sample: {argument} needs per_row=True: samples shared by the"
                " batch are the same for every row"
            )
        self._check_ids("sample", "target", target)
        options = self._options("sample", num_samples, replacement, inclusion)
        plan = self._plan(options)
        key = self._new_key(target, generator)
        ids, _, log_count, target_log_count = ops.sample(
            self._proposal(), key, target.contiguous(), options.num_samples, *plan
        )
        return Samples(ids, log_count, target_log_count)

    def sample_keyed(
        self,
        target: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
        exclude: Tensor | None = None,
        num_true: int | None = None,
        generator: torch.Generator | None = None,
    ) -> KeyedSamples:
        """The classes of `sample(..., per_row=True)` as the key that they are drawn from.

        The kernels of the loss draw each row's when they come to it, in the forward and in the
        backward pass, so that nothing of size [*, S] is ever stored.

        Args:
            target, num_samples, replacement, inclusion, exclude, num_true, generator: as `sample`.

        Returns:
            `KeyedSamples`, whose `materialize()` gives the `Samples`.

        Raises:
            ValueError, TypeError, IndexError: as `sample`.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.LogUniformSampler(1000)
            >>> keyed = sampler.sample_keyed(torch.tensor([3, 14, 15]), 8)
            >>> keyed.num_samples, keyed.target_log_expected_count.shape
            (8, torch.Size([3]))
        """
        how = DrawOptions(num_samples, replacement, inclusion)
        return self._draw_rows("sample_keyed", target, how, exclude, num_true, generator, False)[0]

    def draw(
        self, key: Tensor, num_samples: int, *, replacement: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The ids of a key, and the number of draws that they took.

        Args:
            key: int64 [2], (seed, offset), on the sampler's device.
            num_samples, replacement: as in `sample`.

        Returns:
            ids [S] and num_draws [], int64. num_draws is S with replacement.

        Raises:
            ValueError, TypeError, IndexError: as `sample`.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> ssc.UniformSampler(10).draw(torch.tensor([1, 2]), 3)[0]
            tensor([5, 9, 0])
        """
        self._check_ids("draw", "key", key)
        if key.shape != (2,):
            raise ValueError(f"{self._name}.draw: key must be [2], got {list(key.shape)}")
        proposal = self._proposal()
        options = self._options("draw", num_samples, replacement, "observed")
        plan = self._plan(options)
        ids, num_draws, _, _ = ops.sample(
            proposal, key.contiguous(), key.new_empty(0), options.num_samples, *plan
        )
        return ids, num_draws

    def log_prob(self, ids: Tensor) -> Tensor:
        """As `Sampler.log_prob`."""
        self._check_ids("log_prob", "ids", ids)
        self._check_range("log_prob", ids)
        return ops.log_counts(self._proposal(), ids, 1, None)

    def log_expected_count(
        self,
        ids: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
    ) -> Tensor:
        """As `Sampler.log_expected_count`."""
        name = "log_expected_count"
        self._check_ids(name, "ids", ids)
        proposal = self._proposal()
        options = self._options(name, num_samples, replacement, inclusion)
        if not replacement and inclusion == "observed":
            raise ValueError(
                f"{self._name}.{name}: inclusion='observed' needs a draw, which only sample() has;"
                " use 'expected' or 'estimated'"
            )
        self._check_range(name, ids)
        return ops.log_counts(proposal, ids, options.num_samples, self._plan(options).tries)

    def _begin_draw(
        self, target: Tensor, options: DrawOptions, generator: torch.Generator | None
    ) -> Draw:
        proposal, num_samples = self._proposal(), options.num_samples
        plan = self._plan(options)
        key = self._new_key(target, generator)
        ids, num_draws, _, _ = ops.sample(proposal, key, key[:0], num_samples, *plan)
        tries = plan.tries
        if not options.replacement and tries is None:
            tries = num_draws.to(torch.float64)
        return Draw(ids, None, lambda k: ops.log_counts(proposal, k, num_samples, tries))

    # --- draws of rows -------------------------------------------------------------------------

    def _draw_rows(
        self,
        method: str,
        target: Tensor,
        options: DrawOptions,
        exclude: Tensor | None,
        num_true: int | None,
        generator: torch.Generator | None,
        keep_ids: bool,
    ) -> tuple[KeyedSamples, Samples]:
        """The result of `sample_keyed` and, with `keep_ids`, of `sample(per_row=True)`."""
        name = f"{self._name}.{method}"
        proposal = self._proposal()
        self._check_ids(method, "target", target)
        options = self._options(method, *options)
        shape = _checks.check_rows(name, target, num_true)
        if exclude is not None:
            self._check_ids(method, "exclude", exclude)
            _checks.check_exclude(name, exclude, shape, self.num_classes)
            exclude = exclude.reshape(math.prod(shape), exclude.shape[-1]).contiguous()
        num_samples = options.num_samples
        plan = self._row_plan(options, 0 if exclude is None else exclude.shape[1])
        key = self._new_key(target, generator)
        targets = target.reshape(math.prod(shape), num_true or 1).contiguous()
        try:
            ids, _, log_count, target_log_count = ops.sample(
                proposal, key, targets, num_samples, *plan, exclude, True, keep_ids
            )
        except RuntimeError:
            if exclude is not None:  # it was found out there; here it gets the message for users
                _checks.check_left(name, proposal, exclude, num_samples, options.replacement)
            raise
        target_log_count = target_log_count.view(target.shape)
        keyed = KeyedSamples(key, proposal, num_samples, *plan, exclude, shape, target_log_count)
        size = (*shape, num_samples if keep_ids else 0)
        return keyed, Samples(ids.view(size), log_count.view(size), target_log_count)

    def _row_plan(self, options: DrawOptions, lost: int) -> Plan:
        """The plan of rows that must not have up to `lost` classes: the t of S classes, by the
        method of S and those together, since among that many distinct draws are S others."""
        plan = self._plan(options)
        if options.replacement or lost == 0:
            return plan
        most = min(options.num_samples + lost, self.num_drawable)
        return plan._replace(method=self._plan(DrawOptions(most, False, "expected")).method)

    # --- plans ---------------------------------------------------------------------------------

    def _plan(self, options: DrawOptions) -> Plan:
        num_samples, replacement, inclusion = options
        if replacement:
            return _WITH_REPLACEMENT
        if torch.compiler.is_compiling():
            self._keep_plan(num_samples, inclusion)
            return self._plans[num_samples, inclusion]
        return self._kept_plan(num_samples, inclusion)

    # Finding t can't be traced: torch.compile runs this once, while it traces, before it looks at
    # the plans that the graph will depend on.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _keep_plan(self, num_samples: int, inclusion: str) -> int:
        with _disable_current_modes():  # numbers, also where torch.export makes all tensors fake
            return int(self._kept_plan(num_samples, inclusion).method)

    def _kept_plan(self, num_samples: int, inclusion: str) -> Plan:
        self._settle()
        plan = self._plans.get((num_samples, inclusion))
        if plan is None:
            plan = self._make_plan(num_samples, inclusion)
            self._plans[num_samples, inclusion] = plan
        return plan

    def _make_plan(self, num_samples: int, inclusion: str) -> Plan:
        """Solve for t on the CPU, so that every device draws by the same method.

        The tensor outlives this draw: whatever mode that is in, training can save it.
        """
        with lasting():
            return self._solve_plan(num_samples, inclusion)

    def _solve_plan(self, num_samples: int, inclusion: str) -> Plan:
        try:
            expected = self._solve_tries(num_samples)
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}") from None
        draws = expected if expected < math.inf else self._draws_of_all()
        if inclusion != "expected" and draws > _MOST_COUNTED:
            raise ValueError(
                f"{self._name}: {num_samples} distinct classes take about {draws:.1g} draws, more"
                f" than can be counted for inclusion={inclusion!r}: use inclusion='expected', or"
                " make the least weights 0"
            )
        race = expected > _RACE_DRAWS_PER_CLASS * self.num_classes
        method = Method.RACE if race else Method.DISTINCT
        if inclusion == "observed":
            return Plan(method, None)
        if inclusion == "estimated":
            expected = self._estimate_tries(method, num_samples)
        return Plan(method, torch.tensor(expected, dtype=torch.float64, device=self._device()))

    def _draws_of_all(self) -> float:
        """About how many draws find every class."""
        return float(self.num_classes)

    def _estimate_tries(self, method: Method, num_samples: int) -> float:
        proposal = self._proposal()
        total = 0
        for draw in range(_ESTIMATE_DRAWS):
            key = torch.tensor([_ESTIMATE_SEED, draw << 40], device=self._device())
            total += int(ops.sample(proposal, key, key[:0], num_samples, method, None)[1])
        return total / _ESTIMATE_DRAWS

    def _refresh_plans(self) -> None:
        """Other probabilities: find every t anew, in the tensors that compiled graphs hold."""
        for (num_samples, inclusion), old in list(self._plans.items()):
            if num_samples > self.num_drawable:
                del self._plans[num_samples, inclusion]
                continue
            try:
                new = self._make_plan(num_samples, inclusion)
            except ValueError:  # the next such draw says so
                del self._plans[num_samples, inclusion]
                continue
            if old.tries is not None and new.tries is not None:
                new = Plan(new.method, old.tries.copy_(new.tries))
            self._plans[num_samples, inclusion] = new

    def _state_changed(self) -> None:
        self._refresh_plans()

    def _moved(self) -> None:
        self._plans.clear()  # their tensors belong on the other device

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_plans": {}}
