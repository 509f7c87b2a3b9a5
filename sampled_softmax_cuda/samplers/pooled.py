"""Samplers whose ids do not come from one stream of independent draws, and those that learn.

A pool (the batch, a queue) or a mixture: their draw is ids together with a function that gives the
expected count of *any* class in that very draw, so that mixtures can add up the counts of parts.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from .._arguments import as_int
from ..options import Inclusion
from ..samples import Samples
from .base import ANY_CLASSES, Sampler


class Learner(nn.Module):
    """A sampler that changes with the targets it sees."""

    update_on_sample: bool
    """Whether `sample` in training mode ends with `update(target)`."""

    @abstractmethod
    def update(self, target: Tensor) -> None:
        """Take account of a batch's targets."""


def is_class(ids: Tensor, num_classes: int, padding_idx: int | None, ignore_index: int) -> Tensor:
    """Where ids are classes: neither out of range, nor the padding, nor ignored."""
    inside = ids >= 0
    if num_classes != ANY_CLASSES:
        inside = inside & (ids < num_classes)
    if padding_idx is not None:
        inside = inside & (ids != padding_idx)
    return inside if ignore_index < 0 else inside & (ids != ignore_index)


def check_ignore_index(name: str, ignore_index: object) -> int:
    """ignore_index as an int; TypeError unless it is one."""
    return as_int(name, "ignore_index", ignore_index)


def in_backward_pass() -> bool:
    """Whether autograd runs a backward pass now, in which checkpointing repeats forward passes."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def learn(sampler: nn.Module, target: Tensor) -> None:
    """Update every sampler in `sampler` that asked for it, once each.

    Not in a forward pass that is repeated, whose targets have been counted.
    """
    if in_backward_pass():
        return
    for module in sampler.modules():
        if isinstance(module, Learner) and module.update_on_sample and module.training:
            module.update(target)


class PooledSampler(Sampler):
    """The base of pools and mixtures. Negatives are shared by the batch."""

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
        """Draw classes shared by the batch; see the class and `Sampler.sample`.

        Entries of the result that stand for no class (padding, repeats that `replacement=False`
        leaves out) have log_expected_count = +inf, with which a sample adds nothing to the loss.
        A class with q = 0, as a target or in a pool all the same, counts as n = 1.

        Raises:
            ValueError, TypeError: as `Sampler.sample`; per_row=True, exclude and num_true, which
                are about single rows.
        """
        for argument, given in (
            ("per_row=True", per_row),
            ("exclude", exclude is not None),
            ("num_true", num_true is not None),
        ):
            if given:
                self._refuse("sample", argument)
        self._check_ids("sample", "target", target)
        options = self._options("sample", num_samples, replacement, inclusion)
        draw = self._begin_draw(target, options, generator)
        num_ids = draw.ids.shape[0]
        known = (target >= 0) & (target < self.num_classes)
        some = draw.ids[0]  # stands for an ignored target, which might be no class at all
        ids = torch.cat((draw.ids, torch.where(known, target, some).reshape(-1)))
        log_count = draw.log_count(ids).to(torch.float32)
        log_count = torch.where(log_count == -torch.inf, 0.0, log_count)
        sample_count, target_count = log_count[:num_ids], log_count[num_ids:].view(target.shape)
        if draw.masked is not None:
            sample_count = sample_count.masked_fill(draw.masked, torch.inf)
        learn(self, target)
        return Samples(draw.ids, sample_count, torch.where(known, target_count, 0.0))
