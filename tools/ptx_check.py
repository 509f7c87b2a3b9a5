"""Runs the tests on the kernels of nvcc over an executor of PTX: `make ptx-check EXECUTOR=...`.

    python tools/ptx_check.py build/ptx/ptx --architectures 80 90
    python tools/ptx_check.py build/ptx/ptx --architectures 80 90 --choose   # tests/ptx/chosen.txt

For each architecture, the tests marked "ptx" run, or those of tests/ptx/chosen.txt with `--tests
chosen`; then it says how many of the kernels of csrc/cuda they executed and which they did not. A
kernel that was not, and is not in tests/ptx/unexecuted.txt, is a failure like that of a test.

`--choose` takes the records of a run of all tests and writes the quickest tests that execute every
kernel as often as DEPTH asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import nvcc

ROOT = Path(__file__).resolve().parent.parent
CHOSEN = ROOT / "tests/ptx/chosen.txt"
UNEXECUTED = ROOT / "tests/ptx/unexecuted.txt"
ARCHITECTURES = ("75", "80", "90", "120")
DEPTH = 6  # test functions that execute a kernel, where there are that many
NOTHING_COLLECTED = 5  # pytest's exit status


class Record(NamedTuple):
    """A test, as tests/helpers/ptx_launches.py writes it down."""

    test: str
    seconds: float
    kernels: frozenset[str]  # symbols

    @property
    def function(self) -> str:
        return self.test.partition("[")[0]


def entries(library: Path, architecture: str) -> dict[str, str]:
    """The PTX of each kernel in a library of objects that were compiled with --no-compress."""
    found: dict[str, str] = {}
    for match in re.finditer(rb"\.version [^\0]*", library.read_bytes()):
        text = match[0].decode()
        target = re.search(r"^\.target sm_(\d+)", text, re.MULTILINE)
        if target is None or target[1] != architecture:
            continue
        parts = re.split(r"^(?:\.visible |\.weak )?\.entry (\w+)", text, flags=re.MULTILINE)
        found.update(zip(parts[1::2], parts[2::2], strict=True))
    return found


def is_empty(ptx: str) -> bool:
    """True of a kernel that the architecture never runs and that is compiled to a trap: tile.h."""
    instructions = re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][\w.]*)[^:{]*;", ptx, re.MULTILINE)
    return "trap" in instructions and len(instructions) <= 4


def product_kernels(folder: Path, architecture: str) -> set[str]:
    """The kernels of csrc/cuda that the architecture runs."""
    found = entries(folder / "ssc_ptx_ops.so", architecture)
    if not found:
        raise SystemExit(f"ptx_check: no PTX for sm_{architecture} in {folder}: make ptx-check")
    return {name for name, ptx in found.items() if not is_empty(ptx)}


def readable(symbols: set[str]) -> dict[str, str]:
    ordered = sorted(symbols)
    return dict(zip(ordered, nvcc.demangle(ordered), strict=True)) if ordered else {}


def known_unexecuted(architecture: str) -> dict[str, str]:
    """Patterns of names, each with the reason why no test executes such a kernel."""
    known = {}
    for line in UNEXECUTED.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        architectures, pattern, reason = (part.strip() for part in line.split("|"))
        if architectures == "all" or architecture in architectures.split():
            known[pattern] = reason
    return known


def matches(name: str, pattern: str) -> bool:
    """As fnmatch, but brackets stand for themselves."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def read_records(folder: Path) -> Iterator[Record]:
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            yield Record(entry["test"], entry["seconds"], frozenset(entry["kernels"]))


def chosen_tests() -> list[str]:
    """Those of the list that are there: a test that was renamed is no reason to fail by itself."""
    wanted = CHOSEN.read_text().splitlines()
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "ptx"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    there = set(collected)
    gone = [test for test in wanted if test not in there]
    for test in gone:
        print(f"ptx_check: {test} is in {CHOSEN.relative_to(ROOT)} and is no test any more")
    return [test for test in wanted if test in there]


def run_tests(architecture: str, tests: list[str] | None, records: Path, jobs: int) -> bool:
    environment = {
        **os.environ,
        "PTX_ARCH": architecture,
        "SSC_PTX_LAUNCHES": str(records),
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(jobs), "--dist", "worksteal"]
    command += tests if tests is not None else ["-m", "ptx"]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return status == 0


