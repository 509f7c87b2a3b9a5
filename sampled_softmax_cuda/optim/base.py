"""Optimizers whose step costs as much as the rows that have a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _owed
from .._arguments import check_int64
from .._rules import may_look
from ..ops.optim import gradient_faults, row_update
from ..updates import RowUpdate, Rule, UpdateOptions
from .gradients import RowGradient, check_parameter, row_gradient
from .groups import ParameterName, check_group, check_options_of_torch
from .history import History, check_horizon
from .hooks import StepsInBackward
from .loading import completed_groups, fitted_state, numbered
from .state import check_state, lazy_zeros

_HALVES = (torch.bfloat16, torch.float16)


class _Work(NamedTuple):
    """A parameter whose gradient has been checked."""

    group: dict[str, Any]
    parameter: Tensor
    gradient: RowGradient


class RowOptimizer(StepsInBackward, torch.optim.Optimizer):
    """The base of the optimizers of `sampled_softmax_cuda.optim`.

    A step reads and writes the rows of a parameter that have a gradient, and their states, in one
    pass. Everything is checked before anything is written.
    """

    # GradScaler hands its scale and what it found to `step`, which so waits for no device.
    _step_supports_amp_scaling = True

    rule: Rule
    # The states of a parameter, by the names that torch.optim has for them.
    first_name: str | None = None
    second_name: str | None = None

    def __init__(self, params: Any, defaults: dict[str, Any], of_torch: dict[str, Any]) -> None:
        check_options_of_torch(self._name, of_torch)
        self._histories: dict[Tensor, History] = {}
        self._hooks = []
        self._checked: dict[int, list[Any]] = {}  # options of groups, by their addresses
        self._numbers: dict[Tensor, int] = {}  # so that no two parameters share random bits
        super().__init__(params, defaults)

    # --- options ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, with checks of the options and of the parameters."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            for position, p in enumerate(group["params"]):
                check_parameter(self._name, ParameterName(self.param_groups, group, position), p)
        except Exception:
            self.param_groups.pop()
            raise
        for p in group["params"]:
            self._numbers[p] = len(self._numbers)
            if self._hooks:
                self._hook(p)

    @property
    def _name(self) -> str:
        return f"optim.{type(self).__name__}"

    def _check_group(self, group: dict[str, Any]) -> None:
        """The options of a group as Python numbers; ValueError or TypeError if they don't fit."""
        check_group(self._name, group)

    def _check_changed(self, group: dict[str, Any]) -> None:
        """The same for options that were changed since they were checked, such as by a scheduler;
        only a comparison for those that were not."""
        values = self._values(group)
        if self._checked.get(id(group)) != values:
            self._check_group(group)
            self._checked[id(group)] = self._values(group)

    def _values(self, group: dict[str, Any]) -> list[Any]:
        """The options, with the number of a learning rate that is written in place."""
        lr = group["lr"]
        number = float(lr) if isinstance(lr, Tensor) and lr.numel() == 1 and may_look(lr) else lr
        return [number, *(group[name] for name in self.defaults)]

    def _options(self, group: dict[str, Any], lr: float | Tensor, sparse: bool) -> UpdateOptions:
        """The numbers of a step with dense or row-sparse gradients."""
        raise NotImplementedError

    def _owes(self, group: dict[str, Any]) -> bool:
        """Whether rows without gradient owe anything."""
        return False

    # --- state ------------------------------------------------------------------------------------

    def _state_dtype(self, p: Tensor, group: dict[str, Any]) -> torch.dtype:
        if p.dtype == torch.float64:
            return torch.float64
        wanted = group["state_dtype"]
        return torch.bfloat16 if wanted == torch.bfloat16 else torch.float32

    def _state_form(
        self, name: str, p: Tensor, group: dict[str, Any]
    ) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape and the dtype of a state."""
        if name == self.second_name and self.rule.row_wise:
            rows = p.shape[0] if p.dim() > 0 else 1
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            return (rows,), dtype
        dtype = p.dtype if name == "compensation" else self._state_dtype(p, group)
        return tuple(p.shape), dtype

    def _state_names(self, p: Tensor, group: dict[str, Any]) -> list[str]:
        names = [name for name in (self.first_name, self.second_name) if name is not None]
        if group["rounding"] == "kahan" and p.dtype in _HALVES:
            names.append("compensation")
        return names

    def _state(self, p: Tensor, group: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The state of a parameter, and whether it is new."""
        state: dict[str, Any] = self.state[p]
        new = "step" not in state
        if not isinstance(state.get("step"), Tensor):
            step = float(state.get("step", 0.0))
            state["step"] = torch.tensor(step, dtype=torch.float32, device=p.device)
        for name in self._state_names(p, group):
            if state.get(name) is None:
                state[name] = lazy_zeros(*self._state_form(name, p, group), p.device)
                self._initialize(name, state[name], group)
        return state, new

    def make_states(self) -> None:
        """Make the states that the first step would make, for `load_state_dict` in place."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    self._state(p, group)

    def _initialize(self, name: str, value: Tensor, group: dict[str, Any]) -> None:
        """Fill a new state, if it doesn't start from zero."""

    def _history(
        self, p: Tensor, group: dict[str, Any], options: UpdateOptions, new: bool, sparse: bool
    ) -> History | None:
        """The history of a parameter; it has one from its first sparse gradient on."""
        old = self._histories.get(p)
        owes = self._owes(group) and group["skipped"] != "freeze"
        if old is not None:
            if owes and old.serves(options, p.dtype):
                return old
            self.settle_parameter(p)
            del self._histories[p]
        elif not sparse:
            return None
        if not owes or p.shape[0] == 0:
            return None
        history = self._histories[p] = History(p, self.state[p]["step"], options, new)
        _owed.register(p, self, options.replay)
        return history

    # --- the step ---------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that are there.

        Args:
            closure: computes the loss again, with its gradients; for parity with torch.optim.

        Raises:
            ValueError: a gradient or a state that doesn't fit its parameter; on the CPU, inf or NaN
                in a gradient. No parameter has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_parameters(
            (group, position, p)
            for group in self.param_groups
            for position, p in enumerate(group["params"])
        )
        return loss

    @torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
        reason="a step of sampled_softmax_cuda.optim is an operator by itself"
    )
    def _step_parameters(self, parameters: Iterable[tuple[dict[str, Any], int, Tensor]]) -> None:
        found_inf = getattr(self, "found_inf", None)
        work = []
        for group, position, p in parameters:
            if p.grad is None:
                continue
            name = ParameterName(self.param_groups, group, position)
            self._check_changed(group)
            row_wise = self.second_name if self.rule.row_wise else None
            check_state(self._name, name, p, self.state.get(p), row_wise)
            if group.get("skipped") == "replay" and p.grad.layout != torch.strided:
                check_horizon(self._name, name, self._options(group, 0.0, True), p.dtype)
            check = group["error_if_nonfinite"] and found_inf is None
            gradient = row_gradient(self._name, name, p, p.grad, check)
            work.append(_Work(group, p, gradient))
        for item in work:
            self._update(item)

    def _update(self, work: _Work) -> None:
        group, p, gradient = work
        lr = group["lr"]
        if isinstance(lr, Tensor) and may_look(lr):
            lr = float(lr)
        sparse = gradient.ids is not None
        options = self._options(group, lr, sparse)
        _, new = self._state(p, group)
        history = self._history(p, group, options, new, sparse)
        found_inf = getattr(self, "found_inf", None)
        grad_scale = getattr(self, "grad_scale", None)
        self._run(
            p,
            group,
            options,
            history,
            values=gradient.values,
            ids=gradient.ids,
            order=gradient.order,
            grad_scale=None if grad_scale is None else grad_scale.to(p.device),
            found_inf=None if found_inf is None else found_inf.to(p.device),
        )
        torch.autograd.graph.increment_version(p)
        if history is not None:
            history.steps += 1

    def _run(
        self,
        p: Tensor,
        group: dict[str, Any],
        options: UpdateOptions,
        history: History | None,
        **arguments: Any,
    ) -> None:
        """`row_update` of a parameter with its states."""
        state = self.state[p]
        rows = _as_rows(p.data)
        row_update(
            RowUpdate(
                options,
                rows,
                state["step"],
                first=_state_rows(state.get(self.first_name)),
                second=_state_rows(state.get(self.second_name)),
                compensation=_state_rows(state.get("compensation")),
                last_step=None if history is None else history.last_step,
                history=None if history is None else history.numbers,
                horizon=0 if history is None else history.horizon,
                rounding=group["rounding"],
                seed=group["seed"] | self._numbers[p] << 32,
                **arguments,
            )
        )
        if rows.data_ptr() != p.data_ptr():
            p.data.copy_(rows.view(p.shape))

    # --- debts ------------------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self, ids: Tensor | None = None, parameter: Tensor | None = None) -> None:
        """Let rows that had no gradient for a while pay what they owe: the decay of their moments
        and of their weights and, with skipped="replay", the moves that they have missed.

        To be called before weights are evaluated, exported or saved by others than
        `SampledSoftmaxLoss` and `state_dict` of this optimizer, which do it by themselves. A step
        needs no call: it settles the rows that it changes. Without such debts nothing happens.

        Args:
            ids: [*] int64, rows of `parameter`, or of every parameter of this optimizer; on the
                CPU, ValueError if one is out of range. None: all rows, in one pass.
            parameter: one of this optimizer's, such as `embedding.weight`; None: all of them.
        """
        fn = f"{self._name}.settle"
        if parameter is not None and parameter not in self._numbers:
            raise ValueError(f"{fn}: parameter must be one of this optimizer's")
        lagging = list(self._histories) if parameter is None else [parameter]
        if ids is not None:
            check_int64(fn, "ids", ids)
            ids = ids.reshape(-1).contiguous()
            for p in lagging if may_look(ids) else []:
                at, _ = gradient_faults(ids, ids, p.shape[0], False)
                if at >= 0:
                    several = parameter is None and len(lagging) > 1
                    advice = "; pass the parameter that they are rows of" if several else ""
                    raise ValueError(
                        f"{fn}: ids[{at}] = {int(ids[at])} is out of range: expected"
                        f" [0, C={p.shape[0]}){advice}"
                    )
        for p in lagging:
            self.settle_parameter(p, ids)

    def lags(self, parameter: Tensor, all_rows: bool) -> bool:
        """Whether rows of a parameter must be settled before they are read, or all rows: single
        ones with skipped="decay" lag behind until they are touched."""
        history = self._histories.get(parameter)
        if history is None or history.steps == 0:
            return False
        return all_rows or history.options.replay

    @torch.no_grad()
    def settle_parameter(self, parameter: Tensor, ids: Tensor | None = None) -> None:
        """Let rows of one parameter pay; see `settle`. Ids that are no rows are left out.

        Args:
            parameter: one of this optimizer's.
            ids: [*] int64, or None for all rows.
        """
        history = self._histories.get(parameter)
        if history is None or history.steps == 0:
            return
        group, _ = self._place(parameter)
        rows = None if ids is None else ids.reshape(-1).to(parameter.device).contiguous()
        self._run(parameter, group, history.options, history, ids=rows)
        if ids is None:
            history.steps = 0

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As torch's, after `settle`: it has the names and shapes of torch.optim's states, and
        nothing that rows owe."""
        self.settle()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; states keep the dtypes of this optimizer, whatever the parameter's is.

        Takes the state of the optimizers of torch.optim with the same rule too.
        """
        fitted: dict[Tensor, dict[str, Any]] = {}

        # After the hooks of users, and before anything is written.
        def check(_: Any, final: dict[str, Any]) -> dict[str, Any]:
            groups = completed_groups(self.param_groups, final["param_groups"])
            for group in groups:
                self._check_group(group)
            for number, group, p in numbered(self.param_groups, groups):
                saved = final["state"].get(number, {})
                needed = self._state_names(p, group)
                fitted[p] = fitted_state(
                    self._name,
                    number,
                    saved,
                    p,
                    [name for name in needed if name != "compensation"],
                    lambda name, p=p, group=group: self._state_form(name, p, group),  # type: ignore[misc]
                )
            return {**final, "param_groups": groups}

        # torch has put everything into the parameter's dtype by then.
        def write(_: Any) -> None:
            for p, state in fitted.items():
                if state:
                    self.state[p] = state

        handles = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(write, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._histories = {}
        self._hooks = getattr(self, "_hooks", [])
        self._checked = {}
        self._numbers = {}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            for p in group["params"]:
                self._numbers[p] = len(self._numbers)

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return super().__getstate__()


def _state_rows(value: Tensor | None) -> Tensor | None:
    """A state as `_as_rows` takes its parameter; states are contiguous."""
    return value.reshape(1) if value is not None and value.dim() == 0 else value


def _as_rows(p: Tensor) -> Tensor:
    """p as [C, D] or [C] with unit stride along D: a view of it, where there is one."""
    if p.dim() < 2:
        return p.reshape(1) if p.dim() == 0 else p.contiguous()
    if p.dim() == 2 and (p.stride(1) == 1 or p.shape[1] <= 1):
        return p
    return p.contiguous().view(p.shape[0], -1) if p.numel() > 0 else p.reshape(p.shape[0], 0)
