"""Random numbers that are the same for any number of ranks: keys of steps, and initial values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._arguments import describe
from .._philox import philox4x32_10
from .ranks import Ranks

SEED_LIMIT = 2**63 - 1
"""The least number that is no seed."""
_WORD = 0xFFFFFFFF
_CHUNK = 1 << 16  # numbers made at a time, such that all steps on them stay in the cache
_STEPS, _WEIGHT, _BIAS = 0, 1, 2  # what a seed is used for: the last word of the counter


def common_seed(seed: int | None, ranks: Ranks, replicas: Ranks, device: torch.device) -> int:
    """The seed, or one that the first rank of all takes from torch's default generator."""
    if seed is not None:
        return seed
    drawn = torch.randint(SEED_LIMIT, (1,), device="cpu").to(device)
    return int(ranks.broadcast(replicas.broadcast(drawn, "the seed"), "the seed"))


def generator_of_step(seed: int, step: int, device: torch.device, part: int = 0) -> torch.Generator:
    """The generator that a step's negatives come from.

    Args:
        part: 0 for what all ranks draw alike, 1 + rank for what a rank draws for itself.
    """
    counter = step * 2 + _STEPS
    words = (counter & _WORD, counter >> 32, part & _WORD, part >> 32)
    low, high, _, _ = philox4x32_10(words, seed)
    bits = low | high << 32
    return torch.Generator(device).manual_seed(bits & SEED_LIMIT)


def check_generator(fn: str, generator: Any, device: torch.device) -> None:
    """TypeError or ValueError unless the user's generator is one, on the device of the draw."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{fn}: generator must be a torch.Generator or None, got {describe(generator)}: pass"
            " torch.Generator().manual_seed(seed), with the same seed on all ranks"
        )
    if generator.device.type != device.type:
        raise ValueError(
            f"{fn}: generator must be on the device of the head, {device}, got {generator.device}:"
            f" pass torch.Generator({device.type!r})"
        )


def fingerprint(generator: Any) -> int | None:
    """A number that generators in other states do not share; None for what is no generator."""
    if not isinstance(generator, torch.Generator):
        return None
    words = generator.get_state().view(torch.int64)
    return int((words * torch.arange(1, 2 * len(words), 2, device="cpu")).sum())


@torch.no_grad()
def keyed_uniform_(tensor: Tensor, classes: Tensor, seed: int, bound: float) -> Tensor:
    """Fill rows [N, D], or [N] of a bias, from U(-bound, bound) by the seed and their classes.

    Args:
        tensor: filled in place.
        classes: [N] int64, on the CPU.
    """
    columns = tensor.shape[1] if tensor.dim() == 2 else 1
    use = _WEIGHT if tensor.dim() == 2 else _BIAS
    blocks = (columns + 3) // 4
    rows = max(1, _CHUNK // blocks)
    key = torch.tensor(seed, device=tensor.device)
    block = torch.arange(blocks, device=tensor.device)
    for begin in range(0, tensor.shape[0], rows):
        ids = classes[begin : begin + rows].to(tensor.device)[:, None].expand(-1, blocks)
        low, high = ids & _WORD, ids >> 32
        words = philox4x32_10((low, high, block.expand_as(ids), torch.full_like(ids, use)), key)
        bits = torch.stack(words, dim=-1).flatten(1)[:, :columns] >> 8
        values = (bits.to(torch.float32) + 0.5) * 2.0**-24 * (2 * bound) - bound
        tensor[begin : begin + rows] = values.view(tensor[begin : begin + rows].shape)
    return tensor
