"""Bad input: an error that says what is wrong, and nothing half-written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sampled_softmax_cuda as ssc
from helpers.row_steps import parameter, row_gradients, sparse

SHAPE = (8, 3)


def good() -> Tensor:
    return row_gradients(SHAPE, 1)[0]


def unchecked(ids: Tensor, values: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(ids, values, SHAPE, check_invariants=False)


VALUES = torch.ones(2, 3, dtype=torch.float64)
WITH_NAN = VALUES.clone()
WITH_NAN[1, 2] = float("nan")
BAD: dict[str, tuple[Any, str]] = {
    "nan": (lambda: sparse(torch.tensor([5, 2]), WITH_NAN, SHAPE), "has nan in row 2"),
    "inf": (lambda: torch.full(SHAPE, -torch.inf, dtype=torch.float64), "has -inf in row 0"),
    "large id": (lambda: unchecked(torch.tensor([[1, 8]]), VALUES), r"row 8.*\[0, C=8\)"),
    "negative id": (lambda: unchecked(torch.tensor([[-1, 2]]), VALUES), r"row -1.*\[0, C=8\)"),
    "sparse in two": (lambda: good().to_dense().to_sparse(2), "first dimension.*sparse_dim=2"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", [ssc.optim.SGD, ssc.optim.AdamW, ssc.optim.RowWiseAdagrad])
def test_a_bad_gradient_changes_nothing(either: str, kind: Any, name: str) -> None:
    """Not even the parameter before it, or any state."""
    first, second = parameter(SHAPE), parameter(SHAPE)
    optimizer = kind([first, second], lr=0.1)
    first.grad, second.grad = good(), good()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict()["state"])  # which settles all rows
    before = first.detach().clone(), second.detach().clone()
    make, message = BAD[name]
    first.grad = good()
    second.grad = make()
    with pytest.raises(ValueError, match=message) as error:
        optimizer.step()
    assert "param_groups[0]['params'][1]" in str(error.value)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])
    state = optimizer.state_dict()["state"]
    for number, values in saved.items():
        for key, value in values.items():
            assert torch.equal(state[number][key], value), key


def test_a_nan_that_is_wanted(either: str) -> None:
    p = parameter(SHAPE)
    p.grad = sparse(torch.tensor([5, 2]), WITH_NAN, SHAPE)
    ssc.optim.SGD([p], lr=0.1, error_if_nonfinite=False).step()
    assert p[2, 2].isnan()
    assert p.isfinite().sum() == p.numel() - 1


def test_a_parameter_of_another_size(device: str) -> None:
    p = parameter(SHAPE)
    optimizer = ssc.optim.AdamW([p], lr=0.1)
    p.grad = good()
    optimizer.step()
    p.data = parameter((9, 3)).data
    p.grad = row_gradients((9, 3), 1)[0]
    with pytest.raises(ValueError, match=r"is \[9, 3\] now, and its state 'exp_avg' is \[8, 3\]"):
        optimizer.step()


def test_a_gradient_of_another_size(device: str) -> None:
    p = parameter(SHAPE)
    optimizer = ssc.optim.AdamW([p], lr=0.1)
    p.grad = good()
    p.data = parameter((9, 3)).data
    with pytest.raises(ValueError, match=r"must be \[9, 3\] like it, got \[8, 3\]"):
        optimizer.step()


def test_a_state_on_another_device(device: str) -> None:
    p = parameter(SHAPE)
    optimizer = ssc.optim.AdamW([p], lr=0.1)
    p.grad = good()
    optimizer.step()
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].to("meta")
    with pytest.raises(ValueError, match="its state 'exp_avg' on meta"):
        optimizer.step()


OPTIONS: list[tuple[Any, dict[str, Any], str]] = [
    (ssc.optim.SGD, {"lr": -1.0}, "lr must be finite and at least 0, got -1.0"),
    (ssc.optim.SGD, {"lr": float("nan")}, "lr must be finite"),
    (ssc.optim.SGD, {"lr": torch.ones(2)}, r"lr must be one number, got \[2\]"),
    (ssc.optim.SGD, {"lr": torch.tensor(-0.5)}, r"lr must be finite and at least 0, got .*-0.5"),
    (
        ssc.optim.AdamW,
        {"lr": torch.tensor(1.0), "weight_decay": 1.5},
        r"lr \* weight_decay must be below 1",
    ),
    (ssc.optim.SGD, {"lr": "fast"}, "lr must be a float, got str"),
    (ssc.optim.SGD, {"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
    (ssc.optim.SGD, {"nesterov": True}, "nesterov=True needs a momentum"),
    (ssc.optim.SGD, {"skipped": "skip"}, "skipped must be one of 'decay', 'freeze', 'replay'"),
    (ssc.optim.SGD, {"rounding": "up"}, "rounding must be one of 'nearest'"),
    (ssc.optim.SGD, {"seed": -1}, "seed must be at least 0"),
    (ssc.optim.SGD, {"seed": 2**32}, r"seed must be below 2\^32"),
    (ssc.optim.SGD, {"state_dtype": torch.int8}, "state_dtype must be None"),
    (ssc.optim.Adagrad, {"eps": -1e-3}, "eps must be finite and at least 0"),
    (ssc.optim.AdamW, {"betas": (0.9,)}, "betas must be a pair"),
    (ssc.optim.AdamW, {"betas": 0.9}, "betas must be a pair"),
    (ssc.optim.AdamW, {"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), got 1.0"),
    (ssc.optim.AdamW, {"betas": (0.99, 0.9), "skipped": "replay"}, "grow without end"),
    (ssc.optim.AdamW, {"eps": 0.0, "skipped": "replay"}, "needs eps > 0"),
    (ssc.optim.AdamW, {"lr": 1.0, "weight_decay": 1.5}, r"lr \* weight_decay must be below 1"),
    (ssc.optim.Adam, {"weight_decay": 0.1, "skipped": "replay"}, "use AdamW"),
]


@pytest.mark.parametrize(("kind", "options", "message"), OPTIONS)
def test_bad_options(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        kind([parameter(SHAPE)], **options)
    assert str(error.value).startswith(f"optim.{kind.__name__}: ")


def test_a_momentum_that_is_remembered_for_too_long(either: str) -> None:
    p = parameter(SHAPE)
    optimizer = ssc.optim.SGD([p], lr=0.1, momentum=0.9999, skipped="replay")
    p.grad = good()
    with pytest.raises(ValueError, match=r"would remember .* steps .* use skipped='decay'"):
        optimizer.step()
    assert torch.equal(p, parameter(SHAPE))


def stepped(make: Any, shape: tuple[int, ...] = SHAPE) -> Any:
    """An optimizer after a step with a dense gradient."""
    p = parameter(shape)
    optimizer = make([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


STATES: list[tuple[Any, str]] = [
    (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad=True is not available"),
    (lambda p: torch.optim.SGD(p, momentum=0.9), "has no 'exp_avg', which this optimizer needs"),
    (lambda p: torch.optim.AdamW(p, betas=(0.99, 0.9)), "grow without end"),
]


@pytest.mark.parametrize(("make", "message"), STATES)
def test_a_state_that_does_not_fit_changes_nothing(device: str, make: Any, message: str) -> None:
    optimizer = stepped(lambda p: ssc.optim.AdamW(p, lr=0.3, skipped="replay"))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(stepped(make).state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for name, value in before["state"][0].items():
        assert torch.equal(after["state"][0][name], value), name


def test_a_state_of_another_size(device: str) -> None:
    optimizer = stepped(lambda p: ssc.optim.AdamW(p))
    with pytest.raises(
        ValueError, match=r"'exp_avg' of parameter 0 must be \[8, 3\], got \[9, 3\]"
    ):
        optimizer.load_state_dict(stepped(torch.optim.AdamW, (9, 3)).state_dict())


def test_a_parameter_of_another_dtype_changes_nothing(device: str) -> None:
    """Not even the parameter before it."""
    first, second = parameter(SHAPE, torch.float32), parameter(SHAPE, torch.float32)
    optimizer = ssc.optim.AdamW([first, second], lr=0.1)
    first.grad, second.grad = torch.ones_like(first), torch.ones_like(second)
    optimizer.step()
    before = first.detach().clone()
    second.data = second.data.double()
    second.grad = torch.ones_like(second)
    with pytest.raises(ValueError, match=r"\[1\] is torch.float64 now, and its state 'exp_avg'"):
        optimizer.step()
    assert torch.equal(first, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skipped": "replya"}, "skipped must be one of"),
        ({"rounding": "kaahn"}, "rounding must be one of"),
        ({"betas": (0.95, 0.81), "skipped": "replay"}, "grow without end"),
        ({"betas": (1.0, 0.9)}, "betas must be in"),
        ({"lr": float("nan")}, "lr must be finite"),
    ],
)
def test_options_that_are_changed_later(device: str, change: dict[str, Any], message: str) -> None:
    optimizer = stepped(lambda p: ssc.optim.AdamW(p))
    (p,) = optimizer.param_groups[0]["params"]
    before = p.detach().clone()
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(p, before)


def test_a_learning_rate_that_is_written_in_place(either: str) -> None:
    """A CPU's rule: to look at a tensor's value would wait for a GPU."""
    lr = torch.tensor(0.1)
    optimizer = stepped(lambda p: ssc.optim.AdamW(p, lr=lr))
    (p,) = optimizer.param_groups[0]["params"]
    before = p.detach().clone()
    for bad in (-0.1, float("inf"), float("nan"), 200.0):
        lr.fill_(bad)
        with pytest.raises(ValueError, match=r"lr must be finite|weight_decay must be below"):
            optimizer.step()
        assert torch.equal(p, before)
    optimizer.param_groups[0]["lr"] = torch.tensor(float("nan"))
    with pytest.raises(ValueError, match="lr must be finite"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = lr.fill_(0.2)
    optimizer.step()
    assert not torch.equal(p, before)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False), "must be float32"),
        (nn.Parameter(torch.ones(3, dtype=torch.complex64)), "must be float32"),
        (nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False), "must be a dense parameter"),
    ],
)
def test_bad_parameters(p: nn.Parameter, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ssc.optim.AdamW([p])


def test_a_bad_group_isn_t_added() -> None:
    optimizer = ssc.optim.SGD([parameter(SHAPE)], lr=0.1)
    with pytest.raises(ValueError, match="momentum"):
        optimizer.add_param_group({"params": [parameter(SHAPE)], "momentum": 2.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([1, 8]), r"ids\[1\] = 8 is out of range: expected \[0, C=8\)"),
        (torch.tensor([1.0]), "ids must be int64"),
        ([1, 2], "ids must be a Tensor"),
    ],
)
def test_bad_ids_to_settle(either: str, ids: Any, message: str) -> None:
    p = parameter(SHAPE)
    optimizer = ssc.optim.AdamW([p], lr=0.1)
    p.grad = good()
    optimizer.step()
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.settle(ids)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, "SGD", ssc.optim.SGD([parameter(SHAPE)])])
def test_a_wrong_optimizer_in_the_backward_pass(optimizer: Any) -> None:
    with pytest.raises(TypeError, match=r"a class of sampled_softmax_cuda\.optim"):
        ssc.optim.in_backward([parameter(SHAPE)], optimizer, lr=0.1)


@pytest.mark.parametrize("kind", [ssc.optim.SGD, ssc.optim.RowWiseAdagrad, ssc.optim.AdamW])
def test_options_of_torch_are_taken_or_refused_by_name(kind: Any) -> None:
    p = [parameter(SHAPE)]
    optimizer = kind(p, foreach=None, fused=True, amsgrad=False, differentiable=False)
    assert not {"foreach", "fused", "amsgrad", "differentiable"} & set(optimizer.defaults)
    for option in ("amsgrad", "differentiable"):
        with pytest.raises(ValueError, match=f"{option}=True is not available: "):
            kind(p, **{option: True})
    with pytest.raises(TypeError, match=f"{kind.__name__}: there is no option 'lrr'"):
        kind(p, lrr=0.1)
    with pytest.raises(TypeError, match="fused must be a bool"):
        kind(p, fused="yes")
    with pytest.raises(ValueError, match="amsgrad=True is not available"):
        kind([{"params": p, "amsgrad": True}])
