"""CNTK's sampled softmax under its own names, for people who move here.

CNTK 2.7 has the operators `random_sample` and `random_sample_inclusion_frequency`, and its
tutorials build `cross_entropy_with_sampled_softmax_and_embedding` from them. Kept are one set
of samples per minibatch, the correction on target and samples, accidental hits counted (a sampled
target counts twice), unnormalised weights, the estimates of inclusion frequencies, glorot-uniform
weights [C, D] and biases [C, 1] of zero, and the three results. But samples are class ids
and not one-hot rows, parameters belong to a module or to the caller, and without duplicates
num_samples may equal the number of classes with positive weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import _checks, exact
from ._arguments import fail_tensor
from ._torchscript import NotScriptable
from .functional import sampled_softmax_loss
from .samplers import WeightedSampler

__all__ = [
    "CrossEntropyWithSampledSoftmax",
    "SampledSoftmaxResult",
    "cross_entropy_with_sampled_softmax_and_embedding",
    "random_sample",
    "random_sample_inclusion_frequency",
]


class SampledSoftmaxResult(NamedTuple):
    """The results of `cross_entropy_with_sampled_softmax_and_embedding`."""

    z: Tensor
    """[B, num_classes] logits over all classes, uncorrected."""
    cross_entropy_on_samples: Tensor
    """[B] sampled cross entropy of each row."""
    error_on_samples: Tensor
    """[B] 1 where some sample has a larger corrected logit than the target, else 0."""


def _sampler(fn: str, weights: Any, num_samples: Any, allow_duplicates: bool) -> WeightedSampler:
    """A sampler over weights [C] or [1, C], with CNTK's conditions checked."""
    _checks.check_positive_int(fn, "num_samples", num_samples)
    _checks.check_float(fn, "weights", weights)
    if weights.dim() not in (1, 2) or (weights.dim() == 2 and weights.shape[0] != 1):
        raise ValueError(f"{fn}: weights must be [C] or [1, C], got {list(weights.shape)}")
    flat = weights.detach().reshape(-1)
    if not (torch.compiler.is_compiling() or flat.is_meta):
        if bool((flat < 0).any()):
            first = int((flat < 0).nonzero()[0])
            raise ValueError(
                f"{fn}: weights must not be negative, got {float(flat[first])} at [{first}]"
            )
        _check_num_samples(fn, num_samples, allow_duplicates, int((flat > 0).sum()))
    return WeightedSampler(flat)


def _own_sampler(
    fn: str, weights: Any, num_samples: int, allow_duplicates: bool, num_classes: int
) -> WeightedSampler:
    """The caller's sampler, or one over the caller's weights, of num_classes classes."""
    if isinstance(weights, WeightedSampler):
        sampler = weights
    else:
        sampler = _sampler(fn, weights, num_samples, allow_duplicates)
    if sampler.num_classes != num_classes:
        raise ValueError(
            f"{fn}: sampling_weights must hold num_classes={num_classes} weights,"
            f" got {sampler.num_classes}"
        )
    return sampler


def _check_num_samples(fn: str, num_samples: Any, allow_duplicates: bool, positive: int) -> None:
    if not allow_duplicates and num_samples > positive:
        raise ValueError(
            f"{fn}: num_samples must be at most {positive}, the number of classes with positive"
            f" weight, when allow_duplicates=False, got {num_samples}"
        )


