"""Check the rules of structure that a compiler does not: `python tools/check_layers.py`.

- Layers: csrc/core <- csrc/{cpu,cuda} <- csrc/ops and csrc/cuda <- csrc/simt, and the floors within
  cpu, cuda and ops, by what the files of each folder include; torch headers only in csrc/ops, and
  there only those of the stable ABI; pybind11 only in the benches of kernels, csrc/simt and
  tests/ptx. Kernels know csrc/simt from the headers that stand between them and CUDA alone.
- Stems: an operator's file has the same name for every device and in sampled_softmax_cuda/ops, and
  the name is one of STEMS; exceptions have their reason in a table.
- csrc/cpu/kernels is compiled once per instruction set. Its sources, and all headers they reach,
  include no header of the standard library that brings templates with symbols of their own: such a
  symbol, compiled for AVX-512 in one object and for the baseline in another, is merged by the
  linker, and an older CPU could then run the wrong one (tools/check_isa_symbols.py looks for them
  in the objects).
- Python: the imports between the modules of the package at import time form no cycle; the
  reference and the parts of losses know nothing of the operators; `torch.ops` is named in
  sampled_softmax_cuda/ops alone, and the operators' namespace in _build.py; and few modules import
  the reference.
- Length: a file has at most 420 lines.

Prints one line per offence as path:line: message, and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "sampled_softmax_cuda"
MAX_LINES = 420

# Folder -> the other folders whose headers it may include, with all folders in them. Only kernels
# include the headers of csrc/cpu/kernels, which need SSC_ISA.
CPU = {
    "csrc/cpu/base", "csrc/cpu/sample", "csrc/cpu/loss", "csrc/cpu/per_row", "csrc/cpu/update",
}  # fmt: skip
LAYERS: dict[str, set[str]] = {
    "csrc/core": set(),
    "csrc/cpu/base": set(),
    "csrc/cpu/sample": {"csrc/core", "csrc/cpu/base"},
    "csrc/cpu/loss": {"csrc/core", "csrc/cpu/base"},
    "csrc/cpu/per_row": {"csrc/core", *CPU},
    "csrc/cpu/update": {"csrc/core", "csrc/cpu/base", "csrc/cpu/sample"},
    "csrc/cpu/kernels": {"csrc/core", *CPU},
    "csrc/cuda/device": {"csrc/core"},
    "csrc/cuda/tile": {"csrc/cuda/device"},
    "csrc/cuda/sample": {"csrc/core", "csrc/cuda/device"},
    "csrc/cuda/loss": {"csrc/core", "csrc/cuda/device", "csrc/cuda/tile"},
    "csrc/cuda/negatives": {"csrc/core", "csrc/cuda/device", "csrc/cuda/tile", "csrc/cuda/loss"},
    "csrc/cuda/per_row": {"csrc/core", "csrc/cuda/device", "csrc/cuda/sample"},
    "csrc/cuda/update": {"csrc/core", "csrc/cuda/device"},
    "csrc/simt": {"csrc/core", "csrc/cuda"},
    "csrc/ops": {"csrc/core", "csrc/cpu/base"},
    "csrc/ops/cpu": {"csrc/core", *CPU, "csrc/ops"},
    "csrc/ops/cuda": {"csrc/core", "csrc/cuda", "csrc/ops"},
    "tests/cpp": {"csrc/core", "csrc/cpu"},
    "tests/simt": {"csrc/core", "csrc/cuda", "csrc/simt"},
    "tests/simt_ops": {"csrc/cuda", "csrc/ops", "csrc/simt"},
    "tests/ptx": {"csrc/simt", "tests/simt_ops"},
}
# The files of csrc/ops/<device>, apart from those that only one device needs.
STEMS = {"exact", "info", "loss", "negatives", "optim", "per_row", "sample"}
ONE_DEVICE = {"cpu": {"memory", "targets", "unit_rows"}, "cuda": {"device", "torch_cuda_stub"}}
PYBIND11 = ("csrc/simt", "tests/ptx")  # the benches of kernels
# Stems of csrc/ops without a file in sampled_softmax_cuda/ops, and the reason.
NOT_IN_PYTHON = {
    "info": "asked by library.py, which knows what is loaded",
    "memory": "one call of library.py, without a fake or a gradient",
    "per_row": "the operators of negatives.py take samples of rows, and no others do",
    "targets": "parts of the sweep of total.py, which no one else calls",
    "device": "memory and stream of a GPU: no operator",
    "torch_cuda_stub": "symbols to link with: no operator",
}
# Files of sampled_softmax_cuda/ops without one in csrc/ops, and the reason.
ONLY_IN_PYTHON = {
    "__init__": "the package",
    "autograd": "gradients of operators under torch's transforms",
    "dispatch": "which arguments kernels take",
    "library": "loads the compiled libraries",
    "padded": "an operator in Python, around that of loss.py, whose sizes a graph can know",
    "precision": "torch's setting of float32 products, as an argument of operators",
    "self_check": "operators of several stages against the reference",
    "total": "a route that puts the operators of negatives and targets together",
    "trust": "which kernels are trusted, by their self-check",
}
# The shim: each of these includes its twin of csrc/simt, and only under g++.
SHIM = {f"csrc/cuda/device/{name}.h" for name in ("device", "async_copy", "fast_math", "mma")}
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
PYTHON = re.compile(r"^Python\.h$|^pybind11/")
CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
STABLE_TORCH = re.compile(r"^torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/")
BELOW_OPERATORS = ("reference", "losses")
ABOVE_REFERENCE = (
    "ops", "functional", "exact", "modules", "samplers", "cntk", "tf", "diagnose", "distributed",
)  # fmt: skip
USE_REFERENCE = ("ops", "functional", "distributed", PACKAGE)
STANDARD_IN_KERNELS = {
    "cfloat", "climits", "cmath", "cstddef", "cstdint", "cstring", "immintrin.h", "limits",
    "type_traits", "utility",
}  # fmt: skip

Offence = tuple[Path, int, str]


def includes(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, header, quoted) of each #include in the file."""
    pattern = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := pattern.match(line):
            yield number, match[2], match[1] == '"'


