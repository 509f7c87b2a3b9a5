"""Steps that are taken in the backward pass: the half of `in_backward` that an optimizer has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class StepsInBackward:
    """An optimizer that can take each parameter's step as soon as its gradient is complete."""

    param_groups: list[dict[str, Any]]
    _hooks: list[Any]

    def _step_parameters(self, parameters: Iterable[tuple[dict[str, Any], int, Tensor]]) -> None:
        raise NotImplementedError

    def enter_backward(self) -> None:
        """Take each parameter's step as soon as its gradient is complete, and free the gradient."""

        self.leave_backward()
        for group in self.param_groups:
            for p in group["params"]:
                self._hook(p)

    def _hook(self, p: Tensor) -> None:
        """Let a parameter take its step in the backward pass, if it has a gradient."""

        def step(p: Tensor) -> None:
            group, position = self._place(p)
            self._opt_called = True  # for schedulers, which look for a step before theirs
            try:
                with torch.no_grad():
                    self._step_parameters([(group, position, p)])
            finally:
                p.grad = None

        if p.requires_grad:
            self._hooks.append(p.register_post_accumulate_grad_hook(step))  # type: ignore[no-untyped-call]

    def leave_backward(self) -> None:
        """End `enter_backward`."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    def _place(self, p: Tensor) -> tuple[dict[str, Any], int]:
        """The group of a parameter, and its position there."""
        for group in self.param_groups:
            for position, other in enumerate(group["params"]):
                if other is p:
                    return group, position
        raise KeyError(p)
