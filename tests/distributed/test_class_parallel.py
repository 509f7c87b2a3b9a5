"""ClassParallel: a head of one process becomes one over ranks, where it stands in its model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import sampled_softmax_cuda as ssc
from helpers.rank_threads import dense, run_ranks
from sampled_softmax_cuda.distributed import ClassParallel, ShardedSampledSoftmaxLoss

C, D, S = 13, 6, 4


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, D))
        self.head = ssc.SampledSoftmaxLoss(D, C, S, **options)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.head(self.body(x), target)
        return loss


def filled(seed: int, **options: Any) -> Any:
    """A model whose values depend on the seed alone; threads share torch's generator."""
    model = Model(**{"dtype": torch.float64, **options})
    model.body.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(C, (5,), generator=generator)


def tensor_parallel(rank: int, size: int, layout: Any) -> None:
    """The whole model over the ranks, each of which had other values before: the first one's."""
    model, single = filled(rank), filled(0)
    mesh = init_device_mesh("cpu", (size,))
    head = model.head
    plan: Any = {
        "body.0": ColwiseParallel(),
        "body.2": RowwiseParallel(),
        "head": ClassParallel(input_layout=layout, seed=3),
    }
    parallelize_module(model, mesh, plan)
    assert model.head is head and type(head) is ShardedSampledSoftmaxLoss
    full = head.full_state_dict(on_all_ranks=True)
    assert torch.equal(full["weight"], single.head.weight)
    assert torch.equal(full["bias"], single.head.bias)
    loss = model(*batch(0))
    loss.backward()
    # The same negatives, from the head's key, in one process.
    alone = ShardedSampledSoftmaxLoss(D, C, S, mesh=_alone(rank), seed=3, dtype=torch.float64)
    alone.load_full_state_dict(single.head.state_dict(), strict=False)
    truth = alone(single.body(batch(0)[0]), batch(0)[1])
    truth.backward()
    assert torch.allclose(loss, truth, rtol=1e-12)
    for p, q in zip(model.body.parameters(), single.body.parameters(), strict=True):
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        assert torch.allclose(grad, q.grad, rtol=1e-10, atol=1e-13)
    own = slice(head.shard.begin, head.shard.end)
    assert torch.allclose(head.weight.grad, alone.weight.grad[own], rtol=1e-10, atol=1e-13)
    assert torch.allclose(head.bias.grad, alone.bias.grad[own], rtol=1e-10, atol=1e-13)


def _alone(rank: int) -> Any:
    return torch.distributed.new_group([rank])


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_a_tensor_parallel_model(layout: str) -> None:
    run_ranks(3, tensor_parallel, layout)


def sources(rank: int, size: int) -> None:
    for source in (2, None):
        model = filled(rank)
        before = model.head.state_dict()
        classes = ssc.distributed.ClassShard(C).classes
        parallelize_module(
            model, init_device_mesh("cpu", (size,)), {"head": ClassParallel()}, src_data_rank=source
        )
        expected = before if source is None else filled(source).head.state_dict()
        assert torch.equal(model.head.weight, expected["weight"][classes])
        assert torch.equal(model.head.bias, expected["bias"][classes])


def test_the_rank_whose_values_are_taken() -> None:
    run_ranks(3, sources)


def replicas(rank: int, size: int) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "class"))
    head = filled(rank).head
    style = ClassParallel(replica_mesh=mesh["replica"])
    parallelize_module(head, mesh["class"], style)
    assert head.layout.replicas.size == head.layout.ranks.size == 2
    classes = head.shard.classes
    assert torch.equal(head.weight, filled(0).head.weight[classes])


def test_replicas_have_the_values_of_the_first() -> None:
    run_ranks(4, replicas)


OPTIONS: list[dict[str, Any]] = [
    {"bias": False, "sparse_grad": True, "reduction": "sum", "replacement": False},
    {"temperature": 0.5, "correction": "none", "remove_accidental_hits": False, "softcap": 30.0},
    {"cosine": True, "objective": ssc.Softmax(margin=0.2), "temperature": 0.1},
    {"z_loss": 1e-3, "ignore_index": -1, "padding_idx": 3},
    {"class_weight": torch.arange(1.0, C + 1), "dtype": torch.bfloat16},
    {"sampler": ssc.WeightedSampler(torch.arange(1.0, C + 1)), "objective": "nce"},
]


