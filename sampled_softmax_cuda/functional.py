"""The sampled softmax loss as a function: checks, then the compiled kernels or the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from . import _checks, reference
from ._autograd import Arguments, ordered_sum, rows_loss, total_loss, wants_gradient
from ._composed import composed_total, takes_total
from ._dispatch import as_kernels_take, kernels_take, products_in_tf32
from ._load import on_cpu
from ._negatives import negatives_loss
from ._option_checks import check_options
from ._parallel import check_sparse_grad
from ._torchscript import check_not_traced
from ._unit_rows import unit_rows
from .reference.composed import LossOptions, composed_rows
from .reference.loss import (
    SampledSoftmaxDetails,
    compute_dtype,
    count_of_samples,
    result_dtype,
    reweighted,
    row_scale,
)
from .samplers.keyed import KeyedSamples
from .samplers.samples import Samples

__all__ = ["SampledSoftmaxDetails", "sampled_softmax_loss"]

_NAME = "sampled_softmax_loss"


@overload
def sampled_softmax_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples | KeyedSamples,
    *,
    bias: Tensor | None = ...,
    temperature: float = ...,
    correction: str = ...,
    remove_accidental_hits: bool = ...,
    ignore_index: int = ...,
    sample_weight: Tensor | None = ...,
    reduction: str = ...,
    sparse_grad: bool = ...,
    return_details: Literal[False] = ...,
    loss: str = ...,
    softcap: float | None = ...,
    cosine: bool = ...,
    margin: float = ...,
    angular_margin: float = ...,
    label_smoothing: float = ...,
    calibration: float = ...,
    exclude: Tensor | None = ...,
) -> Tensor: ...


@overload
def sampled_softmax_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples | KeyedSamples,
    *,
    bias: Tensor | None = ...,
    temperature: float = ...,
    correction: str = ...,
    remove_accidental_hits: bool = ...,
    ignore_index: int = ...,
    sample_weight: Tensor | None = ...,
    reduction: str = ...,
    sparse_grad: bool = ...,
    return_details: Literal[True],
    loss: str = ...,
    softcap: float | None = ...,
    cosine: bool = ...,
    margin: float = ...,
    angular_margin: float = ...,
    label_smoothing: float = ...,
    calibration: float = ...,
    exclude: Tensor | None = ...,
) -> tuple[Tensor, SampledSoftmaxDetails]: ...


def sampled_softmax_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples | KeyedSamples,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    correction: str = "both",
    remove_accidental_hits: bool = True,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    sparse_grad: bool = False,
    return_details: bool = False,
    loss: str = "softmax",
    softcap: float | None = None,
    cosine: bool = False,
    margin: float = 0.0,
    angular_margin: float = 0.0,
    label_smoothing: float = 0.0,
    calibration: float = 0.75,
    exclude: Tensor | None = None,
) -> Tensor | tuple[Tensor, SampledSoftmaxDetails]:
    """Cross entropy of the target against sampled classes instead of all C.

    With z_k = (input · weight_k + bias_k) / temperature - log n_k, where n_k is the expected count
    of class k among the samples, the loss of a row with target t is

        log(exp z_t + sum over samples s of exp z_s) - z_t

    Time and memory depend on C only through the dense gradients of weight and bias, and not at all
    with `sparse_grad=True`. If every class is a sample once, with counts None and hits removed, the
    loss and its gradients are those of `F.cross_entropy(F.linear(input, weight, bias), target)`.
    Method: Jean et al., "On Using Very Large Target Vocabulary for Neural Machine Translation".

    Args:
        input: [*, D] float32, bfloat16, float16 or float64; any leading shape, also none or empty.
        weight: [C, D]; its dtype may differ from input's (not for float64), so that autocast need
            not convert it. A layout other than unit stride along D costs a copy.
        target: [*] int64, the true class of each row, or [*, T], T true classes that share the
            label, 1/T each (TensorFlow's num_true). Entries that are `ignore_index` are padding.
        samples: `Samples(ids [S], log_expected_count [S], target_log_expected_count)`, from a
            sampler or made by hand, the last of the target's shape. Ids and counts [*, S] give each
            row its own, and `KeyedSamples` (`Sampler.sample_keyed`) too, drawn by the kernels and
            never stored. A count of None means n = 1, a log count of +inf leaves the sample out,
            and one of -inf, of a class that is never drawn, leaves its logit uncorrected. Ids may
            repeat, also with different counts. No gradient flows through the counts.
        bias: [C] or None (the default).
        temperature: divides the logits before the correction; 1e-30 to 1e30. Default 1.
        correction: "both" (default) subtracts log n from target and samples, as CNTK and TensorFlow
            do; "negatives" from the samples only, which makes exp(lse) an unbiased estimate of the
            partition function when hits are removed; "none" from neither. "reweighted" is (1 - p)
            (N - z_t) with the uncorrected z_t, N the logsumexp of the corrected samples and p =
            exp(z_t) / (exp(z_t) + exp(N)) as a constant (Khrylchenko et al., "Correcting the LogQ
            Correction", 2025): since p is taken from the same samples, its gradient is that of
            "negatives", and its value weighs each row by the chance to be wrong.
        remove_accidental_hits: leave out, row by row, the samples that equal a target (default).
        ignore_index: rows with this target give loss 0 and no gradient. Default -100.
        sample_weight: [*] floating, a factor for each row's loss. None means 1.
        reduction: "mean" (default) divides by the number, or the summed weight, of the rows that
            count and is 0 if there are none; "sum"; "none" gives losses of shape [*].
        sparse_grad: gradients of weight and bias as coalesced sparse_coo tensors over the rows
            touched, for SGD without momentum, Adagrad and SparseAdam; what else PyTorch can do with
            them is in docs/sparse_gradients.md. Default False: dense. On CUDA and under
            torch.compile they have S + B rows, some of them zero, and are not marked as coalesced,
            because how many rows are distinct would have to be waited for; per-row samples B·S in
            place of S. Under torch.compile losses other than the plain one copy those rows first,
            and Inductor fails at a slice of reduction="none": weigh the losses instead.
        return_details: also return `SampledSoftmaxDetails(lse, target_logit, error)`.
        loss: "softmax" (default); "nce", sigmoid cross entropies of corrected logits summed over
            targets and samples (Gutmann and Hyvärinen 2010; TensorFlow's nce_loss with
            remove_accidental_hits=False); "negative_sampling", the same of uncorrected logits
            (word2vec); "gbce", (beta softplus(-z_t) + sum_s softplus(z_s)) / (S + 1) of
            uncorrected logits with beta = 1 - calibration (1 - S / (C - 1)) (gSASRec, Petrov and
            Macdonald 2023). Those with sigmoids want a low bias at first, such as log(1 / C).
        softcap: bounds logits, before the correction, by softcap * tanh(z / softcap). None: no cap.
        cosine: divide each row of input, and of weight, by its norm: logits are cosines divided by
            the temperature. Only the rows of samples and targets are read. Shared samples only.
        margin: subtracted from the target's product input · weight_t (with `cosine`: CosFace).
        angular_margin: added to the angle between input and weight_t, in radians (ArcFace); needs
            `cosine`.
        label_smoothing: 0 to 1, the share of the label that is spread over all classes, as in
            F.cross_entropy; the mean of their logits is estimated from the samples with weights
            1 / n_s, normalised (1 for n_s = 0). Softmax and shared samples only.
        calibration: 0 to 1, gBCE's t. Default 0.75.
        exclude: [*, E] int64, classes that are no negatives of the row (a user's seen items);
            negative values are padding. No gradient flows where they are sampled.

    Returns:
        The loss, float32 under autocast and else in the dtype that input, weight and bias promote
        to; sums are taken in float32 (float64 for float64). With `return_details`, a pair. NaN or
        inf in a row of input makes that row's loss and input gradient NaN, whatever the loss, and
        no other's; docs/numerics.md has what other bad numbers do.

    Raises:
        ValueError: shapes, devices or options that do not fit, or not together.
        TypeError: wrong dtypes or types, DTensors among them.
        IndexError: an id or target outside [0, C), or a sampler's table that holds one, on the CPU.
            On CUDA such an id gives NaN in the rows that have it; SSC_CHECK_TARGETS=1 raises there
            too, at the price of waiting for the device.
        RuntimeError: sparse_grad with a weight or bias of which DistributedDataParallel or
            fully_shard expects a dense gradient; backward with create_graph=True through the
            compiled kernels. The same function in `sampled_softmax_cuda.reference` can be
            differentiated twice.

    Example:
        >>> import torch, sampled_softmax_cuda as ssc
        >>> h, weight = torch.randn(32, 16), torch.randn(1000, 16, requires_grad=True)
        >>> target = torch.randint(1000, (32,))
        >>> samples = ssc.LogUniformSampler(1000).sample(target, 64)
        >>> loss = ssc.sampled_softmax_loss(h, weight, target, samples, sparse_grad=True)
        >>> loss.backward()
        >>> loss.shape, weight.grad.is_sparse, weight.grad.shape
        (torch.Size([]), True, torch.Size([1000, 16]))
    """
    check_not_traced(_NAME)
    _checks.check_parameters(_NAME, input, weight, bias)
    _checks.check_targets(_NAME, target, input, weight.shape[0])
    _checks.check_samples(_NAME, samples, target, input, weight.shape[0])
    if sample_weight is not None:
        _checks.check_sample_weight(_NAME, sample_weight, input)
    _checks.check_choice(_NAME, "reduction", reduction, _checks.REDUCTIONS)
    if sparse_grad:
        check_sparse_grad(_NAME, weight, bias)
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
    options = check_options(_NAME, options, target, input, samples, exclude)
    ignore_index = options.ignore_index
    plain = reference.is_plain(options, target, input, samples, exclude)
    given = samples.materialize() if plain else None
    fused = given is not None and kernels_take("loss_and_grads", input, weight, bias, *given[1:])
    if not (fused and on_cpu(input)):  # there the kernels look at every id themselves
        _check_ids(target, samples, weight, ignore_index)
    if plain and not fused:
        return reference.sampled_softmax_loss(
            input,
            weight,
            target,
            samples,
            bias=bias,
            temperature=options.temperature,
            correction=correction,
            remove_accidental_hits=options.remove_accidental_hits,
            ignore_index=ignore_index,
            sample_weight=sample_weight,
            reduction=reduction,
            sparse_grad=sparse_grad,
            return_details=return_details,
        )
    if given is None:
        result, *details = _composed(
            input,
            weight,
            bias,
            target,
            samples,
            exclude,
            options,
            sample_weight,
            reduction,
            sparse_grad,
        )
        return _finish(result, details, input, weight, bias, return_details)
    arguments = Arguments(
        *as_kernels_take(input, weight, bias),
        target if target.dim() == 1 else target.reshape(-1),
        given.ids,
        _log_count(count_of_samples(given.log_expected_count, options.corrects_samples)),
        _log_count(samples.target_log_expected_count) if options.corrects_targets else None,
        1.0 / options.temperature,
        options.remove_accidental_hits,
        ignore_index,
    )
    shape = input.shape[:-1]
    row_weight = None if sample_weight is None else sample_weight.reshape(-1)
    reweigh = correction == "reweighted"
    tf32 = products_in_tf32(weight)
    try:
        if reduction != "none" and _fused_now(*arguments[:3], row_weight):
            scale = None if row_weight is None else _row_scale(arguments, row_weight, reduction)
            mean = reduction == "mean"
            want_rows = return_details or reweigh
            result, *rows = total_loss(arguments, scale, mean, want_rows, sparse_grad, tf32)
            if reweigh:
                if scale is None:
                    scale = _row_scale(arguments, None, reduction)
                result = result + ordered_sum((reweighted(rows[0]) - rows[0]) * scale)
        else:
            rows = list(rows_loss(arguments, sparse_grad, tf32))
            if reweigh:
                rows[0] = reweighted(rows[0])
            if reduction == "none":
                result = (rows[0] if row_weight is None else rows[0] * row_weight).reshape(shape)
            else:
                result = ordered_sum(rows[0] * _row_scale(arguments, row_weight, reduction))
    except RuntimeError:
        # The kernels look at every id before anything else; here it gets the message for users.
        _check_ids(target, samples, weight, ignore_index)
        raise
    return _finish(result, rows[1:], input, weight, bias, return_details)


def _composed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    samples: Samples | KeyedSamples,
    exclude: Tensor | None,
    options: LossOptions,
    sample_weight: Tensor | None,
    reduction: str,
    sparse_grad: bool,
) -> tuple[Tensor, ...]:
    """The loss of any options, reduced, and lse, target logit and error [B]."""
    operands, step = reference.prepare_rows(
        input, weight, bias, target, samples, exclude, options, sparse_grad, unit_rows
    )
    row_weight = None if sample_weight is None else sample_weight.reshape(-1)
    scale = None
    if reduction != "none":
        scale = row_scale(step.counted, row_weight, reduction, compute_dtype(input))
        if _fused_now(input, weight, bias, row_weight) and takes_total(operands, step):
            total, _, *details = composed_total(operands, step, scale)
            return (total, *details)
    loss, *details = composed_rows(operands, step, negatives_loss)
    if scale is not None:
        loss = ordered_sum(loss * scale)
    else:
        loss = (loss if row_weight is None else loss * row_weight).reshape(input.shape[:-1])
    return (loss, *details)


def _finish(
    result: Tensor,
    details: Sequence[Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    return_details: bool,
) -> Tensor | tuple[Tensor, SampledSoftmaxDetails]:
    """The result in its dtype, with lse, target logit and error [*] where they are wanted."""
    dtype = result_dtype(input, weight, bias)
    if result.dtype != dtype:
        result = result.to(dtype)
    if not return_details:
        return result
    shape = input.shape[:-1]
    return result, SampledSoftmaxDetails(*(row.reshape(shape) for row in details))


def _check_ids(
    target: Tensor, samples: Samples | KeyedSamples, weight: Tensor, ignore_index: int
) -> None:
    num_classes = weight.shape[0]
    _checks.check_id_range(_NAME, "target", target, num_classes, ignore_index)
    if isinstance(samples, Samples):
        _checks.check_id_range(_NAME, "samples.ids", samples.ids, num_classes)


def _log_count(log_count: Tensor | None) -> Tensor | None:
    """Log expected counts as the kernels take them: flat, float32 or float64."""
    if log_count is None:
        return None
    if log_count.dim() != 1:
        log_count = log_count.reshape(-1)
    if log_count.dtype not in (torch.float32, torch.float64):
        log_count = log_count.to(torch.float32)
    return log_count.detach() if log_count.requires_grad else log_count


def _row_scale(arguments: Arguments, row_weight: Tensor | None, reduction: str) -> Tensor:
    """The factor of each row's loss."""
    dtype = compute_dtype(arguments.input)
    counted = arguments.target != arguments.ignore_index
    return row_scale(counted, row_weight, reduction, dtype)


def _fused_now(
    input: Tensor, weight: Tensor, bias: Tensor | None, row_weight: Tensor | None
) -> bool:
    """Whether the gradients are computed in the forward pass, before the upstream gradient.

    Not if nobody wants them, not if the weights of the rows want a gradient too, and not in
    float16: there they have to be scaled by the upstream gradient (a GradScaler's, say) before they
    are rounded.
    """
    wanted = wants_gradient(input, weight, bias)
    if not wanted or (row_weight is not None and row_weight.requires_grad):
        return False
    bias_dtype = None if bias is None else bias.dtype
    return torch.float16 not in (input.dtype, weight.dtype, bias_dtype)
