"""Installing the package as users do: sdist, wheels, editable; and what a failed build says.

Every test works on a copy of the sources, and installs into fresh virtual environments. These see
the torch of the running environment through links, so that nothing large is downloaded.
"""

import os
import platform
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import make_wheel
import pytest
import torch

from helpers import ROOT
from sampled_softmax_cuda.ops import library

SITE = Path(torch.__file__).resolve().parent.parent
PACKAGE = "sampled_softmax_cuda"
ON_X86_LINUX = (platform.system(), platform.machine()) == ("Linux", "x86_64")

pytestmark = [
    pytest.mark.slow,  # builds sdists, wheels and environments
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree"),
]

# A training step in the installed package, away from the sources; prints what served it.
STEP = """
import torch, sampled_softmax_cuda as ssc
torch.manual_seed(0)
loss = ssc.SampledSoftmaxLoss(16, 1000, 64)
rows = torch.randn(8, 16, requires_grad=True)
value = loss(rows, torch.arange(8))
value.backward()
assert torch.isfinite(value) and rows.grad.abs().sum() > 0 and loss.weight.grad.abs().sum() > 0
from sampled_softmax_cuda.ops import library
print(ssc.__file__, "native" if library.has_native() else "reference: " + library.native_reason())
"""


def run(*command: object, cwd: Path, env: Mapping[str, str] | None = None, ok: bool = True) -> str:
    """Standard output and error of a command that must succeed, or with ok=False must fail."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SSC_", "PYTEST_"))}
    clean |= {"MAX_JOBS": "2", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | dict(env or {})
    clean = {k: v for k, v in clean.items() if v}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, f"{command} gave {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", folder, ROOT, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture
def sources(sdist: Path, tmp_path: Path) -> Path:
    """A copy of the sources to build in: the sdist, unpacked."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.glob(f"{PACKAGE}-*")
    return folder


