"""Draws of which every row has its own, from the arguments of the samplers' methods."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._load import native_for
from ..reference.sample import LogUniform, Uniform, Weighted
from . import _checks, _ops, _rows
from .keyed import KeyedSamples
from .samples import Samples

if TYPE_CHECKING:
    from .base import Sampler, _Plan


def draw_rows(
    sampler: Sampler,
    method: str,
    target: Tensor,
    how: tuple[int, bool, str],
    lists: tuple[Tensor | None, int | None],
    generator: torch.Generator | None,
    *,
    keep_ids: bool,
) -> tuple[KeyedSamples, Samples]:
    """What `method`, Sampler.sample or sample_keyed, returns; the ids only with `keep_ids`.

    Args:
        how: num_samples, replacement, inclusion.
        lists: exclude, num_true.
    """
    name = f"{type(sampler).__name__}.{method}"
    num_samples, replacement, inclusion = how
    exclude, num_true = lists
    proposal = sampler._proposal()
    if not isinstance(proposal, (Uniform, LogUniform, Weighted)):
        raise ValueError(
            f"{name}: rows can't have draws of their own from a {type(sampler).__name__}, which is"
            " not one distribution that a key alone gives draws from"
        )
    sampler._check_ids(method, "target", target)
    num_samples = sampler._check_num_samples(method, num_samples, replacement, inclusion)
    how = num_samples, replacement, inclusion
    shape = _checks.check_rows(name, target, num_true)
    if exclude is not None:
        sampler._check_ids(method, "exclude", exclude)
        _checks.check_exclude(name, exclude, shape, sampler.num_classes)
        exclude = exclude.reshape(math.prod(shape), exclude.shape[-1]).contiguous()
    lost = 0 if exclude is None else exclude.shape[1]
    plan = _row_plan(sampler, how, lost)
    key = _ops.new_key(target.device, generator)
    arguments = _rows.proposal_arguments(proposal, sampler.num_drawable)
    targets = target.reshape(math.prod(shape), num_true or 1).contiguous()

    def check_left() -> None:
        if exclude is not None:
            drawable = sampler.num_drawable
            _checks.check_left(name, proposal, exclude, drawable, num_samples, replacement)

    if not native_for(key.device, "sample_rows"):
        check_left()
    try:
        ids, _, log_count, target_log_count = _rows.sample_rows(
            arguments, key, targets, num_samples, *plan, exclude, keep_ids
        )
    except RuntimeError:
        check_left()  # the kernels found it out; here it gets the message for users
        raise
    target_log_count = target_log_count.view(target.shape)
    keyed = KeyedSamples(key, arguments, num_samples, *plan, exclude, shape, target_log_count)
    size = (*shape, num_samples if keep_ids else 0)
    return keyed, Samples(ids.view(size), log_count.view(size), target_log_count)


def _row_plan(sampler: Sampler, how: tuple[int, bool, str], lost: int) -> _Plan:
    """Of a row that must not have up to `lost` classes: the t of S classes, by the method of S and
    those together, since among that many distinct draws are S others."""
    num_samples, replacement, inclusion = how
    plan = sampler._plan(num_samples, replacement, inclusion)
    if replacement or lost == 0:
        return plan
    most = min(num_samples + lost, sampler.num_drawable)
    return plan._replace(method=sampler._plan(most, False, "expected").method)
