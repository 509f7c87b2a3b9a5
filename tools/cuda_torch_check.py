"""Build the package with a CUDA build of torch, import it, run CPU tests: `make cuda-torch-check`.

Needs no GPU, but nvcc, a package index and 25 GB of disk: torch and NVIDIA's libraries go into an
environment of their own under build/. The kernels are compiled for one architecture.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/cuda-torch"
PYTHON = FOLDER / "venv/bin/python"
DISK_GB = 25

# In the installed package, away from the sources.
CHECK = """
import torch, sampled_softmax_cuda as ssc
info = ssc.build_info()
assert torch.version.cuda is not None, f"torch {torch.__version__} is no CUDA build"
assert info["native"], info["native_reason"]
assert info["cuda_native"], info["cuda_native_reason"]
assert info["cuda_architectures"] == ["9.0"], info["cuda_architectures"]
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("sampled_softmax::")]
cuda = sorted(name.partition("::")[2] for name in names if has_kernel(name, "CUDA"))
assert "loss_and_grads" in cuda and "sample" in cuda, cuda
print("operators with CUDA kernels:", *cuda)
"""

# Tests that run without the source tree around them.
TESTS = {
    "loss": ("backward", "errors", "loss", "modules", "reference"),
    "samplers": ("sample_counts", "sample_ids", "sample_modules"),
    "exact": ("exact",),
    "compile": ("compile",),
    "gpu": ("cuda_dispatch",),
    "package": ("info",),
}


def run(*command: object, **environment: str) -> None:
    """A command that must succeed, in the check's folder."""
    print("+", *command, flush=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SSC_", "PYTHON"))}
    words = [str(part) for part in command]
    code = subprocess.run(words, cwd=FOLDER, env={**clean, **environment}).returncode
    if code != 0:
        raise SystemExit(f"cuda_torch_check: {' '.join(words[:6])} ... gave {code}")


def make_environment(torch: str) -> None:
    """A virtual environment with this torch and, of requirements-dev.txt, all but torch."""
    if not PYTHON.exists():
        free = shutil.disk_usage(FOLDER).free / 1e9
        if free < DISK_GB:
            raise SystemExit(f"cuda_torch_check: {DISK_GB} GB of disk are needed, {free:.0f} free")
        run(sys.executable, "-m", "venv", FOLDER / "venv")
    pins = (ROOT / "requirements-dev.txt").read_text().splitlines()
    # NVIDIA's packages come with torch, in the versions that it wants.
    kept = [pin for pin in pins if not pin.startswith(("torch==", "nvidia-"))]
    (FOLDER / "requirements.txt").write_text("\n".join([torch, *kept, ""]))
    run(PYTHON, "-m", "pip", "install", "--quiet", "-r", "requirements.txt")


def install(jobs: str) -> None:
    """The package, from a source distribution, so that nothing of the tree gets mixed in."""
    shutil.rmtree(FOLDER / "dist", ignore_errors=True)
    run(PYTHON, "-m", "build", "--sdist", "--no-isolation", "-o", FOLDER / "dist", ROOT)
    (archive,) = (FOLDER / "dist").glob("*.tar.gz")
    run(
        *(PYTHON, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--force-reinstall"),
        archive,
        SSC_WITH_CUDA="1",
        TORCH_CUDA_ARCH_LIST="9.0",
        MAX_JOBS=jobs,
        PATH=f"{PYTHON.parent}:{os.environ['PATH']}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("torch", nargs="?", default="torch==2.14.1")
    parser.add_argument("--jobs", default="2")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    make_environment(options.torch)
    install(options.jobs)
    run(PYTHON, "-c", CHECK)
    run(PYTHON, "-m", "sampled_softmax_cuda")
    shutil.rmtree(FOLDER / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "tests", FOLDER / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    tests = [f"tests/{folder}/test_{name}.py" for folder in TESTS for name in TESTS[folder]]
    pytest = (PYTHON, "-m", "pytest", "-c", os.devnull, "--rootdir=.", "-o", "pythonpath=tests")
    run(*pytest, "-q", "-n", options.jobs, *tests)


if __name__ == "__main__":
    main()
