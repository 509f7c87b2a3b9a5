"""Philox4x32-10 in PyTorch: the same 64 bits for the same key as the compiled kernels.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405. PyTorch has no unsigned 64-bit arithmetic on every device,
so words are int64 numbers in [0, 2^32), and a 64-bit result is the int64 with the same bits.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF
_MUL = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Word = TypeVar("Word", Tensor, int)


def high32(x: Word) -> Word:
    """The high half of 64 bits; the shift of an int64 would copy the sign."""
    return (x >> 32) & _LOW32


def mul_wide(x: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """x * c in 128 bits, as (high, low) 64 bits; x int64 and 0 <= c < 2^64 count as unsigned."""
    x_low, x_high = x & _LOW32, high32(x)
    c_low, c_high = c & _LOW32, c >> 32
    low = x_low * c_low  # products of 32-bit words: their 64 bits are right, signed or not
    cross = x_high * c_low
    middle = high32(low) + (cross & _LOW32) + x_low * c_high
    high = x_high * c_high + high32(cross) + high32(middle)
    return high, (middle << 32) | (low & _LOW32)


def philox4x32_10(
    counter: tuple[Word, Word, Word, Word], seed: Word
) -> tuple[Word, Word, Word, Word]:
    """Four random words for each counter.

    Args:
        counter: four int64 tensors of one shape, words in [0, 2^32); or four numbers.
        seed: int64 [], 64 bits of key; or a number.
    """
    w0, w1, w2, w3 = counter
    k0, k1 = seed & _LOW32, high32(seed)
    for _ in range(_ROUNDS):
        p0, p1 = w0 * _MUL[0], w2 * _MUL[1]
        w0, w1, w2, w3 = high32(p1) ^ w1 ^ k0, p1 & _LOW32, high32(p0) ^ w3 ^ k1, p0 & _LOW32
        k0, k1 = (k0 + _WEYL[0]) & _LOW32, (k1 + _WEYL[1]) & _LOW32
    return w0, w1, w2, w3


def philox_bits(key: Tensor, first: int, count: int, subsequence: Tensor | None = None) -> Tensor:
    """The 64 bits of draws first .. first + count - 1 of a key.

    Draw i is words 2l and 2l + 1, l = i % 2, of counter offset + i // 2 in the subsequence.

    Args:
        key: int64 [2], (seed, offset).
        first: an even number.
        count: how many draws.
        subsequence: int64 [B], a stream for each row; None: the one of subsequence 0.

    Returns:
        int64 [count], or [B, count], on the key's device.

    Example:
        >>> import torch
        >>> [hex(x) for x in philox_bits(torch.tensor([0, 0]), 0, 3).tolist()]
        ['-0x1e963a7299d8172b', '-0x64ff242743a853b4', '0x5cb200dbf8e4cca4']
    """
    seed, offset = key.unbind()
    blocks = (count + 1) // 2
    counter = offset + first // 2 + torch.arange(blocks, device=key.device)
    stream = torch.zeros_like(counter)
    if subsequence is not None:
        stream = subsequence[:, None].expand(-1, blocks)
        counter = counter.expand_as(stream)
    words = (counter & _LOW32, high32(counter), stream & _LOW32, high32(stream))
    w0, w1, w2, w3 = philox4x32_10(words, seed)
    draws = torch.stack((w0 | (w1 << 32), w2 | (w3 << 32)), dim=-1)
    return draws.flatten(-2)[..., :count]
