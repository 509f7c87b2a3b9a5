"""Where the time of a step goes: draw, gather, matmuls with the exponential, waiting, the rest.

A timer interrupts the main thread, which takes its part in all parallel work, some thousands of
times per second and notes where it is (profile.cpp); the names of functions come from `nm`. So the
kernels carry no clocks, and what is shown is the code that people run. A stage's milliseconds are
its share of the samples times the step's measured time. Each matmul's share of the roof is that of
its 2·B·S·D operations in its own time; the roof is measured before and after.

    python benchmarks/bench_stages.py
    python benchmarks/bench_stages.py --shape 128,128,8192 --threads 1 --dtype bfloat16
"""

from __future__ import annotations

import bisect
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import arguments
import native
import torch
from bench_loss import our_step
from harness import Row, environment, isa_in_use, parser, plot, print_rows, write_csv
from peers import make_problem
from roof import load_roof

TABLE = ("case", "median_ms", "share", "share_of_roof", "samples")

# The first pattern that a function's name (or, where it has none, its library's) matches. The
# matmuls' inner loops are the register tiles Score, Gradient and Product of csrc/cpu.
Z, DH, DW = "z = H Ws^T, exp", "dH = P Ws", "dWs = P^T H"
STAGES = (
    (Z, r"Score<|sweep"),
    (DH, r"Gradient<"),
    (DW, r"Product<|weight_grad|write_panel"),
    ("gather and pack the sampled rows", r"gather_|pack_samples"),
    (
        "pack the input, finish the rows",
        r"pack_(grad_)?row|finish_row|reduce_row|end_row|start_row",
    ),
    ("targets' logits and gradients", r"\bdot<|target_logit|add_row|add_targets"),
    ("plan: sort, merge, find hits", r"plan_samples|sort_by_id"),
    ("draw", r"sample_|log_expected_count|log_uniform|probabilities_of|draw"),
    ("loss, other", r"ssc::"),
    ("waiting for threads", r"libgomp|libiomp|libomp"),
    ("PyTorch, Python, C library", r"."),
)


class Symbols:
    """Names of the functions of the libraries that this process has mapped."""

    def __init__(self) -> None:
        self._maps: list[tuple[int, int, int, str]] = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and "x" in fields[1]:
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                self._maps.append((begin, end, int(fields[2], 16), fields[5]))
        self._tables: dict[str, tuple[list[int], list[str]]] = {}

    def name(self, address: int) -> str:
        """LIBRARY:FUNCTION, or the library alone for functions without a name."""
        for begin, end, offset, path in self._maps:
            if begin <= address < end:
                starts, names = self._table(path)
                index = bisect.bisect_right(starts, address - begin + offset) - 1
                return f"{Path(path).name}:{names[index] if index >= 0 else ''}"
        return "unknown"

    def _table(self, path: str) -> tuple[list[int], list[str]]:
        if path not in self._tables:
            # Only our library keeps its local names; the others' libraries are named as a whole.
            entries = _nm(path) if "sampled_softmax" in path else []
            self._tables[path] = ([at for at, _ in entries], [name for _, name in entries])
        return self._tables[path]


def _nm(path: str) -> list[tuple[int, str]]:
    """(file offset, name) of every function, in order. The text segment of a shared library is
    mapped with its file offset; readelf gives the difference to the addresses that nm prints."""
    listed = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True)
    found = re.findall(r"^([0-9a-f]+) [tTwW] (.+)$", listed.stdout, flags=re.M)
    headers = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True).stdout
    load = re.search(r"LOAD\s+0x([0-9a-f]+) 0x([0-9a-f]+) .* R E ", headers)
    shift = int(load[2], 16) - int(load[1], 16) if load else 0
    return sorted((int(address, 16) - shift, name) for address, name in found)


def stage_of(name: str) -> str:
    return next(stage for stage, pattern in STAGES if re.search(pattern, name))


def profile(step: Any, seconds: float) -> tuple[Counter[str], float] | None:
    """Samples per function and the median time of a step, or None where nothing can be sampled."""
    library = native.load("profile", without="the breakdown")
    if library is None:
        return None
    library.profile_stop.restype = native.ctypes.c_int64
    library.profile_where.restype = native.ctypes.POINTER(native.ctypes.c_size_t)
    for _ in range(5):
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    if library.profile_start(native.ctypes.c_int64(200)) != 0:
        print("profile: no timer on this system", file=sys.stderr)
        return None
    while time.perf_counter() < end:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    count = library.profile_stop()
    where = library.profile_where()
    symbols = Symbols()
    return Counter(symbols.name(where[i]) for i in range(count)), statistics.median(times)


def draw_bars(axes: Any, rows: list[Row]) -> None:
    rows = [row for row in rows if row["role"] == "stage"][::-1]
    bars = axes.barh([row["case"] for row in rows], [row["median_ms"] for row in rows])
    axes.bar_label(bars, [f"{row['share']:.1%}" for row in rows], padding=3)
    axes.margins(x=0.15)
    axes.set_xlabel("milliseconds of a step")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", metavar="B,D,S", type=arguments.shape, default=(512, 256, 4096))
    options.add_argument("--classes", type=arguments.positive, default=1_000_000)
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options.add_argument("--functions", type=int, default=0, help="show so many functions, too")
    args = options.parse_args()
    batch, width, samples = args.shape
    classes, seconds = args.classes, 4.0
    if args.quick:
        batch, width, samples, classes, seconds = 8, 16, 32, 1000, 0.1
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    problem = make_problem(batch, width, samples, classes, dtype, "log_uniform")
    roof = load_roof()
    kind = roof.kind_for(isa_in_use(), args.dtype) if roof else ""
    rates = [roof.rate(kind, args.threads) for _ in range(5)] if roof else []
    measured = profile(our_step(problem, replacement=False), seconds)
    rates += [roof.rate(kind, args.threads) for _ in range(5)] if roof else []
    if measured is None:
        sys.exit(1)
    functions, median = measured
    total = sum(functions.values())
    config = {"batch": batch, "width": width, "samples": samples, "classes": classes}
    config |= {"dtype": args.dtype, "threads": args.threads, "isa": isa_in_use()}

    matmul = 2.0 * batch * width * samples
    work = {Z: matmul, DH: matmul, DW: matmul, "step": 3 * matmul}

    def row(name: str, role: str, hits: int) -> Row:
        share = hits / max(total, 1)
        milliseconds = float(f"{share * median * 1e3:.4g}")
        shown = {"median_ms": milliseconds, "share": float(f"{share:.4g}"), "samples": hits}
        if rates and name in work:
            at_roof = work[name] / statistics.median(rates) * 1e3
            shown["share_of_roof"] = float(f"{at_roof / milliseconds:.4g}")
        return {**config, "case": name, "role": role, **shown}

    stages: Counter[str] = Counter()
    for name, hits in functions.items():
        stages[stage_of(name)] += hits
    rows = [row("step", "ours", total)]
    rows += [row(name, "stage", stages[name]) for name, _ in STAGES if stages[name]]
    print_rows(f"B={batch} D={width} S={samples} C={classes} {args.dtype}", rows, TABLE)
    if args.functions:
        top = [row(name[:90], "function", n) for name, n in functions.most_common(args.functions)]
        print_rows("Functions", top, TABLE)
    constants = environment()
    write_csv(args.output / "bench_stages.csv", [{**line, **constants} for line in rows])
    plot(args.output / "bench_stages.png", lambda axes: draw_bars(axes, rows))


if __name__ == "__main__":
    main()
