"""Check the rules of structure that a compiler does not: `python tools/check_layers.py`.

- Layers: csrc/core <- csrc/{cpu,cuda} <- csrc/ops and csrc/cuda <- csrc/simt, by what each
  file includes; torch headers only in csrc/ops, and there only those of the stable ABI; pybind11
  only in the benches of kernels, csrc/simt and tests/ptx. Kernels know csrc/simt from the headers
  that stand between them and CUDA alone.
- Leaves (csrc/cpu/*_leaf.cpp), and all headers they reach, include no header of the standard
  library that brings templates with symbols of their own: such a symbol, compiled for AVX-512 in
  one object and for the baseline in another, is merged by the linker, and an older CPU could then
  run the wrong one (tools/check_leaf_symbols.py looks for them in the objects).
- Python: the imports between the modules of the package at import time form no cycle, and the
  reference knows nothing of the compiled operators.
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

# Folder -> folders whose headers it may include.
LAYERS = {
    "csrc/core": {"csrc/core"},
    "csrc/cpu": {"csrc/core", "csrc/cpu"},
    "csrc/cuda": {"csrc/core", "csrc/cuda"},
    "csrc/simt": {"csrc/core", "csrc/cuda", "csrc/simt"},
    "csrc/ops": {"csrc/core", "csrc/cpu", "csrc/cuda", "csrc/ops"},
    "tests/cpp": {"csrc/core", "csrc/cpu", "tests/cpp"},
    "tests/simt": {"csrc/core", "csrc/cuda", "csrc/simt", "tests/simt"},
    "tests/simt_ops": {"csrc/cuda", "csrc/ops", "csrc/simt", "tests/simt_ops"},
    "tests/ptx": {"csrc/simt", "tests/simt_ops"},
}
PYBIND11 = ("csrc/simt", "tests/ptx")  # the benches of kernels
# The shim: each of these includes its twin of csrc/simt, and only under g++.
SHIM = {f"csrc/cuda/{name}.h" for name in ("device", "async_copy", "fast_math", "mma")}
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
PYTHON = re.compile(r"^Python\.h$|^pybind11/")
CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
STABLE_TORCH = re.compile(r"^torch/(csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/")
STANDARD_IN_LEAVES = {
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
    return sorted(p for d in LAYERS for p in (ROOT / d).rglob("*") if p.suffix in CPP_SUFFIXES)


def check_includes() -> Iterator[Offence]:
    for path in cpp_files():
        layer = "/".join(path.relative_to(ROOT).parts[:2])
        for line, header, quoted in includes(path):
            if PYTHON.match(header):
                if layer not in PYBIND11:
                    yield path, line, f"only {' and '.join(PYBIND11)} may include {header}"
            elif TORCH.match(header):
                if layer != "csrc/ops":
                    yield path, line, f"only csrc/ops may include {header}"
                elif not STABLE_TORCH.match(header):
                    yield path, line, f"{header} is not part of the stable ABI"
            elif quoted:
                target = "/".join(header.split("/")[:2])
                shim = str(path.relative_to(ROOT)) in SHIM and target == "csrc/simt"
                if target not in LAYERS[layer] and not shim:
                    yield path, line, f"{layer} may not include {header}"
                elif not (ROOT / header).is_file():
                    yield path, line, f"{header}: include by the path from the repository's root"


def check_leaves() -> Iterator[Offence]:
    todo = sorted((ROOT / "csrc/cpu").glob("*_leaf.cpp"))
    seen = set(todo)
    while todo:
        path = todo.pop()
        for line, header, quoted in includes(path):
            target = ROOT / header
            if not quoted and header not in STANDARD_IN_LEAVES and "cuda" not in header:
                yield path, line, f"a leaf includes this file, so it may not use <{header}>"
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
    compiled = {f"{PACKAGE}.{name}" for name in ("_ops", "functional", "modules", "cntk")}
    for module, targets in graph.items():
        for target, line in targets.items():
            if module.startswith(f"{PACKAGE}.reference") and target in compiled:
                yield module_path(module), line, f"the reference may not import {target}"
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
    checks = (check_includes, check_leaves, check_python, check_lengths)
    offences = [offence for check in checks for offence in check()]
    for path, line, message in offences:
        print(f"{path.relative_to(ROOT)}:{line}: {message}")
    print(f"check_layers: {len(offences)} offences" if offences else "check_layers: ok")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
