"""What all samplers share: keys, expected counts, checks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .._arguments import as_int, check_int64
from .._load import on_cpu
from .._torchscript import NotScriptable
from ..reference.sample import Method
from . import _ops
from ._row_draws import draw_rows
from ._state import Stateful, lasting
from .keyed import KeyedSamples
from .samples import Samples as Samples

_INCLUSIONS = ("expected", "observed", "estimated")

# Rejection takes t draws, the race about as long as this many draws per class.
_RACE_DRAWS_PER_CLASS = 4

# The draws behind inclusion="estimated": fixed keys, so that every process estimates the same t.
_ESTIMATE_SEED = 0x5353_4345_5354
_ESTIMATE_DRAWS = 10

# The operators count at most 2^62 draws. Of an expected number beyond this one, that might happen.
_MOST_COUNTED = 2.0**57


class _Plan(NamedTuple):
    """How S samples are drawn, and the t of their expected counts (None: as observed)."""

    method: Method
    tries: Tensor | None


class Sampler(NotScriptable, Stateful, ABC):
    """Draws class ids for sampled softmax: the base of all samplers.

    A draw is a pure function of a key of two 64-bit numbers, which `sample` takes from PyTorch's
    random state; the same key gives the same ids on every device and for any number of threads.
    """

    num_classes: int

    @property
    def draws(self) -> bool:
        """Whether it can draw at all, or only knows frequencies."""
        return True

    @property
    def draws_rows(self) -> bool:
        """Whether every row can have draws of its own (per_row=True)."""
        return self.draws

    def __init__(self) -> None:
        super().__init__()
        self._plans: dict[tuple[int, str], _Plan] = {}

    @property
    def num_drawable(self) -> int:
        """The number of classes with q > 0."""
        return self.num_classes

    @abstractmethod
    def _proposal(self) -> _ops.Proposal:
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
        inclusion: str = "expected",
        per_row: bool = False,
        exclude: Tensor | None = None,
        num_true: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Samples:
        """Draw classes, shared by the batch or for each row its own, with the log expected counts
        that the loss subtracts.

        With replacement: S independent draws, n = S q. Without: the first S distinct classes of the
        same stream, in the order of the draws, and n = 1 - (1 - q)^t with t, by `inclusion`,

        - "expected": the t at which S distinct classes are expected;
        - "observed": the number of draws that this very sample took (TensorFlow);
        - "estimated": the mean number of draws of ten separate samples (CNTK).

        Args:
            target: int64 of any shape, the classes whose expected counts the loss will need. Ids
                outside [0, num_classes), such as an ignore_index, get 0, and so do classes that are
                never drawn (q = 0): their logits are not corrected.
            num_samples: S, at least 1; without replacement at most `num_drawable`.
            replacement: whether a class may be drawn more than once.
            inclusion: which t, without replacement.
            per_row: whether every row has S classes of its own; `sample_keyed` gives the same ones
                without storing them.
            exclude: with per_row, [*, E] int64, classes that a row must not have; negative ids are
                padding. Its draws that are excluded are made again, so the others are likelier: q
                is divided by 1 minus what the excluded ones have. With "expected" and "estimated" t
                stays that of the whole proposal. A target's own count is that of a class which is
                not excluded.
            num_true: with per_row, T where target is [*, T]; None: its entries are the rows.
            generator: on the target's device; torch's default generator if None, and inside
                torch.compile, which can't trace a generator.

        Returns:
            `Samples(ids [S], log_expected_count [S], target_log_expected_count)`, the last of the
            target's shape; with per_row ids and counts are [*, S].

        Raises:
            ValueError: num_samples below 1 or above num_drawable, an unknown inclusion, a target on
                another device; exclude or num_true without per_row or of the wrong shape; on the
                CPU, an exclude that leaves a row too few classes (on CUDA its ids are then -1 and
                its counts NaN). TypeError: a target or exclude that is not int64, a num_samples
                that is not an int. IndexError: an excluded id of num_classes or more, on the CPU.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.LogUniformSampler(1000)
            >>> samples = sampler.sample(torch.tensor([3, 14, 15]), 8, replacement=False)
            >>> samples.ids.shape, samples.target_log_expected_count.shape
            (torch.Size([8]), torch.Size([3]))
            >>> sampler.sample(torch.tensor([3, 14, 15]), 8, per_row=True).ids.shape
            torch.Size([3, 8])
        """
        if per_row:
            how = num_samples, replacement, inclusion
            lists = exclude, num_true
            return draw_rows(self, "sample", target, how, lists, generator, keep_ids=True)[1]
        for argument, value in (("exclude", exclude), ("num_true", num_true)):
            if value is not None:
                raise ValueError(
                    f"{self._name}.sample: {argument} needs per_row=True: samples shared by the"
                    " batch are the same for every row"
                )
        self._check_ids("sample", "target", target)
        num_samples = self._check_num_samples("sample", num_samples, replacement, inclusion)
        plan = self._plan(num_samples, replacement, inclusion)
        key = _ops.new_key(target.device, generator)
        ids, _, log_count, target_log_count = _ops.sample(
            self._proposal(), key, target.contiguous(), num_samples, *plan
        )
        return Samples(ids, log_count, target_log_count)

    def sample_keyed(
        self,
        target: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: str = "expected",
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
        how = num_samples, replacement, inclusion
        lists = exclude, num_true
        return draw_rows(self, "sample_keyed", target, how, lists, generator, keep_ids=False)[0]

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
        num_samples = self._check_num_samples("draw", num_samples, replacement, "observed")
        plan = self._plan(num_samples, replacement, "observed")
        ids, num_draws, _, _ = _ops.sample(
            proposal, key.contiguous(), key.new_empty(0), num_samples, *plan
        )
        return ids, num_draws

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q of each class, float32 of the shape of ids, computed in float64; -inf for q = 0.

        Raises:
            IndexError: an id outside [0, num_classes). TypeError: ids that are not int64.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> ssc.LogUniformSampler(3).log_prob(torch.tensor([0, 1, 2])).exp()
            tensor([0.5000, 0.2925, 0.2075])
        """
        self._check_ids("log_prob", "ids", ids)
        self._check_range("log_prob", ids)
        return _ops.log_counts(self._proposal(), ids, 1, None)

    def log_expected_count(
        self,
        ids: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: str = "expected",
    ) -> Tensor:
        """log n of each class in a sample of num_samples, float32 of the shape of ids.

        -inf for a class that is never drawn, for which `sample` gives 0: nothing to correct.

        Args:
            ids: int64 of any shape, in [0, num_classes).
            num_samples, replacement, inclusion: as in `sample`, but for inclusion="observed", which
                exists only together with a draw.

        Raises:
            IndexError: an id outside [0, num_classes). ValueError, TypeError: as `sample`.

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> sampler = ssc.UniformSampler(8)
            >>> sampler.log_expected_count(torch.tensor([5]), 4, replacement=False).exp()
            tensor([0.5000])
        """
        name = "log_expected_count"
        self._check_ids(name, "ids", ids)
        proposal = self._proposal()
        num_samples = self._check_num_samples(name, num_samples, replacement, inclusion)
        if not replacement and inclusion == "observed":
            raise ValueError(
                f"{self._name}.{name}: inclusion='observed' needs a draw, which only sample() has;"
                " use 'expected' or 'estimated'"
            )
        self._check_range(name, ids)
        plan = self._plan(num_samples, replacement, inclusion)
        return _ops.log_counts(proposal, ids, num_samples, plan.tries)

    # --- plans ---------------------------------------------------------------------------------

    def _plan(self, num_samples: int, replacement: bool, inclusion: str) -> _Plan:
        if replacement:
            return _Plan(Method.WITH_REPLACEMENT, None)
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

    def _kept_plan(self, num_samples: int, inclusion: str) -> _Plan:
        self._settle()
        plan = self._plans.get((num_samples, inclusion))
        if plan is None:
            plan = self._make_plan(num_samples, inclusion)
            self._plans[num_samples, inclusion] = plan
        return plan

    def _make_plan(self, num_samples: int, inclusion: str) -> _Plan:
        """Solve for t on the CPU, so that every device draws by the same method.

        The tensor outlives this draw: whatever mode that is in, training can save it.
        """
        with lasting():
            return self._solve_plan(num_samples, inclusion)

    def _solve_plan(self, num_samples: int, inclusion: str) -> _Plan:
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
            return _Plan(method, None)
        if inclusion == "estimated":
            expected = self._estimate_tries(method, num_samples)
        return _Plan(method, torch.tensor(expected, dtype=torch.float64, device=self._device()))

    def _draws_of_all(self) -> float:
        """About how many draws find every class."""
        return float(self.num_classes)

    def _estimate_tries(self, method: Method, num_samples: int) -> float:
        proposal = self._proposal()
        total = 0
        for draw in range(_ESTIMATE_DRAWS):
            key = torch.tensor([_ESTIMATE_SEED, draw << 40], device=self._device())
            total += int(_ops.sample(proposal, key, key[:0], num_samples, method, None)[1])
        return total / _ESTIMATE_DRAWS

    def _refresh_plans(self) -> None:
        """Other probabilities: find every t anew, in the tensors that compiled graphs hold."""
        for (num_samples, inclusion), old in list(self._plans.items()):
            if num_samples > self.num_drawable:
                del self._plans[num_samples, inclusion]
                continue
            new = self._make_plan(num_samples, inclusion)
            if old.tries is not None and new.tries is not None:
                new = _Plan(new.method, old.tries.copy_(new.tries))
            self._plans[num_samples, inclusion] = new

    def _state_changed(self) -> None:
        self._refresh_plans()

    def _moved(self) -> None:
        self._plans.clear()  # their tensors belong on the other device

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_plans": {}}

    def _device(self) -> torch.device | None:
        """Where the sampler's tensors are; None if it has none and serves any device."""
        return self._state_device() if self._STATE else None

    # --- checks --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_ids(self, method: str, argument: str, ids: Any) -> None:
        check_int64(f"{self._name}.{method}", argument, ids)
        device = self._device()
        if device is not None and ids.device != device:
            raise ValueError(
                f"{self._name}.{method}: {argument} must be on the sampler's device {device},"
                f" got {ids.device}; sampler.to({str(ids.device)!r}) moves the sampler"
            )

    def _check_range(self, method: str, ids: Tensor) -> None:
        if torch.compiler.is_compiling() or not on_cpu(ids) or ids.numel() == 0:
            return
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= self.num_classes:
            raise IndexError(
                f"{self._name}.{method}: ids must be in [0, num_classes={self.num_classes}), got"
                f" {low if low < 0 else high}"
            )

    def _check_num_samples(
        self, method: str, num_samples: Any, replacement: bool, inclusion: str
    ) -> int:
        name = f"{self._name}.{method}"
        count = as_int(name, "num_samples", num_samples, least=1)
        if inclusion not in _INCLUSIONS:
            raise ValueError(
                f"{name}: inclusion must be one of {', '.join(_INCLUSIONS)}, got {inclusion!r}"
            )
        if not replacement and count > self.num_drawable:
            raise ValueError(
                f"{name}: num_samples must be at most {self.num_drawable}, the number of classes"
                f" with positive probability, without replacement, got {count}"
            )
        return count


def check_num_classes(name: str, num_classes: object, limit: int) -> int:
    """num_classes as an int in [1, limit]."""
    num_classes = as_int(name, "num_classes", num_classes)
    if not 1 <= num_classes <= limit:
        raise ValueError(f"{name}: num_classes must be in [1, {limit}], got {num_classes}")
    return num_classes