def cpp_files() -> list[Path]:
    folders = {"/".join(layer.split("/")[:2]) for layer in LAYERS}
    return sorted(p for d in folders for p in (ROOT / d).rglob("*") if p.suffix in CPP_SUFFIXES)


def allowed(header: str, layer: str) -> bool:
    folder = header.rpartition("/")[0]
    inside = {layer, *LAYERS[layer]}
    return any(folder == other or folder.startswith(f"{other}/") for other in inside)


def check_includes() -> Iterator[Offence]:
    for path in cpp_files():
        layer = path.parent.relative_to(ROOT).as_posix()
        if layer not in LAYERS:
            yield path, 1, f"{layer} is no folder of LAYERS in tools/check_layers.py"
            continue
        for line, header, quoted in includes(path):
            if PYTHON.match(header):
                if layer not in PYBIND11:
                    yield path, line, f"only {' and '.join(PYBIND11)} may include {header}"
            elif TORCH.match(header):
                if not layer.startswith("csrc/ops"):
                    yield path, line, f"only csrc/ops may include {header}"
                elif not STABLE_TORCH.match(header):
                    yield path, line, f"{header} is not part of the stable ABI"
            elif quoted:
                shim = str(path.relative_to(ROOT)) in SHIM and header.startswith("csrc/simt/")
                if not allowed(header, layer) and not shim:
                    yield path, line, f"{layer} may not include {header}"
                elif not (ROOT / header).is_file():
                    yield path, line, f"{header}: include by the path from the repository's root"


def check_stems() -> Iterator[Offence]:
    for device, own in ONE_DEVICE.items():
        folder = ROOT / "csrc/ops" / device
        found = {path.stem for path in folder.glob("*.cpp")}
        for stem in sorted(found - STEMS - own):
            yield folder / f"{stem}.cpp", 1, "no stem of STEMS in tools/check_layers.py"
        for stem in sorted((STEMS | own) - found):
            yield folder, 1, f"{stem}.cpp is missing, though it is in STEMS or ONE_DEVICE"
    compiled = STEMS.union(*ONE_DEVICE.values())
    folder = ROOT / PACKAGE / "ops"
    here = {path.stem for path in folder.glob("*.py")}
    for stem in sorted(here - compiled - set(ONLY_IN_PYTHON)):
        yield folder / f"{stem}.py", 1, "no stem of csrc/ops, nor one of ONLY_IN_PYTHON"
    for stem in sorted(compiled - here - set(NOT_IN_PYTHON)):
        yield folder, 1, f"{stem}.py is missing, and no exception of NOT_IN_PYTHON"
    for stem in sorted((here & set(NOT_IN_PYTHON)) | (compiled & set(ONLY_IN_PYTHON))):
        yield folder, 1, f"{stem} is on both sides: no exception"
    for stem in sorted((set(NOT_IN_PYTHON) - compiled) | (set(ONLY_IN_PYTHON) - here)):
        yield folder, 1, f"{stem} is an exception, but there is no such file"


