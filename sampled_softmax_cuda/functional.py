"""The sampled softmax loss as a function: the arguments make a problem, which takes a route."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ._gathered import gathered
from ._rules import host_rules
from .losses.problem import Problem, check_ids, finish, make_problem
from .losses.rows import SampledSoftmaxDetails
from .objectives import Objective, ObjectiveName
from .ops.dispatch import kernels_take
from .ops.loss import fused, gradients_now, rowwise
from .ops.negatives import composed, negatives_served
from .ops.total import takes_total, total
from .options import Correction, Reduction
from .reference.problem import reference
from .samples import KeyedSamples, Samples

__all__ = ["SampledSoftmaxDetails", "sampled_softmax_loss"]

_NAME = "sampled_softmax_loss"

Route = Callable[[Problem], tuple[Tensor, Sequence[Tensor]]]
"""problem -> the loss, reduced or of rows [B], and lse, target logit and error [B]"""


def sampled_softmax_loss(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    samples: Samples | KeyedSamples,
    *,
    bias: Tensor | None = None,
    objective: ObjectiveName | Objective = "softmax",
    temperature: float = 1.0,
    correction: Correction = "both",
    remove_accidental_hits: bool = True,
    softcap: float | None = None,
    cosine: bool = False,
    z_loss: float = 0.0,
    exclude: Tensor | None = None,
    ignore_index: int = -100,
    padding_idx: int | None = None,
    class_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    sparse_grad: bool = False,
    return_details: bool = False,
) -> Any:
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
            label, 1/T each (TensorFlow's num_true). Entries that are `ignore_index` are left out.
        samples: `Samples(ids [S], log_expected_count [S], target_log_expected_count)`, from a
            sampler or made by hand, the last of the target's shape. Ids and counts [*, S] give each
            row its own, and `KeyedSamples` (`Sampler.sample_keyed`) too, drawn by the kernels and
            never stored. A count of None means n = 1, a log count of +inf leaves the sample out,
            and one of -inf, of a class that is never drawn, leaves its logit uncorrected. Ids may
            repeat, also with different counts. No gradient flows through the counts.
        bias: [C] or None (the default).
        objective: "softmax" (default), "nce", "negative_sampling" or "gbce", or an `Objective` with
            options: `Softmax(label_smoothing=, margin=, angular_margin=, reweighted=)`, `NCE()`,
            `NegativeSampling()`, `GBCE(calibration=)`. All but the softmax are sums of sigmoid
            cross entropies, which want a low bias at first, such as log(1 / C).
        temperature: divides the logits before the correction; 1e-30 to 1e30. Default 1.
        correction: "both" (default) subtracts log n from target and samples, as CNTK and TensorFlow
            do; "negatives" from the samples only, which makes exp(lse) an unbiased estimate of the
            partition function when hits are removed; "none" from neither.
        remove_accidental_hits: leave out, row by row, the samples that equal a target (default).
        softcap: bounds logits, before the correction, by softcap * tanh(z / softcap). None: no cap.
        cosine: divide each row of input, and of weight, by its norm: logits are cosines divided by
            the temperature. Only the rows of samples and targets are read. Shared samples only.
        z_loss: a factor of lse² that is added to each row's loss, which keeps the normaliser near 1
            (Chowdhery et al., "PaLM", 2022, with 1e-4). lse is that of the corrected logits:
            correction="negatives" makes it an estimate of the full one. Softmax only. Default 0.
        exclude: [*, E] int64, classes that are no negatives of the row (a user's seen items);
            negative values are padding. No gradient flows where they are sampled.
        ignore_index: rows with this target give loss 0 and no gradient. Default -100.
        padding_idx: a class that is no class, as `nn.Embedding` has it, negative ones counting from
            the end: rows with this target do not count, and as a sample it is masked. Samplers take
            the same argument and never draw it. None (default): every class is one.
        class_weight: [C] floating, a factor for each row's loss by its target, as the `weight` of
            F.cross_entropy; multiplied by `sample_weight`. None means 1. Not for [*, T] targets nor
            with label smoothing.
        sample_weight: [*] floating, a factor for each row's loss. None means 1.
        reduction: "mean" (default) divides by the number, or the summed weight, of the rows that
            count and is 0 if there are none; "sum"; "none" gives losses of shape [*].
        sparse_grad: gradients of weight and bias as coalesced sparse_coo tensors over the rows
            touched, for SGD without momentum, Adagrad and SparseAdam; docs/sparse_gradients.md has
            all that PyTorch can do with them. Default False: dense. On CUDA and under
            torch.compile they have S + B rows, some of them zero, and are not marked as coalesced,
            because how many rows are distinct would have to be waited for; per-row samples B·S in
            place of S. Under torch.compile losses other than the plain one copy those rows first,
            and Inductor fails at a slice of reduction="none": weigh the losses instead.
        return_details: also return `SampledSoftmaxDetails(lse, target_logit, error)`.

    Returns:
        The loss, float32 under autocast and else in the dtype that input, weight and bias promote
        to; sums are taken in float32 (float64 for float64). With `return_details`, a pair. NaN or
        inf in a row of input makes that row's loss and input gradient NaN, whatever the loss, and
        no other's; docs/numerics.md has what other bad numbers do.

    Raises:
        ValueError: shapes, devices or options that do not fit, or not together; sparse_grad=True
            with a weight or bias computed in a way that torch takes no sparse gradient back
            through (a slice, a transpose, a parametrization), or under torch.func.
        TypeError: wrong dtypes or types, DTensors among them; a weight or bias may be one with
            sparse_grad=False: it is gathered, and its gradient is averaged over its mesh.
        IndexError: an id or target outside [0, C), or a sampler's table that holds one, on the CPU;
            under torch.compile RuntimeError. On CUDA such an id gives NaN in the rows that have it;
            SSC_CHECK_TARGETS=1 raises there too, outside of torch.compile, at the price of waiting
            for the device.
        RuntimeError: sparse_grad with a weight or bias of which DistributedDataParallel or
            fully_shard expects a dense gradient; backward with create_graph=True through the
            compiled kernels. The same function in `sampled_softmax_cuda.reference` can be
            differentiated twice. torch.func and forward-mode derivatives work: docs/numerics.md
            says what computes them.

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
    weight, bias = gathered(_NAME, weight, bias, sparse_grad)
    # By position, in the order above: by name it would take a microsecond of a small step.
    problem = make_problem(
        _NAME,
        input,
        weight,
        target,
        samples,
        bias,
        objective,
        temperature,
        correction,
        remove_accidental_hits,
        softcap,
        cosine,
        z_loss,
        exclude,
        ignore_index,
        padding_idx,
        class_weight,
        sample_weight,
        reduction,
        sparse_grad,
        return_details,
    )
    return solve(_NAME, problem)


def solve(fn: str, p: Problem) -> Any:
    """The loss of a problem, and its details if they are wanted.

    Args:
        fn: the name of the public function, for the message about an id out of range.
    """
    compute = route(p)
    if not (host_rules(p.input) and (compute is fused or compute is rowwise)):
        check_ids(fn, p)
    try:
        return finish(p, *compute(p))
    except RuntimeError:
        check_ids(fn, p)  # those two look themselves; here it gets the message for users
        raise


def route(p: Problem) -> Route:
    """The function that computes a problem. This is the one place where that is decided:

    | route     | problems                                            | how                        |
    |-----------|-----------------------------------------------------|----------------------------|
    | fused     | the plain softmax of shared samples and one target  | one sweep for loss and     |
    |           | a row, reduced, whose gradients are wanted          | gradients                  |
    | rowwise   | the same, not reduced, or without gradients         | gradients in the backward  |
    |           |                                                     | pass                       |
    | total     | all other options, reduced, with gradients, on the  | one sweep, and PyTorch for |
    |           | CPU, outside of torch.compile                       | [B, T] logits of targets   |
    | composed  | all others: per-row and keyed samples, z_loss, ...  | the negatives by kernels,  |
    |           |                                                     | all else by PyTorch        |
    | reference | those that no kernel takes: no library, a dtype or  | PyTorch                    |
    |           | derivative that they lack, SSC_BACKEND=reference    |                            |

    "Plain" is `Problem.plain`; whether gradients come now, `gradients_now`; what kernels take,
    `ops.dispatch.kernels_take`.
    """
    if p.plain:
        samples = p.samples.materialize()
        counts = (samples.log_expected_count, samples.target_log_expected_count)
        if not kernels_take("loss_rows", p.input, p.weight, p.bias, *counts):
            return reference
        return fused if gradients_now(p) else rowwise
    if takes_total(p):
        return total
    return composed if negatives_served(p) else reference
