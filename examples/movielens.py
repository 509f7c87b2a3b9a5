"""MovieLens-100k as sequences: which film did each of 943 people rate after the last one?

The ratings lie in the wheel of `recbole`, which pip downloads by its name as any package; nothing
of it is installed. MovieLens may not be handed on, so the project doesn't contain it.
F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context. ACM TiiS 5 (4), 2015.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PACKAGE = "recbole==1.2.1"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"


class UnavailableError(Exception):
    """The ratings can't be had; the message says why and what to do."""


@dataclass(frozen=True)
class Histories:
    """The items of each user in the order of time, one user after another."""

    items: NDArray[np.int64]  # [N] in 0..C-1
    begins: NDArray[np.int64]  # [users + 1]
    num_items: int

    @property
    def num_users(self) -> int:
        return len(self.begins) - 1

    def last(self, users: NDArray[np.int64], length: int) -> Tensor:
        """The last `length` items of these users, int64 [B, length], padded in front by C."""
        places = self.begins[users + 1][:, None] + np.arange(-length, 0)
        inside = places >= self.begins[users][:, None]
        rows = np.where(inside, self.items[np.maximum(places, 0)], self.num_items)
        return torch.from_numpy(rows)


def load_movielens(cache: Path) -> Histories:
    """Reads the ratings from `cache`, or fetches them into it. Raises UnavailableError."""
    path = cache / "ml-100k.inter"
    if not path.is_file():
        text = _fetch()
        cache.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return read_ratings(path.read_text(encoding="utf-8"))


def read_ratings(text: str) -> Histories:
    """From lines `user item rating time`, after a header, separated by tabs."""
    table = np.loadtxt(io.StringIO(text), delimiter="\t", skiprows=1, ndmin=2)
    users, items = (np.unique(column, return_inverse=True)[1] for column in table.T[:2])
    order = np.lexsort((np.arange(len(table)), table[:, 3], users))
    ends = np.cumsum(np.bincount(users))
    begins = np.concatenate(([0], ends)).astype(np.int64)
    return Histories(items[order].astype(np.int64), begins, int(items.max()) + 1)


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
        ]
        try:
            done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, timeout=300)
            reason = (done.stderr.strip().splitlines() or [""])[-1]
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(_advice(str(error))) from error
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise UnavailableError(_advice(reason))
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(MEMBER)


def _advice(reason: str) -> str:
    return (
        f"MovieLens-100k can't be had: pip did not download {PACKAGE} ({reason}). It works with a"
        " network, or with that wheel in a folder that PIP_FIND_LINKS names; or give a file of"
        " ratings by --ratings, lines `user item rating time` separated by tabs after a header"
    )
