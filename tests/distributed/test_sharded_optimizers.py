"""Optimizers of heads whose rows lie on several ranks: saved on some ranks, loaded on others."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import multiprocessing, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

import sampled_softmax_cuda as ssc
from helpers import checkpoint_process
from helpers.rank_threads import run_ranks
from helpers.sharded_run import (
    OPTIMIZERS,
    OWING,
    B,
    C,
    D,
    Run,
    S,
    distance,
    resumed,
    saved,
    uninterrupted,
)
from sampled_softmax_cuda.distributed import (
    ShardedSampledSoftmaxLoss,
    full_optimizer_state_dict,
    load_full_optimizer_state_dict,
    register_optimizer,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("sizes", [(2, 3), (5, 2), (3, 5)], ids=str)
def test_a_run_goes_on_with_another_number_of_ranks(
    name: str, sizes: tuple[int, int], tmp_path: Path
) -> None:
    expected, tolerance = uninterrupted(name), OPTIMIZERS[name][2]
    run_ranks(sizes[0], saved, name, str(tmp_path))
    for found in run_ranks(sizes[1], resumed, name, str(tmp_path)):
        assert distance(found, expected) < tolerance


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_in_one_process_and_back(name: str, tmp_path: Path) -> None:
    expected, tolerance = uninterrupted(name), OPTIMIZERS[name][2]
    run_ranks(3, saved, name, str(tmp_path / "3"))
    assert distance(resumed(0, 1, name, str(tmp_path / "3")), expected) < tolerance
    saved(0, 1, name, str(tmp_path / "1"))
    for found in run_ranks(2, resumed, name, str(tmp_path / "1")):
        assert distance(found, expected) < tolerance


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_number_of_ranks_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    expected = run_ranks(4, saved, name, str(tmp_path))
    found = run_ranks(4, resumed, name, str(tmp_path))
    # torch's SGD has a sparse momentum, which is saved as a dense one.
    limit = 1e-14 if name in (*OWING, "torch SGD") else 0.0
    assert max(map(distance, found, expected)) <= limit


def test_without_registration_the_same_number_of_ranks_goes_on_wrong(tmp_path: Path) -> None:
    """docs/distributed.md: every rank takes the states of one; no error says so."""
    for register in (False, True):
        folder = str(tmp_path / str(register))
        expected = run_ranks(4, saved, "Adagrad", folder, register, 12)  # 3 rows each
        found = run_ranks(4, resumed, "Adagrad", folder, register, 12)
        error = max(map(distance, found, expected))
        assert error == 0.0 if register else error > 1e-3


def two_dimensional(rank: int, size: int, folder: str, load: bool) -> list[torch.Tensor]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "class"))
    run = Run("AdamW, decay", 2 if load else 1, mesh=mesh["class"], replica_mesh=mesh["replica"])
    if load:
        run.load(folder)
        run.train(3, 6)
    else:
        run.train(0, 3)
        run.save(folder)
    return run.full()


def test_replicas(tmp_path: Path) -> None:
    """A mesh of 2 x 2, saved and loaded by itself and by 3 ranks."""
    expected = uninterrupted("AdamW, decay")
    run_ranks(4, two_dimensional, str(tmp_path / "4"), False)
    for found in run_ranks(4, two_dimensional, str(tmp_path / "4"), True):
        assert distance(found, expected) < 1e-12
    for found in run_ranks(3, resumed, "AdamW, decay", str(tmp_path / "4")):
        assert distance(found, expected) < 1e-12
    run_ranks(3, saved, "AdamW, decay", str(tmp_path / "3"))
    for found in run_ranks(4, two_dimensional, str(tmp_path / "3"), True):
        assert distance(found, expected) < 1e-12


def in_place(rank: int, size: int, name: str, folder: str) -> list[torch.Tensor]:
    """A fresh optimizer whose own state_dict is loaded, without get_state_dict."""
    run = Run(name, 2)
    register_optimizer(run.optimizer, run.head)  # twice is once
    state = {"optimizer": run.optimizer.state_dict(), "head": run.head.state_dict()}
    state["body"] = run.model["body"].state_dict()
    if folder.endswith("saved"):
        run.train(0, 3)
        state = {"optimizer": run.optimizer.state_dict(), "head": run.head.state_dict()}
        state["body"] = run.model["body"].state_dict()
        dcp.save(state, checkpoint_id=folder)
    else:
        dcp.load(state, checkpoint_id=folder.replace("load", "saved"))
        run.optimizer.load_state_dict(state["optimizer"])
        run.head.load_state_dict(state["head"])
        run.model["body"].load_state_dict(state["body"])
    run.train(3, 6)
    return run.full()


@pytest.mark.parametrize("name", ["Adagrad", "AdamW, decay"])
def test_fresh_optimizers_have_states_to_load_into(name: str, tmp_path: Path) -> None:
    expected = run_ranks(2, in_place, name, str(tmp_path / "saved"))[0]
    for found in run_ranks(3, in_place, name, str(tmp_path / "load")):
        assert distance(found, expected) < 1e-12


OPTIONS = {
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "cpu_offload": {"cpu_offload": True},
}


def by_options(rank: int, size: int, name: str) -> None:
    options = StateDictOptions(**OPTIONS[name])
    run, other = Run("AdamW, decay", 1), Run("AdamW, decay", 2)
    run.train(0, 3)
    both = get_state_dict(run.model, run.optimizer, options=options)
    model, optimizer = copy.deepcopy(both)  # or both runs would train the same memory
    set_state_dict(
        other.model,
        other.optimizer,
        model_state_dict=model,
        optim_state_dict=optimizer,
        options=options,
    )
    for each in (run, other):
        each.train(3, 6)
    assert distance(other.full(), run.full()) < 1e-14


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_get_state_dict(name: str) -> None:
    run_ranks(3, by_options, name)


def test_processes_under_fully_shard(tmp_path: Path) -> None:
    """gloo: saved by 2 processes, loaded by 1 and 3, and handed on by the first one."""
    expected = uninterrupted("torch AdamW")
    for size, load in ((2, False), (1, True), (3, True)):
        arguments = (size, str(tmp_path), load)
        context = multiprocessing.spawn(checkpoint_process.run, arguments, nprocs=size, join=False)
        end = time.monotonic() + 120
        while not context.join(timeout=1):
            if time.monotonic() > end:
                for process in context.processes:
                    process.kill()
                pytest.fail(f"the {size} processes did not come to an end")
        for rank in range(size):
            found = torch.load(tmp_path / f"{size}-{rank}.pt")
            assert distance(found["full"], expected) < 1e-12
            assert distance(found["from the first"], expected) < 1e-12


# --- to and from one process ----------------------------------------------------------------------


def stepped(head: Any, optimizer: torch.optim.Optimizer, seed: int, sparse: bool) -> None:
    """A step with the same gradients whether the classes are spread over ranks or not."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64)
    bias = torch.randn(C, generator=generator, dtype=torch.float64)
    there = torch.rand(C, generator=generator) < 0.5
    classes = head.shard.classes if hasattr(head, "shard") else torch.arange(C)
    for p, gradient in ((head.weight, weight), (head.bias, bias)):
        own = gradient[classes]
        own[~there[classes]] = 0.0
        p.grad = own
        if sparse:
            rows = there[classes].nonzero().flatten()
            p.grad = torch.sparse_coo_tensor(rows[None], own[rows], own.shape).coalesce()
    optimizer.step()


