"""A sampler from what users name it by."""

from __future__ import annotations

from torch import Tensor

from .._arguments import describe
from .base import ANY_CLASSES, DrawOptions, Sampler
from .log_uniform import LogUniformSampler
from .uniform import UniformSampler
from .weighted import WeightedSampler

_SAMPLERS: dict[str, type[UniformSampler | LogUniformSampler]] = {
    "uniform": UniformSampler,
    "log_uniform": LogUniformSampler,
}


def as_sampler(fn: str, sampler: object, num_classes: int, padding_idx: int | None) -> Sampler:
    """A Sampler over `num_classes` from a name, a vector of weights, or a Sampler."""
    if isinstance(sampler, Sampler):
        if sampler.num_classes not in (num_classes, ANY_CLASSES):
            raise ValueError(
                f"{fn}: sampler must draw from num_classes={num_classes} classes,"
                f" got one over {sampler.num_classes}"
            )
        return sampler
    if isinstance(sampler, Tensor):
        if sampler.dim() != 1 or sampler.shape[0] != num_classes:
            raise ValueError(
                f"{fn}: sampler weights must be [C={num_classes}], got {list(sampler.shape)}"
            )
        return WeightedSampler(sampler, padding_idx=padding_idx)
    if isinstance(sampler, str):
        if sampler in _SAMPLERS:
            return _SAMPLERS[sampler](num_classes, padding_idx=padding_idx)
        close = sampler.lower().replace("-", "_")
        advice = f": did you mean {close!r}?" if close in _SAMPLERS else ""
        raise ValueError(
            f"{fn}: sampler must be 'uniform', 'log_uniform', a Sampler or a tensor of weights"
            f" [C], got {sampler!r}{advice}"
        )
    got = describe(sampler)
    advice = ""
    if got.startswith("ndarray"):
        advice = ": pass torch.from_numpy(sampler)"
    elif isinstance(sampler, (list, tuple)):
        advice = ": pass torch.tensor(sampler)"
    elif isinstance(sampler, type) and issubclass(sampler, Sampler):
        advice = f", the class {sampler.__name__}: pass an instance of it"
    raise TypeError(f"{fn}: sampler must be a str, a Sampler or a Tensor, got {got}{advice}")


def check_draws(fn: str, sampler: Sampler, options: DrawOptions, per_row: bool) -> None:
    """ValueError unless the sampler can draw, so many classes, and for each row if wanted."""
    if not sampler.draws:
        raise ValueError(
            f"{fn}: sampler must be one that draws, got a {type(sampler).__name__} that only"
            " knows frequencies: make it the log_q of an InBatchSampler or QueueSampler"
        )
    if per_row and not sampler.draws_rows:
        raise ValueError(
            f"{fn}: per_row=True needs a sampler whose rows can have draws of their own, got"
            f" {type(sampler).__name__}, whose ids are shared by all rows: use per_row=False"
        )
    try:
        sampler._options("sample", *options)
    except ValueError as error:
        raise ValueError(f"{fn}: {error}") from None
