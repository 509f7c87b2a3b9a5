"""The optimizers in what surrounds a training run: heads, embeddings, schedulers, scalers, hooks,
checkpoints and compiled steps."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import sampled_softmax_cuda as ssc
from helpers.row_steps import (
    EXACT,
    KINDS,
    batch,
    make_head,
    parameter,
    row_gradients,
    sparse,
    trained,
)


@pytest.mark.parametrize(
    "options", [{}, {"per_row": True}, {"bias": False, "cosine": True}], ids=str
)
def test_a_replaying_head_is_a_dense_one(device: str, options: dict[str, Any]) -> None:
    """Losses of every step, weights in the state_dict and the exact loss: rows are settled before
    they are read."""
    ours, theirs = make_head(sparse_grad=True, **options), make_head(**options)
    first = ssc.optim.AdamW(ours.parameters(), skipped="replay", **EXACT)
    second = torch.optim.AdamW(theirs.parameters(), **EXACT)
    for step in range(40):
        losses = []
        for head, optimizer in ((ours, first), (theirs, second)):
            h, target = batch(step)
            optimizer.zero_grad()
            loss = head(h, target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
    saved = ours.state_dict()["weight"].clone()
    torch.testing.assert_close(saved, theirs.weight.detach(), rtol=1e-10, atol=1e-12)
    h, target = batch(0)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(h, target), theirs(h, target), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.topk(h, 3).indices, theirs.topk(h, 3).indices)


def test_settling_between_two_forward_passes_of_a_step(device: str) -> None:
    """It changes rows in place that no graph has read: the first backward pass still works."""
    head = make_head(sparse_grad=True)
    optimizer = ssc.optim.AdamW(head.parameters(), skipped="replay")
    for step in range(3):
        optimizer.zero_grad()
        losses = [head(*batch(10 * step)), head(*batch(10 * step + 1))]
        (losses[0] + losses[1]).backward()
        optimizer.step()


def test_settle_some_rows(device: str) -> None:
    gradients = row_gradients((30, 4), 20, rows=2)
    p, optimizer = trained(lambda p: ssc.optim.AdamW(p, skipped="replay", **EXACT), gradients)
    q, _ = trained(lambda p: torch.optim.AdamW(p, **EXACT), gradients, dense=True)
    ids = torch.tensor([[3, 7, 3], [29, 0, 7]])
    before = p.detach().clone()
    optimizer.settle(ids)  # type: ignore[attr-defined]
    rows = ids.unique()
    torch.testing.assert_close(p[rows], q[rows], rtol=1e-10, atol=1e-12)
    others = [row for row in range(30) if row not in rows.tolist()]
    assert torch.equal(p[others], before[others])
    optimizer.settle()  # type: ignore[attr-defined]
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    again = p.detach().clone()
    optimizer.settle()  # type: ignore[attr-defined]
    assert torch.equal(p, again)


def test_a_tied_embedding(device: str) -> None:
    """Rows of both uses, united; the lookup is settled by hand."""
    heads, optimizers = [], []
    for sparse_grad in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(200, 8, sparse=sparse_grad, dtype=torch.float64)
        head = ssc.SampledSoftmaxLoss(
            8, 200, 16, weight=table.weight, bias=False, sparse_grad=sparse_grad
        )
        heads.append((table, head))
    optimizers.append(ssc.optim.AdamW([heads[0][0].weight], skipped="replay", **EXACT))
    optimizers.append(torch.optim.AdamW([heads[1][0].weight], **EXACT))
    for step in range(20):
        losses = []
        for (table, head), optimizer in zip(heads, optimizers, strict=True):
            torch.manual_seed(step)
            words = torch.randint(200, (6, 2))
            if isinstance(optimizer, ssc.optim.AdamW):
                optimizer.settle(words)
            optimizer.zero_grad()
            loss = head(table(words[:, 0]), words[:, 1])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_trains_a_head(device: str, kind: Any) -> None:
    head = make_head(sparse_grad=True)
    optimizer = kind(head.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = head(*batch(0))
        loss.backward()
        norm = ssc.optim.clip_grad_norm_(head.parameters(), 10.0)
        assert norm.dim() == 0
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])


def test_one_cycle_of_betas(device: str) -> None:
    """A scheduler that changes lr and betas in each step."""
    gradients = row_gradients((20, 4), 30)
    results = []
    for kind in (ssc.optim.AdamW, torch.optim.AdamW):
        p = parameter((20, 4))
        options = {"skipped": "replay"} if kind is ssc.optim.AdamW else {}
        optimizer: Any = kind([p], **options, **EXACT)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=31)
        for gradient in gradients:
            p.grad = gradient.clone() if options else gradient.to_dense()
            optimizer.step()
            cycle.step()
        if options:
            optimizer.settle()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_parameter_groups_and_names(device: str) -> None:
    a, b = parameter((5, 3)), parameter((5, 3))
    optimizer = ssc.optim.SGD(
        [{"params": [("table", a)]}, {"params": [("other", b)], "lr": 0.5}], lr=0.1
    )
    for p in (a, b):
        p.grad = sparse(torch.tensor([2]), torch.ones(1, 3, dtype=torch.float64), (5, 3))
    start = a.detach().clone()
    optimizer.step()
    torch.testing.assert_close(start[2] - a[2], torch.full((3,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(start[2] - b[2], torch.full((3,), 0.5, dtype=torch.float64))
    b.grad = torch.full((5, 3), float("nan"), dtype=torch.float64)
    if device in ("reference", "native"):
        with pytest.raises(ValueError, match="gradient of other has nan in row 0"):
            optimizer.step()


def test_a_learning_rate_that_is_a_tensor(device: str) -> None:
    gradients = row_gradients((10, 3), 5)
    p, _ = trained(lambda p: ssc.optim.AdamW(p, lr=torch.tensor(0.05)), gradients)
    q, _ = trained(lambda p: ssc.optim.AdamW(p, lr=float(torch.tensor(0.05))), gradients)
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_closure_and_hooks(device: str) -> None:
    p = parameter((4, 2))
    optimizer = ssc.optim.SGD([p], lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    first, second = float(optimizer.step(closure)), float(optimizer.step(closure))
    assert second < first
    assert seen == ["before", "after"] * 2


def test_nothing_without_gradients(device: str) -> None:
    p = parameter((4, 2))
    optimizer = ssc.optim.AdamW([p])
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}
    assert torch.equal(p, parameter((4, 2)))


# --- GradScaler -----------------------------------------------------------------------------------


def test_grad_scaler(either: str) -> None:
    """The scale is divided out, and a step with inf does nothing."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    head, twin = make_head(sparse_grad=True), make_head(sparse_grad=True)
    first = ssc.optim.AdamW(head.parameters(), skipped="replay")
    second = ssc.optim.AdamW(twin.parameters(), skipped="replay")
    for step in range(4):
        first.zero_grad(), second.zero_grad()
        scaler.scale(head(*batch(step))).backward()
        if step == 2:
            before = head.weight.detach().clone()
            assert head.weight.grad is not None
            head.weight.grad._values()[0, 0] = float("inf")
        scaler.step(first)
        scaler.update()
        if step == 2:
            assert torch.equal(before, head.weight)
            assert scaler.get_scale() == 512.0
            continue
        twin(*batch(step)).backward()
        second.step()
    torch.testing.assert_close(head.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)
    assert float(first.state[head.weight]["step"]) == 3


