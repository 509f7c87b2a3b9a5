"""Everything that only a GPU can prove, in one command of less than ten minutes: make gpu-check.

For a machine with an NVIDIA GPU, nvcc and torch 2.11 or newer (a CUDA build); nothing is fetched.
Builds the library for that GPU, runs the self-check, the tests of losses, samplers and optimizers
on it, those of ranks over NCCL on all GPUs, compute-sanitizer's four tools on tools/gpu_smoke.py,
and the benchmarks, and writes one report, build/gpu_check/report.md. A step that fails does not
keep the others from running; the exit status says whether any did.

    make gpu-check
    python tools/gpu_check.py --rehearse      without a GPU: whatever of it can be run on the CPU
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
TAIL_LINES = 60
BUDGET = 590  # seconds for everything


@dataclass(frozen=True)
class Step:
    """A command with its limit in seconds; `missing` says why it cannot run here, if so."""

    name: str
    command: Sequence[str]
    limit: int
    missing: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    step: Step
    verdict: str  # "passed", "FAILED", "TIMED OUT" or "not run"
    seconds: float
    output: str

    @property
    def failed(self) -> bool:
        return self.verdict in ("FAILED", "TIMED OUT")


def run(step: Step, left: float) -> Outcome:
    """Runs a step, its output shown as it comes and kept; `left` seconds are there for it."""
    print(f"\n== {step.name}", flush=True)
    missing = step.missing or ("" if left > 5 else "out of time")
    if missing:
        print(f"not run: {missing}", flush=True)
        return Outcome(step, "not run", 0.0, missing)
    begin = time.monotonic()
    lines: list[str] = []
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env={**os.environ, **step.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    stopper = _stop_after(process, min(step.limit, left))
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    code = process.wait()
    timed_out = stopper()
    verdict = "TIMED OUT" if timed_out else "passed" if code == 0 else "FAILED"
    return Outcome(step, verdict, time.monotonic() - begin, "".join(lines))


def _stop_after(process: subprocess.Popen[str], limit: float) -> Callable[[], bool]:
    """Kills the process and its children after `limit` seconds; the result ends the watch and says
    whether that happened."""
    fired = threading.Event()

    def kill() -> None:
        fired.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, kill)
    timer.start()

    def stop() -> bool:
        timer.cancel()
        return fired.is_set()

    return stop


def gpu() -> tuple[str, str]:
    """(name, compute capability) of the GPU, or empty strings and the reason on stderr."""
    try:
        import torch
    except ImportError:
        return "", ""
    if not torch.cuda.is_available():
        return "", ""
    major, minor = torch.cuda.get_device_capability()
    return torch.cuda.get_device_name(), f"{major}.{minor}"


def steps(capability: str, rehearse: bool) -> list[Step]:
    """The steps, in order."""
    python = sys.executable
    no_gpu = "" if capability else "no GPU"
    sanitizer = shutil.which("compute-sanitizer") or _toolkit("compute-sanitizer")
    device = "cpu" if rehearse else "cuda"
    build = {"SSC_WITH_CUDA": "1", "MAX_JOBS": str(os.cpu_count() or 2)}
    if capability:
        build["TORCH_CUDA_ARCH_LIST"] = capability
    result = [
        Step(
            "build",
            [python, "setup.py", "--quiet", "build_ext", "--inplace"],
            240,
            no_gpu,
            build,
        ),
        Step("what is there", [python, "-m", "sampled_softmax_cuda"], 60),
        Step("self-check", [python, "-m", "sampled_softmax_cuda", "--self-check"], 60),
        Step(
            "tests on the GPU",
            [python, "-m", "pytest", "-q", "-k", "cuda or test_device", *gpu_tests()],
            180,
            no_gpu,
        ),
        Step(
            "ranks over NCCL",
            [python, "-m", "pytest", "-q", "-k", "nccl", "tests/distributed/test_nccl.py"],
            120,
            no_gpu,
        ),
        Step("small steps", [python, "tools/gpu_smoke.py", "--device", device], 120),
    ]
    for tool in SANITIZERS:
        command = [sanitizer or "", "--tool", tool, "--error-exitcode", "1"]
        result.append(
            Step(
                f"compute-sanitizer {tool}",
                [*command, python, "tools/gpu_smoke.py"],
                120,
                no_gpu or ("" if sanitizer else "compute-sanitizer not found"),
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
        )
    quick = ["--quick"] if rehearse else []
    benchmark = [python, "benchmarks/bench_gpu.py", "--device", device, *quick]
    output = ["--output", str(report_path().parent)]
    result.append(Step("benchmarks", [*benchmark, *output], 240))
    result.append(Step("the model's bounds", [python, "benchmarks/gpu_model.py"], 60))
    return result


def gpu_tests() -> list[str]:
    """The tests that have a case named "cuda": those of numbers, one file per stage, and a few."""
    samplers = [f"samplers/test_{name}" for name in ("sample_counts", "sample_ids")]
    stages = ("loss", "options", "backward", "bad_numbers", "modules", "autocast")
    loss = [f"loss/test_{name}" for name in stages]
    optim = [f"optim/test_{name}" for name in ("against_torch", "rules", "training")]
    rest = ("exact/test_exact", "gpu/test_device")
    return [f"tests/{name}.py" for name in (*samplers, *loss, *optim, *rest)]


def _toolkit(name: str) -> str | None:
    """A tool of the CUDA toolkit that is not on PATH."""
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / name).exists():
            return str(Path(home) / "bin" / name)
    return None


def report_path() -> Path:
    return ROOT / "build" / "gpu_check" / "report.md"


def report(name: str, capability: str, outcomes: Sequence[Outcome]) -> str:
    """The report: one table of verdicts, then the end of every step's output."""
    title = f"{name}, compute capability {capability}" if name else "a rehearsal without a GPU"
    lines = [f"# GPU check: {title}", "", "| step | verdict | seconds |", "|---|---|---|"]
    for outcome in outcomes:
        note = f" ({outcome.output})" if outcome.verdict == "not run" else ""
        lines.append(f"| {outcome.step.name} | {outcome.verdict}{note} | {outcome.seconds:.0f} |")
    for outcome in outcomes:
        if outcome.verdict == "not run":
            continue
        shown = outcome.output.splitlines()
        if len(shown) > TAIL_LINES and outcome.step.name != "benchmarks":
            shown = [f"... {len(shown) - TAIL_LINES} lines before", *shown[-TAIL_LINES:]]
        # Paths of this machine are nobody else's business.
        text = "\n".join(shown).replace(str(ROOT), ".").replace(str(Path.home()), "~")
        lines += ["", f"## {outcome.step.name}", "", "```", text, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    rehearse = options.parse_args().rehearse
    name, capability = ("", "") if rehearse else gpu()
    if not rehearse and not capability:
        sys.exit(
            f"gpu-check: the torch of {sys.executable} sees no GPU; use a CUDA build of torch 2.11"
            " or newer on a machine with an NVIDIA GPU (make gpu-check PYTHON=/path/to/python3),"
            " or --rehearse for the parts that run without one"
        )
    end = time.monotonic() + BUDGET
    outcomes = [run(step, end - time.monotonic()) for step in steps(capability, rehearse)]
    path = report_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(name, capability, outcomes))
    failed = [outcome.step.name for outcome in outcomes if outcome.failed]
    print(f"\nwrote {path.relative_to(ROOT)}")
    if failed:
        sys.exit(f"gpu-check: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
