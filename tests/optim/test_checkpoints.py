"""Checkpoints and copies of the optimizers: their own, and those of torch.optim."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import sampled_softmax_cuda as ssc
from helpers.row_steps import EXACT, KINDS, batch, make_head, parameter, row_gradients, trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(
    device: str, kind: Any, dtype: torch.dtype
) -> None:
    gradients = row_gradients((20, 6), 16, dtype=dtype)
    options: dict[str, Any] = {"lr": 0.1, "rounding": "stochastic", "seed": 5}
    p, optimizer = trained(lambda p: kind(p, **options), gradients[:8], dtype=dtype)
    stream = io.BytesIO()
    torch.save({"model": p.detach(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, map_location=p.device)
    q = nn.Parameter(saved["model"].clone())
    other = kind([q], lr=77.0)
    other.load_state_dict(saved["optimizer"])
    for gradient in gradients[8:]:
        p.grad, q.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        other.step()
    assert torch.equal(p, q)
    for name, value in optimizer.state[p].items():
        assert torch.equal(value, other.state[q][name]), name
        assert value.dtype == other.state[q][name].dtype


@pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [
        (torch.optim.SparseAdam, ssc.optim.Adam, {"skipped": "freeze"}),
        (torch.optim.AdamW, ssc.optim.AdamW, {"skipped": "replay"}),
        (torch.optim.Adagrad, ssc.optim.Adagrad, {}),
        (torch.optim.SGD, ssc.optim.SGD, {"momentum": 0.9, "skipped": "replay"}),
    ],
)
def test_states_of_torch_optim(
    device: str, theirs: Any, ours: Any, options: dict[str, Any]
) -> None:
    """A run goes on from torch.optim's checkpoint, and back."""
    gradients = row_gradients((20, 6), 20)
    own = {} if theirs is torch.optim.SparseAdam else {"weight_decay": 0.0}
    own |= {"momentum": 0.9} if theirs is torch.optim.SGD else {}
    dense = theirs is not torch.optim.SparseAdam
    q, second = trained(lambda p: theirs(p, lr=0.1, **own), gradients[:10], dense=dense)
    p = nn.Parameter(q.detach().clone())
    first = ours([p], lr=0.1, **options)
    first.load_state_dict(copy.deepcopy(second.state_dict()))
    for group in first.param_groups:
        group.update(options)
    for gradient in gradients[10:15]:
        p.grad = gradient.clone()
        q.grad = gradient.to_dense() if dense else gradient.clone()
        first.step()
        second.step()
    first.settle()
    torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-7)
    back = theirs([p], lr=0.1, **own)
    groups = back.state_dict()["param_groups"]
    back.load_state_dict(copy.deepcopy(first.state_dict()) | {"param_groups": groups})
    for gradient in gradients[15:]:
        for x, optimizer in ((p, back), (q, second)):
            x.grad = gradient.to_dense() if dense else gradient.clone()
            optimizer.step()
    # SparseAdam takes powers of the step in its dtype, float32 for a tensor.
    tolerance = 1e-7 if dense else 1e-4
    torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def test_loaded_states_keep_their_dtype(device: str) -> None:
    gradients = row_gradients((20, 6), 4, dtype=torch.bfloat16)
    p, optimizer = trained(lambda p: ssc.optim.AdamW(p), gradients, dtype=torch.bfloat16)
    other = ssc.optim.AdamW([nn.Parameter(p.detach().clone())])
    other.load_state_dict(optimizer.state_dict())
    (state,) = other.state.values()
    assert state["exp_avg"].dtype == torch.float32
    assert torch.equal(state["exp_avg"], optimizer.state[p]["exp_avg"])


def test_copies_have_no_debts(device: str) -> None:
    gradients = row_gradients((20, 6), 10)
    p, optimizer = trained(lambda p: ssc.optim.AdamW(p, skipped="replay", **EXACT), gradients)
    q, _ = trained(lambda p: torch.optim.AdamW(p, **EXACT), gradients, dense=True)
    pickled = pickle.dumps(optimizer)
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    copied = pickle.loads(pickled)
    (other,) = copied.param_groups[0]["params"]
    assert torch.equal(other, p)
    other.grad = gradients[0].clone()
    copied.step()


def test_hooks_of_loading(device: str) -> None:
    gradients = row_gradients((5, 3), 1)
    _, optimizer = trained(lambda p: ssc.optim.Adam(p), gradients)
    p = parameter((5, 3))
    other = ssc.optim.Adam([p])

    def before(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        changed = {**state["state"][0], "exp_avg": torch.full((5, 3), 7.0, dtype=p.dtype)}
        return {**state, "state": {0: changed}}

    def after(made: Any) -> None:
        made.state[p]["exp_avg_sq"].fill_(3.0)

    other.register_load_state_dict_pre_hook(before)
    other.register_load_state_dict_post_hook(after)
    other.load_state_dict(optimizer.state_dict())
    assert (other.state[p]["exp_avg"] == 7.0).all()
    assert (other.state[p]["exp_avg_sq"] == 3.0).all()


def test_loading_keeps_options_that_torch_does_not_have(device: str) -> None:
    a, b = parameter((5, 3)), parameter((5, 3))
    groups = [
        {"params": [a], "skipped": "freeze", "rounding": "stochastic", "seed": 7},
        {"params": [b]},
    ]
    optimizer = ssc.optim.AdamW(groups, lr=0.5)
    optimizer.load_state_dict(torch.optim.AdamW([{"params": [a]}, {"params": [b]}]).state_dict())
    kept = [(g["skipped"], g["rounding"], g["seed"], g["lr"]) for g in optimizer.param_groups]
    assert kept == [("freeze", "stochastic", 7, 1e-3), ("decay", "nearest", 0, 1e-3)]


def test_torchs_momentum_with_dampening_is_not_new(device: str) -> None:
    q = parameter((4, 3))
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    second = torch.optim.SGD([q], **options)
    p, first = None, None
    for step in range(6):
        if step == 3:
            p = nn.Parameter(q.detach().clone())
            first = ssc.optim.SGD([p], **options)
            first.load_state_dict(copy.deepcopy(second.state_dict()))
        gradient = torch.randn_like(q)
        for x, optimizer in ((q, second), (p, first)):
            if x is not None and optimizer is not None:
                x.grad = gradient.clone()
                optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_states_of_a_parameter_in_another_layout(device: str) -> None:
    p = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    q = nn.Parameter(p.detach().clone(memory_format=torch.preserve_format))
    second = torch.optim.AdamW([q])
    q.grad = torch.ones_like(q)
    second.step()
    p.data.copy_(q.data)
    first = ssc.optim.AdamW([p])
    first.load_state_dict(copy.deepcopy(second.state_dict()))
    p.grad, q.grad = torch.full_like(p, 2.0), torch.full_like(q, 2.0)
    first.step()
    second.step()
    torch.testing.assert_close(p, q)


def test_a_copied_head_has_no_debts(device: str) -> None:
    head = make_head(sparse_grad=True)
    optimizer = ssc.optim.AdamW(head.parameters(), skipped="replay", **EXACT)
    for step in range(4):
        optimizer.zero_grad()
        head(*batch(step)).backward()
        optimizer.step()
    copied, other = copy.deepcopy((head, optimizer))
    optimizer.settle()
    other.settle()
    assert torch.equal(copied.weight, head.weight)
