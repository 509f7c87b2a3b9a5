"""The options of a loss: their types, defaults and ranges, and which of them go together.

As in `_checks`, a function's first argument is the name of the public function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NoReturn

import torch

from . import _checks
from ._arguments import as_bool, as_float
from .objectives import SOFTMAX, Objective, Softmax, as_objective

Correction = Literal["both", "negatives", "none"]
Reduction = Literal["none", "mean", "sum"]
Inclusion = Literal["expected", "observed", "estimated"]

CORRECTIONS = ("both", "negatives", "none")
REDUCTIONS = ("none", "mean", "sum")


@dataclass(frozen=True)
class Options:
    """The options that change what is computed for a row, checked; `checked_options` makes them."""

    objective: Objective
    temperature: float = 1.0
    correction: Correction = "both"
    remove_accidental_hits: bool = True
    ignore_index: int = -100
    softcap: float | None = None
    cosine: bool = False
    z_loss: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether the fused operator of the plain softmax computes this, for one true class."""
        return (
            self.objective._plain
            and self.softcap is None
            and not self.cosine
            and self.z_loss == 0.0
        )

    @property
    def reweighted(self) -> bool:
        """Whether the softmax's rows are weighed by their chance to be wrong."""
        return isinstance(self.objective, Softmax) and self.objective.reweighted

    @property
    def corrects_samples(self) -> bool:
        """Whether log n is subtracted from the samples' logits."""
        return self.objective._corrected and self.correction != "none"

    @property
    def corrects_targets(self) -> bool:
        """Whether log n is subtracted from the targets' logits."""
        return self.objective._corrected and self.correction == "both" and not self.reweighted


def refuse(fn: str, option: str, other: str, reason: str) -> NoReturn:
    """ValueError of two things that were asked for and can't be had together."""
    raise ValueError(f"{fn}: {option} does not go with {other}: {reason}")


def check_softcap(fn: str, softcap: Any) -> float | None:
    """softcap as None or a positive float."""
    if softcap is None:
        return None
    return _checks.check_divisor(fn, "softcap", softcap, ", or None for no cap")


def check_z_loss(fn: str, z_loss: Any) -> float:
    """z_loss as a float; ValueError unless it is at least 0 and finite."""
    number = as_float(fn, "z_loss", z_loss)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{fn}: z_loss must be in [0, inf), got {z_loss}")
    return number


def _checked(
    fn: str,
    objective: Any,
    temperature: Any,
    correction: Any,
    remove_accidental_hits: Any,
    ignore_index: Any,
    softcap: Any,
    cosine: Any,
    z_loss: Any,
) -> Options:
    o = Options(
        objective=as_objective(fn, objective),
        temperature=_checks.check_temperature(fn, temperature),
        correction=_checks.check_choice(fn, "correction", correction, CORRECTIONS),  # type: ignore[arg-type]
        remove_accidental_hits=as_bool(fn, "remove_accidental_hits", remove_accidental_hits),
        ignore_index=_checks.check_ignore_index(fn, ignore_index),
        softcap=check_softcap(fn, softcap),
        cosine=as_bool(fn, "cosine", cosine),
        z_loss=check_z_loss(fn, z_loss),
    )
    softmax = o.objective if isinstance(o.objective, Softmax) else SOFTMAX
    if not o.objective._corrected and o.correction == "negatives":
        refuse(
            fn,
            "correction='negatives'",
            f"objective={o.objective}",
            "it takes logits as they are; use NCE() for corrected ones",
        )
    if softmax.reweighted and o.correction == "none":
        refuse(fn, "correction='none'", "reweighted=True", "its samples are corrected")
    if softmax.angular_margin != 0 and not o.cosine:
        refuse(fn, "angular_margin", "cosine=False", "there is no angle without unit vectors")
    if softmax.label_smoothing != 0 and o.softcap is not None:
        refuse(fn, "label_smoothing", "softcap", "capped logits have no mean by linearity")
    if o.z_loss != 0 and o.objective._sigmoid:
        refuse(fn, "z_loss", f"objective={o.objective}", "sigmoids have no normaliser")
    return o


# The same options come with every step, and looking them up takes a tenth of checking them.
_kept = lru_cache(maxsize=512, typed=True)(_checked)


def checked_options(fn: str, *options: Any) -> Options:
    """The options, each checked by itself and against the others, with Python's numbers in place of
    NumPy's.

    Args:
        options: objective, temperature, correction, remove_accidental_hits, ignore_index, softcap,
            cosine, z_loss.
    """
    if torch.compiler.is_compiling():
        return _checked(fn, *options)
    try:
        return _kept(fn, *options)
    except TypeError:  # of something that can't be a key, or is of a wrong type
        return _checked(fn, *options)
