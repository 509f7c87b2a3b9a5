"""tools/check_kernels.py finds what nvcc 13.0 miscompiles, and nothing in csrc/cuda."""

from __future__ import annotations

from pathlib import Path

import check_kernels
import pytest

STRUCTS = """
struct Count {
  bool distinct;
  double tries;
};
struct __align__(16) Arguments {
  Count count;
  int64_t samples;
};
"""


def offences(code: str, folder: Path) -> list[str]:
    source = folder / "kernel.cu"
    source.write_text(STRUCTS + code)
    return [message for _, _, message in check_kernels.check_files([source])]


def kernel(body: str) -> str:
    return (
        "template <class T>\n__global__ void __launch_bounds__(kThreads, 4)\n"
        "    counts_kernel(const __grid_constant__ Count given, const double* tries,\n"
        f"                  const __grid_constant__ Arguments a) {{\n{body}\n}}\n"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("const Count c = tries == nullptr ? given : made(*tries);", "given is chosen as a whole"),
        ("const Count c = tries != nullptr ? made(*tries) : given;", "given is chosen as a whole"),
        ("const Count& c = tries ? a.count : other;", "a.count is chosen as a whole"),
        ("use(tries == nullptr ? a.count : made(*tries));", "a.count is chosen as a whole"),
        ("Count c = given;\n  c.tries = *tries;", "a copy of given"),
        ("Count c = a.count;\n  if (tries) c.distinct = true;", "a copy of a.count"),
        ("return given;", "given is a __grid_constant__ parameter"),
        ("const Count* c = &given;", "given is a __grid_constant__ parameter"),
        ("const Count c = {given.distinct, *tries};\n  *out = c;", "stored as a whole"),
        ("*out = {given.distinct, *tries};", "stored as a whole"),
        ("out->count = Count{given.distinct, *tries};", "stored as a whole"),
        ("out[i] = {true, a.count.tries};", "stored as a whole"),
    ],
)
def test_what_nvcc_would_miscompile(body: str, message: str, tmp_path: Path) -> None:
    assert any(message in found for found in offences(kernel(f"  {body}"), tmp_path))


@pytest.mark.parametrize(
    "body",
    [
        "const double t = tries == nullptr ? given.tries : *tries;",
        "const Count c = {tries != nullptr || given.distinct, given.tries};",
        "const Count c = tries == nullptr ? made(1.0) : made(*tries);",
        "use(given, a);  // given ? a : b",
        "const Count& c = a.count;\n  use(c.distinct ? c.tries : 0.0);",
        "const int64_t n = a.samples;",
        "const Count c = {given.distinct, *tries};\n  use(c);",
        "const Count c = {given.distinct ? b : d, *tries};\n  *out = c;",
        "out->distinct = given.distinct;\n  out->tries = *tries;",
    ],
)
def test_what_it_compiles_rightly(body: str, tmp_path: Path) -> None:
    assert offences(kernel(f"  {body}"), tmp_path) == []


def test_references_of_device_functions(tmp_path: Path) -> None:
    code = (
        "__device__ __forceinline__ double tries_of(const Count& given, bool distinct) {\n"
        "  const Count c = distinct ? given : Count{};\n  return c.tries;\n}\n"
    )
    assert offences(code, tmp_path) == ["given is chosen as a whole: choose member by member"]
    host = code.replace("__device__ __forceinline__", "inline")
    assert offences(host, tmp_path) == []


def test_the_kernels_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_kernels.main() == 0, capsys.readouterr().out
