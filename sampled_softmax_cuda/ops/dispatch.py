"""Which arguments the compiled kernels of a device take, and in which form; others are served by
the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .._rules import host_rules
from .._transforms import transformed
from . import precision
from .autograd import kernel_serves
from .library import native_for
from .trust import trusted

_HALVES = (torch.bfloat16, torch.float16)


def kernels_take(
    operator: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *log_counts: Tensor | None,
    converted: bool = False,
) -> bool:
    """True if `operator` has a kernel for the device, the dtypes and the derivatives of these.

    Those of the CPU take every mixture that passed the checks. Those of CUDA take one dtype, the
    weight's, so input and bias must have it or fit into it without rounding; and log expected
    counts in float32, which would spoil a float64 loss if they were float64.

    Args:
        converted: all three come in one dtype by then, whatever they have now.
    """
    if not native_for(input.device, operator):
        return False
    if transformed(input, weight, bias) and not kernel_serves(operator):
        return False
    if host_rules(input):
        return True
    counts_fit = input.dtype != torch.float64 or all(
        count is None or count.dtype != torch.float64 for count in log_counts
    )
    fit = converted or (_fits(input, weight.dtype) and _fits(bias, weight.dtype))
    return counts_fit and fit and trusted(operator, weight, weight.dtype)


def native_serves(operator: str, tensor: Tensor, dtype: torch.dtype) -> bool:
    """`kernels_take` for operators that take any arguments that passed the checks.

    Args:
        tensor: any of the arguments, for its device.
        dtype: that of the parameter; int64 for draws.
    """
    if not native_for(tensor.device, operator):
        return False
    return host_rules(tensor) or trusted(operator, tensor, dtype)


def _fits(tensor: Tensor | None, dtype: torch.dtype) -> bool:
    if tensor is None or tensor.dtype == dtype:
        return True
    return dtype == torch.float32 and tensor.dtype in _HALVES


def as_kernels_take(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Parameters that `kernels_take`, in the layout and, on CUDA, the dtype that they want.

    Args:
        input: [*, D].
        weight: [C, D]; the one that is large, so its dtype is never changed.
        bias: [C] or None.

    Returns:
        input [B, D], weight with unit stride along D, and bias; differentiable.
    """
    if input.dim() != 2:
        input = input.reshape(-1, input.shape[-1])
    if not host_rules(input):
        input = input.to(weight.dtype)
        bias = None if bias is None else bias.to(weight.dtype)
    return input.contiguous(), weight if weight.stride(1) == 1 else weight.contiguous(), bias


def float32_products(input: Tensor, weight: Tensor) -> int:
    """How the kernels may multiply float32 numbers, for the operators' argument `products`.

    That is torch's own choice for the device, `torch.set_float32_matmul_precision` or
    `torch.backends.mkldnn.matmul.fp32_precision`, on CUDA that of `torch.backends.cuda.matmul`. The
    kernels make use of it where they gain by it.
    """
    if torch.float32 not in (input.dtype, weight.dtype):
        return precision.IEEE
    setting = precision.on_cpu if host_rules(weight) else precision.on_cuda
    return precision.NUMBER_OF.get(setting, precision.IEEE)