def random_sample(
    weights: Tensor,
    num_samples: int,
    allow_duplicates: bool,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Class ids drawn with probability proportional to their weight.

    CNTK gives one-hot rows [num_samples, C]; `F.one_hot(ids, C)` turns the ids into those.

    Args:
        weights: [C] or [1, C] floating, not negative, of any sum.
        num_samples: S, at least 1.
        allow_duplicates: independent draws if True, distinct classes if False.
        generator: where the randomness comes from; torch's default one if None.

    Returns:
        [S] int64.

    Raises:
        ValueError: no samples, a negative weight, or more distinct samples than classes with
            positive weight. TypeError: arguments of other types.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> ids = ssc.cntk.random_sample(torch.tensor([3.0, 0.0, 1.0]), 2, allow_duplicates=False)
        >>> sorted(ids.tolist())
        [0, 2]
    """
    sampler = _sampler("random_sample", weights, num_samples, allow_duplicates)
    target = torch.zeros(0, dtype=torch.int64, device=weights.device)
    return sampler.sample(
        target, num_samples, replacement=allow_duplicates, generator=generator
    ).ids


def random_sample_inclusion_frequency(
    weights: Tensor, num_samples: int, allow_duplicates: bool
) -> Tensor:
    """The expected number of times that each class is among the samples.

    With duplicates num_samples * q; without, 1 - (1 - q)^t, where t, the number of draws that give
    num_samples distinct classes, is estimated from ten draws, as in CNTK.

    Args:
        weights, num_samples, allow_duplicates: as in `random_sample`.

    Returns:
        float32 of the shape of weights.

    Raises:
        ValueError, TypeError: as `random_sample`.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> ssc.cntk.random_sample_inclusion_frequency(torch.tensor([3.0, 0.0, 1.0]), 4, True)
        tensor([3., 0., 1.])
    """
    fn = "random_sample_inclusion_frequency"
    sampler = _sampler(fn, weights, num_samples, allow_duplicates)
    ids = torch.arange(weights.numel(), device=weights.device)
    log_count = sampler.log_expected_count(
        ids, num_samples, replacement=allow_duplicates, inclusion="estimated"
    )
    return log_count.exp().reshape(weights.shape)


def _class_ids(fn: str, target: Any, hidden: Tensor, num_classes: int) -> Tensor:
    """Class ids [*] from ids, or from one-hot rows [*, C] that are dense, sparse COO or CSR.

    On CUDA a row that is not one-hot becomes class -1, whose loss is NaN, without waiting for the
    device. Sparse rows wait only if they are not coalesced, or hold zeros.
    """
    if not isinstance(target, Tensor):
        fail_tensor(fn, "target_vector", target)
    leading = hidden.shape[:-1]
    if target.shape == leading and target.layout == torch.strided:
        return target
    if target.shape != (*leading, num_classes):
        raise ValueError(
            f"{fn}: target_vector must be class ids {list(leading)} or one-hot"
            f" {[*leading, num_classes]}, got {list(target.shape)}"
        )
    if target.layout == torch.strided:
        values, ids = target.max(dim=-1)
        valid = ((target != 0).sum(dim=-1) == 1) & (values == 1)
    else:
        rows = target.to_sparse(layout=torch.sparse_coo).coalesce()
        ids, valid = _sparse_ids(rows, leading)
    if _checks.may_read(valid) and not bool(valid.all()):
        raise ValueError(f"{fn}: target_vector must be one-hot: a single 1 in every row")
    return torch.where(valid, ids, -1)


def _sparse_ids(rows: Tensor, leading: torch.Size) -> tuple[Tensor, Tensor]:
    """The ids [*] of coalesced rows [*, C], and whether each row [*] is one-hot."""
    index, values = rows.indices(), rows.values()
    count = leading.numel()
    if values.shape[0] != count:  # zeros, perhaps
        kept = values != 0
        index, values = index[:, kept], values[kept]
    if values.shape[0] != count:
        none = torch.zeros(leading, dtype=torch.int64, device=rows.device)
        return none, none.to(torch.bool)
    flat = torch.zeros(count, dtype=torch.int64, device=rows.device)
    for size, position in zip(leading, index[:-1], strict=True):
        flat = flat * size + position
    # Sorted, and as many as there are rows: where the i-th is in row i, and nothing else is.
    in_row = torch.zeros_like(flat).index_add_(0, flat, torch.ones_like(flat))
    row = torch.arange(count, device=rows.device)
    valid = (flat == row) & (in_row == 1) & (values == 1)
    return index[-1].reshape(leading), valid.reshape(leading)


def cross_entropy_with_sampled_softmax_and_embedding(
    hidden_vector: Tensor,
    target_vector: Tensor,
    num_classes: int,
    hidden_dim: int,
    num_samples: int,
    sampling_weights: Tensor | WeightedSampler,
    allow_duplicates: bool = True,
    *,
    weight: Tensor,
    bias: Tensor,
) -> SampledSoftmaxResult:
    """The function of CNTK's tutorials, on parameters that the caller owns.

    z costs a matmul over all classes and an array [B, C], as it does in CNTK; without need of it,
    `sampled_softmax_cuda.SampledSoftmaxLoss` does the rest at a cost that does not grow with C.

    Args:
        hidden_vector: [B, hidden_dim], or any leading shape.
        target_vector: [B] int64 class ids, or one-hot [B, num_classes], dense or sparse. On CUDA
            nothing waits for the device, unless they are sparse and not coalesced, or hold zeros.
        num_classes: C.
        hidden_dim: D.
        num_samples: S, classes drawn per call and shared by the rows.
        sampling_weights: [C] or [1, C], not negative, of any sum; the logit of a target of weight
            0, which CNTK makes infinite, is not corrected. Or a WeightedSampler, which
            saves building its table, O(C) on the CPU, at every call. Without duplicates its first
            call waits for the ten draws that inclusion frequencies are estimated from.
        allow_duplicates: draw with replacement (default) or distinct classes.
        weight: [C, D].
        bias: [C, 1] as in CNTK, or [C].

    Returns:
        `SampledSoftmaxResult(z [B, C], cross_entropy_on_samples [B], error_on_samples [B])`.
        z and the cross entropy are differentiable. Sampled targets are not removed.

    Raises:
        ValueError, TypeError, IndexError: as `random_sample` and `sampled_softmax_loss`. Rows that
            are not one-hot: ValueError on the CPU, NaN in that row on CUDA.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> weight, bias = torch.zeros(5, 3), torch.zeros(5, 1)
        >>> z, cross_entropy, error = ssc.cntk.cross_entropy_with_sampled_softmax_and_embedding(
        ...     torch.ones(2, 3), torch.tensor([0, 4]), 5, 3, 5, torch.ones(5), False,
        ...     weight=weight, bias=bias)
        >>> z.shape, cross_entropy  # log(5 samples + the target)
        (torch.Size([2, 5]), tensor([1.7918, 1.7918]))
    """
    fn = "cross_entropy_with_sampled_softmax_and_embedding"
    num_classes = _checks.check_positive_int(fn, "num_classes", num_classes)
    hidden_dim = _checks.check_positive_int(fn, "hidden_dim", hidden_dim)
    num_samples = _checks.check_positive_int(fn, "num_samples", num_samples)
    _checks.check_float(fn, "weight", weight)
    _checks.check_float(fn, "bias", bias)
    if weight.shape != (num_classes, hidden_dim):
        raise ValueError(
            f"{fn}: weight must be [num_classes={num_classes}, hidden_dim={hidden_dim}],"
            f" got {list(weight.shape)}"
        )
    if bias.shape not in ((num_classes, 1), (num_classes,)):
        raise ValueError(
            f"{fn}: bias must be [num_classes={num_classes}, 1], got {list(bias.shape)}"
        )
    flat_bias = bias.reshape(-1)
    _checks.check_parameters(fn, hidden_vector, weight, flat_bias)
    sampler = _own_sampler(fn, sampling_weights, num_samples, allow_duplicates, num_classes)
    target = _class_ids(fn, target_vector, hidden_vector, num_classes)
    _checks.check_target(fn, target, hidden_vector, num_classes)
    _checks.check_id_range(fn, "target_vector", target, num_classes)
    samples = sampler.sample(
        target, num_samples, replacement=allow_duplicates, inclusion="estimated"
    )
    cross_entropy, details = sampled_softmax_loss(
        hidden_vector,
        weight,
        target,
        samples,
        bias=flat_bias,
        remove_accidental_hits=False,
        reduction="none",
        return_details=True,
    )
    z = exact.logits(hidden_vector, weight, bias=flat_bias)
    return SampledSoftmaxResult(z, cross_entropy, details.error)


class CrossEntropyWithSampledSoftmax(NotScriptable, nn.Module):
    """`cross_entropy_with_sampled_softmax_and_embedding` with its own parameters and sampler.

    weight [num_classes, hidden_dim] is glorot-uniform and bias [num_classes, 1] zero, as in CNTK.

    Args:
        num_classes, hidden_dim, num_samples, sampling_weights, allow_duplicates: as in the
            function. The state_dict has the sampler's table, unless a
            `WeightedSampler(weights, persistent=False)` is given.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: as the function.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> loss_fn = ssc.cntk.CrossEntropyWithSampledSoftmax(100, 8, 20, torch.ones(1, 100))
        >>> z, cross_entropy, error = loss_fn(torch.randn(4, 8), torch.arange(4))
        >>> cross_entropy.mean().backward()
        >>> z.shape, error.shape, loss_fn.weight.grad.shape
        (torch.Size([4, 100]), torch.Size([4]), torch.Size([100, 8]))
    """

    def __init__(
        self,
        num_classes: int,
        hidden_dim: int,
        num_samples: int,
        sampling_weights: Tensor | WeightedSampler,
        allow_duplicates: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        fn = type(self).__name__
        num_classes = _checks.check_positive_int(fn, "num_classes", num_classes)
        hidden_dim = _checks.check_positive_int(fn, "hidden_dim", hidden_dim)
        num_samples = _checks.check_positive_int(fn, "num_samples", num_samples)
        sampler = _own_sampler(fn, sampling_weights, num_samples, allow_duplicates, num_classes)
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        self.num_samples = num_samples
        self.allow_duplicates = allow_duplicates
        self.sampler = sampler.to(device=device)
        self.weight = nn.Parameter(
            torch.empty((num_classes, hidden_dim), device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty((num_classes, 1), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight, bias zero."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_vector: Tensor, target_vector: Tensor) -> SampledSoftmaxResult:
        """(z, cross_entropy_on_samples, error_on_samples); see the function."""
        return cross_entropy_with_sampled_softmax_and_embedding(
            hidden_vector,
            target_vector,
            self.num_classes,
            self.hidden_dim,
            self.num_samples,
            self.sampler,
            self.allow_duplicates,
            weight=self.weight,
            bias=self.bias,
        )

    def extra_repr(self) -> str:
        """The sizes and options."""
        return (
            f"num_classes={self.num_classes}, hidden_dim={self.hidden_dim},"
            f" num_samples={self.num_samples}, allow_duplicates={self.allow_duplicates}"
        )
