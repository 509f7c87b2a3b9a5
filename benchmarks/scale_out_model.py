"""A MODEL, not a measurement: bytes and time per rank of a sharded step, to 10^9 classes.

The bytes are those of sampled_softmax_cuda.distributed, of one rank and one step, forward and
backward, with shared samples, one target a row and no bias; tests/distributed/test_traffic.py
compares them with what the collectives are given (to 2 %). In it R is the ranks, B the rows of
each, D the width, S the samples of the whole job, w the bytes of a number:

    fetch    2 (1 - 1/R) (S + B) D w                rows, and their gradients back
             + 8 (1 - 1/R) (S + B) + 16 (R - 1)     their numbers, and how many
    gather   2 (R - 1) B D w                        input rows, and their gradients back
             + (R - 1) B (8 + 4 + 5 · 8)            targets, their counts, 5 all-reduces
    both     2 · 64 (R - 1)                         headers of forward and backward
    dense    2 (1 - 1/R) C D w                      DDP's all-reduce; FSDP2 sends 1.5 x as much

fetch asks for distinct rows: repeats among samples and targets make it less (log-uniform draws with
replacement, half).

The times rest on assumptions that nobody has measured here: 300 TFLOP/s in bf16 and 3.35 TB/s of
memory on each GPU, 300 GB/s and 10 us per collective in a node of 8 and 40 GB/s and 25 us between
nodes; every collective of a group that spans nodes at the latter's pace; no overlap.

    python benchmarks/scale_out_model.py
    python benchmarks/scale_out_model.py --classes 100000000 --shape 8192,128,65536 --ranks 256
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import arguments

HEADER = 64
FLOPS = 300e12
NODE = 8
NODE_RATE, NODE_LATENCY = 300e9, 10e-6
NET_RATE, NET_LATENCY = 40e9, 25e-6
# (classes, width, rows per rank, samples, ranks)
CASES = {
    "language model": (256_000, 4096, 8192, 8192, 64),
    "faces": (100_000_000, 512, 128, 10_000_000, 64),
    "items": (100_000_000, 128, 8192, 65_536, 256),
    "10^9 classes": (1_000_000_000, 128, 2048, 262_144, 1024),
}


@dataclass(frozen=True)
class Step:
    """A training step of a sharded loss."""

    classes: int
    width: int
    rows: int
    """B, of each rank"""
    samples: int
    """S, of the whole job"""
    ranks: int
    size: int = 2
    """w, bytes of a number"""

    @property
    def fetch(self) -> float:
        """Bytes that a rank sends with `algorithm="fetch"`."""
        wanted = (1 - 1 / self.ranks) * (self.samples + self.rows)
        return 2 * wanted * self.width * self.size + 8 * wanted + 16 * (self.ranks - 1) + self.heads

    @property
    def gather(self) -> float:
        """Bytes that a rank sends with `algorithm="gather"`."""
        others = (self.ranks - 1) * self.rows
        return 2 * others * self.width * self.size + others * (8 + 4 + 5 * 8) + self.heads

    @property
    def heads(self) -> float:
        """Bytes of the headers that make errors collective."""
        return 2 * HEADER * (self.ranks - 1)

    @property
    def dense(self) -> float:
        """Bytes that a rank sends where all of the class matrix's gradient is all-reduced."""
        return 2 * (1 - 1 / self.ranks) * self.classes * self.width * self.size

    @property
    def fetch_wins(self) -> bool:
        """The rule of `algorithm="auto"`."""
        return self.samples + self.rows < self.ranks * self.rows

    def seconds(self, sent: float, collectives: int) -> float:
        """Time of so many bytes in so many collectives."""
        inside = self.ranks <= NODE
        rate, latency = (NODE_RATE, NODE_LATENCY) if inside else (NET_RATE, NET_LATENCY)
        return sent / rate + collectives * latency

    @property
    def fetch_compute(self) -> float:
        """Time of the products of `fetch`: three over [B, S, D]."""
        return 6.0 * self.rows * self.samples * self.width / FLOPS

    @property
    def gather_compute(self) -> float:
        """Time of the products of `gather`: four, of all rows with the rank's samples."""
        return 8.0 * self.rows * self.samples * self.width / FLOPS

    @property
    def table(self) -> float:
        """Bytes of a rank's rows of the class matrix."""
        return self.classes / self.ranks * self.width * self.size


def _bytes(count: float) -> str:
    power = 0 if count < 1 else min(int(math.log10(count)) // 3, 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--classes", type=arguments.positive)
    options.add_argument("--shape", type=arguments.shape, help="B,D,S")
    options.add_argument("--ranks", type=arguments.positive, default=64)
    options.add_argument("--bytes", type=arguments.positive, default=2, help="of a number")
    args = options.parse_args()
    cases = dict(CASES)
    if args.classes is not None or args.shape is not None:
        rows, width, samples = args.shape or (8192, 128, 65_536)
        cases = {"as asked": (args.classes or 10**8, width, rows, samples, args.ranks)}
    print("A MODEL, not a measurement; its assumptions are in the script's head.")
    print(f"{'':16}{'bytes of a rank':>36}{'ms of exchange':>28}{'ms of products':>18}")
    columns = ("dense", "gather", "fetch", "dense", "gather", "fetch", "gather", "fetch")
    print(f"{'':16}" + "".join(f"{name:>10}" for name in (*columns, "table", "auto")))
    for name, (classes, width, rows, samples, ranks) in cases.items():
        step = Step(classes, width, rows, samples, ranks, args.bytes)
        cells = (
            _bytes(step.dense),
            _bytes(step.gather),
            _bytes(step.fetch),
            _milliseconds(step.seconds(step.dense, 2)),
            _milliseconds(step.seconds(step.gather, 11)),
            _milliseconds(step.seconds(step.fetch, 6)),
            _milliseconds(step.gather_compute),
            _milliseconds(step.fetch_compute),
            _bytes(step.table),
            "fetch" if step.fetch_wins else "gather",
        )
        print(f"{name:16}" + "".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
