"""The loss as a module that owns the class matrix and the sampler."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import _checks, _owed, exact
from ._arguments import as_bool, describe
from ._parallel import SparseRows, active_ddp, in_process_group
from ._torchscript import NotScriptable
from .exact import TopK
from .functional import sampled_softmax_loss
from .losses.gradients import with_sparse_grad
from .losses.problem import check_samples_fit
from .memory import prefer_huge_pages
from .objectives import SOFTMAX, Objective, ObjectiveName
from .options import REDUCTIONS, Correction, Inclusion, Reduction, checked_options
from .samplers import KeyedSamples, Sampler, Samples
from .samplers.base import DrawOptions
from .samplers.choice import as_sampler, check_draws

__all__ = ["SampledSoftmaxLoss"]

_NAME = "SampledSoftmaxLoss"


def _check_tied(
    weight: Any, rows: int, in_features: int, device: Any, dtype: torch.dtype | None
) -> None:
    """A weight that was given is a parameter [C, D], whose device and dtype hold for the bias."""
    if not isinstance(weight, nn.Parameter):
        raise TypeError(
            f"{_NAME}: weight must be an nn.Parameter, such as embedding.weight, got"
            f" {describe(weight)}"
        )
    _checks.check_float(_NAME, "weight", weight)
    if weight.shape != (rows, in_features):
        raise ValueError(
            f"{_NAME}: weight must be [num_classes={rows}, in_features={in_features}], got"
            f" {list(weight.shape)}"
        )
    own = weight.device
    other = own if device is None else torch.device(device)
    if other.type != own.type or other.index not in (None, own.index):
        raise ValueError(f"{_NAME}: device must be that of weight, {own}, or None, got {device}")
    if dtype not in (None, weight.dtype):
        raise ValueError(f"{_NAME}: dtype must be that of weight, {weight.dtype}, got {dtype}")


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
        weight: a parameter [C, D] to use as the class matrix, such as `embedding.weight`: tied
            weights. It stays as it is, `reset_parameters` included. None (default): its own.
        replacement: draw with replacement (default), or distinct classes.
        inclusion: how often distinct classes are expected, as in `Sampler.sample`.
        per_row: give every row S negatives of its own, drawn by the kernels and never stored.
            Default False: the batch shares them, which costs far less.
        objective, correction, remove_accidental_hits: as in `sampled_softmax_loss`, in training.
        temperature, softcap, cosine, z_loss, class_weight: as there, in training and in evaluation;
            `cosine` there divides all rows of weight by their norms, in a copy. class_weight is a
            buffer, which the state_dict does not have.
        ignore_index, padding_idx, reduction: as there, in training and in evaluation. A sampler by
            name or weights never draws the padding, whose row is zero at first, as in nn.Embedding,
            and gets no gradient; `logits` has -inf there, and `topk` leaves it out.
        sparse_grad: as there; the gradients of the exact loss are dense, whatever it says, except
            under DistributedDataParallel.
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
    class_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        num_samples: int,
        sampler: Literal["uniform", "log_uniform"] | Sampler | Tensor = "log_uniform",
        *,
        bias: bool = True,
        weight: nn.Parameter | None = None,
        replacement: bool = True,
        inclusion: Inclusion = "expected",
        per_row: bool = False,
        objective: ObjectiveName | Objective = "softmax",
        temperature: float = 1.0,
        correction: Correction = "both",
        remove_accidental_hits: bool = True,
        softcap: float | None = None,
        cosine: bool = False,
        z_loss: float = 0.0,
        ignore_index: int = -100,
        padding_idx: int | None = None,
        class_weight: Tensor | None = None,
        reduction: Reduction = "mean",
        sparse_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _checks.check_positive_int(_NAME, "in_features", in_features)
        self.num_classes = _checks.check_positive_int(_NAME, "num_classes", num_classes)
        self.num_samples = _checks.check_positive_int(_NAME, "num_samples", num_samples)
        bias = as_bool(_NAME, "bias", bias)
        self.replacement = as_bool(_NAME, "replacement", replacement)
        self.inclusion = inclusion
        self.per_row = as_bool(_NAME, "per_row", per_row)
        self.sparse_grad = as_bool(_NAME, "sparse_grad", sparse_grad)
        if not self.replacement and num_samples > num_classes:
            raise ValueError(
                f"{_NAME}: num_samples must be at most num_classes={num_classes} without"
                f" replacement, got {num_samples}"
            )
        self.reduction = _checks.check_choice(_NAME, "reduction", reduction, REDUCTIONS)
        options = checked_options(
            _NAME,
            objective,
            temperature,
            correction,
            remove_accidental_hits,
            ignore_index,
            softcap,
            cosine,
            z_loss,
        )
        check_samples_fit(_NAME, options, not self.per_row)
        self.objective = options.objective
        self.temperature = options.temperature
        self.correction = options.correction
        self.remove_accidental_hits = options.remove_accidental_hits
        self.softcap = options.softcap
        self.cosine = options.cosine
        self.z_loss = options.z_loss
        self.ignore_index = options.ignore_index
        if padding_idx is not None:
            padding_idx = _checks.check_padding_idx(_NAME, padding_idx, self.num_classes)
        self.padding_idx = padding_idx
        if dtype is not None and dtype not in _checks.FLOAT_DTYPES:
            text = f"{dtype!r}: pass torch.{dtype}" if isinstance(dtype, str) else f"{dtype}"
            raise TypeError(
                f"{_NAME}: dtype must be float32, bfloat16, float16 or float64 of torch, got {text}"
            )
        if weight is not None:
            _check_tied(weight, self._num_rows(), self.in_features, device, dtype)
            device, dtype = weight.device, weight.dtype
        made = as_sampler(_NAME, sampler, self.num_classes, padding_idx)
        how = DrawOptions(self.num_samples, self.replacement, inclusion)
        check_draws(_NAME, made, how, self.per_row)
        self.sampler = made.to(device=device)
        self._tied = weight is not None
        shape = (self._num_rows(), self.in_features)
        if weight is None:
            empty = torch.empty(shape, device=device, dtype=dtype)
            weight = nn.Parameter(prefer_huge_pages(empty))
        self.weight = weight
        if bias:
            self.bias = nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        if class_weight is not None:
            _checks.check_class_weight(_NAME, class_weight, self.weight)
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.reset_parameters()

    def _num_rows(self) -> int:
        """The rows of weight."""
        return self.num_classes

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-1/sqrt(in_features), 1/sqrt(in_features)), as nn.Linear; the
        padding's are zero. A weight that was given stays as it is."""
        bound = 1.0 / math.sqrt(self.in_features)
        own = [self.bias] if self._tied else [self.weight, self.bias]
        for parameter in own:
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
                if self.padding_idx is not None:
                    with torch.no_grad():
                        parameter[self.padding_idx].fill_(0.0)

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

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        exclude: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        return_details: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The sampled loss in training mode, the exact one in eval mode.

        Args:
            input: [*, D].
            target: [*] int64; rows equal to `ignore_index` do not count. In training also [*, T].
            exclude: [*, E] int64, classes that are no negatives of the row, such as seen items;
                negative values are padding. With `per_row` others are drawn in their place, else
                they are left out, as they are of the exact loss.
            sample_weight: [*], a factor for each row's loss.
            return_details: also return `SampledSoftmaxDetails(lse, target_logit, error)`.
            generator: for the draw, as in `Sampler.sample`; the exact loss draws nothing.

        Returns:
            A scalar, or [*] with reduction="none"; dtype as in `sampled_softmax_loss`.
        """
        shared: dict[str, Any] = {
            "ignore_index": self.ignore_index,
            "class_weight": self.class_weight,
            "sample_weight": sample_weight,
            "reduction": self.reduction,
            "z_loss": self.z_loss,
            "return_details": return_details,
            **self._logit_options(),
        }
        if not self.training:
            weight: Tensor = self.weight
            bias: Tensor | None = self.bias
            if self.sparse_grad and not torch.compiler.is_compiling() and active_ddp() is not None:
                # DDP expects sparse gradients of this loss too.
                weight = with_sparse_grad(weight)
                bias = None if bias is None else with_sparse_grad(bias)
            self._settle_all()
            return exact.exact_cross_entropy(
                input, weight, target, bias=bias, exclude=exclude, **shared
            )
        if self.sparse_grad:
            self._check_own_parameters()
        samples: Samples | KeyedSamples
        how: dict[str, Any] = {
            "replacement": self.replacement,
            "inclusion": self.inclusion,
            "generator": generator,
        }
        if self.per_row:
            num_true = target.shape[-1] if target.dim() == input.dim() else None
            samples = self.sampler.sample_keyed(
                target, self.num_samples, exclude=exclude, num_true=num_true, **how
            )
            exclude = None
        else:
            samples = self.sampler.sample(target, self.num_samples, **how)
        _owed.settle((self.weight, self.bias), lambda: (target, samples.materialize().ids))
        return sampled_softmax_loss(
            input,
            self.weight,
            target,
            samples,
            bias=self.bias,
            objective=self.objective,
            correction=self.correction,
            remove_accidental_hits=self.remove_accidental_hits,
            sparse_grad=self.sparse_grad,
            exclude=exclude,
            **shared,
        )

    def _settle_all(self) -> None:
        """All rows are about to be read: those that an optimizer lets lag behind catch up."""
        _owed.settle((self.weight, self.bias))

    def __getstate__(self) -> dict[str, Any]:
        self._settle_all()  # a copy has no debts
        return self.__dict__.copy()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._settle_all()
        super()._save_to_state_dict(*args, **kwargs)

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
        """The options that make logits of products, in training and in evaluation."""
        return {
            "temperature": self.temperature,
            "softcap": self.softcap,
            "cosine": self.cosine,
            "padding_idx": self.padding_idx,
        }

    def logits(self, input: Tensor) -> Tensor:
        """The logits of all classes, [*, C], float32; see `sampled_softmax_cuda.exact`."""
        self._settle_all()
        return exact.logits(input, self.weight, bias=self.bias, **self._logit_options())

    def log_prob(self, input: Tensor, ids: Tensor) -> Tensor:
        """Exact log probability of the classes ids, [*] or [*, K], without logits [*, C]."""
        self._settle_all()
        return exact.log_prob(input, self.weight, ids, bias=self.bias, **self._logit_options())

    def topk(self, input: Tensor, k: int) -> TopK:
        """The k classes with the largest logits: values and indices [*, k], without [*, C]."""
        self._settle_all()
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
            "inclusion": "expected",
            "per_row": False,
            "objective": SOFTMAX,
            "temperature": 1.0,
            "correction": "both",
            "remove_accidental_hits": True,
            "softcap": None,
            "cosine": False,
            "z_loss": 0.0,
            "ignore_index": -100,
            "padding_idx": None,
            "reduction": "mean",
            "sparse_grad": False,
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value if name == 'objective' else repr(value)}")
        return ", ".join(parts)
