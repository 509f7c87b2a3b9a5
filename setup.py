"""Packaging: a build_ext that runs CMake and Ninja. Names no source; see CMakeLists.txt.

Environment variables, described in CONTRIBUTING.md: SSC_SKIP_BUILD, SSC_WITH_CUDA,
TORCH_CUDA_ARCH_LIST, CUDA_HOME, SSC_WERROR, MAX_JOBS, DEBUG, CXX, CMAKE_ARGS,
SSC_LOCAL_VERSION. Whatever goes wrong ends in one line that says what to do about it.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).resolve().parent
PACKAGE = "sampled_softmax_cuda"
MINIMUM_TORCH = (2, 11)  # the stable ABI that CMakeLists.txt targets
MINIMUM_ARCHITECTURE = 7.5
DEFAULT_ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
CPU_ONLY = "or use SSC_WITH_CUDA=0 for the CPU build"
WAY_OUT = "or set SSC_SKIP_BUILD=1 to install the pure Python reference implementation"


def fail(message: str) -> SystemExit:
    """A one-line end of the build; SystemExit, so that nobody prints a traceback for it."""
    return SystemExit(f"{PACKAGE}: {message}")


def flag(name: str) -> bool:
    return os.environ.get(name, "0").strip().lower() not in ("", "0", "false", "off", "no")


def find_tool(name: str) -> str:
    """A program on PATH, or beside the running Python (a virtual environment not activated)."""
    path = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        raise fail(f"{name} not found: `pip install {name}`, {WAY_OUT}")
    return path


def find_compiler() -> str:
    """The C++ compiler, found here so that its absence is one line and not a page of CMake's."""
    wanted = os.environ.get("CXX", "").split()[:1]
    for name in wanted or ["c++", "g++", "clang++"]:
        path = shutil.which(name)
        if path is not None:
            return path
    looked_for = f"CXX={wanted[0]}" if wanted else "c++, g++ or clang++"
    raise fail(f"no C++ compiler ({looked_for}): install g++ 11 or newer or set CXX, {WAY_OUT}")


def find_torch() -> Path:
    """The folder of the torch package to build against, without the seconds of importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise fail(
            "torch is not installed, and the library is built against its headers: "
            f"`pip install 'torch>=2.11'`, {WAY_OUT}"
        )
    version = importlib.metadata.version("torch")
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < MINIMUM_TORCH:
        raise fail(f"torch {version} is too old: 2.11 or newer is needed, {WAY_OUT}")
    return Path(spec.origin).parent


def torch_cuda(torch: Path) -> str | None:
    """The CUDA version that torch was built with, such as "13.0"; None for a CPU build."""
    match = re.search(r"^cuda\b.*=\s*['\"](.+)['\"]", (torch / "version.py").read_text(), re.M)
    return match[1] if match else None


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME if that is set; else of PATH, where NVIDIA installs it, or from PyPI."""
    home = os.environ.get("CUDA_HOME")
    folders = [home] if home else [Path(shutil.which("nvcc") or "/").parent.parent]
    if not home:
        folders.append("/usr/local/cuda")
        nvidia = importlib.util.find_spec("nvidia")
        for parent in (nvidia and nvidia.submodule_search_locations) or []:
            folders += sorted(Path(parent).glob("cu[0-9]*"), reverse=True)
    found = [Path(folder, "bin", "nvcc").absolute() for folder in folders]
    return next((nvcc for nvcc in found if os.access(nvcc, os.X_OK)), None)


def nvcc_version(nvcc: Path) -> str:
    """Such as "13.0"."""
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+\.\d+)", output)
    if match is None:
        raise fail(f"{nvcc} does not say its version: set CUDA_HOME to a CUDA toolkit, {CPU_ONLY}")
    return match[1]


