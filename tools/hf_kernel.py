"""A kernel for Hugging Face's `kernels`, from the sources of the package: `make hf-kernel`.

The folder is a repository of the Kernel Hub, which `kernels.get_local_kernel` loads as it is:

    build.toml                        what `kernel-builder upload` reads
    CMakeLists.txt, cmake/, csrc/     the sources of the build
    torch-ext/sampled_softmax_cuda/   the Python package
    build/<variant>/                  the package, its compiled library and metadata.json

The variant is one of libtorch's stable ABI, so that it serves every torch from that version on. The
operators are in a namespace whose name has a digest of the sources: several kernels and the
installed package can be in one process.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import json
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from make_wheel import ROOT, nvcc_release, path_here, run, too_new

PACKAGE = "sampled_softmax_cuda"
NAME = "sampled-softmax-cuda"
SOURCES = ("CMakeLists.txt", "LICENSE", "cmake", "csrc", PACKAGE)
SUFFIXES = {".cmake", ".cpp", ".cu", ".h", ".py", ".txt", ".typed"}
# For a loader that looks for the package in a folder of its name.
NESTED = '''"""The kernel in the folder above, for loaders that look for it in one of its name."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "{identifier}", Path(__file__).parents[1] / "__init__.py"
)
_kernel = sys.modules.get("{identifier}")
if _kernel is None:
    _kernel = importlib.util.module_from_spec(_spec)
    sys.modules["{identifier}"] = _kernel
    _spec.loader.exec_module(_kernel)
globals().update({{name: getattr(_kernel, name) for name in _kernel.__all__}})
__all__ = _kernel.__all__
'''


def found(pattern: str, path: str) -> re.Match[str]:
    """The first match in a file of the sources, which must be there."""
    match = re.search(pattern, (ROOT / path).read_text(), re.M)
    if match is None:
        raise SystemExit(f"hf_kernel: no {pattern} in {path}")
    return match


def source_files() -> list[Path]:
    """Those that a build is made of, relative to the root."""
    files = []
    for name in SOURCES:
        path = ROOT / name
        files += [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in SUFFIXES]
    return sorted(path.relative_to(ROOT) for path in files)


def digest_of(files: Sequence[Path]) -> str:
    """Ten digits that change with any of the files."""
    digest = hashlib.sha256()
    for path in files:
        content = (ROOT / path).read_bytes()
        digest.update(f"{path.as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:10]


def compile_libraries(
    folder: Path, identifier: str, nvcc: Path | None, more: Sequence[str]
) -> Path:
    """Run CMake; the folder with the libraries."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    settings = [f"-DSSC_NAMESPACE={identifier}", f"-DSSC_TORCH_DIR={torch}", *more]
    # Said either way: CMake remembers the build before this one.
    settings.append(f"-DSSC_WITH_CUDA={'OFF' if nvcc is None else 'ON'}")
    if nvcc is not None:
        settings.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        settings.append("-DCMAKE_CUDA_RUNTIME_LIBRARY=Shared")
    run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *settings)
    run("cmake", "--build", folder)
    return folder / "out"


def write_package(folder: Path, identifier: str, version: str) -> None:
    """The Python files, with the namespace and the version of this build."""
    for path in source_files():
        if path.parts[0] == PACKAGE:
            target = folder / path.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, target)
    facts = folder / "_build.py"
    text = facts.read_text()
    for old, new in (
        ('NAMESPACE = "sampled_softmax"', f'NAMESPACE = "{identifier}"'),
        ("VERSION: str | None = None", f'VERSION: str | None = "{version}"'),
    ):
        assert text.count(old) == 1, f"{old} in _build.py"
        text = text.replace(old, new)
    facts.write_text(text)
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").write_text(NESTED.format(identifier=identifier))


def write_metadata(folder: Path, identifier: str, version: str, architectures: list[str]) -> None:
    """metadata.json, with a digest of every other file."""
    backend: dict[str, object] = {"type": "cuda" if architectures else "cpu"}
    if architectures:
        backend["archs"] = architectures
    files = {
        path.relative_to(folder).as_posix(): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    metadata = {
        "name": NAME,
        "id": identifier,
        "version": int(version.split(".")[0]),
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": files},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def write_sources(folder: Path, version: str, abi: str, backend: str) -> None:
    """build.toml and all that a build is made of."""
    for path in source_files():
        target = folder / ("torch-ext" if path.parts[0] == PACKAGE else "") / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    lines = [
        "# The builds come from CMakeLists.txt, which compiles the CPU's kernels once per",
        "# instruction set; kernel-builder has no sources to compile here.",
        "[general]",
        f'name = "{NAME}"',
        f"version = {int(version.split('.')[0])}",
        "edition = 5",
        'license = "Apache-2.0"',
        f'backends = ["{backend}"]',
        "",
        "[torch]",
        "src = []",
        "",
        "[torch.stable-abi]",
        f'{backend} = "{abi}"',
    ]
    (folder / "build.toml").write_text("\n".join(lines) + "\n")


def make_kernel(
    output: Path, folder: Path, nvcc: Path | None = None, more: Sequence[str] = ()
) -> Path:
    """Build, and write the repository.

    Args:
        output: the repository's folder, replaced if it has a kernel.
        folder: the build's, kept so that the next build compiles only what differs.
        nvcc: makes it with CUDA kernels.
        more: arguments of CMake.

    Returns:
        the variant's folder.
    """
    if output.exists() and not (output / "build.toml").is_file() and any(output.iterdir()):
        raise SystemExit(f"hf_kernel: {output} has something else than a kernel: name a new folder")
    version = found(r'^version = "(.+)"', "pyproject.toml")[1]
    target = int(found(r"SSC_TORCH_TARGET (0x\w+)", "cmake/torch.cmake")[1], 16)
    major, minor = target >> 56, target >> 48 & 255
    backend = "cpu" if nvcc is None else "cuda"
    identifier = f"_{PACKAGE}_{backend}_{digest_of(source_files())}"
    device = "cpu" if nvcc is None else f"cu{nvcc_release(nvcc)}"
    libraries = compile_libraries(folder, identifier, nvcc, more)
    names, architectures = ["_C.abi3.so"], []
    if nvcc is not None:
        names.append("_C_cuda.so")
        architectures = (folder / "cuda_architectures.txt").read_text().split()
    shutil.rmtree(output, ignore_errors=True)
    system = f"{platform.machine()}-{platform.system().lower()}"
    variant = output / "build" / f"torch-stable-abi{major}{minor}-{device}-{system}"
    write_package(variant, identifier, version)
    for name in names:
        shutil.copyfile(libraries / name, variant / name)
        run("patchelf", "--remove-rpath", variant / name)  # torch is in memory already
        if newer := too_new(variant / name):
            raise SystemExit(f"hf_kernel: {name} needs {', '.join(newer)}, newer than manylinux")
    write_metadata(variant, identifier, version, architectures)
    write_sources(output, version, f"{major}.{minor}", backend)
    return variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=path_here, default=ROOT / "dist" / "hf-kernel")
    parser.add_argument("--folder", type=path_here, default=ROOT / "build" / "hf-kernel")
    parser.add_argument("--nvcc", type=path_here, help="with the CUDA kernels, by this compiler")
    options, more = parser.parse_known_args()
    print(make_kernel(options.output, options.folder, options.nvcc, more))


if __name__ == "__main__":
    main()
