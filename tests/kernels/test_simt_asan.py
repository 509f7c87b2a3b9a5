"""The third build of csrc/simt: AddressSanitizer and UndefinedBehaviorSanitizer see the kernels.

Their runtime must be loaded before Python, hence the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers.simt_bench import FOLDER, ROOT, require


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = os.environ | {
        "LD_PRELOAD": runtime.stdout.strip(),
        # Python's own leaks are not ours; fibers bring their own stacks.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "SSC_SIMT_VARIANTS": "asan",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def call(statement: str) -> subprocess.CompletedProcess[str]:
    """Runs a statement in which `call` calls a launcher and `array(n)` is the address of n bytes.

    Without torch, which takes seconds to load here.
    """
    return run(
        "-c",
        f"""
import ctypes, importlib.util
spec = importlib.util.spec_from_file_location("ssc_simt_asan", "{FOLDER}/ssc_simt_asan.so")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
libc = ctypes.CDLL(None)
libc.calloc.restype = ctypes.c_void_p
array = lambda n: libc.calloc(n, 1)
call = module.call
{statement}
print(module.findings())
""",
    )


def test_correct_kernels_are_clean() -> None:
    require("asan")
    files = ("tests/kernels/test_simt.py", "tests/kernels/test_simt_garbage.py")
    result = run("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *files)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout


def test_the_same_calls_within_bounds_are_clean() -> None:
    require("asan")
    result = call(
        "call('global', array(256), array(256), 64, 0, 0); call('dynamic', array(4), 0);"
        "call('vector', array(1024), array(1024), 64, 0, 0);"
        "call('local', array(256), array(128), 64)"
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("call('global', array(256), array(256), 64, 1, 0)", "heap-buffer-overflow"),
        ("call('dynamic', array(4), 1)", "use-after-poison"),
        ("call('local', array(260), array(128), 65)", "index 64 out of bounds for type 'int [64]'"),
        ("call('vector', array(1040), array(1040), 64, 1, 0)", "misaligned address"),
    ],
    ids=["global", "dynamic shared", "thread's own array", "misaligned"],
)
def test_wrong_kernels_stop_the_process(statement: str, message: str) -> None:
    require("asan")
    result = call(statement)
    assert result.returncode != 0
    assert message in result.stderr, result.stderr[-4000:]
    assert "memory.cu" in result.stderr or "vector_access.h" in result.stderr