def check_kernels() -> Iterator[Offence]:
    todo = sorted((ROOT / "csrc/cpu/kernels").glob("*.cpp"))
    seen = set(todo)
    while todo:
        path = todo.pop()
        for line, header, quoted in includes(path):
            target = ROOT / header
            if not quoted and header not in STANDARD_IN_KERNELS and "cuda" not in header:
                yield path, line, f"csrc/cpu/kernels includes it, so it may not use <{header}>"
            elif quoted and target.is_file() and target not in seen:
                seen.add(target)
                todo.append(target)


def imported_at_load(tree: ast.Module) -> Iterator[ast.stmt]:
    """The import statements that run when the module is imported (not those in functions)."""
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If):
            if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                todo += node.body
            todo += node.orelse
        elif isinstance(node, ast.Try | ast.With):
            todo += [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]


def python_imports() -> dict[str, dict[str, int]]:
    """module -> {imported module of the package: line}."""
    files = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, dict[str, int]] = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        graph[module] = {}
        for node in imported_at_load(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                assert isinstance(node, ast.ImportFrom)
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
                # `from package import name`: the submodule if there is one, else the package.
                names = [f"{base}.{a.name}" if f"{base}.{a.name}" in files else base
                         for a in node.names]  # fmt: skip
            graph[module].update({name: node.lineno for name in names if name in files})
    return graph


def module_path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def check_python() -> Iterator[Offence]:
    graph = python_imports()
    for module, targets in graph.items():
        folder = module.removeprefix(f"{PACKAGE}.").split(".")[0]
        for target, line in targets.items():
            floor = target.removeprefix(f"{PACKAGE}.").split(".")[0]
            if folder in BELOW_OPERATORS and floor in ABOVE_REFERENCE:
                yield module_path(module), line, f"{folder} may not import {target}"
            if floor == "reference" and folder not in ("reference", *USE_REFERENCE):
                yield module_path(module), line, "only the routes and ops/ import the reference"
        text = module_path(module).read_text(encoding="utf-8")
        for line, words in enumerate(text.splitlines(), 1):
            if words.lstrip().startswith(("#", '"', "`")):
                continue
            if folder != "ops" and "torch.ops." in words:
                yield module_path(module), line, "torch.ops is for sampled_softmax_cuda/ops"
            if re.search(r"torch\.ops\.sampled_softmax\b|\bsampled_softmax::", words):
                yield module_path(module), line, "the namespace has its name in _build.py alone"
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> Iterator[Offence]:
        if module in trail:
            line = graph[trail[-1]][module]
            circle = " -> ".join([*trail[trail.index(module) :], module])
            yield module_path(trail[-1]), line, f"import cycle: {circle}"
        elif module not in done:
            for target in graph[module]:
                yield from visit(target, [*trail, module])
            done.add(module)

    for module in graph:
        yield from visit(module, [])


def check_lengths() -> Iterator[Offence]:
    folders = ("csrc", "cmake", PACKAGE, "tests", "benchmarks", "examples", "tools")
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {*CPP_SUFFIXES, ".py", ".cmake", ".txt"}:
                lines = len(path.read_text(encoding="utf-8").splitlines())
                if lines > MAX_LINES:
                    yield path, lines, f"{lines} lines: split it by subject (at most {MAX_LINES})"


def main() -> int:
    checks = (check_includes, check_stems, check_kernels, check_python, check_lengths)
    offences = [offence for check in checks for offence in check()]
    for path, line, message in offences:
        print(f"{path.relative_to(ROOT)}:{line}: {message}")
    print(f"check_layers: {len(offences)} offences" if offences else "check_layers: ok")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
