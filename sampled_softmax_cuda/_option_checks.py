"""Checks of the loss's options: each by itself, and which of them go together.

As in `_checks`, a function's first argument is the name of the public function.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from . import _checks
from ._arguments import as_bool, as_float, check_int64
from .reference.composed import LOSSES, LossOptions
from .samplers.keyed import KeyedSamples
from .samplers.samples import Samples


def _number(fn: str, name: str, value: Any, high: float, *, open_end: bool = False) -> float:
    """`value` as a float; TypeError unless it is a number, ValueError unless 0 <= value <= high, or
    < high with `open_end`."""
    number = as_float(fn, name, value)
    if not 0.0 <= number <= high or (open_end and number == high):
        end = ")" if open_end else "]"
        raise ValueError(f"{fn}: {name} must be in [0, {high:g}{end}, got {value}")
    return number


def _refuse(fn: str, option: str, other: str, reason: str) -> None:
    raise ValueError(f"{fn}: {option} does not go with {other}: {reason}")


def check_softcap(fn: str, softcap: Any) -> float | None:
    """softcap as None or a positive float."""
    if softcap is None:
        return None
    return _checks.check_divisor(fn, "softcap", softcap, ", or None for no cap")


def _in_python(fn: str, o: LossOptions) -> LossOptions:
    """The options, each by itself right, with Python's numbers in place of NumPy's."""
    _checks.check_choice(fn, "loss", o.loss, LOSSES)
    _checks.check_choice(fn, "correction", o.correction, _checks.CORRECTIONS)
    return replace(
        o,
        temperature=_checks.check_temperature(fn, o.temperature),
        remove_accidental_hits=as_bool(fn, "remove_accidental_hits", o.remove_accidental_hits),
        ignore_index=_checks.check_ignore_index(fn, o.ignore_index),
        softcap=check_softcap(fn, o.softcap),
        cosine=as_bool(fn, "cosine", o.cosine),
        margin=_number(fn, "margin", o.margin, math.inf, open_end=True),
        angular_margin=_number(fn, "angular_margin", o.angular_margin, math.pi, open_end=True),
        label_smoothing=_number(fn, "label_smoothing", o.label_smoothing, 1.0),
        calibration=_number(fn, "calibration", o.calibration, 1.0),
    )


def _is_usual(o: LossOptions) -> bool:
    """Whether it is the plain loss with Python's numbers: the common case, found quickly."""
    return (
        type(o.loss) is type(o.correction) is str
        and o.loss == "softmax"
        and o.correction == "both"
        and type(o.temperature) is float
        and _checks.LEAST_DIVISOR <= o.temperature <= _checks.LARGEST_DIVISOR
        and (o.remove_accidental_hits is True or o.remove_accidental_hits is False)
        and type(o.ignore_index) is int
        and -(2**63) <= o.ignore_index < 2**63
        and o.softcap is None
        and o.cosine is False
        and type(o.margin) is type(o.angular_margin) is type(o.label_smoothing) is float
        and o.margin == o.angular_margin == o.label_smoothing == 0.0
        and o.calibration == 0.75
    )


def check_option_values(fn: str, o: LossOptions, *, shared: bool) -> LossOptions:
    """The options as Python's numbers, each checked by itself and against the others, for samples
    that rows share or don't."""
    if _is_usual(o):
        return o
    o = _in_python(fn, o)
    if o.plain:
        return o
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
    return o


def check_options(
    fn: str,
    o: LossOptions,
    target: Tensor,
    input: Tensor,
    samples: Samples | KeyedSamples,
    exclude: Any,
) -> LossOptions:
    """The options as `check_option_values` gives them, checked with all that they meet: the target,
    the samples and the excluded classes."""
    o = check_option_values(fn, o, shared=samples.shared)
    if target.dim() == input.dim() and target.shape[-1] > 1:
        if o.loss == "gbce":
            _refuse(fn, "a target [*, T]", "loss='gbce'", "beta is that of a single positive")
        if o.correction == "reweighted":
            _refuse(fn, "a target [*, T]", "correction='reweighted'", "it weighs a single class")
    if exclude is None:
        return o
    check_int64(fn, "exclude", exclude)
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
    return o
