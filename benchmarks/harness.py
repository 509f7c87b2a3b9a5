"""One way to measure for every benchmark here.

The contenders of a comparison (ours, each peer) are timed in turn, repetition by repetition, so
that whatever else the machine does hits all of them alike; medians are reported. A case that has a
roof has it measured right before and right after each of its timed blocks: its share of the roof
is the median of these paired ratios. Fast cases are timed in blocks of many
calls (`BLOCK_SECONDS`). Results are rows of a CSV file: one per case, with the machine, the
versions and the configuration in columns, and no dates.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arguments
import torch
from native import BUILD_DIR
from roof import Roof

import sampled_softmax_cuda as ssc

BLOCK_SECONDS = 8e-3  # a timed block is at least about this long
WARM_CALL_LIMIT = 0.05  # faster calls get an untimed one before each block

Row = dict[str, Any]


@dataclass
class Case:
    """One contender: `run` is the thing to time.

    role: "ours", "part" (of ours) or "peer". work: of one call, in what the roof counts; roof_kind:
    the roof that bounds it, one of roof.KINDS (None: no share is stated). threads and env (such as
    SSC_CPU_ISA) are set around each block. clock: the wall's, or time.process_time, which other
    programs disturb less but which adds up the threads. finish waits for what the calls left
    running, on a GPU.
    max_repetitions bounds what slow contenders cost. columns: constants that its CSV row adds.
    """

    name: str
    run: Callable[[], object]
    role: str = "peer"
    work: float = 0.0
    roof_kind: str | None = None
    threads: int = 0
    env: dict[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter
    finish: Callable[[], object] | None = None
    max_repetitions: int = 10**9
    columns: Row = field(default_factory=dict)


@dataclass
class Timing:
    """Seconds per call of each block, and the roof's rate beside it where it has one."""

    case: Case
    seconds: list[float] = field(default_factory=list)
    roof_rates: list[float] = field(default_factory=list)
    calls_per_block: int = 1
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan

    def quantile(self, q: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else math.nan

    def roof_shares(self) -> list[float]:
        """Share of the roof of every block, paired with the roof measured around it."""
        return [
            self.case.work / seconds / rate
            for seconds, rate in zip(self.seconds, self.roof_rates, strict=False)
        ]


@contextmanager
def _settings(case: Case):
    """The case's thread count and environment, put back afterwards."""
    threads = torch.get_num_threads()
    saved = {name: os.environ.get(name) for name in case.env}
    if case.threads:
        torch.set_num_threads(case.threads)
    os.environ.update(case.env)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _time_calls(case: Case, calls: int) -> float:
    if case.finish is not None:
        case.finish()
    begin = case.clock()
    for _ in range(calls):
        case.run()
    if case.finish is not None:
        case.finish()
    return (case.clock() - begin) / calls


def _first_calls(timing: Timing) -> None:
    """Warm-up: compile, fill caches, and choose how many calls make a block."""
    try:
        with _settings(timing.case):
            first = _time_calls(timing.case, 1)
            estimate = first if first > 1 else min(_time_calls(timing.case, 1) for _ in "ab")
    except Exception as error:  # a peer that cannot run here is a row that says so
        if timing.case.role == "ours":
            raise
        timing.failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
        return
    timing.calls_per_block = max(1, round(BLOCK_SECONDS / max(estimate, 1e-7)))
    if first > 1 and timing.case.max_repetitions <= 1:
        timing.seconds.append(first)  # a slow peer's only call counts


def _one_block(timing: Timing, roof: Roof | None) -> None:
    case = timing.case
    threads = case.threads or torch.get_num_threads()
    if timing.seconds:  # the first guess may have met a slow moment
        fastest = max(timing.quantile(0), 1e-7)
        timing.calls_per_block = max(timing.calls_per_block, round(BLOCK_SECONDS / fastest))
    paired = roof is not None and case.roof_kind is not None
    before = roof.rate(case.roof_kind, threads) if paired else 0.0
    with _settings(case):
        if timing.calls_per_block > 1 or timing.quantile(0) < WARM_CALL_LIMIT:
            case.run()
        timing.seconds.append(_time_calls(case, timing.calls_per_block))
    if paired:
        timing.roof_rates.append((before + roof.rate(case.roof_kind, threads)) / 2)


def measure(cases: Sequence[Case], repetitions: int, roof: Roof | None = None) -> list[Timing]:
    """Times the cases in turn, `repetitions` blocks each (fewer where a case says so)."""
    timings = [Timing(case) for case in cases]
    for timing in timings:
        _first_calls(timing)
    for _ in range(repetitions):
        for timing in timings:
            if not timing.failure and len(timing.seconds) < timing.case.max_repetitions:
                _one_block(timing, roof)
    return timings


# --- What comes out ------------------------------------------------------------------------------


def cpu_model() -> str:
    """The CPU's name, without its path through the operating system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def isa_in_use() -> str:
    """The instruction set of the native kernels, or "reference" where plain PyTorch serves."""
    return ssc.build_info()["cpu_isa"] or "reference"


def environment() -> Row:
    """The columns that every row carries: machine and versions, no date."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "tensorflow": getattr(sys.modules.get("tensorflow"), "__version__", ""),
        "package": ssc.__version__,
        "backend": ssc.build_info()["backend"],
    }


