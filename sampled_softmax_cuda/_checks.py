"""Checks of arguments, with the value in the message; done once, before any work.

Only shapes, dtypes and devices are looked at, which takes some ten microseconds; ids are checked by
the kernels, and here again to say which one is wrong. Every function's first argument is the name
of the public function, which opens the message.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

import torch
from torch import Tensor

from ._arguments import as_float, as_int, check_int64, check_plain, describe, fail_tensor
from ._rules import has_values, host_rules
from ._transforms import unwrapped
from .samples import KeyedSamples, Samples

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# Divided by temperatures and caps outside these bounds, numbers leave the range of float32.
LEAST_DIVISOR, LARGEST_DIVISOR = 1e-30, 1e30


def _describe(value: object) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else describe(value)


def _fail_float(fn: str, name: str, value: Any) -> NoReturn:
    if not isinstance(value, Tensor):
        fail_tensor(fn, name, value)
    advice = "" if value.is_complex() else f": pass {name}.float()"
    raise TypeError(
        f"{fn}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}{advice}"
    )


def check_float(fn: str, name: str, value: Any) -> None:
    """TypeError unless `value` is a tensor of a floating dtype that the kernels take."""
    if not isinstance(value, Tensor) or value.dtype not in FLOAT_DTYPES:
        _fail_float(fn, name, value)
    check_plain(fn, name, value)


def check_positive_int(fn: str, name: str, value: Any) -> int:
    """`value` as an int; TypeError unless it is one, ValueError unless it is at least 1."""
    return as_int(fn, name, value, least=1)


def check_choice(fn: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value`; ValueError unless it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{fn}: {name} must be one of {allowed}, got {value!r}")
    return value


def check_divisor(fn: str, name: str, value: Any, instead: str = "") -> float:
    """`value`, by which logits are divided, as a float; TypeError unless it is a number, ValueError
    unless it is positive, finite, and such that quotients stay in the range of float32.

    Args:
        instead: what else may be passed, for the message.
    """
    number = as_float(fn, name, value)
    if not number > 0.0:
        raise ValueError(f"{fn}: {name} must be positive{instead}, got {value}")
    if not LEAST_DIVISOR <= number <= LARGEST_DIVISOR:
        raise ValueError(
            f"{fn}: {name} must be in [{LEAST_DIVISOR:g}, {LARGEST_DIVISOR:g}], so that logits"
            f" divided by it stay in the range of float32{instead}, got {value}"
        )
    return number


def check_temperature(fn: str, value: Any) -> float:
    """The temperature as a float; see `check_divisor`."""
    return check_divisor(fn, "temperature", value)


def check_ignore_index(fn: str, value: Any) -> int:
    """`value` as an int; TypeError unless it is one, ValueError if int64 can't hold it."""
    index = as_int(fn, "ignore_index", value)
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"{fn}: ignore_index must be an int64, got {index}")
    return index


def check_padding_idx(fn: str, padding_idx: Any, num_classes: int) -> int:
    """padding_idx as a class in [0, C); negative ones count from the end, as in nn.Embedding."""
    index = as_int(fn, "padding_idx", padding_idx)
    if not -num_classes <= index < num_classes:
        raise ValueError(
            f"{fn}: padding_idx must be in [-C, C) with C={num_classes}, or None, got {index}"
        )
    return index % num_classes


def check_parameters(fn: str, input: Any, weight: Any, bias: Any) -> None:
    """input [*, D], weight [C, D] and bias [C] fit together in shape, dtype and device."""
    check_float(fn, "input", input)
    check_float(fn, "weight", weight)
    shape = input.shape
    if len(shape) == 0:
        raise ValueError(f"{fn}: input must be [*, D], got a tensor without dimensions")
    width = shape[-1]
    if weight.dim() != 2 or weight.shape[1] != width:
        transposed = weight.dim() == 2 and weight.shape[0] == width
        advice = ", which is its transpose: pass weight.t().contiguous()" if transposed else ""
        raise ValueError(
            f"{fn}: weight must be [C, D={width}] to match input {list(shape)},"
            f" got {list(weight.shape)}{advice}"
        )
    num_classes = weight.shape[0]
    if num_classes == 0 or width == 0:
        raise ValueError(
            f"{fn}: weight must hold at least one class and one feature, got {list(weight.shape)}"
        )
    _check_pair(fn, "weight", weight, input)
    if bias is not None:
        check_float(fn, "bias", bias)
        if bias.dim() != 1 or bias.shape[0] != num_classes:
            column = bias.numel() == num_classes
            raise ValueError(
                f"{fn}: bias must be [C={num_classes}] to match weight {list(weight.shape)},"
                f" got {list(bias.shape)}{': pass bias.flatten()' if column else ''}"
            )
        _check_pair(fn, "bias", bias, input)


