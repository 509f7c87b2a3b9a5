"""Sampled classes, from a sampler to the loss: their ids, or the key that they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.export import register_dataclass

from ._arguments import fail_tensor
from .proposals import Method, Proposal


@dataclass(frozen=True, eq=False)
class Samples:
    """Sampled classes and the logarithms of their expected counts.

    Ids may come from anywhere (a queue, a miner): `Samples(ids)` corrects nothing.
    Shared by the whole batch they are [S]; [*, S] gives each row its own, * being the batch's
    shape.
    """

    ids: Tensor
    """[S] or [*, S] int64 class ids."""
    log_expected_count: Tensor | None = None
    """float32 of the shape of ids, log n of each; None means n = 1. +inf masks a sample: it
    contributes nothing. -inf, n = 0, corrects nothing, as n = 1."""
    target_log_expected_count: Tensor | None = None
    """float32 of the target's shape, log n of each target; None means n = 1. A class that is never
    drawn has 0 from a sampler, and -inf means the same."""

    @property
    def num_samples(self) -> int:
        """S."""
        return self.ids.shape[-1]

    @property
    def shared(self) -> bool:
        """Whether all rows share the samples."""
        return self.ids.dim() == 1

    def without(self, class_id: int) -> Samples:
        """These samples, those of one class masked."""
        count = self.log_expected_count
        if count is None:
            count = torch.zeros(self.ids.shape, dtype=torch.float32, device=self.ids.device)
        count = count.masked_fill(self.ids == class_id, torch.inf)
        return replace(self, log_expected_count=count)

    def materialize(self) -> Samples:
        """These samples, whose ids are there already; see `KeyedSamples`."""
        return self


@dataclass(frozen=True, eq=False)
class KeyedSamples:
    """S classes for each row, as the key that they are drawn from.

    `Sampler.sample_keyed` returns it and the loss takes it: its kernels draw the ids of a row when
    they come to it, in the forward and again in the backward pass, so that nothing of size [*, S]
    exists. The tensors are the sampler's own: an `update` of its weights before the backward pass
    is an error there, like any change of a tensor that autograd has saved.
    """

    key: Tensor
    """[2] int64, (seed, offset)."""
    _proposal: Proposal
    """The distribution to draw from."""
    num_samples: int
    """S."""
    _method: Method
    """How: with replacement, the first distinct draws, or a race."""
    _tries: Tensor | None
    """float64 [], the t of the expected counts without replacement; None: each row's own."""
    _exclude: Tensor | None
    """[B, E] int64, classes that a row must not have, or None."""
    shape: tuple[int, ...]
    """The leading shape of the batch, of B rows in all."""
    target_log_expected_count: Tensor | None
    """float32 of the target's shape, log n of each target, as in `Samples`."""

    @property
    def _operator_arguments(self) -> tuple[Tensor | int | None, ...]:
        """The key, what is drawn from, and how, in the order that the operators take them in."""
        how = (self.num_samples, int(self._method), self._tries, self._exclude)
        return (self.key, *self._proposal, *how)

    @property
    def num_classes(self) -> int:
        """C, of what the ids are drawn from."""
        return self._proposal.num_classes

    @property
    def shared(self) -> bool:
        """False: every row has its own."""
        return False

    def materialize(self) -> Samples:
        """The same negatives with their ids [*, S] and log expected counts [*, S].

        Example:
            >>> import torch, sampled_softmax_cuda as ssc
            >>> keyed = ssc.UniformSampler(1000).sample_keyed(torch.tensor([3, 14, 15]), 8)
            >>> samples = keyed.materialize()
            >>> samples.ids.shape, torch.equal(samples.ids, keyed.materialize().ids)
            (torch.Size([3, 8]), True)
        """
        from .ops.sample import sample  # which is above this module

        no_target = self.key.new_empty(prod(self.shape), 0)
        how = (self.num_samples, self._method, self._tries, self._exclude)
        ids, _, log_count, _ = sample(self._proposal, self.key, no_target, *how, True)
        shape = (*self.shape, self.num_samples)
        return Samples(ids.view(shape), log_count.view(shape), self.target_log_expected_count)


# So that torch.export, torch.func and checkpoints of activations see the tensors inside.
register_dataclass(Samples)


def mask_samples(samples: Samples, exclude: Tensor) -> Samples:
    """Samples of rows without the classes that each row must not have (seen items, say).

    A masked sample has a log expected count of +inf and so contributes nothing; unlike the
    `exclude` of `Sampler.sample`, no other class takes its place.

    Args:
        samples: ids [*, S] of each row, or [S] shared by all, which gives every row its own copy.
        exclude: [*, E] int64, a list for each row; ids outside [0, C), such as -1, are padding.

    Returns:
        `Samples` with ids and counts [*, S].

    Raises:
        ValueError: shapes that do not fit. TypeError: an exclude that is not int64.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> samples = ssc.Samples(torch.tensor([[4, 5], [6, 7]]))
        >>> ssc.mask_samples(samples, torch.tensor([[5, -1], [8, 9]])).log_expected_count
        tensor([[0., inf],
                [0., 0.]])
    """
    if not isinstance(exclude, Tensor):
        fail_tensor("mask_samples", "exclude", exclude)
    if exclude.dtype != torch.int64:
        raise TypeError(f"mask_samples: exclude must be an int64 Tensor, got {exclude.dtype}")
    ids, log_count = samples.ids, samples.log_expected_count
    lead = exclude.shape[:-1]
    if exclude.dim() == 0 or (ids.dim() != 1 and ids.shape[:-1] != lead):
        raise ValueError(
            f"mask_samples: exclude must be [*, E] with the rows of samples.ids {list(ids.shape)},"
            f" got {list(exclude.shape)}"
        )
    if log_count is None:
        log_count = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    ids = ids.expand(*lead, ids.shape[-1])
    listed = exclude.sort(dim=-1).values
    hit = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    if listed.shape[-1] > 0:
        place = torch.searchsorted(listed, ids.contiguous()).clamp(max=listed.shape[-1] - 1)
        hit = listed.gather(-1, place) == ids
    log_count = log_count.expand_as(ids).masked_fill(hit, torch.inf)
    return replace(samples, ids=ids, log_expected_count=log_count)
