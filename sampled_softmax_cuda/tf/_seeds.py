"""The streams behind `seed`: one for each operator, seed and set of attributes."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from .._arguments import as_int

_WORD = 2**64 - 1
_KEY_LIMIT = 2**63 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's step: 2^64 / golden ratio

_calls: dict[Hashable, int] = {}
_global_seed = 0


def set_seed(seed: int) -> None:
    """`tf.random.set_seed`: seed everything, and start the stream of every operator's seed again.

    Args:
        seed: an int; also given to `torch.manual_seed`, from which draws without a seed come.

    Raises:
        TypeError: a seed that is not an int.

    Example:
        >>> import sampled_softmax_cuda as ssc
        >>> def draw():
        ...     return ssc.tf.uniform_candidate_sampler([[0]], 1, 6, False, 100, seed=3)[0].tolist()
        >>> ssc.tf.set_seed(1)
        >>> first, second = draw(), draw()
        >>> ssc.tf.set_seed(1)
        >>> first == draw(), second == draw(), first == second
        (True, True, False)
    """
    global _global_seed
    seed = as_int("set_seed", "seed", seed)
    torch.manual_seed(seed)
    _global_seed = seed
    _calls.clear()


def _mix(x: int) -> int:
    """The output function of splitmix64, a bijection of 64 bits whose results look random.

    Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014,
    https://doi.org/10.1145/2660193.2660195.
    """
    x &= _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def draw_key(fn: str, seed: int | None, attributes: Hashable, device: torch.device) -> Tensor:
    """The key int64 [2] of the next draw of operator `fn`.

    TensorFlow's streams belong to an operator with its attributes, so two samplers of one seed and
    different sizes don't disturb each other.
    """
    if seed is None:
        return torch.randint(_KEY_LIMIT, (2,), device=device)
    seed = as_int(fn, "seed", seed, kind="an int or None")
    if torch.compiler.is_compiling():
        raise ValueError(
            f"{fn}: seed must be None under torch.compile, which would draw the same classes in"
            f" every step; got {seed}"
        )
    stream = (fn, seed, attributes, device)
    call = _calls.get(stream, 0)
    _calls[stream] = call + 1
    start = _mix(_mix(_global_seed) + seed)
    words = (_mix(start + _GOLDEN * (2 * call + i)) % _KEY_LIMIT for i in (1, 2))
    return torch.tensor([*words], device=device)
