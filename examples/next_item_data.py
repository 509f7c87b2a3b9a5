"""Sessions for the next-item example: which names each function of Python's sources uses, in turn.

The text is that of code_corpus.py, the standard library's and torch's Python files, which every
machine that can run the example has. An item is a dotted name or the name of something called
(`os.path.join`, `len`, `.append` on an expression); comments and strings are dropped, and so is a
name that repeats the one before it. A session is what stands between one `def` or `class` and the
next. That gives some 70,000 items with a heavy tail, and a task like that of a shop: from the last
few items of a session, which one comes next?

Sessions are held out by whole files, so no session is on both sides. Items that the training files
don't have at least twice are dropped on both sides, so that each item asked for was seen before.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from code_corpus import cached_arrays, pack_words, source_files, split_files, unpack_words
from numpy.typing import NDArray
from tqdm import tqdm

LEAST_COUNT = 2
_FORMAT = 1  # part of the cache's name: raise it when what is stored changes
_PIECE = re.compile(
    r'"""[\s\S]*?"""|' + r"'''[\s\S]*?'''"
    r'|"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])*'"
    r"|\#[^\n]*"  # up to here: matched in order to be skipped
    r"|\b(def|class)\s+\w+"  # begins a session; the name defined here is not used here
    r"|(\.?\b[^\W\d]\w*(?:\.[^\W\d]\w*)+|\.?\b[^\W\d]\w*(?=\())"
)


@dataclass(frozen=True)
class Sessions:
    """Sessions one after another, over items 0..C-1 sorted by falling frequency in training."""

    items: NDArray[np.int32]  # [N]
    begins: NDArray[np.int64]  # [N] where the session of each item begins
    asked: NDArray[np.int64]  # [M] the places of items that have one before them in their session

    @staticmethod
    def of(items: NDArray[np.int32], session: NDArray[np.int64]) -> Sessions:
        """From items and the number of the session that each belongs to, which never falls."""
        place = np.arange(len(items))
        first = np.ones(len(items), dtype=bool)
        first[1:] = session[1:] != session[:-1]
        begins = np.maximum.accumulate(np.where(first, place, 0))
        return Sessions(items, begins, place[~first])

    def examples(
        self, places: NDArray[np.int64], length: int, padding: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The items before each place, the latest first, and the item there: [B, length], [B]."""
        before = places[:, None] - np.arange(1, length + 1)
        inside = before >= self.begins[places][:, None]
        history = np.where(inside, self.items[np.maximum(before, 0)], padding)
        return torch.from_numpy(history).long(), torch.from_numpy(self.items[places]).long()


@dataclass(frozen=True)
class Items:
    """Both sides of the data."""

    names: list[str]  # [C]
    counts: NDArray[np.int64]  # [C] occurrences in training
    train: Sessions
    held_out: Sessions

    @property
    def num_items(self) -> int:
        return len(self.names)


def load_items(text: Path | None, max_files: int | None, cache: Path) -> Items:
    """Reads the sessions, or takes them from the cache.

    text: a folder of Python files; None means this machine's Python sources.
    max_files: read about so many files, evenly spaced; None: all.
    """
    files = source_files(text)
    if max_files is not None and max_files < len(files):
        files = files[:: -(-len(files) // max_files)]
    stored = cached_arrays("next_item", _FORMAT, files, cache, _read)
    sides = [
        Sessions.of(stored[f"{side}_items"], stored[f"{side}_session"])
        for side in ("train", "held_out")
    ]
    return Items(unpack_words(stored["names"]), stored["counts"], *sides)


def names_used(source: str) -> list[list[str]]:
    """The names that each session of a source file uses, in turn."""
    sessions: list[list[str]] = [[]]
    for begins, name in _PIECE.findall(source):
        if begins:
            sessions.append([])
        elif name and not keyword.iskeyword(name):
            sessions[-1].append(name)
    return sessions


def _read(files: list[tuple[str, Path]]) -> dict[str, NDArray[np.generic] | int]:
    """Ids by falling frequency in the training files, without rare items and repeats."""
    ids: dict[str, int] = {}
    found: list[int] = []
    lengths: list[int] = []
    held_out_sessions = held_out_names = 0
    paths, cut = split_files(files)
    for i, path in enumerate(tqdm(paths, "reading", unit=" files", mininterval=1.0)):
        try:
            sessions = names_used(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:  # not text, or a test of other encodings
            continue
        for session in sessions:
            found.extend(ids.setdefault(name, len(ids)) for name in session)
            lengths.append(len(session))
        if i < cut:
            held_out_sessions, held_out_names = len(lengths), len(found)
    raw = np.array(found, dtype=np.int64)
    session = np.repeat(np.arange(len(lengths)), lengths)

    seen = np.bincount(raw[held_out_names:], minlength=len(ids))
    kept = seen[raw] >= LEAST_COUNT
    raw, session = raw[kept], session[kept]
    repeats = np.zeros(len(raw), dtype=bool)
    repeats[1:] = (raw[1:] == raw[:-1]) & (session[1:] == session[:-1])
    raw, session = raw[~repeats], session[~repeats]

    cut = int(np.searchsorted(session, held_out_sessions))
    counts = np.bincount(raw[cut:], minlength=len(ids))
    by_count = np.argsort(-counts, kind="stable")
    by_count = by_count[counts[by_count] > 0]
    rank = np.zeros(len(ids), dtype=np.int32)
    rank[by_count] = np.arange(len(by_count), dtype=np.int32)
    names = list(ids)
    return {
        "names": pack_words([names[i] for i in by_count]),
        "counts": counts[by_count],
        "train_items": rank[raw[cut:]],
        "train_session": session[cut:],
        "held_out_items": rank[raw[:cut]],
        "held_out_session": session[:cut],
    }