def fresh_python(folder: Path) -> Path:
    """The Python of a new virtual environment that has pip, and torch and the rest by links."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    # Some versions of Python put an old setuptools there, which would hide the linked one.
    run(python, "-m", "pip", "uninstall", "--yes", "setuptools", cwd=folder)
    libraries = folder / "libraries"
    libraries.mkdir()
    for entry in SITE.iterdir():
        if entry.suffix != ".pth" and not entry.name.startswith((PACKAGE, "__editable__", "pip")):
            (libraries / entry.name).symlink_to(entry)
    (site,) = (folder / "venv").glob("lib/python3*/site-packages")
    (site / "torch_and_the_rest.pth").write_text(f"{libraries}\n")
    return python


def test_sdist_holds_the_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"CMakeLists.txt", "LICENSE", "cmake/sources.cmake", "csrc/ops/schema.cpp"}
    needed |= {"mkdocs.yml", "tools/occupancy.cpp", "benchmarks/results/bench_loss.png"}
    assert needed | {f"{PACKAGE}/py.typed", "tests/package/test_install.py"} <= names
    listed = re.findall(r"^\s+((?:csrc|tests)/\S+\.cpp)$",
                        (ROOT / "cmake/sources.cmake").read_text(), re.MULTILINE)  # fmt: skip
    assert set(listed) <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or "build/" in name]


def test_isolated_build_of_the_sdist_gives_a_wheel_that_works(sdist: Path, tmp_path: Path) -> None:
    python = fresh_python(tmp_path)
    # An isolated build takes the newest torch that pip finds; the constraint keeps it to the one
    # in use here. pip reads it from the second variable since 25.3.
    constraint = tmp_path / "constraint.txt"
    constraint.write_text(f"torch=={version('torch')}\n")
    env = {"PIP_CONSTRAINT": str(constraint), "PIP_BUILD_CONSTRAINT": str(constraint)}
    run(python, "-m", "pip", "wheel", "--no-deps", sdist, cwd=tmp_path, env=env)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp310-abi3-linux_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert f"{PACKAGE}/_C.abi3.so" in names
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/reference/__init__.py"} <= set(names)
    if ON_X86_LINUX:  # as it goes to users, and without a compiler
        wheel = make_wheel.make_wheel(wheel, tmp_path / "dist")
        assert wheel.name.endswith("-cp310-abi3-manylinux_2_28_x86_64.whl")
        assert not [n for n in zipfile.ZipFile(wheel).namelist() if "libtorch" in n or ".libs" in n]
    bare = {"PATH": str(python.parent)}
    run(python, "-m", "pip", "install", "--no-index", wheel, cwd=tmp_path, env=bare)
    output = run(python, "-c", STEP, cwd=tmp_path)
    assert "native" in output
    assert str(ROOT) not in output
    assert "cpu" in run(python, "-m", PACKAGE, cwd=tmp_path)


@pytest.mark.skipif(not ON_X86_LINUX, reason="what old glibc lacks is defined on x86-64 alone")
def test_the_library_needs_no_symbol_that_manylinux_2_28_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not library.LIBRARY.is_file():
        pytest.skip("not built")
    assert make_wheel.too_new(library.LIBRARY) == []
    monkeypatch.setitem(make_wheel.NEWEST, "GLIBC", "2.2.4")
    assert "GLIBC_2.2.5" in make_wheel.too_new(library.LIBRARY)


def test_editable_install_recompiles_only_what_changed(sources: Path, tmp_path: Path) -> None:
    python = fresh_python(tmp_path)
    pip = (python, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps")
    # Without optimisation, which is tried here too and compiles faster.
    env = {"DEBUG": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run(*pip, "-e", ".", cwd=sources, env=env)
    output = run(python, "-c", STEP, cwd=tmp_path)
    assert "native" in output
    assert str(sources) in output

    rebuild = (python, "setup.py", "build_ext", "--inplace")
    assert "no work to do" in run(*rebuild, cwd=sources, env=env)
    kernel = sources / "csrc/cpu/kernels/input_grad.cpp"
    kernel.write_text(kernel.read_text() + "\n// touched\n")
    compiled = re.findall(r"Building CXX object (\S+)", run(*rebuild, cwd=sources, env=env))
    assert compiled
    assert all(kernel.name in name for name in compiled)
    assert "native" in run(python, "-c", STEP, cwd=tmp_path)


def test_without_a_build_the_reference_serves(sources: Path, tmp_path: Path) -> None:
    python = fresh_python(tmp_path)
    # No compiler, no CMake: only this Python's folder is on PATH.
    env = {"SSC_SKIP_BUILD": "1", "PATH": str(python.parent)}
    pip = (python, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps")
    run(*pip, sources, cwd=tmp_path, env=env)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    run(python, "-m", "pip", "install", "--no-index", wheel, cwd=tmp_path)
    assert "reference: not built" in run(python, "-c", STEP, cwd=tmp_path)


def test_a_wheel_has_no_module_that_the_sources_lack(sources: Path, tmp_path: Path) -> None:
    left = sources / "build" / "lib" / PACKAGE / "removed.py"  # by an earlier build
    left.parent.mkdir(parents=True)
    left.write_text("")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps")
    run(*pip, sources, cwd=tmp_path, env={"SSC_SKIP_BUILD": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert f"{PACKAGE}/modules.py" in names
    assert f"{PACKAGE}/removed.py" not in names


def test_a_wheel_with_cuda_kernels_has_a_version_of_its_own(sources: Path) -> None:
    toolkit(sources / "toolkit")
    settings = make_wheel.build_settings(sources / "toolkit" / "bin" / "nvcc")
    assert settings["SSC_WITH_CUDA"] == "1"
    assert settings["CUDA_HOME"] == str(sources / "toolkit")
    run(sys.executable, "setup.py", "egg_info", cwd=sources, env=settings)
    (facts,) = sources.glob("*.egg-info/PKG-INFO")
    assert re.search(r"^Version: [\d.]+\+cu130$", facts.read_text(), re.M)
    assert make_wheel.build_settings(None) == {"SSC_WITH_CUDA": "0"}


NO_WAY_TO_BUILD = {
    "no compiler": ({"PATH": "", "CXX": ""}, "no C++ compiler (c++, g++ or clang++): install"),
    "CXX names nothing": ({"CXX": "no-such-compiler"}, "no C++ compiler (CXX=no-such-compiler)"),
    "no nvcc": ({"SSC_WITH_CUDA": "1", "CUDA_HOME": "/no-such-folder"}, "needs nvcc, which is not"),
    "an architecture by name": (
        {"SSC_WITH_CUDA": "1", "CUDA_HOME": "toolkit", "TORCH_CUDA_ARCH_LIST": "Hopper"},
        "TORCH_CUDA_ARCH_LIST must be like '8.0;9.0+PTX' or all, got 'Hopper'",
    ),
    "too new for this nvcc": (
        {"SSC_WITH_CUDA": "1", "CUDA_HOME": "toolkit", "TORCH_CUDA_ARCH_LIST": "8.0 12.0"},
        "toolkit/bin/nvcc knows 7.5, 8.0, 9.0; set TORCH_CUDA_ARCH_LIST",
    ),
    "CUDA misspelt": ({"SSC_WITH_CUDA": "yes"}, "must be auto, 0 or 1, got 'yes'"),
}


def toolkit(folder: Path) -> None:
    """Something that answers what setup.py asks an nvcc."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("""#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88";;
  --list-gpu-arch) echo compute_75; echo compute_80; echo compute_90;;
  *) exit 1;;
