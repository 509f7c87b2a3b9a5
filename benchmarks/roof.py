"""Roofs: what the cores' multiply-add units and the memory do at best, measured in the same run.

``roof.cpp`` holds the loops (registers only for arithmetic and random bits; a read, a copy and a
gather of random rows for memory). It is compiled on first use with the C++ compiler at hand into
``build/benchmarks`` and called through ctypes. Without a compiler `load_roof` returns None and the
benchmarks print ratios to their peers alone.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
from collections.abc import Sequence

import native
import torch

# In the order of roof.cpp's `loop_of`: arithmetic per instruction set, then random bits (Philox).
ARITHMETIC = ("scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16")
OF_BFLOAT16 = ("avx512_bf16", "amx_bf16")
RANDOM = ("philox_scalar", "philox_avx2", "philox_avx512")
KINDS = ARITHMETIC + RANDOM


class Roof:
    """The measured limits of this machine; every method measures anew.

    Rates are for `threads` threads together. `warm` is the time in seconds for which the threads
    work before the measurement starts: long enough for the idle threads of other libraries (OpenMP
    lets them spin for milliseconds after their last loop) to have gone to sleep.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._lib = library
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_double
        threads = ctypes.c_int
        for name, result, arguments in (
            ("work_per_iteration", number, (ctypes.c_int,)),
            ("loop_seconds", number, (ctypes.c_int, threads, ctypes.c_int64, number)),
            ("alloc", pointer, (size,)),
            ("free", None, (pointer,)),
            ("read_seconds", number, (pointer, size, threads, number)),
            ("copy_seconds", number, (pointer, pointer, size, threads, number)),
            ("gather_seconds", number, (pointer, size, size, size, threads, number)),
            (
                "gather_ids_seconds",
                number,
                (pointer, pointer, size, size, size, threads, number),
            ),
            (
                "change_seconds",
                number,
                (
                    *(pointer, pointer, size, pointer, size, pointer),
                    *(size, size, size, ctypes.c_uint64, threads, number),
                ),
            ),
        ):
            function = getattr(library, f"roof_{name}")
            function.restype, function.argtypes = result, arguments
        self._iterations: dict[str, int] = {}

    def available(self, kind: str) -> bool:
        """True where this CPU runs the loop `kind`, one of `KINDS`."""
        return bool(self._lib.roof_work_per_iteration(KINDS.index(kind)) > 0)

    def kind_for(self, isa: str, dtype_name: str = "float32") -> str:
        """The arithmetic that bounds a step in this dtype: bfloat16 has a roof of its own only
        with instructions that multiply it; everything else is computed in float32. An isa that is
        not one of ours ("reference") is bounded by the best one."""
        if isa not in ARITHMETIC:
            isa = next(kind for kind in reversed(ARITHMETIC) if self.available(kind))
        return "avx512" if isa in OF_BFLOAT16 and dtype_name != "bfloat16" else isa

    def rate(self, kind: str, threads: int, seconds: float = 4e-3, warm: float = 8e-3) -> float:
        """Work per second done in registers: floating-point operations of independent multiply-adds
        (the kinds of ARITHMETIC), or 64-bit random numbers (those of RANDOM)."""
        index = KINDS.index(kind)
        per_iteration = self._lib.roof_work_per_iteration(index)
        if per_iteration <= 0:
            raise ValueError(f"roof: this CPU has no {kind}")
        if kind not in self._iterations:  # about how many make one second
            probe = 200_000
            elapsed = self._lib.roof_loop_seconds(index, 1, probe, 10e-3)
            self._iterations[kind] = max(1, int(probe / elapsed))
        iterations = max(1, int(self._iterations[kind] * seconds))
        elapsed = self._lib.roof_loop_seconds(index, threads, iterations, warm)
        return float(per_iteration * iterations * threads / elapsed)

    def gather_ids(
        self, table: torch.Tensor, ids: torch.Tensor, threads: int, distance: int = 32
    ) -> float:
        """Seconds of a bare gather: the sum of all elements of the rows `ids` (int64, contiguous)
        of a float32 table [C, D], D a multiple of 16, rows being prefetched `distance` ahead."""
        width = table.shape[1]
        if table.dtype != torch.float32 or not table.is_contiguous() or width % 16 != 0:
            raise ValueError("roof: gather_ids takes float32 [C, D], D a multiple of 16")
        return float(
            self._lib.roof_gather_ids_seconds(
                table.data_ptr(), ids.data_ptr(), ids.numel(), width, distance, threads, 0.0
            )
        )

    def change_rows(
        self,
        arrays: Sequence[torch.Tensor],
        gradient: torch.Tensor,
        ids: torch.Tensor,
        threads: int,
        ahead: tuple[int, int],
        warm: float = 8e-3,
    ) -> float:
        """Seconds of a plain read-modify-write of the rows ids (int64 [N], contiguous) of arrays
        [C, ...] by a gradient [N, ...]; no value changes. Rows take a multiple of 64 bytes. One
        thread is timed in CPU time, several by the clock on the wall.

        ahead: how many rows ahead is prefetched, and how many lines of 64 bytes of each.
        """
        sizes = [t.stride(0) * t.element_size() for t in (*arrays, gradient)]
        if any(size % 64 for size in sizes) or not all(t.is_contiguous() for t in arrays):
            raise ValueError(f"roof: rows must take a multiple of 64 bytes, got {sizes}")
        pointers = (ctypes.c_void_p * len(arrays))(*(t.data_ptr() for t in arrays))
        words = (ctypes.c_size_t * len(arrays))(*(size // 64 for size in sizes[:-1]))
        return float(
            self._lib.roof_change_seconds(
                pointers,
                words,
                len(arrays),
                gradient.data_ptr(),
                sizes[-1] // 64,
                ids.data_ptr(),
                ids.numel(),
                *ahead,
                0,
                threads,
                warm,
            )
        )

    def memory(
        self, threads: int, mebibytes: int = 256, row_bytes: int = 1024, passes: int = 5
    ) -> dict[str, float]:
        """Bytes per second, medians: `read` and `copy` (bytes read plus bytes written) of a buffer
        of this size, and `gather` of random rows of `row_bytes` with the best prefetch found."""
        floats = mebibytes << 18
        row_floats = max(16, row_bytes // 64 * 16)
        source, target = self._lib.roof_alloc(4 * floats), self._lib.roof_alloc(4 * floats)
        try:
            if not source or not target:
                raise MemoryError(f"roof: no {2 * mebibytes} MiB for the memory roofs")
            rows = floats // row_floats
            reads = rows // 8
            measure = {
                "read": lambda: (
                    4 * floats / self._lib.roof_read_seconds(source, floats, threads, 1e-3)
                ),
                "copy": lambda: (
                    8 * floats / self._lib.roof_copy_seconds(target, source, floats, threads, 1e-3)
                ),
                "gather": lambda: (
                    4
                    * row_floats
                    * reads
                    / self._lib.roof_gather_seconds(source, rows, row_floats, reads, threads, 1e-3)
                ),
            }
            rates: dict[str, list[float]] = {name: [] for name in measure}
            for _ in range(passes):
                for name, function in measure.items():
                    rates[name].append(function())
            return {name: statistics.median(values) for name, values in rates.items()}
        finally:
            self._lib.roof_free(source)
            self._lib.roof_free(target)


def load_roof() -> Roof | None:
    """The compiled roofs, or None (with one line on stderr that says why)."""
    library = native.load("roof", without="the share of the roof")
    return None if library is None else Roof(library)


def main() -> None:
    """Print the roofs of this machine."""
    roof = load_roof()
    if roof is None:
        sys.exit(1)
    for threads in sorted({1, os.cpu_count() or 1}):
        for kind in filter(roof.available, KINDS):
            rate = statistics.median(roof.rate(kind, threads) for _ in range(11))
            unit = "GFLOP/s" if kind in ARITHMETIC else "G numbers/s"
            print(f"{threads} threads  {kind:14s} {rate / 1e9:8.2f} {unit}")
        for name, rate in roof.memory(threads).items():
            print(f"{threads} threads  {name:14s} {rate / 1e9:8.1f} GB/s")


if __name__ == "__main__":
    main()
