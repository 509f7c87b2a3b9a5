"""Types of command-line options: what is not right is refused with what would be."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable


def names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an option that takes some of the `known` names, divided by commas, which a name
    may have itself; '' is none."""
    allowed = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        found = []
        while parts:
            ends = range(len(parts), 0, -1)
            end = next((n for n in ends if ", ".join(parts[:n]) in allowed), None)
            if end is None:
                raise ArgumentTypeError(f"no {parts[0]!r} here; there are: {'; '.join(allowed)}")
            found.append(", ".join(parts[:end]))
            parts = parts[end:]
        return tuple(found)

    return parse


def positive(text: str) -> int:
    """The type of an option that takes a positive number."""
    try:
        number = int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be an integer, got {text!r}") from None
    if number < 1:
        raise ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def numbers(text: str) -> tuple[int, ...]:
    """The type of an option that takes positive numbers, divided by commas."""
    return tuple(positive(part) for part in text.split(","))


def shape(text: str) -> tuple[int, int, int]:
    """The type of --shape B,D,S."""
    try:
        batch, width, samples = numbers(text)
    except (ArgumentTypeError, ValueError):
        raise ArgumentTypeError(f"must be three positive numbers B,D,S, got {text!r}") from None
    return batch, width, samples