def crossed(rank: int, size: int, name: str, alone: Any) -> None:
    make, sparse, tolerance = OPTIMIZERS[name]
    alone, back = copy.deepcopy(alone), copy.deepcopy(alone)
    own = make(alone.parameters())
    head = ShardedSampledSoftmaxLoss(D, C, S, sparse_grad=sparse, dtype=torch.float64)
    sharded = register_optimizer(make(head.parameters()), head)
    for step in range(3):
        stepped(alone, own, step, sparse)
    saved = copy.deepcopy(own.state_dict())
    head.load_full_state_dict(alone.state_dict())
    load_full_optimizer_state_dict(sharded, saved)
    again = make(back.parameters())
    for step in range(3, 6):
        stepped(alone, own, step, sparse)
        stepped(head, sharded, step, sparse)
    state = copy.deepcopy(full_optimizer_state_dict(sharded, on_all_ranks=True))
    assert (full_optimizer_state_dict(sharded) == {}) == (rank > 0)
    back.load_state_dict(head.full_state_dict(on_all_ranks=True), strict=False)
    again.load_state_dict(state)
    for step in range(6, 9):
        stepped(alone, own, step, sparse)
        stepped(head, sharded, step, sparse)
        stepped(back, again, step, sparse)
    full = [head.full_state_dict(on_all_ranks=True)[n] for n in ("weight", "bias")]
    for optimizer in (own, again):
        if hasattr(optimizer, "settle"):
            optimizer.settle()
    expected = [p.detach() for p in alone.parameters()]
    assert distance(full, expected) < tolerance
    assert distance([p.detach() for p in back.parameters()], expected) < tolerance


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_to_and_from_a_head_in_one_process(name: str, size: int) -> None:
    alone = ssc.SampledSoftmaxLoss(D, C, S, sparse_grad=OPTIMIZERS[name][1], dtype=torch.float64)
    run_ranks(size, crossed, name, alone)


