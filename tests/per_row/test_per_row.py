"""Losses against negatives of which every row has its own, given or drawn from a key."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sampled_softmax_cuda as ssc
from helpers.problem import SHAPES
from helpers.samplers import KINDS, make_sampler, parts
from helpers.truth import assert_close_to_truth
from sampled_softmax_cuda.ops.dispatch import kernels_take
from sampled_softmax_cuda.ops.negatives import negatives_loss, source_of
from sampled_softmax_cuda.proposals import Method
from sampled_softmax_cuda.reference.per_row import per_row_rows as reference_rows
from sampled_softmax_cuda.reference.problem import negatives_loss as reference_negatives

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NAMES = ("input", "weight", "bias", "target_logit")


@dataclass(frozen=True)
class Rows:
    """Arguments of `negatives_loss`, and what the losses [B] are multiplied with."""

    parameters: tuple[Tensor, Tensor, Tensor | None, Tensor]
    hits: Tensor
    counted: Tensor | None
    samples: Any
    upstream: Tensor
    inv_temperature: float = 1.25
    softcap: float = 0.0
    remove_hits: bool = True
    sigmoid: bool = False
    sparse_grad: bool = False
    corrected: bool = True
    leaves: list[Tensor] = field(default_factory=list)

    def fresh(self, dtype: torch.dtype | None = None) -> Rows:
        """The same numbers as new leaves, all in `dtype` if one is given."""
        leaves = [
            None if t is None else t.detach().to(dtype or t.dtype, copy=True).requires_grad_()
            for t in self.parameters
        ]
        there = [leaf for leaf in leaves if leaf is not None]
        return replace(self, parameters=tuple(leaves), leaves=there)  # type: ignore[arg-type]

    def run(self) -> list[Tensor]:
        """Loss and peak of `negatives_loss`, and the gradients of the leaves. The reference serves
        where kernels don't, as in `functional.route`."""
        p = self.fresh()
        served = kernels_take("negatives_rows", *p.parameters[:3])
        negatives = negatives_loss if served else reference_negatives
        options = (p.inv_temperature, p.softcap, p.remove_hits, p.sigmoid, p.sparse_grad)
        loss, peak = negatives(*p.parameters, p.hits, p.counted, p.samples, *options, p.corrected)
        return p.with_gradients(loss, peak)

    def reference(self) -> list[Tensor]:
        p = self.fresh()
        options = (p.inv_temperature, p.softcap, p.remove_hits, p.sigmoid)
        ids, count, _ = parts(p.samples)
        loss, peak = reference_rows(*p.parameters, p.hits, p.counted, ids, count, *options)
        return p.with_gradients(loss, peak)

    def truth(self) -> list[Tensor]:
        """The same in float64, from logits over all classes, by formulas of its own."""
        p = self.fresh(torch.float64)
        h, w, b, r = p.parameters
        ids, count, _ = parts(p.samples)
        keep = torch.ones(ids.shape, dtype=torch.bool)
        if p.counted is not None:
            keep &= p.counted[:, None]
            h, r = torch.where(p.counted[:, None], h, 0), torch.where(p.counted, r, 0)
        x = F.linear(h, w, b).gather(1, ids) * p.inv_temperature
        z = p.softcap * torch.tanh(x / p.softcap) if p.softcap else x
        if count is not None:
            keep &= count != torch.inf
            z = z - torch.where(count == torch.inf, 0, count.double())
        hit = (ids[:, :, None] == p.hits[:, None, :]).any(dim=2)
        own = z.masked_fill(hit | ~keep, -torch.inf).detach()
        peak = torch.cat((own, torch.full((len(own), 1), -torch.inf)), dim=1).amax(dim=1)
        z = z.masked_fill(~keep | (hit & p.remove_hits), -torch.inf)
        if p.sigmoid:
            loss = torch.logaddexp(z, torch.zeros_like(z)).sum(dim=1)
        else:
            loss = torch.cat((r[:, None], z), dim=1).logsumexp(dim=1) - r
        if p.counted is not None:
            loss, peak = torch.where(p.counted, loss, 0), torch.where(p.counted, peak, 0)
        return p.with_gradients(loss, peak)

    def with_gradients(self, loss: Tensor, peak: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad(
            (loss * self.upstream.to(loss.dtype)).sum(), self.leaves, allow_unused=True
        )
        zeros = [torch.zeros_like(leaf) for leaf in self.leaves]
        given = [zero if g is None else g for g, zero in zip(grads, zeros, strict=True)]
        return [loss.detach(), peak.detach(), *given]

    @property
    def names(self) -> list[str]:
        there = [n for n, t in zip(NAMES, self.parameters, strict=True) if t is not None]
        return ["loss", "peak", *there]


def make_rows(
    num_rows: int,
    width: int,
    num_classes: int,
    num_samples: int,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Rows:
    """Repeated samples, two hits a row, masked samples, and rows that do not count."""
    g = torch.Generator().manual_seed(7)
    h = torch.randn(num_rows, width, generator=g).to(dtype)
    w = (torch.randn(num_classes, width, generator=g) / width**0.5).to(dtype)
    b = torch.randn(num_classes, generator=g).to(dtype)
    row_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    r = torch.randn(num_rows, generator=g, dtype=row_dtype)
    ids = torch.randint(num_classes, (num_rows, num_samples), generator=g)
    count = torch.randn(num_rows, num_samples, generator=g)
    count[torch.rand(count.shape, generator=g) < 0.1] = torch.inf
    hits = torch.randint(-1, num_classes, (num_rows, 2), generator=g)
    if num_samples > 0:
        hits[:, 0] = ids[:, num_samples // 2]
    counted = torch.rand(num_rows, generator=g) < 0.8
    upstream = torch.randn(num_rows, generator=g, dtype=row_dtype)
    samples = ssc.Samples(ids, count, None)
    return Rows((h, w, b, r), hits, counted, samples, upstream, **options)


def assert_true(rows: Rows, what: str = "", slack: float = 16.0) -> None:
    for name, got, same, true in zip(
        rows.names, rows.run(), rows.reference(), rows.truth(), strict=True
    ):
        nothing = true == -torch.inf  # the peak of no sample
        assert torch.equal(got.to_dense() == -torch.inf, nothing), f"{name} {what}"
        parts = [torch.where(nothing, 0, t.to_dense()) for t in (got, same, true)]
        assert_close_to_truth(*parts, f"{name} {what}", slack=slack)


# A tail in every dimension, less than a vector, whole vectors; more samples than classes.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients(backend: str, shape: str, dtype: torch.dtype) -> None:
    num_rows, width, num_classes, num_samples = SHAPES[shape]
    size = (min(num_rows, 12), width, num_classes, min(num_samples, 400))
    assert_true(make_rows(*size, dtype), shape)
    assert_true(make_rows(*size, dtype, sigmoid=True, softcap=2.0), f"{shape}, sigmoid")


@pytest.mark.parametrize("sparse_grad", [False, True])
def test_every_option(backend: str, sparse_grad: bool) -> None:
    base = make_rows(9, 21, 60, 37, torch.float64, sparse_grad=sparse_grad)
    h, w, _, r = base.parameters
    choices = itertools.product((0.0, 1.5), (True, False), (True, False), (True, False))
    for softcap, remove_hits, sigmoid, everything in choices:
        rows = replace(base, softcap=softcap, remove_hits=remove_hits, sigmoid=sigmoid)
        if not everything:
            samples = ssc.Samples(rows.samples.ids)
            rows = replace(rows, parameters=(h, w, None, r), counted=None, samples=samples)
        assert_true(rows, f"softcap={softcap} {remove_hits=} {sigmoid=} {everything=}", slack=64)


def test_softmax_at_any_distance_from_the_target(backend: str) -> None:
    # The target's logit is exp's reference point: far below the samples it overflows, far above
    # nothing is left of them.
    base = make_rows(6, 16, 50, 30)
    for distance in (-300.0, -45.0, -20.0, 30.0, 300.0):
        h, w, b, r = base.parameters
        assert_true(replace(base, parameters=(h, w, b, r + distance)), f"{distance=}")


@pytest.mark.parametrize("shape", [(0, 4, 9, 5), (3, 4, 9, 0)], ids=["no row", "no sample"])
def test_nothing(backend: str, shape: tuple[int, ...]) -> None:
    for sparse_grad in (False, True):
        rows = make_rows(*shape, torch.float32, sparse_grad=sparse_grad)
        assert_true(rows)


def test_rows_all_of_whose_samples_are_hits_or_masked(backend: str) -> None:
    base = make_rows(4, 8, 20, 6)
    ids, count = base.samples.ids.clone(), base.samples.log_expected_count.clone()
    ids[0], count[1], ids[2, :3], count[2, 3:] = 3, torch.inf, 5, torch.inf
    hits = torch.tensor([[3, -1], [-1, -1], [5, 5], [-1, 2]])
    rows = replace(base, hits=hits, counted=None, samples=ssc.Samples(ids, count, None))
    loss, _, grad_input, *_ = rows.run()
    assert loss[:3].tolist() == [0.0, 0.0, 0.0]
    assert not grad_input[:3].any()
    assert_true(rows)
    assert_true(replace(rows, sigmoid=True))


def test_numbers_that_are_none_stay_where_they_are(backend: str) -> None:
    base = make_rows(6, 8, 40, 10)
    h, w, b, r = (t.clone() for t in base.parameters if t is not None)
    ids, count = base.samples.ids.clone(), torch.zeros(6, 10)
    ids[:] = torch.arange(60).view(6, 10) % 30  # classes 30.. belong to nobody
    counted = torch.ones(6, dtype=torch.bool)
    h[1, 2], r[2] = torch.nan, torch.nan
    counted[3] = False
    h[3], r[3], ids[3, 0], w[31] = torch.nan, torch.inf, 31, torch.nan
    ids[4, 5], count[4, 5] = 30, torch.inf  # masked
    ids[5, 1], w[32] = 32, torch.inf  # a hit
    w[30] = torch.nan
    hits = torch.full((6, 1), -1)
    hits[5] = 32
    rows = replace(
        base,
        parameters=(h, w, b, r),
        hits=hits,
        counted=counted,
        samples=ssc.Samples(ids, count, None),
    )
    loss, _, grad_input, grad_weight, grad_bias, grad_r = rows.run()
    bad = torch.tensor([False, True, True, False, False, False])
    for name, got in (("loss", loss), ("target_logit", grad_r)):
        assert torch.equal(got.isnan(), bad), name
    assert torch.equal(grad_input.isnan().any(dim=1), bad)
    touched = torch.zeros(40, dtype=torch.bool)
    touched[ids[1]] = touched[ids[2]] = True
    assert torch.equal(grad_weight.isnan().any(dim=1), touched)
    assert torch.equal(grad_bias.isnan(), touched)
    assert loss[3] == 0
    assert not grad_input[3].any()


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_key_stands_for_its_samples(backend: str, kind: str, replacement: bool) -> None:
    base = make_rows(11, 20, 300, 45)
    sampler = make_sampler(kind, 300)
    target = torch.arange(11)
    lists = torch.randint(-1, 300, (11, 5))
    for exclude, corrected, sparse_grad in (
        (None, True, False),
        (lists, True, True),
        (lists, False, False),
    ):
        keyed = sampler.sample_keyed(target, 45, replacement=replacement, exclude=exclude)
        options = {"corrected": corrected, "sparse_grad": sparse_grad}
        ours = replace(base, samples=keyed, **options).run()
        given = replace(base, samples=keyed.materialize(), **options).run()
        for name, a, b in zip(base.names, ours, given, strict=True):
            assert torch.equal(a.to_dense(), b.to_dense()), name
        if corrected:
            assert_true(replace(base, samples=keyed.materialize()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_stands_for_the_samples_of_races(backend: str, kind: str) -> None:
    base = make_rows(7, 12, 50, 48)
    sampler = make_sampler(kind, 50)
    target = torch.arange(7)
    for exclude, samples in ((None, 50), (torch.arange(14).reshape(7, 2), 48)):
        keyed = sampler.sample_keyed(target, samples, replacement=False, exclude=exclude)
        assert keyed._method == Method.RACE
        ours = replace(base, samples=keyed, sparse_grad=True).run()
        given = replace(base, samples=keyed.materialize(), sparse_grad=True).run()
        for name, a, b in zip(base.names, ours, given, strict=True):
            assert torch.equal(a.to_dense(), b.to_dense()), name


def test_counts_that_correct_nothing_still_mask(backend: str) -> None:
    base = make_rows(7, 8, 40, 12)
    ids, count, _ = parts(base.samples)
    zero = torch.where(count == torch.inf, count, 0)
    ours = replace(base, corrected=False).run()
    for name, a, b in zip(
        base.names, ours, replace(base, samples=ssc.Samples(ids, zero, None)).run(), strict=True
    ):
        assert torch.equal(a, b), name


# Few classes have a bit each, many are sorted.
@pytest.mark.parametrize("num_classes", [60, 40_000])
def test_sparse_gradients_are_the_dense_ones(backend: str, num_classes: int) -> None:
    base = make_rows(13, 8, num_classes, 20, remove_hits=False)
    dense = base.run()
    sparse = replace(base, sparse_grad=True).run()
    for name, a, b in zip(base.names, dense, sparse, strict=True):
        assert torch.equal(a, b.to_dense()), name
    if backend in ("simt", "ptx", "cuda"):  # which rows are touched is not known there
        ids = base.samples.ids
        assert sparse[3]._indices().shape[1] == min(num_classes, ids.numel())
        return
    ids, count, _ = parts(base.samples)
    used = ids[(count != torch.inf) & base.counted[:, None]].unique()
    assert torch.equal(sparse[3].coalesce().indices()[0], used)
    assert sparse[3].is_coalesced()


def test_16_bit_weights_under_32_bit_input(backend: str) -> None:
    base = make_rows(9, 24, 80, 30)
    h, w, b, r = base.parameters
    for weight_dtype in (torch.bfloat16, torch.float16):
        rows = replace(base, parameters=(h, w.to(weight_dtype), b, r))
        assert_true(rows, str(weight_dtype))
        assert_true(replace(rows, sparse_grad=True), str(weight_dtype))


def test_ids_past_2_to_the_31(native: None) -> None:
    num_classes = 2**33
    w = torch.full((1, 3), 0.5, dtype=torch.bfloat16).expand(num_classes, 3)
    ids = torch.tensor([[5, 2**31 + 5], [2**32 + 5, num_classes - 1]])
    h = torch.ones(2, 3, dtype=torch.bfloat16)
    weight = w.requires_grad_()
    r = torch.zeros(2)
    hits = torch.full((2, 0), -1)
    args = (hits, None, ssc.Samples(ids), 1.0, 0.0, True, False, True)
    loss, _ = negatives_loss(h, weight, None, r, *args)
    torch.testing.assert_close(loss, torch.log1p(2 * torch.tensor([1.5, 1.5]).exp()))
    loss.sum().backward()
    grad = weight.grad
    assert torch.equal(grad._indices()[0], ids.flatten())


def test_the_number_of_threads_changes_nothing(native: None) -> None:
    base = make_rows(300, 40, 500, 200, sparse_grad=False)
    keyed = ssc.LogUniformSampler(500).sample_keyed(torch.zeros(300, dtype=torch.int64), 900)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([*base.run(), *replace(base, samples=keyed).run()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_errors(native: None) -> None:
    base = make_rows(3, 4, 9, 5)
    ids = base.samples.ids.clone()
    ids[2, 1] = 9
    bad = replace(base, counted=None, samples=ssc.Samples(ids))
    with pytest.raises(RuntimeError, match=r"ids\[2, 1\] is out of range: expected \[0, C=9\)"):
        bad.run()
    keyed = ssc.UniformSampler(10).sample_keyed(torch.tensor([1, 2, 3]), 5)
    with pytest.raises(RuntimeError, match="the proposal has 10 classes, weight only 9"):
        replace(base, samples=keyed).run()


def test_an_update_before_the_backward_pass_is_an_error(native: None) -> None:
    base = make_rows(3, 4, 9, 5).fresh()
    sampler = ssc.WeightedSampler(torch.ones(9))
    keyed = sampler.sample_keyed(torch.tensor([1, 2, 3]), 5)
    options = (1.0, 0.0, True, False, False)
    loss, _ = negatives_loss(*base.parameters, base.hits, None, keyed, *options)
    sampler.update(torch.arange(9.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_double_backward_is_refused(native: None) -> None:
    base = make_rows(3, 4, 9, 5).fresh()
    options = (1.0, 0.0, True, False, False)
    loss, _ = negatives_loss(*base.parameters, base.hits, None, base.samples, *options)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss.sum(), base.leaves[0], create_graph=True)


@pytest.mark.parametrize("keyed", [False, True])
def test_compiled(native: None, keyed: bool) -> None:
    base = make_rows(6, 8, 30, 10)
    samples = base.samples
    if keyed:
        samples = ssc.LogUniformSampler(30).sample_keyed(torch.arange(6), 10, replacement=False)

    def loss_of(h: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        options = (1.0, 0.0, True, False, False)
        return (negatives_loss(h, w, b, r, base.hits, base.counted, samples, *options)[0]).sum()

    results = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        p = base.fresh()
        function(*p.leaves).backward()
        results.append([leaf.grad for leaf in p.leaves])
    for name, a, b in zip(NAMES, *results, strict=True):
        torch.testing.assert_close(b, a, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("sparse_grad", [False, True])
def test_opcheck(compiled: str, sparse_grad: bool) -> None:
    ops = torch.ops.sampled_softmax
    base = make_rows(4, 5, 12, 6).fresh()
    ids, count, _ = parts(base.samples)
    keyed = make_sampler("weighted", 12).sample_keyed(torch.arange(4), 6, replacement=False)
    scalars = (0.5, 3.0, False, sparse_grad)
    for samples in (ssc.Samples(ids[0], count[0]), ssc.Samples(ids, count), keyed):
        source = source_of(samples, True)
        arguments = (*base.parameters, base.hits, base.counted, *source, *scalars)
        if not sparse_grad:
            torch.library.opcheck(ops.negatives_rows.default, arguments)
        fixed = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        torch.library.opcheck(ops.negatives_grads.default, (*fixed, torch.rand(4), sparse_grad))