def report(folder: Path, architecture: str, executed: set[str]) -> bool:
    """Says what was executed; False if a kernel was not and should have been."""
    kernels = product_kernels(folder, architecture)
    missing = readable(kernels - executed)
    known = known_unexecuted(architecture)
    on = f"{int(architecture) / 10:.1f}"
    print(f"ptx_check: {on}: {len(kernels) - len(missing)} of {len(kernels)} kernels executed")
    good = True
    for name in sorted(missing.values()):
        reason = next((why for pattern, why in known.items() if matches(name, pattern)), None)
        print(f"ptx_check: {on}: not executed: {name}: {reason or 'no test does any more'}")
        good &= reason is not None
    for pattern in known:
        if not any(matches(name, pattern) for name in missing.values()):
            print(f"ptx_check: {on}: {pattern} is executed now: take it out of {UNEXECUTED.name}")
            good = False
    return good


def choose(records: dict[str, list[Record]], kernels: dict[str, set[str]]) -> list[str]:
    """Tests that execute what all do, each kernel by DEPTH functions or as many as there are.

    Greedy: the test that adds most per second, again and again; then those are left out without
    which it is the same, the slowest first.
    """
    seconds: dict[str, float] = defaultdict(float)
    covers: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for architecture, lines in records.items():
        for record in lines:
            seconds[record.test] = max(seconds[record.test], record.seconds)
            covers[record.test] |= {
                (architecture, k) for k in record.kernels & kernels[architecture]
            }

    def functions(tests: Iterator[str] | list[str]) -> dict[tuple[str, str], set[str]]:
        by: dict[tuple[str, str], set[str]] = defaultdict(set)
        for test in tests:
            for kernel in covers[test]:
                by[kernel].add(test.partition("[")[0])
        return by

    wanted = {kernel: min(DEPTH, len(by)) for kernel, by in functions(list(covers)).items()}
    chosen: list[str] = []
    have = functions(chosen)
    while True:

        def gain(test: str, have: dict[tuple[str, str], set[str]] = have) -> float:
            function = test.partition("[")[0]
            new = sum(len(have[k]) < wanted[k] and function not in have[k] for k in covers[test])
            return new / (seconds[test] + 0.2)

        best = max(covers, key=gain)
        if gain(best) == 0:
            break
        chosen.append(best)
        have = functions(chosen)
    for test in sorted(chosen, key=lambda t: -seconds[t]):
        rest = [other for other in chosen if other != test]
        by = functions(rest)
        if all(len(by[kernel]) >= count for kernel, count in wanted.items()):
            chosen = rest
    print(f"ptx_check: {len(chosen)} tests, {sum(seconds[t] for t in chosen):.0f} s on one core")
    return sorted(chosen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of ssc_ptx_ops.so and ssc_ptx_bench.so")
    parser.add_argument("--architectures", nargs="+", default=["all"])
    parser.add_argument("--tests", choices=("all", "chosen"), default="all")
    parser.add_argument("--choose", action="store_true", help=f"write {CHOSEN.name}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    architectures = arguments.architectures
    architectures = list(ARCHITECTURES) if architectures == ["all"] else architectures
    os.environ["SSC_PTX_DIR"] = str(arguments.folder.resolve())
    tests = chosen_tests() if arguments.tests == "chosen" else None
    good = True
    records: dict[str, list[Record]] = {}
    for architecture in architectures:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            good &= run_tests(architecture, tests, Path(folder), arguments.jobs)
            records[architecture] = list(read_records(Path(folder)))
        executed = {name for record in records[architecture] for name in record.kernels}
        good &= report(arguments.folder, architecture, executed)
        print(f"ptx_check: sm_{architecture} took {time.perf_counter() - start:.0f} s")
    if arguments.choose:
        kernels = {a: product_kernels(arguments.folder, a) for a in architectures}
        CHOSEN.write_text("".join(f"{test}\n" for test in choose(records, kernels)))
    print("ptx_check: ok" if good else "ptx_check: failed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
