"""Negatives of single rows that are drawn when they are needed and never stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._arguments import fail_tensor
from ..reference.sample import Method
from ._rows import ProposalArguments, sample_rows
from .samples import Samples


class KeyedSamples(NamedTuple):
    """S classes for each row, as the key that they are drawn from.

    What `Sampler.sample_keyed` returns and the loss takes: its kernels draw the ids of a row when
    they come to it, in the forward and again in the backward pass, so that nothing of size [*, S]
    exists. The tensors are the sampler's own: an `update` of its weights before the backward pass
    is an error there, like any change of a tensor that autograd has saved.
    """

    key: Tensor
    """[2] int64, (seed, offset)."""
    proposal: ProposalArguments
    """What is drawn from."""
    num_samples: int
    """S."""
    method: Method
    """How: with replacement, the first distinct draws, or a race."""
    tries: Tensor | None
    """float64 [], the t of the expected counts without replacement; None: each row's own."""
    exclude: Tensor | None
    """[B, E] int64, classes that a row must not have, or None."""
    shape: tuple[int, ...]
    """The leading shape of the batch, of B rows in all."""
    target_log_expected_count: Tensor | None
    """float32 of the target's shape, log n of each target, as in `Samples`."""

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
        num_rows = 1
        for size in self.shape:
            num_rows *= size
        no_target = self.key.new_empty(num_rows, 0)
        ids, _, log_count, _ = sample_rows(
            self.proposal,
            self.key,
            no_target,
            self.num_samples,
            self.method,
            self.tries,
            self.exclude,
        )
        shape = (*self.shape, self.num_samples)
        return Samples(ids.view(shape), log_count.view(shape), self.target_log_expected_count)


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
        >>> samples = ssc.Samples(torch.tensor([[4, 5], [6, 7]]), None, None)
        >>> ssc.mask_samples(samples, torch.tensor([[5, -1], [8, 9]])).log_expected_count
        tensor([[0., inf],
                [0., 0.]])
    """
    if not isinstance(exclude, Tensor):
        fail_tensor("mask_samples", "exclude", exclude)
    if exclude.dtype != torch.int64:
        raise TypeError(f"mask_samples: exclude must be an int64 Tensor, got {exclude.dtype}")
    ids, log_count, target_log_count = samples
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
    return Samples(ids, log_count.expand_as(ids).masked_fill(hit, torch.inf), target_log_count)