def test_scale_and_found_inf_on_a_device(device: str) -> None:
    p, q = parameter((5, 3)), parameter((5, 3))
    first, second = ssc.optim.AdamW([p]), ssc.optim.AdamW([q])
    gradient = row_gradients((5, 3), 1)[0]
    p.grad, q.grad = gradient * 8.0, gradient.clone()
    first.grad_scale, first.found_inf = torch.tensor(8.0), torch.tensor(0.0)  # type: ignore[attr-defined]
    first.step()
    second.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    before = copy.deepcopy(first.state[p]), p.detach().clone()
    first.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    first.step()
    assert torch.equal(p, before[1])
    for name, value in before[0].items():
        assert torch.equal(first.state[p][name], value), name


# --- in the backward pass, compiled ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_steps_in_the_backward_pass(device: str, kind: Any) -> None:
    head, twin = make_head(sparse_grad=True), make_head(sparse_grad=True)
    first = ssc.optim.in_backward(head, kind, lr=0.1)
    second = kind(twin.parameters(), lr=0.1)
    for step in range(6):
        head(*batch(step)).backward()
        assert all(p.grad is None for p in head.parameters())
        first.step()
        second.zero_grad()
        twin(*batch(step)).backward()
        second.step()
    for p, q in zip(head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    first.leave_backward()
    head(*batch(0)).backward()
    assert head.weight.grad is not None


def test_compiled_code_breaks_at_a_step(native: str) -> None:
    head = make_head(sparse_grad=True)
    optimizer = ssc.optim.AdamW(head.parameters(), skipped="replay")
    twin = make_head(sparse_grad=True)
    other = ssc.optim.AdamW(twin.parameters(), skipped="replay")

    def step(head: Any, optimizer: Any, h: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = head(h, target)
        loss.backward()
        optimizer.step()
        return loss  # type: ignore[no-any-return]

    compiled = torch.compile(step, backend="eager")
    for i in range(4):
        h, target = batch(i)
        first = compiled(head, optimizer, h, target)
        h, target = batch(i)
        torch.testing.assert_close(first, step(twin, other, h, target), rtol=1e-10, atol=1e-12)
    with pytest.raises(Exception, match="an operator by itself"):
        torch.compile(lambda: optimizer._step_parameters([]), backend="eager", fullgraph=True)()


# --- edges that were found broken -----------------------------------------------------------------


def test_ids_of_any_layout_and_tables_of_two_sizes(device: str) -> None:
    """A column of a batch, and rows that only one of two parameters has."""
    p, q = parameter((20, 4)), parameter((5, 4))
    optimizer = ssc.optim.AdamW([p, q], lr=0.1, skipped="replay")
    for ids in ([1, 18], [3, 4]):
        p.grad = sparse(torch.tensor(ids), torch.ones(2, 4, dtype=p.dtype), (20, 4))
        q.grad = sparse(torch.tensor([3, 4]), torch.ones(2, 4, dtype=p.dtype), (5, 4))
        optimizer.step()
    before = p.detach().clone()
    ids = torch.tensor([[1, 999], [0, 999], [18, 999]])[:, 0]
    if device in ("reference", "native"):
        with pytest.raises(ValueError, match="pass the parameter that they are rows of"):
            optimizer.settle(ids)
    optimizer.settle(ids, p)
    assert (p != before).any(1).nonzero().flatten().tolist() == [0, 1, 18]
    with pytest.raises(ValueError, match="must be one of this optimizer's"):
        optimizer.settle(ids, parameter((20, 4)))


@pytest.mark.parametrize("shape", [(0, 3), (0,)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_without_rows(device: str, kind: Any, shape: tuple[int, ...]) -> None:
    p = parameter(shape)
    optimizer = kind([p])
    p.grad = sparse(torch.zeros(0, dtype=torch.int64), torch.zeros(shape, dtype=p.dtype), shape)
    optimizer.step()
    optimizer.settle()
    assert len(optimizer.state_dict()["state"]) == 1


def test_steps_in_the_backward_pass_of_a_model(either: str) -> None:
    """A frozen parameter, a scheduler, later parameters, and a gradient that is refused."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    optimizer = ssc.optim.in_backward(model, ssc.optim.SGD, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(2, 3)).sum().backward()
        scheduler.step()
    later = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [later]})
    (later * 2).sum().backward()
    assert later.grad is None
    assert bool((later < 1).all())
    with pytest.raises(ValueError, match="has nan"):
        (later * float("nan")).sum().backward()
    assert later.grad is None
    (later * 2).sum().backward()


def test_two_optimizers_of_one_parameter(device: str) -> None:
    """Both are asked before its rows are read."""
    head = make_head(sparse_grad=True, bias=False)
    optimizers = [
        ssc.optim.AdamW(head.parameters(), skipped=skipped)  # type: ignore[arg-type]
        for skipped in ("replay", "decay")
    ]
    for optimizer in optimizers:
        optimizer.zero_grad()
        head(*batch(0)).backward()
        optimizer.step()
    head.eval()
    head(*batch(1))
    assert not any(optimizer.lags(head.weight, True) for optimizer in optimizers)


@pytest.mark.parametrize("skipped", ["decay", "freeze", "replay"])
def test_only_rows_that_replay_break_a_compiled_graph(device: str, skipped: Any) -> None:
    """Steps of other optimizers, and other parameters' rows, leave `fullgraph=True` possible."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    heads = [ssc.SampledSoftmaxLoss(8, 60, 12, sparse_grad=True) for _ in range(2)]
    optimizer = ssc.optim.AdamW(heads[0].parameters(), lr=0.01, skipped=skipped)
    compiled = [torch.compile(head, fullgraph=True, backend="aot_eager") for head in heads]
    h, target = torch.randn(5, 8), torch.randint(60, (5,))
    for step in range(3):
        if skipped == "replay" and step > 0:
            with pytest.raises(torch._dynamo.exc.Unsupported, match="rows that lag behind"):
                compiled[0](h, target)
        else:
            compiled[0](h, target).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert compiled[1](h, target).isfinite()
