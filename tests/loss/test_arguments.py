"""Arguments as PyTorch users pass them: NumPy's numbers are taken; all else is told what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.samplers import parts
from sampled_softmax_cuda import exact

B, D, C, S = 4, 8, 40, 12
h, W = torch.randn(B, D), torch.randn(C, D)
t = torch.tensor([3, 1, 39, 0])
COUNTS = torch.arange(1.0, C + 1)

INTEGERS = [np.int64, np.int32, np.uint8, np.array]
NUMBERS = [np.float64, np.float32, np.float16, np.array]


def draw(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda number: make(number).sample(t, S)


# A function of a number, and a number, by the argument's name. The results must be those of the
# number as Python's own.
INTEGER_ARGUMENTS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "SampledSoftmaxLoss.in_features": (lambda n: ssc.SampledSoftmaxLoss(n, C, S), D),
    "SampledSoftmaxLoss.num_classes": (lambda n: ssc.SampledSoftmaxLoss(D, n, S), C),
    "SampledSoftmaxLoss.num_samples": (lambda n: ssc.SampledSoftmaxLoss(D, C, n), S),
    "SampledSoftmaxLoss.ignore_index": (
        lambda n: ssc.SampledSoftmaxLoss(D, C, S, ignore_index=n),
        3,
    ),
    "topk.k": (lambda k: exact.topk(h, W, k), 3),
    "exact_cross_entropy.ignore_index": (
        lambda i: exact.exact_cross_entropy(h, W, t, ignore_index=i),
        3,
    ),
    "uniform": (draw(ssc.UniformSampler), C),
    "log_uniform": (draw(ssc.LogUniformSampler), C),
    "streaming": (draw(ssc.StreamingSampler), C),
    "streaming.ignore_index": (draw(lambda i: ssc.StreamingSampler(C, ignore_index=i)), 3),
    "interval": (
        lambda n: ssc.StreamingSampler(mode="interval", num_buckets=n).log_prob(t),
        64,
    ),
    "in_batch.num_classes": (draw(lambda n: ssc.InBatchSampler(num_classes=n)), C),
    "queue": (draw(ssc.QueueSampler), 5),
    "sample.num_samples": (lambda n: ssc.UniformSampler(C).sample(t, n), S),
    "sample without replacement": (
        lambda n: ssc.WeightedSampler(COUNTS).sample(t, n, replacement=False),
        S,
    ),
    "sample per row": (lambda n: ssc.UniformSampler(C).sample(t, n, per_row=True), S),
    "sample_keyed": (lambda n: ssc.UniformSampler(C).sample_keyed(t, n).materialize(), S),
    "draw": (lambda n: ssc.UniformSampler(C).draw(torch.tensor([1, 2]), n), S),
    "log_expected_count": (lambda n: ssc.UniformSampler(C).log_expected_count(t, n), S),
    "mixed": (lambda n: ssc.MixedSampler([ssc.UniformSampler(C)]).sample(t, n), S),
    "from_targets": (lambda n: ssc.WeightedSampler.from_targets(t, n).sample(t, S), C),
    "diagnose.num_samples": (lambda n: ssc.diagnose(h, W, t, ssc.UniformSampler(C), n), S),
    "diagnose.num_draws": (
        lambda n: ssc.diagnose(h, W, t, ssc.UniformSampler(C), S, num_draws=n),
        3,
    ),
    "cntk.random_sample": (lambda n: ssc.cntk.random_sample(COUNTS, n, True), S),
    "cntk.inclusion": (
        lambda n: ssc.cntk.random_sample_inclusion_frequency(COUNTS, n, True),
        S,
    ),
    "cntk.module": (
        lambda n: ssc.cntk.CrossEntropyWithSampledSoftmax(n, D, S, torch.ones(C)),
        C,
    ),
    "tf.num_true": (lambda n: ssc.tf.uniform_candidate_sampler(t[:, None], n, S, True, C), 1),
    "tf.num_sampled": (lambda n: ssc.tf.uniform_candidate_sampler(t[:, None], 1, n, True, C), S),
    "tf.range_max": (lambda n: ssc.tf.log_uniform_candidate_sampler([[1]], 1, S, True, n), C),
    "tf.seed": (lambda n: seeded(n), 7),
    "tf.learned": (lambda n: ssc.tf.LearnedUnigram(n).counts, C),
    "tf.fixed": (
        lambda n: ssc.tf.fixed_unigram_sampler(n, unigrams=list(range(1, C + 1))).table,
        C,
    ),
    "tf.loss": (lambda n: ssc.tf.sampled_softmax_loss(W, W[:, 0], t[:, None], h, n, C), S),
}


def seeded(seed: Any) -> Any:
    ssc.tf.set_seed(seed)
    return ssc.tf.uniform_candidate_sampler([[1]], 1, S, True, C, seed=seed)


def values_of(result: Any) -> list[Any]:
    if isinstance(result, torch.nn.Module):
        return [repr(result), *(x.tolist() for x in result.state_dict().values())]
    if isinstance(result, ssc.Samples):
        result = parts(result)
    values = result if isinstance(result, tuple) else (result,)
    return [x.tolist() if isinstance(x, Tensor) else x for x in values]


@pytest.mark.parametrize("name", INTEGER_ARGUMENTS)
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_of_numpy(name: str, kind: Any) -> None:
    function, number = INTEGER_ARGUMENTS[name]
    torch.manual_seed(1)
    expected = function(number)
    torch.manual_seed(1)
    assert values_of(function(kind(number))) == values_of(expected)


@pytest.mark.parametrize("name", INTEGER_ARGUMENTS)
def test_what_is_no_integer(name: str) -> None:
    function, number = INTEGER_ARGUMENTS[name]
    for value, got in (
        (True, "bool"),
        (np.bool_(True), "bool"),
        (number + 0.0, "float"),
        (np.float32(number), "float32"),
        (str(number), "str"),
        (torch.tensor(number), r"a Tensor \[\] of torch.int64: pass \w+.item\(\)"),
        (np.array([number, 1]), r"ndarray \[2\] of int64"),
    ):
        with pytest.raises(TypeError, match=rf": \w+ must be an int( or None)?, got {got}"):
            function(value)


def loss(**options: Any) -> Tensor:
    samples = ssc.Samples(torch.arange(S), torch.full((S,), -1.0), torch.zeros(B))
    return ssc.sampled_softmax_loss(h, W, t, samples, **options)


NUMBER_ARGUMENTS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "temperature": (lambda x: loss(temperature=x), 0.5),
    "softcap": (lambda x: loss(softcap=x), 2.5),
    "margin": (lambda x: loss(objective=ssc.Softmax(margin=x)), 0.25),
    "angular_margin": (lambda x: loss(objective=ssc.Softmax(angular_margin=x), cosine=True), 0.25),
    "label_smoothing": (lambda x: loss(objective=ssc.Softmax(label_smoothing=x)), 0.25),
    "calibration": (lambda x: loss(objective=ssc.GBCE(x)), 0.5),
    "z_loss": (lambda x: loss(z_loss=x), 0.25),
    "exact z_loss": (lambda x: exact.exact_cross_entropy(h, W, t, z_loss=x), 0.25),
    "exact temperature": (lambda x: exact.exact_cross_entropy(h, W, t, temperature=x), 0.5),
    "exact softcap": (lambda x: exact.logits(h, W, softcap=x), 2.5),
    "log_prob": (lambda x: exact.log_prob(h, W, t, temperature=x), 0.5),
    "topk": (lambda x: exact.topk(h, W, 3, temperature=x), 0.5),
    "diagnose": (lambda x: ssc.diagnose(h, W, t, ssc.UniformSampler(C), S, temperature=x), 0.5),
    "power": (lambda x: ssc.WeightedSampler(COUNTS, power=x).log_prob(t), 0.75),
    "smoothing": (lambda x: ssc.WeightedSampler(COUNTS, smoothing=x).log_prob(t), 0.75),
    "proportions": (
        lambda x: ssc.MixedSampler([ssc.UniformSampler(C)] * 2, [1.0, x]).sample(t, S),
        0.5,
    ),
    "staleness": (draw(lambda x: ssc.StreamingSampler(C, staleness=x)), 0.5),
    "rate": (lambda x: ssc.StreamingSampler(mode="interval", rate=x).log_prob(t), 0.5),
    "module": (lambda x: ssc.SampledSoftmaxLoss(D, C, S, temperature=x, softcap=x), 0.5),
}


@pytest.mark.parametrize("name", NUMBER_ARGUMENTS)
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_numpy(either: str, name: str, kind: Any) -> None:
    function, number = NUMBER_ARGUMENTS[name]
    torch.manual_seed(1)
    expected = function(number)
    torch.manual_seed(1)
    assert values_of(function(kind(number))) == values_of(expected)


@pytest.mark.parametrize("name", NUMBER_ARGUMENTS)
def test_what_is_no_number(name: str) -> None:
    function, number = NUMBER_ARGUMENTS[name]
    for value, got in (
        (True, "bool"),
        (str(number), "str"),
        (torch.tensor(number), r"a Tensor \[\] of torch.float32: pass \w+.item\(\)"),
        (np.array([number, 1]), r"ndarray \[2\] of float64"),
        (1j, "complex"),
    ):
        with pytest.raises(TypeError, match=rf": \w+ must be a float, got {got}"):
            function(value)


@pytest.mark.parametrize("function", [loss, lambda **o: exact.logits(h, W, **o)])
@pytest.mark.parametrize("name", ["temperature", "softcap"])
def test_divisors_that_leave_float32(function: Any, name: str) -> None:
    for value in (1e-40, 1e-31, 1e31, 1e39, float("inf"), 10**400):
        with pytest.raises(ValueError, match=rf"{name} must be in \[1e-30, 1e\+30\]"):
            function(**{name: value})
    for value in (0, 0.0, -1.0, -1e-40, float("nan"), float("-inf")):
        with pytest.raises(ValueError, match=rf"{name} must be positive.*, got"):
            function(**{name: value})
    for value in (1e-30, 1e30):
        assert bool(function(**{name: value}).isfinite().all())


def test_all_of_the_label_smoothed(backend: str) -> None:
    """As in F.cross_entropy: with every class sampled once, equal to it in float64."""
    every = ssc.Samples(torch.arange(C))
    x, w = torch.randn(B, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    target = torch.tensor([3, 1, 39, 0])
    got = ssc.sampled_softmax_loss(x, w, target, every, objective=ssc.Softmax(label_smoothing=1.0))
    x64, w64 = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    truth = F.cross_entropy(x64 @ w64.T, target, label_smoothing=1.0)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6)
    got.backward()
    truth.backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(w.grad.double(), w64.grad, rtol=1e-4, atol=1e-6)


samples = ssc.Samples(torch.arange(S))
ADVICE: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "ids of int32": (
        lambda: ssc.sampled_softmax_loss(h, W, t.int(), samples),
        TypeError,
        "target must be int64, got torch.int32: pass target.long()",
    ),
    "ids of float32": (
        lambda: ssc.UniformSampler(C).sample(t.float(), S),
        TypeError,
        "target must be int64, got torch.float32: pass target.long()",
    ),
    "a one-hot target": (
        lambda: ssc.sampled_softmax_loss(h, W, F.one_hot(t, C).float(), samples),
        TypeError,
        "target must be int64 class ids, got torch.float32 rows over C=40 classes:"
        " pass target.argmax(-1) if they are one-hot",
    ),
    "soft labels of the exact loss": (
        lambda: exact.exact_cross_entropy(h, W, torch.rand(B, C)),
        TypeError,
        "soft labels need the full softmax",
    ),
    "a target [B, 1] of the exact loss": (
        lambda: exact.exact_cross_entropy(h, W, t[:, None]),
        ValueError,
        "target must be [4] to match input [4, 8], got [4, 1]: pass target.squeeze(-1)",
    ),
    "a transposed weight": (
        lambda: ssc.sampled_softmax_loss(h, W.T, t, samples),
        ValueError,
        "got [8, 40], which is its transpose: pass weight.t().contiguous()",
    ),
    "a bias [C, 1]": (
        lambda: ssc.sampled_softmax_loss(h, W, t, samples, bias=torch.ones(C, 1)),
        ValueError,
        "got [40, 1]: pass bias.flatten()",
    ),
    "an array as target": (
        lambda: ssc.sampled_softmax_loss(h, W, t.numpy(), samples),
        TypeError,
        "target must be a Tensor, got ndarray [4] of int64: pass torch.from_numpy(target)",
    ),
    "an array as weights": (
        lambda: ssc.WeightedSampler(np.ones(C)),
        TypeError,
        "weights must be a Tensor, got ndarray [40] of float64: pass torch.from_numpy(weights)",
    ),
    "a list as target": (
        lambda: ssc.UniformSampler(C).sample([1, 2], S),
        TypeError,
        "target must be a Tensor, got list: pass torch.as_tensor(target)",
    ),
    "a list as ids": (
        lambda: ssc.sampled_softmax_loss(h, W, t, ssc.Samples([1, 2])),
        TypeError,
        "samples.ids must be a Tensor, got list",
    ),
    "a tuple as samples": (
        lambda: ssc.sampled_softmax_loss(h, W, t, (1, 2, 3)),
        TypeError,
        "samples must be a Samples(ids, log_expected_count, target_log_expected_count)",
    ),
    "batchmean": (
        lambda: loss(reduction="batchmean"),
        ValueError,
        "reduction must be one of 'none', 'mean', 'sum', got 'batchmean'",
    ),
    "None as reduction": (
        lambda: loss(reduction=None),
        ValueError,
        "reduction must be one of 'none', 'mean', 'sum', got None",
    ),
    "an array as a choice": (
        lambda: loss(correction=np.ones(2)),
        ValueError,
        "correction must be one of",
    ),
    "text as a bool": (
        lambda: loss(remove_accidental_hits="no"),
        TypeError,
        "remove_accidental_hits must be a bool, got str",
    ),
    "a bias of the module": (
        lambda: ssc.SampledSoftmaxLoss(D, C, S, bias=torch.ones(C)),
        TypeError,
        "bias must be a bool, got a Tensor [40] of torch.float32",
    ),
    "a dtype as text": (
        lambda: ssc.SampledSoftmaxLoss(D, C, S, dtype="float16"),
        TypeError,
        "got 'float16': pass torch.float16",
    ),
    "an array as sampler": (
        lambda: ssc.SampledSoftmaxLoss(D, C, S, sampler=np.ones(C)),
        TypeError,
        "sampler must be a str, a Sampler or a Tensor, got ndarray [40] of float64:"
        " pass torch.from_numpy(sampler)",
    ),
    "a list as sampler": (
        lambda: ssc.SampledSoftmaxLoss(D, C, S, sampler=[1.0] * C),
        TypeError,
        "got list: pass torch.tensor(sampler)",
    ),
    "a class as sampler": (
        lambda: ssc.SampledSoftmaxLoss(D, C, S, sampler=ssc.UniformSampler),
        TypeError,
        "the class UniformSampler: pass an instance of it",
    ),
    "a sampler's name in other letters": (
        lambda: ssc.SampledSoftmaxLoss(D, C, S, sampler="Log-Uniform"),
        ValueError,
        "got 'Log-Uniform': did you mean 'log_uniform'?",
    ),
    "per_row with the batch": (
        lambda: ssc.SampledSoftmaxLoss(D, C, S, sampler=ssc.InBatchSampler(), per_row=True),
        ValueError,
        "per_row=True needs a sampler whose rows can have draws of their own, got InBatchSampler",
    ),
    "per_row with a queue": (
        lambda: ssc.SampledSoftmaxLoss(D, C, S, sampler=ssc.QueueSampler(9), per_row=True),
        ValueError,
        "got QueueSampler, whose ids are shared by all rows: use per_row=False",
    ),
    "per_row with a mixture": (
        lambda: ssc.SampledSoftmaxLoss(
            D, C, S, sampler=ssc.MixedSampler([ssc.UniformSampler(C)]), per_row=True
        ),
        ValueError,
        "got MixedSampler",
    ),
    "intervals": (
        lambda: ssc.SampledSoftmaxLoss(
            D, C, S, sampler=ssc.StreamingSampler(mode="interval"), per_row=True
        ),
        ValueError,
        "sampler must be one that draws, got a StreamingSampler that only knows frequencies:"
        " make it the log_q of an InBatchSampler",
    ),
    "more distinct samples than a sampler has": (
        lambda: ssc.SampledSoftmaxLoss(
            D, C, S, sampler=torch.tensor([1.0] * 5 + [0.0] * 35), replacement=False
        ),
        ValueError,
        "num_samples must be at most 5, the number of classes with positive probability",
    ),
    "more distinct samples than a mixture has": (
        lambda: ssc.SampledSoftmaxLoss(
            D,
            C,
            S,
            sampler=ssc.MixedSampler([ssc.WeightedSampler(torch.eye(C)[0])]),
            replacement=False,
        ),
        ValueError,
        "num_samples must be at most 1",
    ),
    "an ignore_index beyond int64": (
        lambda: loss(ignore_index=2**63),
        ValueError,
        "ignore_index must be an int64, got 9223372036854775808",
    ),
    "a target elsewhere": (
        lambda: ssc.sampled_softmax_loss(h, W, t.to("meta"), samples),
        ValueError,
        "target must be on the device of input, cpu, got meta",
    ),
    "one true class for cntk as an array": (
        lambda: ssc.cntk.CrossEntropyWithSampledSoftmax(C, D, S, torch.ones(C))(h, t.numpy()),
        TypeError,
        "target_vector must be a Tensor, got ndarray [4] of int64",
    ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice(case: str) -> None:
    call, kind, message = ADVICE[case]
    with pytest.raises(kind) as error:
        call()
    assert message in str(error.value)


def test_what_is_right_as_it_is(either: str) -> None:
    assert float(loss(ignore_index=-1)) == float(loss())
    assert float(loss(remove_accidental_hits=np.bool_(True))) == float(loss())
    empty = ssc.sampled_softmax_loss(h[:0], W, t[:0], samples)
    assert float(empty) == 0
    pool = ssc.SampledSoftmaxLoss(D, C, S, sampler=ssc.InBatchSampler(), replacement=False)
    assert pool(h, t).isfinite()
    with pytest.raises(RuntimeError, match="gpu"):  # torch names the devices that there are
        ssc.SampledSoftmaxLoss(D, C, S, device="gpu")
    with pytest.raises(TypeError, match="temprature"):
        loss(temprature=2.0)