def paired_ratio(timing: Timing, base: Timing) -> float:
    """Time over that of `base`: the median over the repetitions that both took part in."""
    pairs = list(zip(timing.seconds, base.seconds, strict=False))
    return _median_or_nan([ours / theirs for ours, theirs in pairs])


def rows_from(timings: Sequence[Timing], config: Row, base: str = "") -> list[Row]:
    """One CSV row per case; `ratio` is its time over that of the case named `base`, or of the first
    one of role "ours"."""
    named = [t for t in timings if t.case.name == base or (not base and t.case.role == "ours")]
    rows = []
    for timing in timings:
        case, shares = timing.case, sorted(timing.roof_shares())
        rows.append(
            {
                **config,
                "case": case.name,
                "role": case.role,
                "threads": case.threads or torch.get_num_threads(),
                "blocks": len(timing.seconds),
                "calls_per_block": timing.calls_per_block,
                "median_ms": digits(timing.median * 1e3),
                "p10_ms": digits(timing.quantile(0.1) * 1e3),
                "p90_ms": digits(timing.quantile(0.9) * 1e3),
                "ratio": digits(paired_ratio(timing, named[0])) if named else "",
                "roof": case.roof_kind or "",
                "roof_gops": digits(_median_or_nan(timing.roof_rates) / 1e9),
                "share_of_roof": digits(_median_or_nan(shares)),
                "share_p90": digits(shares[int(0.9 * len(shares))] if shares else math.nan),
                **case.columns,
                "failure": timing.failure,
            }
        )
    return rows


def _median_or_nan(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def digits(value: float) -> float | str:
    """Four significant digits; nothing where there is no number."""
    return "" if math.isnan(value) else float(f"{value:.4g}")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All rows under the union of their columns, in order of appearance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def print_rows(title: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """A plain table of the columns that hold anything."""
    shown = [name for name in columns if any(row.get(name, "") != "" for row in rows)]
    cells = [shown] + [[_text(row.get(name, "")) for name in shown] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    print(f"\n{title}")
    for line in cells:
        aligned = [line[0].ljust(widths[0])]
        aligned += [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        print("  " + "  ".join(aligned).rstrip())
    sys.stdout.flush()


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


OURS_COLOR, PEER_COLOR = "#d1495b", "#8d99ae"


def draw_times(axes: Any, bars: Sequence[tuple[str, float, bool]]) -> None:
    """Horizontal bars (label, milliseconds, is it ours?) on a logarithmic axis."""
    times = [milliseconds for _, milliseconds, _ in bars]
    colors = [OURS_COLOR if ours else PEER_COLOR for _, _, ours in bars]
    drawn = axes.barh([label for label, _, _ in bars], times, color=colors)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 2, max(times) * 6)
    axes.bar_label(drawn, [_milliseconds(time_ms) for time_ms in times], padding=3)
    axes.set_xlabel("milliseconds (log scale)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def plot(path: Path, draw: Callable[[Any], None], size: tuple[float, float] = (8, 4.5)) -> None:
    """Calls `draw(axes)` and saves the figure; without matplotlib it says so and goes on."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no matplotlib: the plot is left out", file=sys.stderr)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=size)
    draw(axes)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"wrote {path}")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    result.add_argument("--full", action="store_true", help="every configuration, slow peers too")
    result.add_argument("--threads", type=arguments.positive, default=torch.get_num_threads())
    result.add_argument("--repetitions", type=int, default=0, help="blocks per case (0: a default)")
    result.add_argument(
        "--output", type=Path, default=BUILD_DIR, help="folder for the CSV file and the plot"
    )
    return result
