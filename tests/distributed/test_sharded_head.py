"""The head whose classes lie on several ranks: its steps, its errors, and its state."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import distributed, multiprocessing, nn

import sampled_softmax_cuda as ssc
from helpers.rank_threads import dense, run_ranks
from sampled_softmax_cuda._philox import philox_bits
from sampled_softmax_cuda.distributed import ClassShard, ShardedSampledSoftmaxLoss
from sampled_softmax_cuda.distributed.gradients import shard_parameters
from sampled_softmax_cuda.distributed.keys import generator_of_step

C, D, S, B = 37, 6, 12, 4


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(100 * step + rank)
    rows = B + rank
    return torch.randn(rows, D, generator=g), torch.randint(C, (rows,), generator=g)


def trained(rank: int, size: int, steps: int, sampler: str, algorithm: str) -> list[torch.Tensor]:
    """The losses and the full weight after some steps; every rank trains on all batches of three,
    those of ranks that are missing in its own."""
    made: Any = SAMPLERS[sampler]()  # of its own: threads share no counts
    head = ShardedSampledSoftmaxLoss(D, C, S, made, seed=5, sparse_grad=True, algorithm=algorithm)
    optimizer = ssc.optim.Adagrad(head.parameters(), lr=0.5)
    losses = []
    for step in range(steps):
        mine = [batch(r, step) for r in range(rank, 3, size)]
        h = torch.cat([torch.empty(0, D), *(x for x, _ in mine)])
        target = torch.cat([torch.empty(0, dtype=torch.int64), *(t for _, t in mine)])
        loss = head(h, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        distributed.all_reduce(total)
        losses.append(total / size)
    return [torch.stack(losses), head.full_state_dict(on_all_ranks=True)["weight"]]


SAMPLERS = {
    "log_uniform": lambda: "log_uniform",
    "weighted": lambda: ssc.WeightedSampler(torch.arange(1.0, C + 1)),
    "in batch": lambda: ssc.InBatchSampler(ssc.LogUniformSampler(C)),
    "streaming": lambda: ssc.StreamingSampler(C, update_on_sample=True),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("algorithm", ["fetch", "gather", "auto"])
def test_training_does_not_depend_on_the_number_of_ranks(sampler: str, algorithm: str) -> None:
    expected = None
    for size in (1, 2, 3, 5):
        for losses, weight in run_ranks(size, trained, 4, sampler, algorithm):
            if expected is None:
                expected = losses, weight
            if size == 2 and sampler in ("in batch", "streaming"):
                continue  # ranks take batches 0 and 2, and 1: other targets come first
            assert torch.allclose(losses, expected[0], rtol=1e-5)
            assert torch.allclose(weight, expected[1], atol=1e-5)


def replayed(rank: int, size: int, skipped: str, algorithm: str) -> torch.Tensor:
    """The full weight after steps of AdamW on few of the classes."""
    head = ShardedSampledSoftmaxLoss(
        D, C, 4, seed=5, sparse_grad=skipped != "dense", algorithm=algorithm, dtype=torch.float64
    )
    kept = "freeze" if skipped == "dense" else skipped
    optimizer = ssc.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.1, skipped=kept)
    for step in range(8):
        h, target = batch(rank, step)
        head(h[:2].double(), target[:2]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=skipped != "dense")
    optimizer.settle()
    return head.full_state_dict(on_all_ranks=True)["weight"]


@pytest.mark.parametrize("algorithm", ["fetch", "gather"])
def test_rows_that_lag_behind_are_settled_before_they_are_read(algorithm: str) -> None:
    for found, dense_steps, frozen in zip(
        *(run_ranks(3, replayed, how, algorithm) for how in ("replay", "dense", "freeze")),
        strict=True,
    ):
        assert torch.allclose(found, dense_steps, atol=1e-9)
        assert not torch.allclose(frozen, dense_steps, atol=1e-3)


def exact_case(rank: int, size: int) -> None:
    """Loss in eval mode, log_prob and topk against all logits."""
    head = ShardedSampledSoftmaxLoss(D, C, S, seed=3, padding_idx=4).eval()
    full = head.full_state_dict(on_all_ranks=True)
    h, target = batch(rank, 0)
    target[0] = 4
    z = (h @ full["weight"].T + full["bias"]).index_fill(1, torch.tensor([4]), -torch.inf)
    counted = target != 4
    rows = nn.functional.cross_entropy(z[counted], target[counted], reduction="sum")
    total = torch.stack([rows, counted.sum().float()])
    distributed.all_reduce(total)
    value = head(h, target).detach().clone()
    distributed.all_reduce(value)
    assert torch.allclose(value / size, total[0] / total[1], atol=1e-5)
    ids = torch.stack((target, target.roll(1), target), dim=1)
    expected = z.log_softmax(1).gather(1, ids)
    assert torch.allclose(head.log_prob(h, ids), expected, atol=1e-5)
    best = head.topk(h, 5)
    assert torch.allclose(best.values, z.topk(5, 1).values, atol=1e-5)
    assert torch.equal(best.indices, z.topk(5, 1).indices)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_exact_functions(size: int) -> None:
    run_ranks(size, exact_case)


def faulty(rank: int, size: int, fault: str) -> str:
    """The error of a rank where the last one is at fault."""
    last = rank == size - 1
    head = ShardedSampledSoftmaxLoss(D, C, S, seed=1)
    h, target = batch(rank, 0)
    try:
        if fault == "constructor":
            ShardedSampledSoftmaxLoss(D, C, 0 if last else S)
        if fault == "target":
            head(h, torch.full_like(target, C + 5) if last else target)
        if fault == "dtype":
            head(h.double() if last else h, target)
        if fault == "shape":
            head(h[:, :-1] if last else h, target)
        if fault == "option":
            head.temperature = 2.0 if last else 1.0
            head(h, target)
        if fault == "backward":
            loss = head(h, target)
            if not last:
                loss.backward()
            head(h, target)
        if fault == "gradient":
            head(h.requires_grad_(not last), target)
        if fault == "weight":
            head.weight.requires_grad_(not last)
            head(h, target)
        if fault == "forward, eval":
            head.train(not last)(h, target)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


FAULTS = {
    "constructor": r"ValueError: .*num_samples must be .*on rank 2 of 3",
    "target": r"IndexError: .*target must be in \[0, C=37\).*got 42 \(on rank 2 of 3\)",
    "dtype": r"TypeError: .*float64 does not mix.*on rank 2 of 3",
    "shape": r"ValueError: .*weight must be \[C, D=5\].*on rank 2 of 3",
    "option": r"ValueError: .*temperature must be the same on all ranks, got 1.0 on .* and 2.0",
    "backward": r"RuntimeError: .*ranks are at different places.*backward.*forward",
    "gradient": r"ValueError: .*input.requires_grad must be the same .*, got True .* and False on",
    "weight": r"ValueError: .*weight.requires_grad must be the same .*, got True .* and False on",
    "forward, eval": r"ValueError: .*must be the same on all ranks",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_rank_is_the_same_error_on_all(fault: str) -> None:
    found = run_ranks(3, faulty, fault)
    assert len(set(found)) == 1 and re.match(FAULTS[fault], found[0], re.DOTALL), found


def replicas_case(rank: int, size: int) -> float:
    """A mesh of 2 x 2: the gradient of a shard against one process."""
    mesh = distributed.device_mesh.init_device_mesh(
        "cpu", (2, 2), mesh_dim_names=("replica", "class")
    )
    head = ShardedSampledSoftmaxLoss(
        D, C, S, mesh=mesh["class"], replica_mesh=mesh["replica"], seed=2, sparse_grad=True
    )
    alone = ShardedSampledSoftmaxLoss(D, C, S, mesh=distributed.new_group([rank]), seed=2)
    head(*batch(rank, 0)).backward()
    rows = [batch(r, 0) for r in range(size)]
    alone(torch.cat([x for x, _ in rows]), torch.cat([t for _, t in rows])).backward()
    expected = dense(alone.weight.grad, alone.weight)[head.shard.begin : head.shard.end]
    return float((dense(head.weight.grad, head.weight) - expected).abs().max())


def meshes_that_do_not_fit(rank: int, size: int) -> list[str]:
    """The errors of pairs of meshes that aren't two dimensions of one, and of a foreign group."""
    mesh = distributed.device_mesh.init_device_mesh(
        "cpu", (2, 2), mesh_dim_names=("replica", "class")
    )
    first, second = ([distributed.new_group(x) for x in pair] for pair in _CROSSED)
    foreign = distributed.new_group([0, 1])
    pairs: list[dict[str, Any]] = [
        {"mesh": mesh["class"], "replica_mesh": mesh["class"]},
        {"replica_mesh": mesh["replica"]},
        {"mesh": first[rank // 2], "replica_mesh": second[rank in (1, 2)]},
    ]
    found = []
    for options in pairs:
        try:
            ShardedSampledSoftmaxLoss(D, C, S, **options)
        except ValueError as error:
            found.append(str(error))
    try:
        if rank >= 2:
            ShardedSampledSoftmaxLoss(D, C, S, mesh=foreign)
    except ValueError as error:
        found.append(str(error))
    return found


_CROSSED = [([0, 1], [2, 3]), ([0, 3], [1, 2])]


def test_meshes_that_do_not_fit() -> None:
    for rank, found in enumerate(run_ranks(4, meshes_that_do_not_fit)):
        assert len(found) == (3 if rank < 2 else 4), found
        assert all("replica_mesh must own the same classes" in text for text in found[:3])
        assert all("mesh is a group without this process" in text for text in found[3:])


def row_shapes(rank: int, size: int) -> None:
    """Losses of each row of inputs of any dimensions, which ranks need not have in common."""
    head = ShardedSampledSoftmaxLoss(D, C, S, seed=1, reduction="none")
    h, target = torch.randn(4, D), torch.randint(C, (4,))
    for training in (True, False):
        head.train(training)
        generator = torch.Generator().manual_seed(1)
        rows = head(h, target, **({"generator": generator} if training else {}))
        generator = torch.Generator().manual_seed(1)
        options = {"generator": generator} if training else {}
        if rank == 0:
            shaped = head(h.view(2, 2, D), target.view(2, 2), **options)
        else:
            shaped = head(h, target, **options)
        assert torch.equal(shaped.flatten(), rows)
        assert shaped.shape == ((2, 2) if rank == 0 else (4,))
        single = head(h[0], target[0])
        assert single.shape == ()
        assert training or torch.allclose(single, rows[0])
    with pytest.raises(ValueError, match="number of targets of a row must be the same"):
        head.train()(*((h.view(2, 2, D), target.view(2, 2)) if rank == 0 else _many(h, target)))


def _many(h: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return h, torch.stack((target, (target + 1) % C), dim=1)


def test_rows_of_any_shape() -> None:
    run_ranks(3, row_shapes)


def test_replicas_of_the_classes() -> None:
    assert max(run_ranks(4, replicas_case)) < 1e-6


def saved(rank: int, size: int, folder: str) -> None:
    head = ShardedSampledSoftmaxLoss(D, C, S, seed=7)
    head(*batch(rank, 0))
    dcp.save(head.state_dict(), checkpoint_id=folder)


def _process(rank: int, size: int, folder: str, load: bool) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store{size}{load}", rank=rank, world_size=size
    )
    if load:
        head = ShardedSampledSoftmaxLoss(D, C, S, seed=8)
        state = head.state_dict()
        dcp.load(state, checkpoint_id=f"{folder}/saved")
        head.load_state_dict(state)
        full = head.full_state_dict(on_all_ranks=True)
        torch.save({**full, "draws": (head._seed, head._step)}, f"{folder}/{size}-{rank}.pt")
    else:
        saved(rank, size, f"{folder}/saved")
    distributed.destroy_process_group()


def test_checkpoints_fit_any_number_of_ranks(tmp_path: Path) -> None:
    folder = str(tmp_path)
    multiprocessing.spawn(_process, (2, folder, False), nprocs=2)
    expected = ShardedSampledSoftmaxLoss(D, C, S, seed=7)
    for size in (1, 3):
        multiprocessing.spawn(_process, (size, folder, True), nprocs=size)
        for rank in range(size):
            found = torch.load(f"{folder}/{size}-{rank}.pt")
            assert torch.equal(found["weight"], expected.full_state_dict()["weight"])
            assert torch.equal(found["bias"], expected.full_state_dict()["bias"])
            assert found["draws"] == (7, 1)


def loads_plain(rank: int, size: int, linear: nn.Linear) -> None:
    head = ShardedSampledSoftmaxLoss(D, C, S)
    head.load_full_state_dict(linear.state_dict())
    again = head.full_state_dict(on_all_ranks=True)
    assert torch.equal(again["weight"], linear.weight) and torch.equal(again["bias"], linear.bias)
    with pytest.raises(RuntimeError, match="must have C=37 rows"):
        head.load_state_dict({"weight": torch.zeros(5, D), "bias": torch.zeros(5)})


def test_plain_state_dicts_of_all_classes() -> None:
    run_ranks(3, loads_plain, nn.Linear(D, C))


def test_initial_values_depend_on_seed_and_class_alone() -> None:
    def full(rank: int, size: int) -> torch.Tensor:
        head = ShardedSampledSoftmaxLoss(D, C, S, seed=11)
        return head.full_state_dict(on_all_ranks=True)["weight"]

    first, *others = [w for size in (1, 2, 5) for w in run_ranks(size, full)]
    assert all(torch.equal(first, other) for other in others)
    bound = D**-0.5
    assert float(first.abs().max()) < bound and abs(float(first.mean())) < 0.1 * bound
    meta = ShardedSampledSoftmaxLoss(D, C, S, seed=11, device="meta")
    meta.to_empty(device="cpu").reset_parameters()
    assert torch.equal(meta.full_state_dict()["weight"], first)


def test_keys_of_steps_are_those_of_philox() -> None:
    for seed, step, part in ((0, 0, 0), (2**62 + 5, 3, 1), (7, 2**40 + 1, 2**33 + 9)):
        key = torch.tensor([seed, step * 2])
        bits = int(philox_bits(key, 0, 1, torch.tensor([part]))) & (2**63 - 1)
        generator = generator_of_step(seed, step, torch.device("cpu"), part)
        assert generator.initial_seed() == bits


def test_refused() -> None:
    with pytest.raises(ValueError, match="per_row=True is not possible"):
        ShardedSampledSoftmaxLoss(D, C, S, per_row=True)
    with pytest.raises(ValueError, match=r"would be .* on every rank"):
        ShardedSampledSoftmaxLoss(D, C, S).logits(torch.zeros(1, D))
    with pytest.raises(ValueError, match=r"seed must be below 2\^63 - 1, got"):
        ShardedSampledSoftmaxLoss(D, C, S, seed=2**63)
    with pytest.raises(ValueError, match="order must be"):
        ClassShard(C, order="sorted")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mesh must be a DeviceMesh"):
        ClassShard(C, 3)  # type: ignore[arg-type]


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        return None


@pytest.mark.parametrize("sparse", [True, False])
def test_a_shard_that_no_loss_depends_on_has_a_gradient_of_the_layout_that_was_asked_for(
    sparse: bool,
) -> None:
    head = ShardedSampledSoftmaxLoss(D, C, S, sparse_grad=sparse)
    call = SimpleNamespace(
        layout=head.layout, asked=head._asked(), weight=head.weight, bias=head.bias
    )
    for x in shard_parameters(call, None):  # type: ignore[arg-type]
        _NoGradient.apply(x).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and parameter.grad.is_sparse == sparse
        assert float(dense(parameter.grad, parameter).abs().max()) == 0


def copied(rank: int, size: int) -> None:
    head = ShardedSampledSoftmaxLoss(D, C, S, seed=3)
    other = copy.deepcopy(head)
    losses = [h(*batch(rank, 0)) for h in (head, other)]
    head.prefetch(batch(rank, 1)[1])
    assert copy.deepcopy(head)._ahead is None
    assert torch.equal(*losses) and other.layout.agreement is not head.layout.agreement
    if size > 1:
        with pytest.raises(TypeError, match=r"save head\.state_dict"):
            pickle.dumps(head)


def test_copies() -> None:
    run_ranks(2, copied)
    alone = ShardedSampledSoftmaxLoss(D, C, S, seed=3)
    again = pickle.loads(pickle.dumps(alone))
    assert torch.equal(alone(*batch(0, 0)), again(*batch(0, 0)))
