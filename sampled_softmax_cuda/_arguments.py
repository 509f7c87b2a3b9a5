"""Numbers and ids as users pass them: numbers are Python's or NumPy's, ids are int64 tensors.

Every function's first two arguments are the name of the public function and of the argument, which
open the message. They return a Python number, whatever came.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, NoReturn

import torch
from torch import Tensor

from ._parallel import refuse_dtensor


def describe(value: object) -> str:
    """The value that was passed, in a few words."""
    if isinstance(value, Tensor):
        return f"a Tensor {list(value.shape)} of {value.dtype}"
    if _is_array(value):
        return f"ndarray {list(value.shape)} of {value.dtype}"  # type: ignore[attr-defined]
    name, package = type(value).__name__, type(value).__module__.partition(".")[0]
    if "sampled_softmax_cuda" in package and package != __name__.partition(".")[0]:
        return f"the {name} of another build, {package}: both must come from one"
    return name


def _is_array(value: object) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def _plain(value: Any) -> Any:
    """A NumPy scalar, or an array of no dimension, as the Python number it holds."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _fail(fn: str, name: str, kind: str, value: object) -> NoReturn:
    one = isinstance(value, Tensor) and value.numel() == 1
    advice = f": pass {name}.item()" if one else ""
    raise TypeError(f"{fn}: {name} must be {kind}, got {describe(value)}{advice}")


def as_int(fn: str, name: str, value: Any, least: int | None = None, kind: str = "an int") -> int:
    """TypeError unless `value` is an integer, ValueError if it is below `least`.

    Args:
        kind: what it must be, for the message.
    """
    if type(value) is not int and not isinstance(value, torch.SymInt):
        plain = _plain(value)
        if isinstance(plain, (bool, Tensor)) or not isinstance(plain, Integral):
            _fail(fn, name, kind, value)
        value = int(plain)
    if least is not None and value < least:
        raise ValueError(f"{fn}: {name} must be at least {least}, got {value}")
    return value  # type: ignore[no-any-return]


def as_float(fn: str, name: str, value: Any) -> float:
    """TypeError unless `value` is a real number."""
    if type(value) is not float:
        plain = _plain(value)
        if isinstance(plain, (bool, Tensor)) or not isinstance(plain, Real):
            _fail(fn, name, "a float", value)
        try:
            value = float(plain)
        except OverflowError:  # an int beyond float64
            value = math.inf if plain > 0 else -math.inf  # type: ignore[operator]
    return value  # type: ignore[no-any-return]


def as_bool(fn: str, name: str, value: Any) -> bool:
    """TypeError unless `value` is True or False, or 1 or 0."""
    if value is True or value is False:
        return value
    plain = _plain(value)
    if not isinstance(plain, int) or plain not in (0, 1):
        _fail(fn, name, "a bool", value)
    return bool(plain)


def fail_tensor(fn: str, name: str, value: Any) -> NoReturn:
    """The error of what is no tensor, with what to do about arrays and lists."""
    got = describe(value)
    advice = ""
    if got.startswith("ndarray"):
        advice = f": pass torch.from_numpy({name})"
    elif isinstance(value, (list, tuple)) or type(value).__module__ == "numpy":
        advice = f": pass torch.as_tensor({name})"
    raise TypeError(f"{fn}: {name} must be a Tensor, got {got}{advice}")


def check_int64(fn: str, name: str, value: Any) -> None:
    """TypeError unless `value` is an int64 tensor."""
    if not isinstance(value, Tensor):
        fail_tensor(fn, name, value)
    if value.dtype != torch.int64:
        advice = "" if value.dtype == torch.bool or value.is_complex() else f": pass {name}.long()"
        raise TypeError(f"{fn}: {name} must be int64, got {value.dtype}{advice}")
    check_plain(fn, name, value)


def check_plain(fn: str, name: str, value: Tensor) -> None:
    """TypeError for a tensor whose elements do not lie in one memory by strides."""
    if value.layout is not torch.strided:
        raise TypeError(
            f"{fn}: {name} must be a dense tensor, got one of {value.layout}: pass"
            f" {name}.to_dense()"
        )
    refuse_dtensor(fn, name, value)