def with_options(rank: int, size: int, options: dict[str, Any]) -> None:
    head = filled(0, **options).head
    plain = filled(0, **options).head.extra_repr()
    calls: list[int] = []
    head.register_forward_hook(lambda *_: calls.append(rank))
    head.weight.requires_grad_(False)
    head.eval().name = "mine"
    parallelize_module(head, init_device_mesh("cpu", (size,)), ClassParallel(algorithm="gather"))
    assert head.extra_repr().startswith(plain) and head.algorithm == "gather"
    assert not head.training and head.name == "mine"
    assert not head.weight.requires_grad
    assert (head.bias is None) == (options.get("bias") is False)
    x, target = batch(rank)
    head.train()(x.to(head.weight.dtype), target)
    assert calls == [rank]
    kept = head.class_weight
    if kept is not None:
        assert torch.equal(kept, options["class_weight"][head.shard.classes])


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_options_hooks_and_modes_stay(number: int) -> None:
    run_ranks(2, with_options, OPTIONS[number])


def on_meta(rank: int, size: int) -> None:
    with torch.device("meta"):
        model = Model()
    parallelize_module(model, init_device_mesh("cpu", (size,)), {"head": ClassParallel(seed=11)})
    head: Any = model.head
    assert head.weight.is_meta and head.weight.shape[0] == head.shard.num_rows
    head.to_empty(device="cpu").reset_parameters()
    expected = ShardedSampledSoftmaxLoss(D, C, S, seed=11)
    assert torch.equal(head.weight, expected.weight)
    # An optimizer and clipping know it.
    optimizer = ssc.optim.Adagrad(head.parameters(), lr=0.1)
    ssc.distributed.register_optimizer(optimizer, head)
    x, target = batch(rank)
    head(x.float(), target).backward()
    norm = ssc.distributed.clip_grad_norm_(head.parameters(), 1e9)
    total = sum(dense(p.grad, p).square().sum() for p in head.parameters()).reshape(1)  # type: ignore[union-attr]
    torch.distributed.all_reduce(total)
    assert float(norm) == pytest.approx(float(total) ** 0.5, rel=1e-5)


def test_a_model_on_the_meta_device() -> None:
    run_ranks(3, on_meta)


def refused(rank: int, size: int) -> None:
    mesh = init_device_mesh("cpu", (size,))

    class Own(ssc.SampledSoftmaxLoss):
        pass

    for module in (nn.Linear(D, C), Own(D, C, S), ShardedSampledSoftmaxLoss(D, C, S)):
        with pytest.raises(TypeError, match="must be a SampledSoftmaxLoss, got"):
            parallelize_module(module, mesh, ClassParallel())
    tied = ssc.SampledSoftmaxLoss(D, C, S, weight=nn.Embedding(C, D).weight)
    with pytest.raises(ValueError, match="use a head with a weight of its own"):
        parallelize_module(tied, mesh, ClassParallel())
    sharded = ssc.SampledSoftmaxLoss(D, C, S)
    sharded.weight = nn.Parameter(distribute_tensor(sharded.weight.detach(), mesh, [Shard(0)]))
    with pytest.raises(TypeError, match="use parallelize_module before fully_shard"):
        parallelize_module(sharded, mesh, ClassParallel())
    per_row = ssc.SampledSoftmaxLoss(D, C, S, per_row=True)
    with pytest.raises(ValueError, match="per_row=True is not possible"):
        parallelize_module(per_row, mesh, ClassParallel())
    assert type(per_row) is ssc.SampledSoftmaxLoss and per_row.weight.shape == (C, D)
    with pytest.raises(ValueError, match="algorithm must be"):
        parallelize_module(
            ssc.SampledSoftmaxLoss(D, C, S),
            mesh,
            ClassParallel(algorithm="other"),  # type: ignore[arg-type]
        )


def test_refused() -> None:
    run_ranks(2, refused)
