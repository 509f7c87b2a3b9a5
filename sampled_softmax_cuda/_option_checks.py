"""Checks of the loss's options: each by itself, and which of them go together.

As in `_checks`, a function's first argument is the name of the public function.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from . import _checks
from .reference.composed import LOSSES, LossOptions
from .samplers.keyed import KeyedSamples
from .samplers.samples import Samples


def _check_number(fn: str, name: str, value: Any, low: float, high: float) -> None:
    """TypeError unless `value` is a number, ValueError unless low <= value < high."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{fn}: {name} must be a float, got {type(value).__name__}")
    if not low <= value < high:
        raise ValueError(f"{fn}: {name} must be in [{low:g}, {high:g}), got {value}")


def _refuse(fn: str, option: str, other: str, reason: str) -> None:
    raise ValueError(f"{fn}: {option} does not go with {other}: {reason}")


def check_softcap(fn: str, softcap: Any) -> None:
    """softcap is None or a positive number."""
    if softcap is None:
        return
    _check_number(fn, "softcap", softcap, 0.0, math.inf)
    if softcap == 0:
        raise ValueError(f"{fn}: softcap must be positive, or None for no cap, got 0")


def check_option_values(fn: str, o: LossOptions, *, shared: bool) -> None:
    """Every option by itself and against the others, for samples that rows share or don't."""
    _checks.check_temperature(fn, o.temperature)
    _checks.check_choice(fn, "correction", o.correction, _checks.CORRECTIONS)
    _checks.check_ignore_index(fn, o.ignore_index)
    if o.plain:
        return
    _checks.check_choice(fn, "loss", o.loss, LOSSES)
    check_softcap(fn, o.softcap)
    _check_number(fn, "margin", o.margin, 0.0, math.inf)
    _check_number(fn, "angular_margin", o.angular_margin, 0.0, math.pi)
    _check_number(fn, "label_smoothing", o.label_smoothing, 0.0, 1.0)
    _check_number(fn, "calibration", o.calibration, 0.0, math.nextafter(1.0, 2.0))
    if o.loss in ("negative_sampling", "gbce") and o.correction not in ("both", "none"):
        _refuse(
            fn,
            f"correction={o.correction!r}",
            f"loss={o.loss!r}",
            "it takes logits as they are; use loss='nce' for corrected ones",
        )
    if o.loss != "softmax" and o.correction == "reweighted":
        _refuse(fn, "correction='reweighted'", f"loss={o.loss!r}", "it weighs the softmax's rows")
    if not shared:
        for option, on in (("cosine", o.cosine), ("label_smoothing", o.label_smoothing != 0)):
            if on:
                reason = "it would gather the rows of all B * S samples; share them by the batch"
                _refuse(fn, option, "samples per row", reason)
    if o.angular_margin != 0 and not o.cosine:
        _refuse(fn, "angular_margin", "cosine=False", "there is no angle without unit vectors")
    if o.label_smoothing != 0:
        if o.loss != "softmax":
            _refuse(fn, "label_smoothing", f"loss={o.loss!r}", "it spreads a softmax's label")
        if o.softcap is not None:
            _refuse(fn, "label_smoothing", "softcap", "capped logits have no mean by linearity")
        if o.correction == "reweighted":
            _refuse(fn, "label_smoothing", "correction='reweighted'", "its label is one class")


def check_options(
    fn: str,
    o: LossOptions,
    target: Tensor,
    input: Tensor,
    samples: Samples | KeyedSamples,
    exclude: Any,
) -> None:
    """All options, with the target, the samples and the excluded classes that they meet."""
    check_option_values(fn, o, shared=samples.shared)
    if target.dim() == input.dim() and target.shape[-1] > 1:
        if o.loss == "gbce":
            _refuse(fn, "a target [*, T]", "loss='gbce'", "beta is that of a single positive")
        if o.correction == "reweighted":
            _refuse(fn, "a target [*, T]", "correction='reweighted'", "it weighs a single class")
    if exclude is None:
        return
    _checks.check_int64(fn, "exclude", exclude)
    leading = input.shape[:-1]
    if exclude.dim() != input.dim() or exclude.shape[:-1] != leading:
        raise ValueError(
            f"{fn}: exclude must be {[*leading, 'E']} to match input {list(input.shape)},"
            f" got {list(exclude.shape)}"
        )
    _checks.check_device(fn, "exclude", exclude, input)
    if not o.remove_accidental_hits:
        reason = "to count a target as its own negative and leave others out makes no sense"
        _refuse(fn, "exclude", "remove_accidental_hits=False", reason)
    if o.label_smoothing != 0:
        _refuse(fn, "label_smoothing", "exclude", "excluded classes would get a share of the label")
