"""The options of a parameter group, checked, and the names of its parameters in messages."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arguments import as_bool, as_float, as_int
from .._checks import check_choice
from .._rules import may_look

_SKIPPED = ("decay", "freeze", "replay")
_ROUNDING = ("nearest", "stochastic", "kahan")


# Options of torch's optimizers that are not here, and why.
_REFUSED = {
    "amsgrad": "a maximum over the steps that a row skipped is not known; leave it out",
    "differentiable": "a step has no gradient; use torch.optim",
}


class ParameterName(NamedTuple):
    """How messages name a parameter; put together only if there is one."""

    groups: list[dict[str, Any]]
    group: dict[str, Any]
    position: int

    def __str__(self) -> str:
        if "param_names" in self.group:
            return str(self.group["param_names"][self.position])
        number = next(i for i, other in enumerate(self.groups) if other is self.group)
        return f"param_groups[{number}]['params'][{self.position}]"


def check_options_of_torch(fn: str, options: dict[str, Any]) -> None:
    """An error for options of torch's optimizers that would change a step, and for unknown ones."""
    for name, value in options.items():
        if name in ("foreach", "fused"):
            if value is not None:
                as_bool(fn, name, value)
        elif name not in _REFUSED:
            raise TypeError(f"{fn}: there is no option {name!r}")
        elif value:
            raise ValueError(f"{fn}: {name}=True is not available: {_REFUSED[name]}")


def check_group(fn: str, group: dict[str, Any]) -> None:
    """The options of a group as Python numbers; ValueError or TypeError if they don't fit."""
    check_options_of_torch(fn, {name: group[name] for name in _REFUSED if name in group})
    for key in ("lr", "weight_decay", "eps", "lr_decay", "initial_accumulator_value"):
        if key not in group or (key == "lr" and isinstance(group[key], Tensor)):
            continue
        group[key] = as_float(fn, key, group[key])
        if not 0.0 <= group[key] < float("inf"):
            raise ValueError(f"{fn}: {key} must be finite and at least 0, got {group[key]}")
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"{fn}: lr must be one number, got {list(lr.shape)}")
        lr = float(lr) if may_look(lr) else 0.0  # a GPU would be waited for
        if not 0.0 <= lr < float("inf"):
            raise ValueError(f"{fn}: lr must be finite and at least 0, got {group['lr']}")
    for key in ("maximize", "error_if_nonfinite", "capturable", "nesterov"):
        if key in group:
            group[key] = as_bool(fn, key, group[key])
    if "skipped" in group:
        check_choice(fn, "skipped", group["skipped"], _SKIPPED)
    check_choice(fn, "rounding", group["rounding"], _ROUNDING)
    group["seed"] = as_int(fn, "seed", group["seed"], least=0)
    if group["seed"] >= 1 << 32:
        raise ValueError(f"{fn}: seed must be below 2^32, got {group['seed']}")
    dtype = group["state_dtype"]
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(
            f"{fn}: state_dtype must be None, torch.float32 or torch.bfloat16, got {dtype!r}"
        )
    rates = group.get("betas", (group.get("momentum", 0.0),))
    if not isinstance(rates, (tuple, list)) or len(rates) != (2 if "betas" in group else 1):
        raise ValueError(f"{fn}: betas must be a pair of numbers, got {rates!r}")
    rates = tuple(as_float(fn, "betas" if "betas" in group else "momentum", x) for x in rates)
    for x in rates:
        if not 0.0 <= x < 1.0:
            name = "betas" if "betas" in group else "momentum"
            raise ValueError(f"{fn}: {name} must be in [0, 1), got {x}")
    if "betas" in group:
        group["betas"] = rates
    elif "momentum" in group:
        group["momentum"] = rates[0]
    owes = group.get("skipped", "freeze") != "freeze"
    if owes and lr * group["weight_decay"] >= 1.0:
        raise ValueError(
            f"{fn}: lr * weight_decay must be below 1 for rows that catch up, got"
            f" {lr} * {group['weight_decay']}: use skipped='freeze', or a smaller decay"
        )
