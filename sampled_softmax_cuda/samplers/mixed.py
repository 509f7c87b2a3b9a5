"""Several proposals at once, corrected by the exact density of their mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._arguments import as_float
from ..options import Inclusion
from .base import ANY_CLASSES, UNLIMITED, Draw, DrawOptions, Sampler
from .pooled import PooledSampler


def split_samples(num_samples: int, proportions: Sequence[float], most: Sequence[int]) -> list[int]:
    """Integer shares of num_samples in the given proportions, share i at most most[i].

    Largest remainders round up. The rest of a full component goes to the others; the sum is
    num_samples unless all of them are full.
    """
    shares = [0] * len(most)
    open_ = [i for i in range(len(most)) if most[i] > 0]
    while open_ and sum(shares) < num_samples:
        left = num_samples - sum([shares[i] for i in range(len(most)) if i not in open_])
        total = sum([proportions[i] for i in open_])
        exact = [left * (proportions[i] / total) for i in open_]
        wanted = [math.floor(x) for x in exact]
        by_remainder = sorted(range(len(open_)), key=lambda j: wanted[j] - exact[j])
        for j in by_remainder[: left - sum(wanted)]:
            wanted[j] += 1
        full = [i for i, w in zip(open_, wanted, strict=True) if w > most[i]]
        if not full:
            for i, w in zip(open_, wanted, strict=True):
                shares[i] = w
            break
        for i in full:
            shares[i] = most[i]
        open_ = [i for i in open_ if i not in full]
    return shares


class MixedSampler(PooledSampler):
    """Every component draws its share of the samples; n is that of the mixture, exactly.

    Component i draws S_i of the S samples (a deterministic split in the given proportions; what an
    in-batch component or a draw without replacement can't fill goes to the others). For every
    sample and target, whichever component it came from, n_k = sum_i n_i(k): with replacement
    sum_i S_i q_i(k). Without replacement each component draws distinct classes of its own, and its
    inclusion frequencies add up likewise. Taking only the q of the component that a sample came
    from would count classes that several components draw too often.

    Method: Veach and Guibas, "Optimally Combining Sampling Techniques for Monte Carlo Rendering"
    (1995), the balance heuristic; for uniform and in-batch negatives Yang et al., "Mixed Negative
    Sampling for Learning Two-Tower Neural Networks in Recommendations" (2020).

    Args:
        samplers: at least one Sampler, all over the same number of classes (an `InBatchSampler`
            that was not told how many takes any). A component may be a mixture too.
        proportions: a positive number for each; None (default): equal shares.

    Raises:
        ValueError: no samplers, different numbers of classes, proportions that are not positive
            and finite or not one for each. TypeError: something that is not a Sampler.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> sampler = ssc.MixedSampler(
        ...     [ssc.UniformSampler(4), ssc.WeightedSampler(torch.tensor([1.0, 0.0, 0.0, 0.0]))],
        ...     proportions=[3, 1],
        ... )
        >>> sampler.log_prob(torch.arange(4)).exp()
        tensor([0.4375, 0.1875, 0.1875, 0.1875])
        >>> sampler.sample(torch.tensor([2]), 8).target_log_expected_count.exp()  # 6 / 4 + 2 * 0
        tensor([1.5000])
    """

    def __init__(
        self, samplers: Sequence[Sampler], proportions: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if isinstance(samplers, Sampler):
            raise TypeError(
                "MixedSampler: samplers must be a list of Samplers, got a"
                f" {type(samplers).__name__}: pass [sampler]"
            )
        samplers = list(samplers)
        if not samplers:
            raise ValueError("MixedSampler: samplers must hold at least one Sampler, got none")
        for i, sampler in enumerate(samplers):
            if not isinstance(sampler, Sampler):
                raise TypeError(
                    f"MixedSampler: samplers[{i}] must be a Sampler, got {type(sampler).__name__}"
                )
        classes = {s.num_classes for s in samplers} - {ANY_CLASSES}
        if len(classes) > 1:
            raise ValueError(
                "MixedSampler: samplers must have the same num_classes, got"
                f" {', '.join(str(c) for c in sorted(classes))}"
            )
        proportions = [1.0] * len(samplers) if proportions is None else list(proportions)
        if len(proportions) != len(samplers):
            raise ValueError(
                f"MixedSampler: proportions must be {len(samplers)} numbers, one for each sampler,"
                f" got {len(proportions)}"
            )
        proportions = [as_float("MixedSampler", "proportions", p) for p in proportions]
        for p in proportions:
            if not 0 < p < math.inf:
                raise ValueError(f"MixedSampler: proportions must be positive and finite, got {p}")
        self.samplers = nn.ModuleList(samplers)
        self.proportions = [p / math.fsum(proportions) for p in proportions]
        self.num_classes = classes.pop() if classes else ANY_CLASSES

    @property
    def num_drawable(self) -> int:
        """The most samples without replacement: each component draws distinct classes."""
        return min(UNLIMITED, sum(s.num_drawable for s in self._components()))

    def log_prob(self, ids: Tensor) -> Tensor:
        """log of the mixture's density at each id, float32 of their shape.

        Raises:
            ValueError: a component knows no probabilities (an `InBatchSampler` without log_q).
            IndexError, TypeError: as `Sampler.log_prob`.
        """
        parts = zip(self._components(), self.proportions, strict=True)
        return log_sum([s.log_prob(ids).double() + math.log(p) for s, p in parts])

    def log_expected_count(
        self,
        ids: Tensor,
        num_samples: int,
        *,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
    ) -> Tensor:
        """log of sum_i n_i(k), float32 of the shape of ids.

        The split is that of a batch in which every in-batch component can fill its share. -inf for
        a class that no component draws, for which `sample` gives 0: nothing to correct.

        Raises:
            ValueError, IndexError, TypeError: as `log_prob` and `Sampler.log_expected_count`.
        """
        num_samples = self._check_num_samples(
            "log_expected_count", num_samples, replacement, inclusion
        )
        most = [UNLIMITED if replacement else s.num_drawable for s in self._components()]
        shares = split_samples(num_samples, self.proportions, most)
        counts = [
            s.log_expected_count(ids, share, replacement=replacement, inclusion=inclusion).double()
            for s, share in zip(self._components(), shares, strict=True)
            if share > 0
        ]
        return log_sum(counts)

    def extra_repr(self) -> str:
        return f"proportions=[{', '.join(f'{p:.4g}' for p in self.proportions)}]"

    def _components(self) -> list[Sampler]:
        return list(self.samplers)  # type: ignore[arg-type]

    def _device(self) -> torch.device | None:
        devices = (s._device() for s in self._components())
        return next((device for device in devices if device is not None), None)

    def _capacity(self, target: Tensor, replacement: bool) -> int:
        return min(UNLIMITED, sum(s._capacity(target, replacement) for s in self._components()))

    def _begin_draw(
        self,
        target: Tensor,
        options: DrawOptions,
        generator: torch.Generator | None,
    ) -> Draw:
        num_samples, replacement, _ = options
        components = self._components()
        most = [s._capacity(target, replacement) for s in components]
        shares = split_samples(num_samples, self.proportions, most)
        draws = [
            s._begin_draw(target, options._replace(num_samples=share), generator)
            for s, share in zip(components, shares, strict=True)
            if share > 0
        ]
        masked = None
        if any(d.masked is not None for d in draws):
            masked = torch.cat(
                [
                    torch.zeros_like(d.ids, dtype=torch.bool) if d.masked is None else d.masked
                    for d in draws
                ]
            )
        return Draw(
            torch.cat([d.ids for d in draws]),
            masked,
            lambda ids: log_sum([d.log_count(ids).double() for d in draws]),
        )


def log_sum(logs: list[Tensor]) -> Tensor:
    """log of the sum of exponentials, float32; -inf where all are."""
    return torch.stack(logs).logsumexp(dim=0).to(torch.float32)