esac
""")
    nvcc.chmod(0o755)


def test_what_is_going_to_be_built_is_one_line(sources: Path) -> None:
    """Chosen by SSC_WITH_CUDA, torch's own build, and the nvcc that is there."""
    toolkit(sources / "toolkit")
    tools = sources / "tools"  # a CMake that only looks at what it is told
    cmake = tools / "cmake"
    cmake.write_text("""#!/bin/sh
for a in "$@"; do case $a in -DCMAKE_CUDA_ARCH*) echo "$a";; esac; done
exit 1
""")
    cmake.chmod(0o755)
    base = {"CUDA_HOME": "toolkit", "PATH": f"{tools}:{os.environ['PATH']}"}
    cuda_torch = torch.version.cuda is not None
    cases: list[tuple[dict[str, str], str, str]] = [
        ({"SSC_WITH_CUDA": "0"}, "building for the CPU (SSC_WITH_CUDA=0)", ""),
        ({"SSC_WITH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"},
         "building for the CPU and for CUDA (8.0, 9.0+PTX; nvcc 13.0)", "=80-real;90\n"),
        ({"SSC_WITH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0a"},
         "building for the CPU and for CUDA (9.0a; nvcc 13.0)", "=90a-real\n"),
        ({"SSC_WITH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "all"},
         "CUDA (7.5, 8.0, 9.0+PTX; nvcc 13.0)", "=75-real;80-real;90\n"),
    ]  # fmt: skip
    if not cuda_torch:
        cases.append(({}, "building for the CPU (torch is a CPU build", ""))
    for env, line, setting in cases:
        output = run(
            *(sys.executable, "setup.py", "build_ext"), cwd=sources, env={**base, **env}, ok=False
        )
        (said,) = (row for row in output.splitlines() if "building for" in row)
        assert line in said
        assert setting in output
        assert "CMAKE_CUDA_ARCHITECTURES" not in output or setting


@pytest.mark.parametrize("case", NO_WAY_TO_BUILD)
def test_a_build_that_cannot_start_ends_in_one_line(case: str, sources: Path) -> None:
    env, message = NO_WAY_TO_BUILD[case]
    toolkit(sources / "toolkit")
    if "PATH" in env:  # the build tools without the compilers
        env = env | {"PATH": str(Path(sys.executable).parent)}
    output = run(sys.executable, "setup.py", "build_ext", cwd=sources, env=env, ok=False)
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"{PACKAGE}: ")
    assert message in last
    assert "Traceback" not in output


def test_an_error_of_the_compiler_ends_in_one_line(sources: Path) -> None:
    broken = sources / "csrc/ops/cpu/info.cpp"
    broken.write_text("#error planted\n")
    lists = sources / "cmake" / "sources.cmake"  # only this file, so that the test is short
    lists.write_text(
        "set(SSC_CPU_SOURCES csrc/cpu/base/isa.cpp)\nset(SSC_OPS_SOURCES csrc/ops/cpu/info.cpp)"
    )
    output = run(sys.executable, "setup.py", "build_ext", cwd=sources, ok=False)
    assert "#error planted" in output
    last = output.strip().splitlines()[-1]
    assert "the compiled library failed to build" in last
    assert "SSC_SKIP_BUILD=1" in last
    assert "Traceback" not in output
