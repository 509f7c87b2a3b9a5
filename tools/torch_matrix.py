"""One wheel under several versions of torch, without a compiler: `make torch-matrix`.

For each torch an environment of its own under build/torch-matrix, which stays, gets the wheel of
`make wheel`, with CUDA=1 the one with CUDA kernels, which a CUDA build of torch must load without a
GPU too; no compiler, CMake or Ninja is on its PATH. Then the quick tests of losses, samplers,
optimizers, exact functions and the installation run in it. Needs a package index, and some 7 GB of
disk for each torch that brings NVIDIA's libraries.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "torch-matrix"
TOOLS = ("hypothesis", "mpmath", "numpy", "pytest", "pytest-xdist", "scipy")
VERSIONS = ("torch==2.11.0", "torch")
# In the installed package, away from the sources.
CHECK = """
import torch, sampled_softmax_cuda as ssc
info = ssc.build_info()
assert info["native"], info["native_reason"]
for_cuda = "+cu" in info["version"] and torch.version.cuda is not None
assert info["cuda_native"] == for_cuda, info["cuda_native_reason"]
print(f"torch {torch.__version__}, {info['native_reason']}, {info['cpu_isa']}")
print(f"CUDA: {info['cuda_native_reason']}, {info['cuda_architectures']}")
"""
# Tests that run without the source tree around them.
TESTS = {
    "loss": ("backward", "errors", "loss", "modules", "options", "reference"),
    "samplers": ("sample_counts", "sample_ids", "sample_modules"),
    "optim": ("against_torch", "rules"),
    "exact": ("exact",),
}


def run(*command: object, path: str | None = None) -> None:
    """A command that must succeed, in the matrix's folder."""
    print("+", *command, flush=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SSC_", "PYTHON"))}
    # Threads that wait for others spin by default, in the way of the other workers.
    clean |= {"OMP_WAIT_POLICY": "passive", **({"PATH": path} if path else {})}
    words = [str(part) for part in command]
    code = subprocess.run(words, cwd=FOLDER, env=clean).returncode
    if code != 0:
        raise SystemExit(f"torch_matrix: {' '.join(words[:6])} ... gave {code}")


def check(torch: str, wheel: Path, jobs: str) -> None:
    """Install this torch and the wheel, and run the tests."""
    folder = FOLDER / torch
    python = folder / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", folder)
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", torch, *TOOLS)
    bare = str(python.parent)  # no compiler there
    assert not [name for name in ("c++", "g++", "cmake", "ninja") if shutil.which(name, path=bare)]
    install = ("install", "--quiet", "--no-deps", "--force-reinstall", "--only-binary", ":all:")
    run(python, "-m", "pip", *install, wheel, path=bare)
    run(python, "-c", CHECK, path=bare)
    run(python, "-m", "sampled_softmax_cuda", "--self-check", path=bare)
    tests = [f"tests/{of}/test_{name}.py" for of in TESTS for name in TESTS[of]]
    pytest = (python, "-m", "pytest", "-c", os.devnull, "--rootdir=.", "-o", "pythonpath=tests")
    # The executors of CUDA's kernels are built from sources, which are not here.
    run(*pytest, "-q", "-n", jobs, "-k", "not simt", *tests, path=bare)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("torch", nargs="*", default=VERSIONS)
    parser.add_argument("--jobs", default="2")
    options = parser.parse_args()
    if not options.wheel.is_file():
        parser.error(f"no wheel {options.wheel}: `make wheel` makes it in dist/cpu")
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(FOLDER / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "tests", FOLDER / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for torch in options.torch:
        check(torch, options.wheel.resolve(), options.jobs)


if __name__ == "__main__":
    main()
