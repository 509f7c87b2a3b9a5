"""Text for the examples: the Python source files of this machine, as a stream of class ids.

Every machine that can run the demo has the same kind of text on it: the standard library and
torch's own Python files, some 16 million tokens with 160,000 different ones seen at least twice.
Nothing is downloaded. The result is cached, so that only the first run pays for the tokenising.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

UNKNOWN = "<unknown>"
HELD_OUT_SHARE = 0.04
_TOKEN = re.compile(r"\w+|[^\w\s]")  # a word, or one mark; the layout is dropped
_FORMAT = 1  # part of the cache's name: raise it when what is stored changes


@dataclass(frozen=True)
class Corpus:
    """Token streams over classes 0..C-1, sorted by falling frequency.

    That order is what the log-uniform sampler assumes, so the unknown token stands at the rank
    that its own frequency gives it, not at 0.
    """

    words: list[str]  # [C] class -> token
    counts: NDArray[np.int64]  # [C] occurrences in the training files
    train: NDArray[np.int32]  # [N]
    held_out: NDArray[np.int32]  # [M], from files that training never reads

    @property
    def num_classes(self) -> int:
        return len(self.words)

    def unigram_perplexity(self, target: torch.Tensor) -> float:
        """Perplexity of the best model without context: add-one smoothed training frequencies."""
        smoothed = torch.from_numpy(self.counts).double() + 1
        return float(torch.exp(-torch.log(smoothed / smoothed.sum())[target.flatten()].mean()))

    def windows(self, num_windows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Evenly spaced held-out windows: (input, target), both int64 [num_windows, length]."""
        if len(self.held_out) <= length:
            raise ValueError(
                f"the held-out files have {len(self.held_out):,} tokens, fewer than one window "
                f"of {length} needs: give more text"
            )
        last_start = len(self.held_out) - length - 1
        starts = np.linspace(0, last_start, num_windows).astype(np.int64)
        return _windows_at(self.held_out, starts, length)

    def batch(
        self, num_windows: int, length: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Random training windows: (input, target), both int64 [num_windows, length]."""
        starts = rng.integers(0, len(self.train) - length, size=num_windows)
        return _windows_at(self.train, starts, length)


def load_corpus(text: Path | None, max_classes: int | None, cache: Path) -> Corpus:
    """Reads and tokenises the text, or takes it from the cache.

    text: a folder whose UTF-8 files are read; None means this machine's Python sources.
    max_classes: keep this many classes (the rarer tokens become unknown); None keeps every token
    that occurs at least twice.
    """
    files = source_files(text)
    stored = cached_arrays("code_lm", _FORMAT, files, cache, _tokenise)
    words = unpack_words(stored["words"])
    return _choose_classes(
        words, stored["counts"], stored["tokens"], int(stored["num_held_out"]), max_classes
    )


def source_files(text: Path | None) -> list[tuple[str, Path]]:
    """(name, path) of the files under the folder `text`, or, if None, of Python's sources."""
    files = _python_sources() if text is None else _text_files(text)
    if len(files) < 2:
        raise ValueError(
            f"{text}: found {len(files)} text file(s), expected at least 2, because whole files "
            "are held out"
        )
    return files


def cached_arrays(
    name: str,
    version: int,
    files: list[tuple[str, Path]],
    cache: Path,
    build: Callable[[list[tuple[str, Path]]], dict[str, NDArray[np.generic] | int]],
) -> dict[str, NDArray[np.generic]]:
    """The result of `build(files)`, stored for the next run with the same version and files."""
    stamp = hashlib.sha256(repr((version, [(n, p.stat().st_size) for n, p in files])).encode())
    path = cache / f"{name}-{stamp.hexdigest()[:16]}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **build(files))
        partial.replace(path)  # an interrupted run leaves no half-written cache behind
    with np.load(path) as stored:
        return dict(stored)


def split_files(files: list[tuple[str, Path]]) -> tuple[list[Path], int]:
    """The files in random order, and how many of the first ones are held out."""
    # The order of a hash is random with respect to the text and the same on every machine.
    shuffled = sorted(files, key=lambda file: zlib.crc32(file[0].encode()))
    sizes = np.cumsum([path.stat().st_size for _, path in shuffled])
    cut = int(np.clip(np.searchsorted(sizes, HELD_OUT_SHARE * sizes[-1]), 1, len(files) - 1))
    return [path for _, path in shuffled], cut


def pack_words(words: list[str]) -> NDArray[np.uint8]:
    """Words without line breaks as an array of bytes."""
    return np.frombuffer("\n".join(words).encode(), dtype=np.uint8)


def unpack_words(packed: NDArray[np.generic]) -> list[str]:
    """The inverse of `pack_words`."""
    return bytes(packed).decode().split("\n")


def _python_sources() -> list[tuple[str, Path]]:
    """(name, path) of the standard library's and torch's source files, whatever the machine."""
    standard = Path(sysconfig.get_path("stdlib"))
    torch_root = Path(torch.__file__).parent
    files = []
    for root in (standard, torch_root):
        for path in root.rglob("*.py"):
            name = path.relative_to(root)
            # Installed packages differ from machine to machine; they may live inside stdlib.
            if not {"site-packages", "dist-packages"} & set(name.parts):
                files.append((f"{root.name}/{name.as_posix()}", path))
    return sorted(files)


def _text_files(root: Path) -> list[tuple[str, Path]]:
    """(name, path) of every file under `root` that is not hidden."""
    if not root.is_dir():
        raise ValueError(f"--text must be a folder, got {root}")
    names = ((path.relative_to(root), path) for path in root.rglob("*") if path.is_file())
    return sorted(
        (name.as_posix(), path)
        for name, path in names
        if not any(part.startswith(".") for part in name.parts)
    )


def _tokenise(files: list[tuple[str, Path]]) -> dict[str, NDArray[np.generic] | int]:
    """Ids by falling frequency, the held-out files' tokens first."""
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__  # a new token gets the next number, all in C

    def read(path: Path) -> NDArray[np.int32]:
        try:
            found = _TOKEN.findall(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            found = []  # not text, or a test of other encodings
        return np.fromiter(map(ids.__getitem__, found), dtype=np.int32)

    paths, cut = split_files(files)
    pieces = [read(path) for path in tqdm(paths, "tokenising", unit=" files", mininterval=1.0)]
    num_held_out = sum(len(piece) for piece in pieces[:cut])

    tokens = np.concatenate(pieces)
    counts = np.bincount(tokens, minlength=len(ids))
    by_count = np.argsort(-counts, kind="stable")
    rank = np.empty(len(ids), dtype=np.int32)
    rank[by_count] = np.arange(len(ids), dtype=np.int32)
    words = list(ids)
    return {
        "words": pack_words([words[i] for i in by_count]),
        "counts": counts[by_count],
        "tokens": rank[tokens],
        "num_held_out": num_held_out,
    }


def _choose_classes(
    words: list[str],
    counts: NDArray[np.int64],
    tokens: NDArray[np.int32],
    num_held_out: int,
    max_classes: int | None,
) -> Corpus:
    """Turns all but the kept tokens into one unknown class, placed where its frequency belongs."""
    kept = int(np.searchsorted(-counts, -1))  # counts fall: this many occur at least twice
    if max_classes is not None:
        if max_classes < 2:
            raise ValueError(f"--classes must be at least 2, got {max_classes}")
        kept = min(kept, max_classes - 1)
    unknown = int(np.searchsorted(-counts[:kept], -counts[kept:].sum()))
    to_class = np.arange(len(words), dtype=np.int32)
    to_class[unknown:] += 1
    to_class[kept:] = unknown
    tokens = to_class[tokens]
    train = tokens[num_held_out:]
    return Corpus(
        words=[*words[:unknown], UNKNOWN, *words[unknown:kept]],
        counts=np.bincount(train, minlength=kept + 1),
        train=train,
        held_out=tokens[:num_held_out],
    )


def _windows_at(
    stream: NDArray[np.int32], starts: NDArray[np.int64], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts [len(starts), length] windows out and pairs each token with the one that follows it."""
    window = torch.from_numpy(stream[starts[:, None] + np.arange(length + 1)].astype(np.int64))
    return window[:, :-1], window[:, 1:]
