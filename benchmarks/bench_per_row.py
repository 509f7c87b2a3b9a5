"""Per-row negatives on the CPU: the share of a bare gather, and the memory of a step.

Every row of the batch has S negatives of its own, so a pass is bound by the B·S rows of W that it
reads. Byte model: forward B·S·D·4, and the same once more backward, where the distinct rows of each
chunk are also read and written once for dW. The roof is a loop that does nothing but add up all
elements of the same rows, prefetched (roof.cpp), in the same run; its best distance counts. `share`
is the gather's time over ours. The peer is the composition in PyTorch, on stored ids.

The second table is the peak of a step with dense gradients beyond parameters and gradients, each in
a process of its own (see bench_memory.py): bounded whatever B·S is. One array of [B, S] floats is
shown beside it.

    python benchmarks/bench_per_row.py
    python benchmarks/bench_per_row.py --classes 100000 --width 256
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from arguments import positive
from bench_memory import MIB, peak_of
from harness import Case, Row, environment, measure, parser, print_rows, rows_from, write_csv
from roof import Roof, load_roof

import sampled_softmax_cuda as ssc
from sampled_softmax_cuda.ops.negatives import negatives_loss

DISTANCES = (16, 32)  # rows that the bare gather prefetches ahead
WORKSPACE_BYTES = 16 << 20  # the bound that is claimed
TABLE = ("case", "sampler", "threads", "median_ms", "p10_ms", "ratio", "share", "failure")
MEMORY = ("batch", "width", "samples", "classes", "threads", "extra_mib", "bound_mib")
MEMORY += ("within_bound", "one_array_mib", "gradients_mib")

Samples = ssc.Samples | ssc.KeyedSamples


class Problem:
    """input [B, D], weight [C, D] and the target logits [B] of a step."""

    def __init__(self, batch: int, width: int, samples: int, classes: int, sampler: str) -> None:
        torch.manual_seed(0)
        self.input = torch.randn(batch, width).requires_grad_()
        self.weight = ssc.prefer_huge_pages(torch.empty(classes, width)).uniform_(-0.05, 0.05)
        self.weight.requires_grad_()
        self.target = torch.randint(classes, (batch,))
        self.target_logit = torch.zeros(batch)
        make = {"uniform": ssc.UniformSampler, "log-uniform": ssc.LogUniformSampler}[sampler]
        self.keyed = make(classes).sample_keyed(self.target, samples)

    def loss(self, samples: Samples, sparse_grad: bool = False) -> torch.Tensor:
        options = (1.0, 0.0, True, False, sparse_grad)
        parameters = (self.input, self.weight, None, self.target_logit)
        return negatives_loss(*parameters, self.target[:, None], None, samples, *options)[0]

    def step(self, samples: Samples, sparse_grad: bool) -> None:
        self.loss(samples, sparse_grad).mean().backward()
        self.input.grad = self.weight.grad = None


def composed_loss(problem: Problem, samples: ssc.Samples) -> torch.Tensor:
    """As a user of PyTorch writes it: gather [B, S, D], batched product, logsumexp."""
    rows = torch.nn.functional.embedding(samples.ids, problem.weight, sparse=True)
    z = torch.bmm(rows, problem.input[:, :, None])[:, :, 0] - samples.log_expected_count
    z = z.masked_fill(samples.ids == problem.target[:, None], -torch.inf)
    r = problem.target_logit
    return torch.logaddexp(r, z.logsumexp(1)) - r


def composed_step(problem: Problem, samples: ssc.Samples) -> None:
    composed_loss(problem, samples).mean().backward()
    problem.input.grad = problem.weight.grad = None


@torch.no_grad()
def forward(problem: Problem, samples: Samples) -> object:
    return problem.loss(samples)


@torch.no_grad()
def composed_forward(problem: Problem, samples: ssc.Samples) -> object:
    return composed_loss(problem, samples)


def cases_of(problem: Problem, roof: Roof | None, threads: int) -> list[Case]:
    """The contenders, the bare gather first."""
    keyed = problem.keyed
    given = keyed.materialize()
    table, ids = problem.weight.detach(), given.ids
    cases = [
        Case(
            f"bare gather, {distance} rows ahead",
            lambda distance=distance: roof.gather_ids(table, ids, threads, distance),
            role="part",
        )
        for distance in DISTANCES
        if roof is not None
    ]
    for name, samples in (("ids given", given), ("ids drawn", keyed)):
        cases.append(
            Case(f"ours: forward, {name}", lambda s=samples: forward(problem, s), role="ours")
        )
    for name, sparse in (("sparse", True), ("dense", False)):
        cases.append(
            Case(
                f"ours: step, ids drawn, {name}",
                lambda sparse=sparse: problem.step(keyed, sparse),
                role="ours",
            )
        )
    for name, run in (("forward", composed_forward), ("step, sparse", composed_step)):
        cases.append(
            Case(f"PyTorch: {name}", lambda run=run: run(problem, given), max_repetitions=3)
        )
    return cases


def speed(problem: Problem, config: Row, roof: Roof | None, repetitions: int) -> list[Row]:
    """Rows with `ratio`, our time over that of the faster bare gather, and `share`, its inverse."""
    timings = measure(cases_of(problem, roof, config["threads"]), repetitions)
    gathers = [t for t in timings if t.case.role == "part"]
    base = min(gathers, key=lambda t: t.median).case.name if gathers else ""
    rows = rows_from(timings, config, base)
    for row in rows:
        ratio = row["ratio"]
        row["share"] = float(f"{1 / ratio:.4g}") if base and ratio else ""
    print_rows(f"Per-row negatives, {config}", rows, TABLE)
    return rows


def worker(config: dict[str, Any]) -> None:
    """In a process of its own: prints a JSON object with the bytes measured."""
    torch.set_num_threads(config["threads"])
    shape = [config[name] for name in ("batch", "width", "samples", "classes")]
    Problem(2, shape[1], 4, 100, "log-uniform").step(
        Problem(2, shape[1], 4, 100, "log-uniform").keyed, False
    )
    problem = Problem(*shape, "log-uniform")
    print(json.dumps({"peak": peak_of(lambda: problem.step(problem.keyed, False), steps=2)}))


def memory(batch: int, width: int, samples: int, classes: int, threads: int) -> Row:
    """One row: the peak beyond parameters and dense gradients, in MiB."""
    config = {"batch": batch, "width": width, "samples": samples, "classes": classes}
    config["threads"] = threads
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(config)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    gradients = 4 * width * (classes + batch)
    extra = max(0, json.loads(output.splitlines()[-1])["peak"] - gradients)
    return {
        **config,
        "extra_mib": round(extra / MIB, 1),
        "bound_mib": WORKSPACE_BYTES / MIB,
        "within_bound": extra <= WORKSPACE_BYTES,
        "one_array_mib": round(4 * batch * samples / MIB, 1),
        "gradients_mib": round(gradients / MIB, 1),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--classes", type=positive, default=1_000_000, help="C")
    options.add_argument("--width", type=positive, default=128, help="D, a multiple of 16")
    options.add_argument("--samples", type=positive, default=1024, help="S")
    options.add_argument("--batch", type=positive, default=256, help="B of the timed steps")
    options.add_argument("--worker", help="used by the script itself")
    args = options.parse_args()
    if args.worker:
        worker(json.loads(args.worker))
        return
    batch, width, samples, classes = args.batch, args.width, args.samples, args.classes
    if args.quick:
        batch, width, samples, classes = 4, 16, 32, 1000
    torch.set_num_threads(args.threads)
    repetitions = args.repetitions or (2 if args.quick else 15)
    roof = load_roof()
    config = {"batch": batch, "width": width, "samples": samples, "classes": classes}
    rows: list[Row] = []
    for sampler in ("uniform", "log-uniform"):
        problem = Problem(batch, width, samples, classes, sampler)
        settings = {**config, "sampler": sampler, "threads": args.threads}
        rows += speed(problem, settings, roof, repetitions)
    shapes = [(4, 16, 32, 1000)]
    if not args.quick:
        shapes = [(4096, 128, 1024, 100_000), (16384, 128, 1024, 100_000)]
    peaks = [memory(*shape, threads=args.threads) for shape in shapes]
    print_rows("Peak memory of a step beyond parameters and dense gradients", peaks, MEMORY)
    constants = environment()
    write_csv(args.output / "bench_per_row.csv", [{**row, **constants} for row in [*rows, *peaks]])


if __name__ == "__main__":
    main()
