"""Check that no code compiled for a newer CPU can be merged into the common parts of the library.

    python tools/check_isa_symbols.py build/dev

The kernels of csrc/cpu are compiled with flags such as -mavx512f. If such an object holds a
weak symbol, say an instance of a template of the standard library, the linker keeps one copy of it
for the whole library, perhaps the one with AVX-512 in it, and a CPU without AVX-512 stops there
with SIGILL. So every function of a kernel must be local or in the namespace ssc::<instruction set>.
Reads the objects with `nm`; exits with 1 and one line per symbol if there is any.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

WEAK_OR_UNIQUE = set("WVuwv")
ISAS = ("avx2", "avx512", "avx512_bf16", "amx_bf16", "amx_split")


def shared_symbols(kernel: Path, isa: str) -> Iterator[str]:
    """Defined symbols of the object that the linker may merge with those of other objects."""
    command = ["nm", "--demangle", "--defined-only", "--format=posix", str(kernel)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in output.splitlines():
        fields = line.rsplit(maxsplit=3)  # name (spaces when demangled), type, value, size
        kinds = [field for field in fields[1:] if len(field) == 1 and field.isalpha()]
        shared = bool(kinds) and kinds[0] in WEAK_OR_UNIQUE
        data = line.startswith("DW.ref.")  # a pointer for exception handling, not code
        if shared and not data and f"ssc::{isa}::" not in line:
            yield line.split(f" {kinds[0]} ")[0]


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    objects = 0
    bad = []
    if not any(Path(sys.argv[1]).glob("CMakeFiles/kernels_*_scalar.dir/**/*.o")):
        bad.append(f"no objects of kernels in {sys.argv[1]}")
    for isa in ISAS:
        for kernel in sorted(Path(sys.argv[1]).glob(f"CMakeFiles/kernels_*_{isa}.dir/**/*.o")):
            objects += 1
            bad += [f"{kernel.name} ({isa}): {symbol}" for symbol in shared_symbols(kernel, isa)]
    print("\n".join([*bad, f"check_isa_symbols: {objects} objects, {len(bad)} shared symbols"]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
