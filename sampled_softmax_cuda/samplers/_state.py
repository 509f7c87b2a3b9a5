"""The state of samplers: tensors that are saved and moved with a module and are not buffers.

PyTorch's tools do to buffers what a table of a sampler doesn't survive: DistributedDataParallel
overwrites them with rank 0's before every forward pass, `AveragedModel` averages them, `to_empty`
leaves memory that nothing initialises again. So the tensors here are plain attributes. The
state_dict has them under the same names as it would have buffers, and `.to(device)` takes them
along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

_META = torch.device("meta")


@contextmanager
def lasting() -> Iterator[None]:
    """Inside, tensors are made that outlive the caller's modes: on the CPU, for training too."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        yield


class Stateful(nn.Module):
    """A module with int64 tensors as state, which `_STATE` names.

    On the meta device the attributes are meta tensors, as buffers would be, while their values wait
    on the host for a device: a table that is built from data can't be initialised again.

    Python remembers values that it derives (`_derive`) with the tensors' versions, and derives them
    anew when somebody else has written the tensors.
    """

    _STATE: ClassVar[tuple[str, ...]] = ()
    _OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    """Names of state that may be None."""

    persistent: bool

    def __init__(self) -> None:
        super().__init__()
        self.persistent = True
        self._kept: dict[str, Tensor] = {}
        self._seen: list[tuple[str, Tensor, int]] | None = None

    # --- values --------------------------------------------------------------------------------

    def _set_state(
        self, device: torch.device, persistent: bool = True, **values: Tensor | None
    ) -> None:
        """Begin with these values, by the names of `_STATE`; a meta tensor has none."""
        if not isinstance(persistent, bool):
            raise TypeError(
                f"{type(self).__name__}: persistent must be a bool, got {type(persistent).__name__}"
            )
        self.persistent = persistent
        if not persistent:
            self._non_persistent_buffers_set.update(self._STATE)  # whom distributed.checkpoint asks
        with lasting():
            for name, value in values.items():
                self._place(name, value, device)

    def _place(self, name: str, value: Tensor | None, device: torch.device) -> None:
        """Let the attribute be this value on this device, a tensor that training can save."""
        self._kept.pop(name, None)
        if value is None:
            setattr(self, name, None)
        elif device.type == "meta":
            if not value.is_meta:
                self._kept[name] = value.cpu()
            setattr(self, name, torch.empty_like(value, device=device))
        elif value.is_meta:
            setattr(self, name, torch.zeros_like(value, device=device))
        else:
            placed = value.detach().to(device, torch.int64).contiguous()
            setattr(self, name, placed.clone() if placed.is_inference() else placed)

    def _overwrite(self, **values: Tensor) -> None:
        """Other values in the same tensors, which compiled graphs hold."""
        for name, value in values.items():
            tensor = getattr(self, name)
            if tensor.is_meta:
                self._place(name, value, _META)
            else:
                tensor.copy_(value)

    def _values(self) -> dict[str, Tensor | None]:
        """All values; a meta tensor stands for one that there is none of."""
        return {name: self._kept.get(name, getattr(self, name)) for name in self._STATE}

    def _known(self, name: str) -> Tensor:
        """One value; on the meta device the one that waits on the host."""
        value: Tensor = self._kept.get(name, getattr(self, name))
        return value

    def _state_device(self) -> torch.device:
        first: Tensor = getattr(self, self._STATE[0])
        return first.device

    # --- what is derived from the values -------------------------------------------------------

    def _derive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes that follow from the values. ValueError if these can't be right."""
        return {}

    def _state_changed(self) -> None:
        """Called after values were loaded, or found to be others, and `_derive` has looked."""

    def _stamp(self) -> None:
        """Mark the derived values as those of the tensors as they are now."""
        own = self.__dict__
        self._seen = [
            (name, own[name], own[name]._version) for name in self._STATE if own[name] is not None
        ]

    def _unchanged(self) -> bool:
        """Whether what is derived still belongs to the tensors."""
        if self._seen is None:
            return False
        own = self.__dict__
        for name, tensor, version in self._seen:
            if own[name] is not tensor or tensor._version != version:
                return False
        return True

    def _settle(self) -> None:
        """Derive anew if somebody else has written the tensors.

        Raises:
            RuntimeError: there are no values, or they can't be right.
        """
        if torch.compiler.is_compiling():
            self._settle_while_tracing()
        elif not self._unchanged():
            self._look_again()

    # No graph can hold that: torch.compile runs it once, while it traces.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _settle_while_tracing(self) -> bool:
        if not self._unchanged():
            with _disable_current_modes():  # values, also where torch.export makes tensors fake
                self._look_again()
        return True

    def _look_again(self) -> None:
        with lasting():
            values = self._values()
            if any(value is not None and value.is_meta for value in values.values()):
                raise RuntimeError(f"{type(self).__name__}: {self._advice('it has no values yet')}")
            try:
                derived = self._derive(values)
            except ValueError as error:
                raise RuntimeError(f"{type(self).__name__}: {self._advice(str(error))}") from None
            self._accept(derived)

    def _advice(self, problem: str) -> str:
        """A problem of the values, and what to do about it."""
        return (
            f"{problem}; its state was made on the meta device, or written by something else than"
            " its methods. Give it values by load_state_dict()"
        )

    def _accept(self, derived: dict[str, Any]) -> None:
        self.__dict__.update(derived)
        self._stamp()
        self._state_changed()

    def __getstate__(self) -> dict[str, Any]:
        # A copy has tensors of its own, whose versions begin anew.
        return {**self.__dict__, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        with lasting():
            for name in self._STATE:
                tensor = getattr(self, name)
                if tensor is not None and tensor.is_inference():  # copied in inference mode
                    setattr(self, name, tensor.clone())

    # --- what PyTorch does with modules --------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> Stateful:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._STATE:
            self._follow(fn)
        return self

    def _follow(self, fn: Any) -> None:
        """Go where fn puts tensors, whatever else it does to them."""
        device = self._state_device()
        with lasting():
            try:
                there = fn(torch.zeros(1, dtype=torch.int64, device=device))
            except NotImplementedError:
                if device.type != "meta":
                    raise
                there = fn(torch.zeros(1, dtype=torch.int64, device="cpu"))
            if there.device != device:
                self._move(there.device)
            elif there.is_cpu and there.is_shared():
                for value in self._values().values():
                    if value is not None:
                        value.share_memory_()  # type: ignore[no-untyped-call]

    def _move(self, device: torch.device) -> None:
        unchanged = self._unchanged() and self._state_device().type != "meta"
        for name, value in self._values().items():
            self._place(name, value, device)
        self._seen = None
        if unchanged:
            self._stamp()
        self._moved()

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers; with recurse=False the state too.

        torch.distributed.checkpoint and fully_shard ask each module for its own, and save, load and
        move them. DistributedDataParallel and AveragedModel ask for those of a whole tree.
        """
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        if not recurse:
            for name in self._STATE:
                tensor = getattr(self, name)
                if tensor is not None:
                    yield f"{prefix}.{name}" if prefix else name, tensor

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.persistent:
            for name in self._STATE:
                tensor = getattr(self, name)
                if tensor is not None:
                    destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load all values of the module, or none if something is wrong with one."""
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if not self.persistent:
            return
        own = {prefix + name: name for name in self._STATE}
        unexpected_keys[:] = [key for key in unexpected_keys if key not in own]
        there = {name: state_dict[key] for key, name in own.items() if key in state_dict}
        if strict:
            required = (key for key, name in own.items() if name not in self._OPTIONAL)
            missing_keys += [key for key in required if key not in state_dict]
        problems = [self._misfit(prefix + name, name, there[name]) for name in there]
        found = [problem for problem in problems if problem is not None]
        error_msgs += found
        if not there or found:
            return
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        try:
            with lasting():
                self._take(there, assign)
        except ValueError as error:
            error_msgs.append(f'While loading "{prefix[:-1]}" ({type(self).__name__}): {error}')

    def _misfit(self, key: str, name: str, value: object) -> str | None:
        """Why a value of a state_dict can't be copied into the state, in torch's words."""
        current = getattr(self, name)
        if not isinstance(value, Tensor):
            return (
                f'While copying the parameter named "{key}", expected torch.Tensor or Tensor-like'
                f" object from checkpoint but received {type(value)}"
            )
        if current is not None and value.shape != current.shape:
            return (
                f"size mismatch for {key}: copying a param with shape {value.shape} from"
                f" checkpoint, the shape in current model is {current.shape}."
            )
        if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
            return f"dtype mismatch for {key}: it must be int64, got {value.dtype}"
        return None

    def _take(self, loaded: dict[str, Tensor], assign: bool) -> None:
        """Have loaded values, in the tensors that are there or instead of them."""
        before = self._state_device()
        if any(value.is_meta for value in loaded.values()):
            if not assign and before.type != "meta":
                raise ValueError("the tensors of the state_dict are on meta and hold no values")
            if before.type != "meta":
                self._move(_META)  # its own values wait there
            return
        device = next(iter(loaded.values())).device if assign else before
        values = self._values() | loaded | {n: None for n in self._OPTIONAL if n not in loaded}
        complete = not any(value is not None and value.is_meta for value in values.values())
        derived = self._derive(values) if complete else {}
        for name, value in values.items():
            current = getattr(self, name)
            if assign or value is None or current is None or current.is_meta:
                self._place(name, value, device)
            elif name in loaded:
                current.copy_(value)
        if complete:
            self._accept(derived)
        if device != before:
            self._moved()

    def _moved(self) -> None:
        """Called when the state has come to another device."""
