"""Comments, docstrings, pages: files that they name exist, sentences begin with their subject."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import ROOT

NAME = re.compile(
    r"(?<![\w<>{}*./:-])((?:[\w.-]+/)*[\w-]+\.(?:h|cpp|cu|py|md|cmake|txt|toml|json|csv))(?![\w*{<(])"
)
FOLDER = re.compile(
    r"(?<![\w/.{-])((?:csrc|tests|docs|tools|benchmarks|examples|cmake)(?:/\w+)+)/?(?![\w./*{])"
)
CPP = {".h", ".cpp", ".cu"}

# Files that others ship, or a run makes.
ELSEWHERE = {
    "build/gpu_check/report.md",  # of make gpu-check
    "cuda_occupancy.h",
    "cuda_runtime.h",
    "cuda_runtime_api.h",
    "build.toml",  # of Hugging Face's kernels, as metadata.json
    "metadata.json",
    "ops/tests/random_sample_test.py",  # of CNTK
    "execute.cpp",  # of an executor of PTX
    "parse.cpp",
    "ptx.h",
}


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("no git checkout to list the files of")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def _python_prose(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            first = 1 if isinstance(node, ast.Module) else node.lineno
            for line, text in enumerate((docstring or "").splitlines(), first):
                if not text.lstrip().startswith((">>>", "...")):
                    yield line, text


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers with what is written for people."""
    source = path.read_text()
    if path.suffix == ".py":
        yield from _python_prose(source)
    for line, text in enumerate(source.splitlines(), 1):
        if path.suffix == ".md":
            yield line, re.sub(r"\]\([^)]*\)|https?://\S+", " ", text)
        elif path.suffix in CPP and "//" in text and not text.lstrip().startswith("#include"):
            yield line, re.sub(r"https?://\S+", " ", text[text.index("//") + 2 :])


def test_comments_begin_with_their_subject():
    """No docstring or comment opens with "What" or "Of": such sentences hide their subject."""
    opening = re.compile(r"^(?:#|//|\"\"\")?\s*(?:What|Of)\b(?!.*\?)")
    wrong = [
        f"{path.relative_to(ROOT).as_posix()}:{line} begins: {text.strip()}"
        for path in _tracked()
        if path.suffix in CPP | {".py"}
        for line, text in _prose(path)
        if opening.match(text.strip())
    ]
    assert not wrong, "\n".join(wrong)


def test_names_of_files_exist():
    """A name with folders is the end of a path from the root; a bare one is some file's name."""
    files = _tracked()
    paths = {path.relative_to(ROOT).as_posix() for path in files}
    names = {path.name for path in files}
    folders = {
        parent.relative_to(ROOT).as_posix()
        for path in files
        for parent in path.parents
        if parent.is_relative_to(ROOT)
    }
    wrong = []
    for path in files:
        if path.suffix not in CPP | {".py", ".md"} or path.name == "CHANGELOG.md":
            continue
        for line, text in _prose(path):
            at = f"{path.relative_to(ROOT).as_posix()}:{line}"
            for name in NAME.findall(text):
                found = any(p == name or p.endswith(f"/{name}") for p in paths)
                placeholder = Path(name).stem.isupper()  # benchmarks/NAME.py
                if not (found or placeholder or name in names | ELSEWHERE):
                    wrong.append(f"{at} names {name}")
            for folder in FOLDER.findall(text):
                if folder not in folders and not any(p.startswith(f"{folder}.") for p in paths):
                    wrong.append(f"{at} names {folder}")
    assert not wrong, "\n".join(wrong)