def _check_pair(fn: str, name: str, parameter: Tensor, input: Tensor) -> None:
    dtype, input_dtype = parameter.dtype, input.dtype
    if dtype != input_dtype and torch.float64 in (dtype, input_dtype):
        raise TypeError(
            f"{fn}: float64 does not mix with other dtypes:"
            f" input is {input_dtype}, {name} is {dtype}"
        )
    check_device(fn, name, parameter, input)


def check_device(fn: str, name: str, tensor: Tensor, other: Tensor, its: str = "input") -> None:
    """ValueError unless `tensor` is on the device of `other`, whose name is `its`."""
    if tensor.device != other.device:
        raise ValueError(
            f"{fn}: {name} must be on the device of {its}, {other.device}, got {tensor.device}"
        )


def _check_class_ids(fn: str, target: Any, input: Tensor, num_classes: int) -> None:
    """target is int64; of rows of probabilities, F.cross_entropy's other kind, it says so."""
    if (
        isinstance(target, Tensor)
        and target.dtype in FLOAT_DTYPES
        and target.shape == (*input.shape[:-1], num_classes)
    ):
        raise TypeError(
            f"{fn}: target must be int64 class ids, got {target.dtype} rows over C={num_classes}"
            " classes: pass target.argmax(-1) if they are one-hot; soft labels need the full"
            " softmax"
        )
    check_int64(fn, "target", target)


def _squeezed(target: Tensor, expected: torch.Size) -> str:
    """Advice on a target [*, 1]."""
    return ": pass target.squeeze(-1)" if target.shape == (*expected, 1) else ""


def check_target(fn: str, target: Any, input: Tensor, num_classes: int) -> None:
    """target has the shape of input without its last dimension."""
    _check_class_ids(fn, target, input, num_classes)
    expected = input.shape[:-1]
    if target.shape != expected:
        raise ValueError(
            f"{fn}: target must be {list(expected)} to match input {list(input.shape)},"
            f" got {list(target.shape)}{_squeezed(target, expected)}"
        )
    check_device(fn, "target", target, input)


def check_targets(fn: str, target: Any, input: Tensor, num_classes: int) -> None:
    """target is [*] for input [*, D], or [*, T] with T >= 1 true classes for each row."""
    _check_class_ids(fn, target, input, num_classes)
    leading = input.shape[:-1]
    if target.shape != leading and (
        target.dim() != input.dim() or target.shape[:-1] != leading or target.shape[-1] == 0
    ):
        raise ValueError(
            f"{fn}: target must be {list(leading)} or {[*leading, 'T']}, T >= 1, to match input"
            f" {list(input.shape)}, got {list(target.shape)}"
        )
    check_device(fn, "target", target, input)


def check_samples(fn: str, samples: Any, target: Tensor, input: Tensor, num_classes: int) -> None:
    """samples is a Samples: ids [S], or [*, S] for input [*, D], with log counts of their shape or
    None; or KeyedSamples for rows [*] and C classes. Log counts have the target's shape or None."""
    if isinstance(samples, Samples):
        _check_ids_and_counts(fn, samples.ids, samples.log_expected_count, input)
    elif isinstance(samples, KeyedSamples):
        if samples.shape != tuple(input.shape[:-1]):
            raise ValueError(
                f"{fn}: samples must be drawn for the rows {list(input.shape[:-1])} of input"
                f" {list(input.shape)}, got some for {list(samples.shape)}"
                f"{_num_true(samples, input)}"
            )
        if samples.num_classes > num_classes:
            raise ValueError(
                f"{fn}: samples must be drawn from at most C={num_classes} classes, got"
                f" {samples.num_classes}"
            )
        check_device(fn, "samples.key", samples.key, input)
    else:
        raise TypeError(
            f"{fn}: samples must be a Samples(ids, log_expected_count, target_log_expected_count)"
            f" or KeyedSamples, got {_describe(samples)}"
        )
    target_log_count = samples.target_log_expected_count
    if target_log_count is not None:
        check_float(fn, "samples.target_log_expected_count", target_log_count)
        if target_log_count.shape != target.shape:
            raise ValueError(
                f"{fn}: samples.target_log_expected_count must be {list(target.shape)} to match"
                f" target, got {list(target_log_count.shape)}"
            )
        check_device(fn, "samples.target_log_expected_count", target_log_count, input)


def _num_true(samples: KeyedSamples, input: Tensor) -> str:
    """The advice for draws of which every target of a row was taken for a row."""
    rows = tuple(input.shape[:-1])
    return ": draw them with num_true=T" if samples.shape[:-1] == rows else ""


