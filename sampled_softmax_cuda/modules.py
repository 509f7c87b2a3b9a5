"""The loss as a module that owns the class weights and the sampler."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks, exact
from ._arguments import as_bool, describe
from ._option_checks import check_option_values
from ._parallel import SparseRows, active_ddp, in_process_group
from ._sparse import with_sparse_grad
from ._torchscript import NotScriptable
from .exact import TopK
from .functional import sampled_softmax_loss
from .memory import prefer_huge_pages
from .reference.composed import LossOptions
from .samplers import (
    KeyedSamples,
    LogUniformSampler,
    Sampler,
    Samples,
    UniformSampler,
    WeightedSampler,
)
from .samplers.composed import ANY_CLASSES

__all__ = ["SampledSoftmaxLoss"]

_NAME = "SampledSoftmaxLoss"
_SAMPLERS: dict[str, type[UniformSampler | LogUniformSampler]] = {
    "uniform": UniformSampler,
    "log_uniform": LogUniformSampler,
}


def _make_sampler(sampler: object, num_classes: int) -> Sampler:
    """A Sampler over `num_classes` from a name, a vector of weights, or a Sampler."""
    if isinstance(sampler, Sampler):
        if sampler.num_classes not in (num_classes, ANY_CLASSES):
            raise ValueError(
                f"{_NAME}: sampler must draw from num_classes={num_classes} classes,"
                f" got one over {sampler.num_classes}"
            )
        return sampler
    if isinstance(sampler, Tensor):
        if sampler.dim() != 1 or sampler.shape[0] != num_classes:
            raise ValueError(
                f"{_NAME}: sampler weights must be [C={num_classes}], got {list(sampler.shape)}"
            )
        return WeightedSampler(sampler)
    if isinstance(sampler, str):
        if sampler in _SAMPLERS:
            return _SAMPLERS[sampler](num_classes)
        close = sampler.lower().replace("-", "_")
        advice = f": did you mean {close!r}?" if close in _SAMPLERS else ""
        raise ValueError(
            f"{_NAME}: sampler must be 'uniform', 'log_uniform', a Sampler or a tensor of weights"
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
    raise TypeError(f"{_NAME}: sampler must be a str, a Sampler or a Tensor, got {got}{advice}")


def _check_draws(sampler: Sampler, num_samples: int, replacement: bool, per_row: bool) -> None:
    """The sampler can draw, so many classes and for each row."""
    if not sampler.draws:
        raise ValueError(
            f"{_NAME}: sampler must be one that draws, got a {type(sampler).__name__} that only"
            " knows frequencies: make it the log_q of an InBatchSampler or QueueSampler"
        )
    if per_row and not sampler.draws_rows:
        raise ValueError(
            f"{_NAME}: per_row=True needs a sampler whose rows can have draws of their own, got"
            f" {type(sampler).__name__}, whose ids are shared by all rows: use per_row=False"
        )
    try:
        sampler._check_num_samples("sample", num_samples, replacement, "expected")
    except ValueError as error:
        raise ValueError(f"{_NAME}: {error}") from None


class SampledSoftmaxLoss(NotScriptable, nn.Module):
    """Softmax over many classes, trained on sampled ones and evaluated on all.

    In training mode `forward` draws `num_samples` negatives, shared by the batch, and returns the
    sampled loss; in eval mode it returns the exact cross entropy over all classes, streamed, never
    with logits [*, C]. The parameters are those of `nn.Linear(in_features, num_classes)`, with the
    same names and the same initialisation (uniform in ±1/sqrt(in_features)), so that a state_dict
    can go from one to the other.

    Args:
        in_features: D, the width of the input.
        num_classes: C.
        num_samples: S, classes drawn per step.
        sampler: "log_uniform" (default; classes sorted by falling frequency), "uniform", a
            Sampler, or a vector [C] of non-negative weights, which is short for
            `WeightedSampler(weights)`. The state_dict has what a sampler is made of or has learnt;
            a sampler built with `persistent=False` keeps it out.
        bias: whether classes have a bias. Default True.
        replacement: draw with replacement (default), or distinct classes.
        per_row: give every row S negatives of its own, drawn by the kernels and never stored.
            Default False: the batch shares them, which costs far less.
        temperature: divides the logits, in training and evaluation. Default 1.
        ignore_index, reduction: as in `sampled_softmax_loss`, in training and in evaluation.
        correction, remove_accidental_hits, loss, margin, angular_margin: as there, of the sampled
            loss alone.
        label_smoothing, calibration: likewise.
        sparse_grad: as there; the gradients of the exact loss are dense, whatever it says, except
            under DistributedDataParallel.
        softcap, cosine: as there, in training and in evaluation; `cosine` there divides all rows of
            weight by their norms, in a copy.
        device, dtype: of the parameters.

    Shapes:
        input [*, D], target [*] int64, or in training [*, T]; the loss is a scalar, or [*] with
        reduction="none".

    Raises:
        ValueError, TypeError: arguments that do not fit, with their name and value.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> loss_fn = ssc.SampledSoftmaxLoss(16, num_classes=1000, num_samples=64)
        >>> h, target = torch.randn(8, 16), torch.randint(1000, (8,))
        >>> loss_fn(h, target).backward()  # sampled
        >>> _ = loss_fn.eval()
        >>> exact = loss_fn(h, target)
        >>> full = torch.nn.functional.cross_entropy(loss_fn.logits(h), target)
        >>> torch.allclose(exact, full, atol=1e-5)
        True
        >>> loss_fn.topk(h, 5).indices.shape
        torch.Size([8, 5])
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        num_samples: int,
        sampler: str | Sampler | Tensor = "log_uniform",
        *,
        bias: bool = True,
        replacement: bool = True,
        per_row: bool = False,
        temperature: float = 1.0,
        correction: str = "both",
        remove_accidental_hits: bool = True,
        ignore_index: int = -100,
        reduction: str = "mean",
        sparse_grad: bool = False,
        loss: str = "softmax",
        softcap: float | None = None,
        cosine: bool = False,
        margin: float = 0.0,
        angular_margin: float = 0.0,
        label_smoothing: float = 0.0,
        calibration: float = 0.75,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_features = _checks.check_positive_int(_NAME, "in_features", in_features)
        num_classes = _checks.check_positive_int(_NAME, "num_classes", num_classes)
        num_samples = _checks.check_positive_int(_NAME, "num_samples", num_samples)
        bias = as_bool(_NAME, "bias", bias)
        replacement = as_bool(_NAME, "replacement", replacement)
        per_row = as_bool(_NAME, "per_row", per_row)
        sparse_grad = as_bool(_NAME, "sparse_grad", sparse_grad)
        if not replacement and num_samples > num_classes:
            raise ValueError(
                f"{_NAME}: num_samples must be at most num_classes={num_classes} without"
                f" replacement, got {num_samples}"
            )
        _checks.check_choice(_NAME, "reduction", reduction, _checks.REDUCTIONS)
        options = LossOptions(
            loss,
            temperature,
            correction,
            remove_accidental_hits,
            ignore_index,
            softcap,
            cosine,
            margin,
            angular_margin,
            label_smoothing,
            calibration,
        )
        options = check_option_values(_NAME, options, shared=not per_row)
        if dtype is not None and dtype not in _checks.FLOAT_DTYPES:
            text = f"{dtype!r}: pass torch.{dtype}" if isinstance(dtype, str) else f"{dtype}"
            raise TypeError(
                f"{_NAME}: dtype must be float32, bfloat16, float16 or float64 of torch, got {text}"
            )
        made = _make_sampler(sampler, num_classes)
        _check_draws(made, num_samples, replacement, per_row)
        self.in_features = in_features
        self.num_classes = num_classes
        self.num_samples = num_samples
        self.replacement = replacement
        self.per_row = per_row
        self.temperature = options.temperature
        self.correction = correction
        self.remove_accidental_hits = options.remove_accidental_hits
        self.ignore_index = options.ignore_index
        self.reduction = reduction
        self.sparse_grad = sparse_grad
        self.loss = loss
        self.softcap = options.softcap
        self.cosine = options.cosine
        self.margin = options.margin
        self.angular_margin = options.angular_margin
        self.label_smoothing = options.label_smoothing
        self.calibration = options.calibration
        self.sampler = made.to(device=device)
        self.weight = nn.Parameter(
            prefer_huge_pages(torch.empty((num_classes, in_features), device=device, dtype=dtype))
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-1/sqrt(in_features), 1/sqrt(in_features)), as nn.Linear."""
        bound = 1.0 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As nn.Module's. In a process group, with sparse_grad=True, `SparseRows` comes first: it
        tells DistributedDataParallel which gradients are sparse. Not among duplicates, which are
        for those who put other parameters in place, such as fully_shard."""
        announced = self.sparse_grad and remove_duplicate and "weight" in self._parameters
        if announced and in_process_group() and (memo is None or self not in memo):
            yield prefix, SparseRows(self)
        yield from super().named_modules(memo, prefix, remove_duplicate)

    def forward(self, input: Tensor, target: Tensor, exclude: Tensor | None = None) -> Tensor:
        """The sampled loss in training mode, the exact one in eval mode.

        Args:
            input: [*, D].
            target: [*] int64; rows equal to `ignore_index` do not count. In training also [*, T].
            exclude: [*, E] int64, classes that are no negatives of the row, such as seen items;
                negative values are padding. With `per_row` others are drawn in their place, else
                they are left out. Training only: the exact loss is over all classes.

        Returns:
            A scalar, or [*] with reduction="none"; dtype as in `sampled_softmax_loss`.
        """
        if not self.training:
            weight: Tensor = self.weight
            bias: Tensor | None = self.bias
            if self.sparse_grad and not torch.compiler.is_compiling() and active_ddp() is not None:
                # What DDP has been told holds for this loss too.
                weight = with_sparse_grad(weight)
                bias = None if bias is None else with_sparse_grad(bias)
            return exact.exact_cross_entropy(
                input,
                weight,
                target,
                bias=bias,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                **self._logit_options(),
            )
        if self.sparse_grad:
            self._check_own_parameters()
        samples: Samples | KeyedSamples
        if self.per_row:
            num_true = target.shape[-1] if target.dim() == input.dim() else None
            samples = self.sampler.sample_keyed(
                target,
                self.num_samples,
                replacement=self.replacement,
                exclude=exclude,
                num_true=num_true,
            )
            exclude = None
        else:
            samples = self.sampler.sample(target, self.num_samples, replacement=self.replacement)
        loss: Tensor = sampled_softmax_loss(
            input,
            self.weight,
            target,
            samples,
            bias=self.bias,
            correction=self.correction,
            remove_accidental_hits=self.remove_accidental_hits,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            sparse_grad=self.sparse_grad,
            loss=self.loss,
            margin=self.margin,
            angular_margin=self.angular_margin,
            label_smoothing=self.label_smoothing,
            calibration=self.calibration,
            exclude=exclude,
            **self._logit_options(),
        )
        return loss

    def _check_own_parameters(self) -> None:
        """ValueError unless weight and bias are parameters themselves, which can have a row-sparse
        gradient, and not computed from others."""
        for name in ("weight", "bias"):
            if name not in self._parameters:
                raise ValueError(
                    f"{_NAME}: sparse_grad=True needs {name} to be a parameter of the module, and"
                    " it is computed from others (a parametrization, weight_norm or pruning), to"
                    " which torch hands on no row-sparse gradient: use sparse_grad=False; see"
                    " docs/sparse_gradients.md"
                )

    def _logit_options(self) -> dict[str, Any]:
        """What makes logits of products, in training and in evaluation."""
        return {"temperature": self.temperature, "softcap": self.softcap, "cosine": self.cosine}

    def logits(self, input: Tensor) -> Tensor:
        """The logits of all classes, [*, C], float32; see `sampled_softmax_cuda.exact`."""
        return exact.logits(input, self.weight, bias=self.bias, **self._logit_options())

    def log_prob(self, input: Tensor, ids: Tensor) -> Tensor:
        """Exact log probability of the classes ids, [*] or [*, K], without logits [*, C]."""
        return exact.log_prob(input, self.weight, ids, bias=self.bias, **self._logit_options())

    def topk(self, input: Tensor, k: int) -> TopK:
        """The k classes with the largest logits: values and indices [*, k], without [*, C]."""
        return exact.topk(input, self.weight, k, bias=self.bias, **self._logit_options())

    def extra_repr(self) -> str:
        """The sizes, and every option that differs from its default."""
        parts = [
            f"in_features={self.in_features}",
            f"num_classes={self.num_classes}",
            f"num_samples={self.num_samples}",
            f"bias={self.bias is not None}",
        ]
        defaults = {
            "replacement": True,
            "per_row": False,
            "temperature": 1.0,
            "correction": "both",
            "remove_accidental_hits": True,
            "ignore_index": -100,
            "reduction": "mean",
            "sparse_grad": False,
            "loss": "softmax",
            "softcap": None,
            "cosine": False,
            "margin": 0.0,
            "angular_margin": 0.0,
            "label_smoothing": 0.0,
            "calibration": 0.75,
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)
