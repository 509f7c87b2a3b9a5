"""Draws of which every rank makes its own part: against one process, memory, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

import sampled_softmax_cuda as ssc
from helpers.largest import Largest
from helpers.rank_threads import dense, run_ranks
from helpers.sharded_draws import D, batches, drawn_before, weights
from sampled_softmax_cuda.distributed import (
    ClassShard,
    ShardedSampledSoftmaxLoss,
    ShardedStreamingSampler,
    ShardedWeightedSampler,
)
from sampled_softmax_cuda.distributed.drawn import all_of
from sampled_softmax_cuda.samplers.base import DrawOptions

S, PADDING = 24, 3


# --- samplers, and the log n that one process would give ------------------------------------------

SAMPLERS: dict[str, Callable[[int], ssc.Sampler]] = {
    "weighted": lambda c: ssc.WeightedSampler(weights(c)),
    "padded": lambda c: ssc.LogUniformSampler(c, padding_idx=PADDING),
    "log_uniform": lambda c: ssc.LogUniformSampler(c),
    "streaming": lambda c: ssc.StreamingSampler(c, update_on_sample=True, staleness=0.0),
    "in batch": lambda c: ssc.InBatchSampler(ssc.WeightedSampler(weights(c))),
    "learnt in batch": lambda c: ssc.InBatchSampler(ssc.StreamingSampler(c, update_on_sample=True)),
    "own counts": lambda c: ssc.InBatchSampler(num_classes=c),
    "queue": lambda c: ssc.QueueSampler(7, ssc.WeightedSampler(weights(c))),
    "interval": lambda c: ssc.InBatchSampler(
        ssc.StreamingSampler(c, mode="interval", update_on_sample=True)
    ),
    "mixed": lambda c: ssc.MixedSampler(
        [
            ssc.InBatchSampler(ssc.WeightedSampler(weights(c))),
            ssc.UniformSampler(c),
            ssc.UniformSampler(c),
            ssc.WeightedSampler(weights(c)),
        ],
        [1, 2, 1, 3],
    ),
}


def equals_one_process(
    rank: int, size: int, classes: int, name: str, algorithm: str, sparse: bool
) -> float:
    """The largest difference from one process with the same samples, and with the counts that the
    whole sampler gives for them."""
    head = ShardedSampledSoftmaxLoss(
        D,
        classes,
        S,
        SAMPLERS[name](classes),
        draw="composed",
        algorithm=algorithm,
        sparse_grad=sparse,
        seed=7,
        dtype=torch.float64,
    )
    whole = SAMPLERS[name](classes)
    full = head.full_state_dict(on_all_ranks=True)
    worst = 0.0
    for step in range(3):
        h, target = batches(classes, size, rank, step)
        drawn = all_of(drawn_before(head, h, target), head.shard)
        everyone, all_targets = batches(classes, size, None, step)
        ids = head.shard.class_of(drawn.rows)
        pools = isinstance(whole, (ssc.InBatchSampler, ssc.QueueSampler, ssc.MixedSampler))
        if pools:
            log_n, of_target = counts_of_pool(whole, ids, all_targets, drawn.log_count)
        else:
            if isinstance(whole, ssc.StreamingSampler):
                whole.rebuild()
            log_n = whole.log_expected_count(ids, S)
            safe = all_targets.clamp(min=0)
            of_target = whole.log_expected_count(safe, S).masked_fill(all_targets < 0, 0.0)
        of_target = torch.where(of_target == -torch.inf, 0.0, of_target)
        for module in whole.modules():  # as the head does, after the draw
            if isinstance(module, (ssc.StreamingSampler, ssc.QueueSampler)):
                module.update(all_targets)
        one = [x.requires_grad_() for x in (everyone, full["weight"], full["bias"])]
        for x in one:
            x.grad = None
        expected = ssc.sampled_softmax_loss(
            one[0], one[1], all_targets, ssc.Samples(ids, log_n, of_target), bias=one[2]
        )
        expected.backward()
        h = h.requires_grad_()
        head.zero_grad()
        loss = head(h, target)
        loss.backward()
        value = loss.detach().clone()
        distributed.all_reduce(value)
        begin = sum((3, 0, 5, 1)[r % 4] for r in range(rank))
        mine = head.shard.classes
        assert one[0].grad is not None and h.grad is not None
        differences = [
            value / size - expected.detach(),
            h.grad / size - one[0].grad[begin : begin + h.shape[0]],
            dense(head.weight.grad, head.weight) - dense(one[1].grad, one[1])[mine],
            dense(head.bias.grad, head.bias) - dense(one[2].grad, one[2])[mine],  # type: ignore[arg-type]
        ]
        worst = max([worst, *(float(d.abs().max()) for d in differences if d.numel())])
    return worst


def counts_of_pool(
    whole: Any, ids: Tensor, target: Tensor, log_count: Tensor | None
) -> tuple[Tensor, Tensor]:
    """log n of samples and targets by the whole sampler's own draw, whose counts depend on the
    batch alone; masked samples stay so."""
    whole.eval()  # it doesn't learn
    draw = whole._begin_draw(target, DrawOptions(S, True, "expected"), torch.Generator())
    assert log_count is not None and draw.masked is not None
    assert int((log_count == torch.inf).sum()) == int(draw.masked.sum())
    log_n = draw.log_count(ids).float().masked_fill(log_count == torch.inf, torch.inf)
    of_target = draw.log_count(target.clamp(min=0)).float().masked_fill(target < 0, 0.0)
    return torch.where(log_n == -torch.inf, 0.0, log_n), of_target


@pytest.mark.parametrize("algorithm", ["fetch", "gather"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_composed_draws_equal_one_process_with_the_same_samples(name: str, algorithm: str) -> None:
    for size, classes, sparse in ((1, 23, True), (2, 23, False), (3, 101, True)):
        found = run_ranks(size, equals_one_process, classes, name, algorithm, sparse)
        assert max(found) < 1e-6, (size, classes, found)  # log counts are float32


@pytest.mark.parametrize("name", ["weighted", "mixed", "streaming"])
def test_composed_draws_of_more_ranks_than_classes(name: str) -> None:
    found = run_ranks(8, equals_one_process, 5, name, "auto", True)
    assert max(found) < 1e-6, found


def composed_and_global(rank: int, size: int, sampler: str, replacement: bool) -> list[Tensor]:
    """The losses of a formula, drawn in both ways with one seed."""
    found = []
    for draw in ("composed", "global"):
        head = ShardedSampledSoftmaxLoss(
            D, 23, 12, sampler, draw=draw, replacement=replacement, seed=4, dtype=torch.float64
        )
        found.append(torch.stack([head(*batches(23, size, rank, step)) for step in range(3)]))
    return found


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("sampler", ["uniform", "log_uniform"])
def test_composed_draws_of_a_formula_are_the_global_ones(sampler: str, replacement: bool) -> None:
    for size in (1, 3):
        for composed, whole in run_ranks(size, composed_and_global, sampler, replacement):
            assert torch.allclose(composed, whole, rtol=1e-12)


def every_class(rank: int, size: int, classes: int, algorithm: str) -> float:
    """The difference of the loss by all classes, drawn in strata, from the exact one."""
    head = ShardedSampledSoftmaxLoss(
        D,
        classes,
        classes,
        1.0 / torch.arange(1, classes + 1),
        draw="stratified",
        replacement=False,
        algorithm=algorithm,
        seed=1,
        dtype=torch.float64,
    )
    h, target = batches(classes, size, rank)
    return float((head(h, target) - head.eval()(h, target)).detach().abs())


@pytest.mark.parametrize("algorithm", ["fetch", "gather"])
def test_strata_of_all_classes_give_the_exact_loss(algorithm: str) -> None:
    for size, classes in ((1, 5), (3, 23), (8, 5)):
        assert max(run_ranks(size, every_class, classes, algorithm)) < 1e-12


# --- replicas -------------------------------------------------------------------------------------


def equals_one_process_with_replicas(rank: int, size: int, draw: str, algorithm: str) -> float:
    """The largest difference of loss and gradients of a mesh of 2 x 2 from one process."""
    mesh = distributed.device_mesh.init_device_mesh(
        "cpu", (2, 2), mesh_dim_names=("replica", "class")
    )
    head = ShardedSampledSoftmaxLoss(
        D,
        23,
        S,
        weights(23),
        draw=draw,
        mesh=mesh["class"],
        replica_mesh=mesh["replica"],
        algorithm=algorithm,
        sparse_grad=True,
        seed=1,
        dtype=torch.float64,
    )
    h, target = batches(23, size, rank)
    drawn = drawn_before(head, h, target)
    assert drawn.log_count_of is not None
    own_n = drawn.log_count_of(torch.arange(head.shard.num_rows))
    sizes = [12, 11]
    log_n = head.layout.ranks.gather_rows(own_n, sizes, "counts")
    samples = all_of(drawn, head.shard)
    everyone, all_targets = batches(23, size)
    of_target = log_n[head.shard.row_of(all_targets.clamp(min=0))].masked_fill(all_targets < 0, 0)
    full = head.full_state_dict(on_all_ranks=True)
    weight = full["weight"].requires_grad_()
    ids = head.shard.class_of(samples.rows)
    expected = ssc.sampled_softmax_loss(
        everyone,
        weight,
        all_targets,
        ssc.Samples(ids, samples.log_count, of_target),
        bias=full["bias"],
    )
    expected.backward()
    loss = head(h, target)
    loss.backward()
    value = loss.detach().clone()
    distributed.all_reduce(value)
    assert weight.grad is not None
    gradient = dense(head.weight.grad, head.weight) - weight.grad[head.shard.classes]
    return max(float((value / size - expected.detach()).abs()), float(gradient.abs().max()))


@pytest.mark.parametrize("algorithm", ["fetch", "gather"])
@pytest.mark.parametrize("draw", ["composed", "stratified"])
def test_replicas_equal_one_process(draw: str, algorithm: str) -> None:
    found = run_ranks(4, equals_one_process_with_replicas, draw, algorithm)
    assert max(found) < 1e-11, found


def rows_of_replicas(rank: int, size: int, draw: str) -> Tensor:
    """The rows that a rank of a mesh of 2 x 2 draws, counted from its first."""
    mesh = distributed.device_mesh.init_device_mesh(
        "cpu", (2, 2), mesh_dim_names=("replica", "class")
    )
    head = ShardedSampledSoftmaxLoss(
        D,
        2000,
        64,
        torch.ones(2000),
        draw=draw,
        mesh=mesh["class"],
        replica_mesh=mesh["replica"],
        seed=1,
    )
    drawn = drawn_before(head, torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    return drawn.rows - head.shard.begin


@pytest.mark.parametrize("draw", ["composed", "stratified"])
def test_replicas_draw_alike_and_owners_of_other_classes_do_not(draw: str) -> None:
    rows = run_ranks(4, rows_of_replicas, draw)
    assert torch.equal(rows[0], rows[2]) and torch.equal(rows[1], rows[3])
    assert len(rows[0]) + len(rows[1]) == 64
    assert float((rows[0][:20] == rows[1][:20]).float().mean()) < 0.2


# --- memory, state, errors ------------------------------------------------------------------------


def numbers_at_once(rank: int, size: int, classes: int, kind: str, draw: str) -> int:
    """The largest tensor, in numbers of 8 bytes, while a head is built and trained."""
    with Largest() as seen:
        shard = ClassShard(classes)
        sampler: ssc.Sampler
        if kind == "weighted":
            sampler = ShardedWeightedSampler(1.0 / (shard.classes + 1), shard)
        else:
            sampler = ShardedStreamingSampler(shard, update_on_sample=True)
        if kind == "in batch":
            sampler = ssc.InBatchSampler(sampler)
        if kind == "log_uniform":
            sampler = ssc.LogUniformSampler(classes)
        head = ShardedSampledSoftmaxLoss(
            2, classes, 64, sampler, draw=draw, replacement=draw == "composed", sparse_grad=True
        )
        for _ in range(2):
            head(torch.randn(4, 2), torch.randint(classes, (4,))).backward()
    return seen.largest


@pytest.mark.parametrize("draw", ["composed", "stratified"])
@pytest.mark.parametrize("kind", ["weighted", "streaming", "in batch", "log_uniform"])
def test_no_rank_holds_a_tensor_of_all_classes(kind: str, draw: str) -> None:
    classes = 400_000
    found = run_ranks(4, numbers_at_once, classes, kind, draw)
    assert max(found) < 0.7 * classes, found  # 2^18 numbers, a chunk of the initial values


def refused(rank: int, size: int) -> None:
    shard = ClassShard(20)
    own = weights(20)[shard.classes]
    sampler = ShardedWeightedSampler(own, shard)
    for options, match in (
        (
            {"draw": "global"},
            "draw='global' needs a sampler of all classes on every rank, got a Sha",
        ),
        (
            {"draw": "global", "sampler": ssc.InBatchSampler(sampler)},
            "draw='global' needs a sampler of all classes",
        ),
        ({"draw": "some"}, "draw must be one of"),
        ({"draw": "composed", "replacement": False}, "use draw='stratified'"),
        ({"class_order": "contiguous"}, "its rows must be those of the head"),
    ):
        with pytest.raises(ValueError, match=match):
            ShardedSampledSoftmaxLoss(D, 20, 4, **{"sampler": sampler, **options})
    unknown = ssc.StreamingSampler(20, mode="interval")
    with pytest.raises(ValueError, match="got a StreamingSampler that only knows frequencies"):
        ShardedSampledSoftmaxLoss(D, 20, 4, unknown, draw="composed")
    head = ShardedSampledSoftmaxLoss(D, 20, 1, sampler, draw="stratified")
    with pytest.raises(ValueError, match="must be at least 2"):
        head(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="not possible by one rank alone"):
        sampler.sample(torch.tensor([0]), 4)
    with pytest.raises(IndexError, match="classes of this rank"):
        sampler.log_prob(torch.arange(20))
    with pytest.raises(ValueError, match="those of this rank's classes"):
        ShardedWeightedSampler(torch.ones(20), shard)
    with pytest.raises(ValueError, match="finite and not negative"):
        ShardedWeightedSampler(-own, shard)
    nothing = ShardedSampledSoftmaxLoss(D, 20, 4, ShardedWeightedSampler(0 * own, shard))
    with pytest.raises(ValueError, match="positive and finite sum"):
        nothing(torch.zeros(1, D), torch.tensor([1]))
    head = ShardedSampledSoftmaxLoss(D, 20, 4, sampler)
    head(torch.zeros(1, D), torch.tensor([1]))
    mixed = ShardedSampledSoftmaxLoss(D, 20, 4, ssc.MixedSampler([ssc.UniformSampler(20), sampler]))
    mixed(torch.zeros(1, D), torch.tensor([1]))
    if rank == 0:
        sampler.update(own + 1)
    with pytest.raises(ValueError, match="number of updates of the sampler must be the same"):
        mixed(torch.zeros(1, D), torch.tensor([1]))
    with pytest.raises(ValueError, match="number of updates of the sampler must be the same"):
        head(torch.zeros(1, D), torch.tensor([1]))


def mixed_of_both(rank: int, size: int) -> str:
    shard = ClassShard(20)
    sampler = ShardedWeightedSampler(weights(20)[shard.classes], shard)
    mixed = ssc.MixedSampler([ssc.LogUniformSampler(20), sampler, ssc.InBatchSampler(sampler)])
    head = ShardedSampledSoftmaxLoss(D, 20, 9, mixed)
    head(torch.zeros(1, D), torch.tensor([1])).backward()
    return head.draw


def test_a_mixture_may_have_sharded_parts() -> None:
    assert run_ranks(2, mixed_of_both) == ["composed"] * 2


class Halved(ssc.WeightedSampler):
    """Somebody's own sampler, which draws in its own way."""

    def _begin_draw(self, *arguments: Any) -> Any:
        draw = super()._begin_draw(*arguments)
        return draw._replace(ids=draw.ids // 2, log_count=lambda ids: torch.zeros(ids.shape))


def halved(rank: int, size: int) -> None:
    head = ShardedSampledSoftmaxLoss(D, 20, S, Halved(torch.ones(20)), draw="composed", seed=1)
    drawn = drawn_before(head, torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    assert int(head.shard.class_of(drawn.rows).max()) < 10
    assert drawn.log_count is not None and not bool(drawn.log_count.any())


def test_a_sampler_of_somebody_elses_stays_whole() -> None:
    run_ranks(2, halved)


def test_refused() -> None:
    run_ranks(2, refused)
