"""Check that the compiler has kept the prefetches of the CPU's code.

    python tools/check_prefetches.py build/dev

GCC takes a function that does nothing but prefetch for one without effects, and drops its calls:
row updates once ran without any, with the right numbers at half of the speed. So the
object of every source in csrc/cpu that calls a prefetch must have such an instruction. Reads the
objects with `objdump`; exits with 1 and one line per object if there is none in it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cpu"
CALL = re.compile(r"\b(__builtin_prefetch|prefetch_\w+)(<[\w:]+>)?\(")
# The instruction, or a call of a function of another object that has it.
PREFETCH = re.compile(r"\t(prefetch\w*|prfm)\b|\bR_\w+\s+\w*prefetch")


def has_prefetch(compiled: Path) -> bool:
    command = ["objdump", "--disassemble", "--reloc", "--no-show-raw-insn", str(compiled)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return PREFETCH.search(output) is not None


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    objects = 0
    bad = []
    for source in sorted(SOURCES.rglob("*.cpp")):
        if not CALL.search(source.read_text()):
            continue
        place = f"CMakeFiles/*.dir/csrc/cpu/{source.relative_to(SOURCES)}.o"
        compiled = sorted(Path(sys.argv[1]).glob(place))
        if not compiled:
            bad.append(f"no object of {source.name} in {sys.argv[1]}")
        objects += len(compiled)
        bad += [
            f"{each.parts[-5]}: no prefetch is left of {source.name}: see csrc/cpu/base/prefetch.h"
            for each in compiled
            if not has_prefetch(each)
        ]
    print("\n".join([*bad, f"check_prefetches: {objects} objects, {len(bad)} without"]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
