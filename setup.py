"""Packaging: a build_ext that runs CMake and Ninja. Names no source; see CMakeLists.txt.

Environment variables, described in CONTRIBUTING.md: SSC_SKIP_BUILD, SSC_WITH_CUDA, SSC_WERROR,
MAX_JOBS, DEBUG, CXX. Whatever goes wrong ends in one line that says what to do about it.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = "sampled_softmax_cuda"
MINIMUM_TORCH = (2, 11)  # the stable ABI that CMakeLists.txt targets
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


def choose_device() -> None:
    """Applies SSC_WITH_CUDA, and says in one line what is going to be built."""
    choice = os.environ.get("SSC_WITH_CUDA", "auto").strip().lower() or "auto"
    if choice not in ("auto", "0", "1"):
        raise fail(f"SSC_WITH_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "1":
        raise fail(
            "SSC_WITH_CUDA=1: this release has no CUDA kernels, they come in a later one; "
            "use SSC_WITH_CUDA=auto or 0 for the CPU build"
        )
    print(f"{PACKAGE}: building for the CPU (this release has no CUDA kernels)", flush=True)


class CMakeBuild(build_ext):
    """Builds every target of CMakeLists.txt into the package's folder."""

    def run(self) -> None:
        choose_device()
        in_place = self.inplace or getattr(self, "editable_mode", False)
        debug = flag("DEBUG")
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / PACKAGE
        # A development build keeps its folder, so that an edit recompiles one file.
        folder = ROOT / "build" / ("debug" if debug else "dev") if in_place else self.build_temp
        self.cmake(Path(folder).resolve(), package, "Debug" if debug else "Release")

    def cmake(self, folder: Path, package: Path, build_type: str) -> None:
        cmake = find_tool("cmake")
        settings = {
            "CMAKE_BUILD_TYPE": build_type,
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "CMAKE_CXX_COMPILER": find_compiler(),
            "SSC_INSTALL_DIR": str(package),
            "SSC_TORCH_DIR": str(find_torch()),
            "SSC_WERROR": "ON" if flag("SSC_WERROR") else "OFF",
        }
        configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in settings.items()]
        # CMake keeps what it found in an earlier run: start afresh when any of it has moved.
        stamp = folder / "configured_with.json"
        wanted = json.dumps({"source": str(ROOT), "cmake": cmake, **settings}, indent=1)
        if not stamp.exists() or stamp.read_text() != wanted:
            configure.append("--fresh")
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        self.call(configure, "CMake could not configure the build")
        stamp.write_text(wanted)
        jobs = os.environ.get("MAX_JOBS", "").strip()
        parallel = ["--parallel", jobs] if jobs else []
        self.call(
            [cmake, "--build", str(folder), *parallel], "the compiled library failed to build"
        )

    def call(self, command: list[str], problem: str) -> None:
        sys.stdout.flush()
        code = subprocess.call(command)
        if code != 0:
            raise fail(f"{problem} (exit status {code}, its output is above); fix that, {WAY_OUT}")


if flag("SSC_SKIP_BUILD"):
    setup()
else:
    setup(
        ext_modules=[Extension(f"{PACKAGE}._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": CMakeBuild},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
