"""Saved states, of these optimizers or of torch.optim's, made to fit before they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Groups = list[dict[str, Any]]


def completed_groups(groups: Groups, saved: Groups) -> Groups:
    """The saved groups, with this optimizer's values of options that they lack."""
    return [
        {**{k: v for k, v in group.items() if k not in ("params", "param_names")}, **other}
        for group, other in zip(groups, saved, strict=False)
    ]


def numbered(groups: Groups, saved: Groups) -> Iterator[tuple[Any, dict[str, Any], Tensor]]:
    """(number in the saved state, group, parameter) of each parameter; groups that don't match are
    for torch's own error."""
    for group, other in zip(groups, saved, strict=False):
        for number, p in zip(other["params"], group["params"], strict=False):
            yield number, group, p


def fitted_state(
    fn: str,
    number: Any,
    saved: dict[str, Any],
    p: Tensor,
    needed: list[str],
    form: Callable[[str], tuple[tuple[int, ...], torch.dtype]],
) -> dict[str, Any]:
    """The state of one parameter with the dtypes, device and layout that a step takes.

    Args:
        needed: names that a step can't do without.
        form: the shape and the dtype of the state of that name.

    Raises:
        ValueError: a state that is missing, or of another shape.
    """
    state = dict(saved)
    for name, value in saved.items():
        if name == "step" or not isinstance(value, Tensor):
            continue
        shape, dtype = form(name)
        if value.shape != shape:
            raise ValueError(
                f"{fn}.load_state_dict: state {name!r} of parameter {number} must be"
                f" {list(shape)}, got {list(value.shape)}"
            )
        state[name] = value.to(p.device, dtype).contiguous()
    missing = [name for name in needed if not isinstance(state.get(name), Tensor)]
    if saved and missing:
        raise ValueError(
            f"{fn}.load_state_dict: the state of parameter {number} has no {missing[0]!r}, which"
            f" this optimizer needs: it has {sorted(saved)}"
        )
    if saved:
        # torch's SGD counts no steps; its buffer is not new.
        step = saved.get("step", 1.0)
        step = step if isinstance(step, Tensor) else torch.tensor(float(step))
        state["step"] = step.to(p.device, torch.float32, copy=True)
    return state