def visible_architectures() -> list[str]:
    """The compute capabilities of this machine's GPUs, such as "9.0"."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return sorted(set(re.findall(r"^\d+\.\d+$", output, re.M)), key=float)


def architectures(nvcc: Path) -> list[str]:
    """The architectures to compile for, as PyTorch writes them: "8.0", "9.0a", "12.0+PTX"."""
    output = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = [f"{number}.{digit}" for number, digit in re.findall(r"compute_(\d+)(\d)\b", output)]
    wanted = [n for n in re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")) if n]
    wanted = [] if wanted == ["all"] else wanted or visible_architectures()
    for name in wanted:
        match = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", name)
        if match is None:
            raise fail(f"TORCH_CUDA_ARCH_LIST must be like '8.0;9.0+PTX' or all, got {name!r}")
        if float(match[1]) < MINIMUM_ARCHITECTURE or match[1] not in known:
            raise fail(
                f"no kernels can be compiled for a GPU of compute capability {match[1]}: they need "
                f"{MINIMUM_ARCHITECTURE} or newer, and {nvcc} knows {', '.join(known)}; set "
                f"TORCH_CUDA_ARCH_LIST, {CPU_ONLY}"
            )
    if wanted:
        return wanted
    default = [name for name in DEFAULT_ARCHITECTURES if name in known]
    return [*default[:-1], f"{default[-1]}+PTX"]  # PTX of the newest, for GPUs to come


def choose_device(torch: Path) -> dict[str, str]:
    """Applies SSC_WITH_CUDA, says in one line what is going to be built, returns CMake settings.

    auto: with CUDA if torch is a CUDA build and an nvcc is here that is not newer than it by a
    major version, since the GPU's driver may be too old for that.
    """
    choice = os.environ.get("SSC_WITH_CUDA", "auto").strip().lower() or "auto"
    if choice not in ("auto", "0", "1"):
        raise fail(f"SSC_WITH_CUDA must be auto, 0 or 1, got {choice!r}")
    cuda, nvcc, why = torch_cuda(torch), None, "SSC_WITH_CUDA=0"
    if choice == "1" or (choice == "auto" and cuda is not None):
        nvcc = find_nvcc()
        why = "no nvcc, set CUDA_HOME to build for CUDA too"
    elif choice == "auto":
        why = "torch is a CPU build, SSC_WITH_CUDA=1 builds for CUDA all the same"
    if nvcc is None and choice == "1":
        raise fail(
            "SSC_WITH_CUDA=1 needs nvcc, which is not in CUDA_HOME or, if that is not set, not on "
            "PATH, not in /usr/local/cuda and not among pip's packages: install a CUDA toolkit or "
            f"`pip install nvidia-cuda-nvcc nvidia-cuda-cccl`, {CPU_ONLY}"
        )
    version = nvcc_version(nvcc) if nvcc else ""
    if nvcc and choice == "auto" and int(version.split(".")[0]) > int(cuda.split(".")[0]):
        nvcc = None
        why = f"nvcc is {version}, torch is built with CUDA {cuda}; SSC_WITH_CUDA=1 builds anyway"
    if nvcc is None:
        print(f"{PACKAGE}: building for the CPU ({why})", flush=True)
        return {"SSC_WITH_CUDA": "OFF"}
    names = architectures(nvcc)
    print(f"{PACKAGE}: building for the CPU and for CUDA ({', '.join(names)}; nvcc {version}), "
          "which takes minutes", flush=True)  # fmt: skip
    return {
        "SSC_WITH_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": str(nvcc),
        "CMAKE_CUDA_HOST_COMPILER": find_compiler(),
        "CMAKE_CUDA_ARCHITECTURES": ";".join(
            name.replace(".", "").removesuffix("+PTX") + ("" if "+PTX" in name else "-real")
            for name in names
        ),
    }


class FreshCopy(build_py):
    """Leaves no module in a wheel that an earlier build copied and the sources lack by now."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, PACKAGE), ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds every target of CMakeLists.txt into the package's folder."""

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        debug = flag("DEBUG")
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / PACKAGE
        # A development build keeps its folder, so that an edit recompiles one file.
        folder = ROOT / "build" / ("debug" if debug else "dev") if in_place else self.build_temp
        self.cmake(Path(folder).resolve(), package, "Debug" if debug else "Release")

    def cmake(self, folder: Path, package: Path, build_type: str) -> None:
        cmake = find_tool("cmake")
        torch = find_torch()
        settings = {
            **choose_device(torch),
            "CMAKE_BUILD_TYPE": build_type,
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "CMAKE_CXX_COMPILER": find_compiler(),
            "SSC_INSTALL_DIR": str(package),
            "SSC_TORCH_DIR": str(torch),
            "SSC_WERROR": "ON" if flag("SSC_WERROR") else "OFF",
        }
        configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in settings.items()]
        # CMake keeps what it found in an earlier run: start afresh when any of it has moved.
        stamp = folder / "configured_with.json"
        more = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        configure += more
        wanted = json.dumps({"cmake": cmake, "more": more, "source": str(ROOT), **settings})
        if not stamp.exists() or stamp.read_text() != wanted:
            configure.append("--fresh")
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        self.call(configure, "CMake could not configure the build")
        stamp.write_text(wanted)
        jobs = os.environ.get("MAX_JOBS", "").strip()
        parallel = ["--parallel", jobs] if jobs else []
        if settings["SSC_WITH_CUDA"] == "OFF":  # one of an earlier build in place would be loaded
            (package / "_C_cuda.so").unlink(missing_ok=True)
        self.call(
            [cmake, "--build", str(folder), *parallel], "the compiled library failed to build"
        )

    def call(self, command: list[str], problem: str) -> None:
        sys.stdout.flush()
        code = subprocess.call(command)
        if code != 0:
            raise fail(f"{problem} (exit status {code}, its output is above); fix that, {WAY_OUT}")


class LocalVersion(egg_info):
    """Appends SSC_LOCAL_VERSION to the version: "+cu130" tells a wheel from the CPU's."""

    def finalize_options(self) -> None:
        self.tag_build = os.environ.get("SSC_LOCAL_VERSION") or self.tag_build
        super().finalize_options()


COMMANDS = {"build_py": FreshCopy, "egg_info": LocalVersion}
if flag("SSC_SKIP_BUILD"):
    setup(cmdclass=COMMANDS)
else:
    setup(
        ext_modules=[Extension(f"{PACKAGE}._C", sources=[], py_limited_api=True)],
        cmdclass={**COMMANDS, "build_ext": CMakeBuild},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
