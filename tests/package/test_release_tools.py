"""The commands that make what goes to users: what they replace, and what they say when misused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hf_kernel
import make_wheel
import pytest

from helpers import ROOT
from sampled_softmax_cuda.ops import library

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="needs the source tree")

PACKAGE = "sampled_softmax_cuda"


def run(*command: object, cwd: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("CUDA", "CUDA_HOME", "MAKEFLAGS")}
    words = [str(part) for part in command]
    return subprocess.run(words, cwd=cwd, env=clean | settings, capture_output=True, text=True)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@needs_make
def test_cuda_0_makes_the_wheel_of_the_cpu() -> None:
    said = run("make", "-n", "wheel", "CUDA=0").stdout
    assert "--output dist/cpu" in said
    assert "--nvcc" not in said


@needs_make
def test_a_cuda_home_without_nvcc_is_an_error_that_names_it(tmp_path: Path) -> None:
    done = run("make", "-n", "wheel", "CUDA=1", CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert f"needs nvcc, which is not in {tmp_path}: set CUDA_HOME" in done.stderr


@needs_make
def test_a_checkout_may_be_in_a_folder_with_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    said = run("make", "-n", "--old-file=build", "hf-kernel", "-o.venv/bin/.complete", cwd=folder)
    assert f'-DSSC_CPU_LIBRARY="{folder}/build/dev/libssc_cpu.a"' in said.stdout, said.stderr


def test_the_new_wheel_is_the_only_one_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / f"{PACKAGE}-0.2.0-cp310-abi3-linux_x86_64.whl"
    earlier, other = tmp_path / f"{PACKAGE}-0.1.0-py3-none-any.whl", tmp_path / "other-1.whl"
    for path in (plain, earlier, other):
        path.write_text("")
    repaired = tmp_path / f"{PACKAGE}-0.2.0-cp310-abi3-{make_wheel.PLATFORM}.whl"
    monkeypatch.setattr(make_wheel, "run", lambda *command: repaired.write_text(""))
    assert make_wheel.make_wheel(plain, tmp_path) == repaired
    assert set(tmp_path.iterdir()) == {plain, repaired, other}


def test_an_nvcc_that_is_not_there_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nvcc does not run \(No such file or directory\): name"):
        make_wheel.nvcc_release(tmp_path / "nvcc")


def test_paths_are_those_of_the_callers_folder(tmp_path: Path) -> None:
    done = run(sys.executable, ROOT / "tools/make_wheel.py", "--plain", "a.whl", cwd=tmp_path)
    assert f"cannot access {tmp_path}/a.whl" in done.stderr


def test_the_matrix_asks_for_a_wheel_before_it_installs_anything(tmp_path: Path) -> None:
    done = run(sys.executable, "tools/torch_matrix.py", tmp_path / "*.whl")
    assert done.returncode == 2
    assert f"no wheel {tmp_path}/*.whl: `make wheel` makes it" in done.stderr


def test_a_kernel_replaces_nothing_but_a_kernel(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("")
    with pytest.raises(SystemExit, match="has something else than a kernel: name a new folder"):
        hf_kernel.make_kernel(tmp_path, tmp_path / "build")
    assert precious.exists()


@pytest.mark.parametrize("nvcc", [None, Path("nvcc")])
def test_a_kernel_is_for_cuda_as_asked_whatever_the_build_before_was(
    nvcc: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[object, ...]] = []
    monkeypatch.setattr(hf_kernel, "run", lambda *command: commands.append(command))
    hf_kernel.compile_libraries(tmp_path, "name", nvcc, [])
    assert ("-DSSC_WITH_CUDA=ON" in commands[0]) == (nvcc is not None)
    assert ("-DSSC_WITH_CUDA=OFF" in commands[0]) == (nvcc is None)


@pytest.mark.parametrize("name", ["a-b", "9a", ""])
def test_a_namespace_that_cpp_cannot_have_is_refused(name: str, tmp_path: Path) -> None:
    done = run("cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DSSC_NAMESPACE={name}")
    assert done.returncode != 0
    assert f"SSC_NAMESPACE must be a C++ identifier, got '{name}'" in done.stderr


def test_a_library_of_another_namespace_is_not_used(tmp_path: Path) -> None:
    if not library.library_loaded():
        pytest.skip(library.native_reason())
    package = tmp_path / PACKAGE
    shutil.copytree(ROOT / PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (package / library.LIBRARY.name).symlink_to(library.LIBRARY)
    facts = package / "_build.py"
    facts.write_text(facts.read_text().replace('= "sampled_softmax"', '= "other"'))
    done = run(
        *(sys.executable, "-c", f"import {PACKAGE} as ssc; print(ssc.build_info())"),
        cwd=tmp_path, PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "'native': False" in done.stdout
    assert "has no operators in the namespace 'other' of _build.py" in done.stdout
