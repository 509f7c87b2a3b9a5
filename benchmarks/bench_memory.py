"""Peak memory of a training step beyond its parameters and gradients.

Every configuration runs in a fresh process, which makes the tensors, takes a tiny step (libraries
loaded, thread pools up), resets the kernel's high-water mark of its resident memory, takes a few
real steps and reads the mark. From the difference the gradients that the step hands out are
subtracted: U rows of D and of bias and their ids, and the input's gradient.

Byte model of the rest: the packed rows, S·D·4, and at most 64 MiB of logits, whatever B·S is
(float32 inside, whatever the parameters' type); for comparison, an array of all logits is B·S·4.

    python benchmarks/bench_memory.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import OURS_COLOR, PEER_COLOR, Row, environment, parser, plot, print_rows, write_csv

LOGITS_BYTES = 64 << 20
MIB = float(1 << 20)
TABLE = ("case", "batch", "width", "samples", "classes", "threads", "extra_mib", "bound_mib")
TABLE += ("within_bound", "all_logits_mib", "gradients_mib")


def _status(field: str) -> int:
    """A memory field of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_of(step: Callable[[], object], steps: int) -> int:
    """How many bytes of resident memory some steps take at the most, beyond what was there."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    for _ in range(steps):
        step()
    return _status("VmHWM") - before


def worker(config: dict[str, Any]) -> None:
    """In a process of its own: prints a JSON object with the bytes measured."""
    from bench_loss import our_step
    from peers import eager_step, make_problem

    torch.set_num_threads(config["threads"])
    classes, width, samples = config["classes"], config["width"], config["samples"]
    problem = make_problem(
        config["batch"], width, samples, classes, torch.float32, config["sampler"]
    )
    makers = {
        "ours": lambda p: our_step(p, replacement=False),
        "eager sparse": lambda p: eager_step(p, sparse=True),
    }
    make = makers[config["case"]]
    make(make_problem(2, width, 4, 100, torch.float32, config["sampler"]))()
    peak = peak_of(make(problem), config["steps"])
    rows = samples + problem.target.unique().numel()
    gradients = rows * (4 * width + 4 + 8) + 4 * config["batch"] * width
    print(json.dumps({"peak": peak, "gradients": gradients}))


def extra_memory(
    case: str, batch: int, width: int, samples: int, classes: int, threads: int, sampler: str
) -> Row:
    """One row: the peak beyond parameters and gradients in MiB, beside the bound."""
    config = {
        "case": case,
        "batch": batch,
        "width": width,
        "samples": samples,
        "classes": classes,
        "threads": threads,
        "sampler": sampler,
        "steps": 3,
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(config)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured = json.loads(output.splitlines()[-1])
    extra = max(0, measured["peak"] - measured["gradients"])
    bound = 4 * samples * width + LOGITS_BYTES
    return {
        **config,
        "extra_mib": round(extra / MIB, 1),
        "bound_mib": round(bound / MIB, 1),
        "within_bound": extra <= bound,
        "all_logits_mib": round(4 * batch * samples / MIB, 1),
        "gradients_mib": round(measured["gradients"] / MIB, 1),
    }


def draw_bars(axes: Any, rows: list[Row]) -> None:
    names = [f"{r['case']}\nB={r['batch']} S={r['samples']}" for r in rows]
    colors = [OURS_COLOR if row["case"] == "ours" else PEER_COLOR for row in rows]
    axes.bar(names, [r["extra_mib"] for r in rows], color=colors)
    axes.plot(names, [r["bound_mib"] for r in rows], "k_", markersize=30, label="bound")
    axes.plot(names, [r["all_logits_mib"] for r in rows], "b.", label="one [B, S] array")
    axes.set_yscale("log")
    axes.set_ylabel("MiB beyond parameters and gradients")
    axes.tick_params(axis="x", labelsize=7)
    axes.legend()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--worker", help="used by the script itself")
    args = options.parse_args()
    if args.worker:
        worker(json.loads(args.worker))
        return
    if args.quick:
        shapes = [(8, 16, 32, 1000)]
    else:
        shapes = [(512, 256, 4096, 1_000_000), (2048, 512, 8192, 1_000_000)]
        shapes += [(8192, 256, 8192, 1_000_000)]
    cases = ["ours"] if args.quick else ["ours", "eager sparse"]
    rows = [
        extra_memory(case, *shape, threads=args.threads, sampler="log_uniform")
        for shape in shapes
        for case in cases
    ]
    print_rows("Peak memory of a step beyond parameters and gradients", rows, TABLE)
    constants = environment()
    write_csv(args.output / "bench_memory.csv", [{**row, **constants} for row in rows])
    plot(args.output / "bench_memory.png", lambda axes: draw_bars(axes, rows))


if __name__ == "__main__":
    main()