def _check_ids_and_counts(fn: str, ids: Any, log_count: Any, input: Tensor) -> None:
    check_int64(fn, "samples.ids", ids)
    if ids.dim() != 1 and ids.shape[:-1] != input.shape[:-1]:
        raise ValueError(
            f"{fn}: samples.ids must be [S], shared by all rows, or"
            f" {[*input.shape[:-1], 'S']} to match input {list(input.shape)}, got {list(ids.shape)}"
        )
    if ids.dim() == 0 or ids.shape[-1] == 0:
        raise ValueError(f"{fn}: samples.ids must be [S] with S >= 1, got {list(ids.shape)}")
    check_device(fn, "samples.ids", ids, input)
    if log_count is not None:
        check_float(fn, "samples.log_expected_count", log_count)
        if log_count.shape != ids.shape:
            raise ValueError(
                f"{fn}: samples.log_expected_count must be {list(ids.shape)} to match samples.ids,"
                f" got {list(log_count.shape)}"
            )
        check_device(fn, "samples.log_expected_count", log_count, input)


def check_exclude(fn: str, exclude: Any, input: Tensor) -> None:
    """exclude is [*, E] int64 for input [*, D]."""
    check_int64(fn, "exclude", exclude)
    leading = input.shape[:-1]
    if exclude.dim() != input.dim() or exclude.shape[:-1] != leading:
        raise ValueError(
            f"{fn}: exclude must be {[*leading, 'E']} to match input {list(input.shape)},"
            f" got {list(exclude.shape)}"
        )
    check_device(fn, "exclude", exclude, input)


def check_sample_weight(fn: str, sample_weight: Any, input: Tensor) -> None:
    """sample_weight [*] is a floating tensor, for input [*, D]."""
    check_float(fn, "sample_weight", sample_weight)
    if sample_weight.shape != input.shape[:-1]:
        raise ValueError(
            f"{fn}: sample_weight must be {list(input.shape[:-1])} to match input"
            f" {list(input.shape)}, got {list(sample_weight.shape)}"
        )
    check_device(fn, "sample_weight", sample_weight, input)


def check_class_weight(fn: str, class_weight: Any, weight: Tensor) -> None:
    """class_weight [C] is a floating tensor, for weight [C, D]."""
    check_float(fn, "class_weight", class_weight)
    if class_weight.shape != weight.shape[:1]:
        raise ValueError(
            f"{fn}: class_weight must be [C={weight.shape[0]}] to match weight"
            f" {list(weight.shape)}, got {list(class_weight.shape)}"
        )
    check_device(fn, "class_weight", class_weight, weight, "weight")


def may_read(values: Tensor) -> bool:
    """Whether a check may look at values: on the CPU, and on CUDA with SSC_CHECK_TARGETS=1 only,
    since that waits for the device. Not under torch.compile, where there are none yet.
    """
    if not has_values(values):
        return False
    return host_rules(values) or os.environ.get("SSC_CHECK_TARGETS", "0") not in ("", "0")


def check_id_range(
    fn: str, name: str, ids: Tensor, num_classes: int, ignore_index: int | None = None
) -> None:
    """IndexError for the first id outside [0, C) that is not `ignore_index`.

    Looks at values only where `may_read` allows it. Under torch.compile the graph gets a check, on
    the CPU, that raises RuntimeError.
    """
    if torch.compiler.is_compiling():
        if host_rules(ids):
            _check_id_range_in_graph(fn, name, ids, num_classes, ignore_index)
        return
    ids = unwrapped(ids)
    if ids.numel() == 0 or not may_read(ids):
        return
    first, last = (int(end) for end in torch.aminmax(ids))
    if first >= 0 and last < num_classes:
        return
    bad = (ids < 0) | (ids >= num_classes)
    if ignore_index is not None:
        bad &= ids != ignore_index
    if not bool(bad.any()):
        return
    position = [int(i) for i in bad.nonzero()[0]]
    value = int(ids[tuple(position)])
    where = "" if ignore_index is None else f" or ignore_index={ignore_index}"
    raise IndexError(
        f"{fn}: {name} must be in [0, C={num_classes}){where}, got {value} at {position}"
    )


def _check_id_range_in_graph(
    fn: str, name: str, ids: Tensor, num_classes: int, ignore_index: int | None
) -> None:
    """RuntimeError from a traced graph, at run time, for an id outside [0, C)."""
    good = (ids >= 0) & (ids < num_classes)
    where = ""
    if ignore_index is not None:
        good |= ids == ignore_index
        where = f" or ignore_index={ignore_index}"
    torch._assert_async(good.all(), f"{fn}: {name} must be in [0, C){where}, got an id outside")