# --- GradScaler -----------------------------------------------------------------------------------


def scaled(rank: int, size: int) -> tuple[bool, float]:
    """Whether a rank took the step in which one of them has an inf, and its scale afterwards."""
    run = Run("Adagrad", 1)
    scaler = ShardedGradScaler("cpu")
    x, target = torch.ones(B, D, dtype=torch.float64), torch.arange(B)
    scaler.scale(run.head(x, target)).backward()  # type: ignore[no-untyped-call]
    if rank == 1:
        run.head.weight.grad._values()[0, 0] = float("inf")
    before = run.head.weight.clone()
    scaler.unscale_(run.optimizer)
    scaler.step(run.optimizer)
    scaler.update()
    return not torch.equal(run.head.weight, before), scaler.get_scale()


def test_all_ranks_leave_out_a_step_in_which_one_has_an_inf() -> None:
    assert run_ranks(3, scaled) == [(False, 32768.0)] * 3


# --- refused --------------------------------------------------------------------------------------


def refused(rank: int, size: int) -> None:
    head = ShardedSampledSoftmaxLoss(D, C, S)
    plain = ssc.SampledSoftmaxLoss(D, C, S)
    saved = torch.optim.Adagrad(plain.parameters()).state_dict()
    optimizer = torch.optim.Adagrad(head.parameters())
    local = optimizer.state_dict()
    for of_one in (
        lambda: full_optimizer_state_dict(optimizer),
        lambda: load_full_optimizer_state_dict(optimizer, saved),
    ):
        with pytest.raises(ValueError, match="must be registered by register_optimizer first"):
            of_one()
    register_optimizer(optimizer, head)
    with pytest.raises(ValueError, match=r"'sum' of parameter 0 is a plain tensor .* not known in"):
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"'sum' of parameter 0 must have C=13 rows, .* got \["):
        load_full_optimizer_state_dict(optimizer, local)
    other = ShardedSampledSoftmaxLoss(D, C, S, class_order="contiguous")
    contiguous = register_optimizer(torch.optim.Adagrad(other.parameters()), other)
    with pytest.raises(ValueError, match="in another order, of row_multiplier=1 and not 8"):
        optimizer.load_state_dict(contiguous.state_dict())
    with pytest.raises(ValueError, match="no parameter of head 1 is in the optimizer"):
        register_optimizer(torch.optim.SGD(other.parameters()), other, head)
    with pytest.raises(TypeError, match=r"every head must be a ShardedSampledSoftmaxLoss, got"):
        register_optimizer(optimizer, plain)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got"):
        register_optimizer(head, head)  # type: ignore[type-var]
    replaced = register_optimizer(torch.optim.Adagrad(other.parameters()), other)
    other.weight = nn.Parameter(other.weight.detach().clone())
    other.bias = None
    with pytest.raises(ValueError, match="no parameter of head 0 is in the optimizer"):
        replaced.state_dict()


def test_refused() -> None:
    run_ranks(3, refused)


@pytest.mark.parametrize("name", ["LBFGS", "Adafactor"])
def test_states_without_rows_are_refused(name: str) -> None:
    def refuses(rank: int, size: int) -> None:
        head = ShardedSampledSoftmaxLoss(D, C, S)
        made = getattr(torch.optim, name)(head.parameters())
        for p in head.parameters():
            p.grad = torch.ones_like(p)
        made.step(lambda: torch.ones(()))
        register_optimizer(made, head)
        with pytest.raises(ValueError, match=r"use an optimizer (that has tensors|whose states)"):
            made.state_dict()

    run_ranks(2, refuses)
