"""Objectives: what a loss makes of the logits of a row's targets and negatives.

With z the corrected logits, T true classes and S samples of a row, r = logsumexp_t z_t and N the
softmax loss of the negatives against r, or the sum of their softplus:

    Softmax             N + r - mean_t z_t
    NCE                 sum_t (softplus(z_t) - z_t / T) + N        Gutmann and Hyvärinen 2010
    NegativeSampling    the same without the correction            Mikolov et al. 2013
    GBCE                (beta softplus(-z_t) + N) / (1 + S)        Petrov and Macdonald 2023
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from ._arguments import as_bool, as_float, describe

ObjectiveName = Literal["softmax", "nce", "negative_sampling", "gbce"]


@dataclass(frozen=True)
class Objective:
    """The base of all objectives: `Softmax`, `NCE`, `NegativeSampling` and `GBCE`."""

    _sigmoid: ClassVar[bool]
    """Whether it is a sum of sigmoid cross entropies, and not a softmax."""
    _corrected: ClassVar[bool] = True
    """Whether it takes logits that log expected counts correct."""

    @property
    def _plain(self) -> bool:
        """Whether the fused operator of the softmax computes it."""
        return False

    def _set(self, **values: Any) -> None:
        """Python's numbers in place of NumPy's."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """The options that differ from their defaults."""
        given = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        options = ", ".join(f"{name}={value!r}" for name, value, usual in given if value != usual)
        return f"{type(self).__name__}({options})"


def _number(fn: str, name: str, value: Any, high: float, *, open_end: bool = False) -> float:
    """`value` as a float; TypeError unless it is a number, ValueError unless 0 <= value <= high, or
    < high with `open_end`."""
    number = as_float(fn, name, value)
    if not 0.0 <= number <= high or (open_end and number == high):
        end = ")" if open_end else "]"
        raise ValueError(f"{fn}: {name} must be in [0, {high:g}{end}, got {value}")
    return number


@dataclass(frozen=True)
class Softmax(Objective):
    """Cross entropy of a softmax over the targets and the samples: the default.

    Args:
        label_smoothing: 0 to 1, the share of the label that is spread over all classes, as in
            F.cross_entropy; the mean of their logits is estimated from the samples, accidental hits
            among them, with weights 1 / n_s, normalised (1 for n_s = 0). Shared samples and no
            softcap only. Default 0.
        margin: subtracted from the target's product input · weight_t, before the temperature; with
            cosines that is CosFace (Wang et al., 2018). Default 0.
        angular_margin: added to the angle between input and weight_t, in radians, below pi: ArcFace
            (Deng et al., 2019). Needs cosine=True. Default 0.
        reweighted: the loss (1 - p) (N - z_t) with the uncorrected z_t, N the logsumexp of the
            corrected samples and p = exp(z_t) / (exp(z_t) + exp(N)) as a constant (Khrylchenko et
            al., "Correcting the LogQ Correction", RecSys 2025). p is taken from the same samples,
            so the gradient is that of correction="negatives", and the value weighs each row by its
            chance to be wrong. One target a row, and no label smoothing. Default False.

    Raises:
        ValueError, TypeError: options outside of these ranges.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> ssc.Softmax(label_smoothing=0.1).label_smoothing
        0.1
    """

    _sigmoid = False

    label_smoothing: float = 0.0
    margin: float = 0.0
    angular_margin: float = 0.0
    reweighted: bool = False

    @property
    def _plain(self) -> bool:
        return self.label_smoothing == self.margin == self.angular_margin == 0.0

    def __post_init__(self) -> None:
        fn = "Softmax"
        self._set(
            label_smoothing=_number(fn, "label_smoothing", self.label_smoothing, 1.0),
            margin=_number(fn, "margin", self.margin, math.inf, open_end=True),
            angular_margin=_number(
                fn, "angular_margin", self.angular_margin, math.pi, open_end=True
            ),
            reweighted=as_bool(fn, "reweighted", self.reweighted),
        )
        if self.reweighted and self.label_smoothing != 0:
            raise ValueError(
                f"{fn}: label_smoothing does not go with reweighted=True, whose label is one class"
            )


@dataclass(frozen=True)
class NCE(Objective):
    """Noise-contrastive estimation: sigmoid cross entropies of corrected logits, summed over the
    targets and the samples.

    Method: Gutmann and Hyvärinen, "Noise-contrastive estimation", AISTATS 2010. TensorFlow's
    nce_loss counts accidental hits too: remove_accidental_hits=False. A low bias at first, such as
    log(1 / C), keeps the first steps calm.
    """

    _sigmoid = True


@dataclass(frozen=True)
class NegativeSampling(Objective):
    """word2vec's loss: sigmoid cross entropies of logits as they are, without a correction.

    Method: Mikolov et al., "Distributed Representations of Words and Phrases and their
    Compositionality", NeurIPS 2013.
    """

    _sigmoid = True
    _corrected = False


@dataclass(frozen=True)
class GBCE(Objective):
    """gSASRec's loss, (beta softplus(-z_t) + sum_s softplus(z_s)) / (S + 1) of uncorrected logits.

    beta = 1 - calibration (1 - S / (C - 1)): sigmoid(z)^beta is the calibrated probability. The
    sampling rate S / (C - 1) counts as at most 1. One target a row. Method: Petrov and Macdonald,
    "gSASRec", RecSys 2023.

    Args:
        calibration: 0 to 1, the paper's t: 0 is the plain binary cross entropy, 1 gives
            probabilities as without sampling. Default 0.75.

    Raises:
        ValueError, TypeError: a calibration that is no number in [0, 1].

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> round(ssc.GBCE().beta(256, 1_000_001), 6)
        0.250192
    """

    _sigmoid = True
    _corrected = False

    calibration: float = 0.75

    def __post_init__(self) -> None:
        self._set(calibration=_number("GBCE", "calibration", self.calibration, 1.0))

    def beta(self, num_samples: int, num_classes: int) -> float:
        """The exponent, from the sampling rate num_samples / (num_classes - 1).

        In logits, sigmoid(s)^beta = sigmoid(g(s)) with g(s) = -log expm1(beta softplus(-s)).
        """
        rate = min(num_samples / max(num_classes - 1, 1), 1.0)
        return 1.0 - self.calibration * (1.0 - rate)


SOFTMAX = Softmax()
OBJECTIVES: dict[str, Objective] = {
    "softmax": SOFTMAX,
    "nce": NCE(),
    "negative_sampling": NegativeSampling(),
    "gbce": GBCE(),
}


def as_objective(fn: str, objective: Any) -> Objective:
    """An objective from its name or from itself; ValueError for another name, TypeError for
    another type."""
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str) and objective in OBJECTIVES:
        return OBJECTIVES[objective]
    names = ", ".join(map(repr, OBJECTIVES))
    if isinstance(objective, str):
        raise ValueError(
            f"{fn}: objective must be one of {names} or an Objective, got {objective!r}"
        )
    call = isinstance(objective, type) and issubclass(objective, Objective)
    got = (
        f"the class {objective.__name__}: pass {objective.__name__}()"
        if call
        else describe(objective)
    )
    raise TypeError(f"{fn}: objective must be one of {names} or an Objective, got {got}")
