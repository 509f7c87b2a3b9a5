"""The documentation: its Python examples run, and its links lead somewhere."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch

from helpers import ROOT

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "csrc/*.md", "csrc/*/*.md", "tests/*/*.md")
    for page in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _text(page: Path) -> str:
    """A page's Markdown; of the tutorial, that of its cells."""
    if page != TUTORIAL:
        return page.read_text()
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=_name
)
def test_examples_run(page):
    """The blocks of a page run in its order, in one namespace."""
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    for match in BLOCK.finditer(page.read_text()):
        line = page.read_text()[: match.start(1)].count("\n")
        source = "\n" * line + match[1]  # so that a traceback names the page's own line
        exec(compile(source, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [*PAGES, TUTORIAL], ids=_name)
def test_links_lead_to_files(page):
    for path, heading in LINK.findall(_text(page)):
        if path.startswith(("http://", "https://")):
            continue
        target = page.parent / path
        assert target.exists(), f"{_name(page)} links to {path}, which does not exist"
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert heading in anchors, f"{_name(page)} links to {path}#{heading}, no such heading"


def _prose(page: Path) -> list[tuple[int, str]]:
    """The lines of a page without code, tables and headings."""
    lines, in_code = [], False
    for number, line in enumerate(_text(page).splitlines(), 1):
        in_code ^= line.lstrip().startswith("```")
        if not (in_code or line.startswith(("    ", "|", "#", "```"))):
            lines.append((number, line))
    return lines


@pytest.mark.parametrize("page", [*PAGES, TUTORIAL], ids=_name)
def test_prose_is_one_sentence_a_line(page):
    """So that a diff shows the sentences that changed. Sentences begin with their subject."""
    wrong = []
    for number, line in _prose(page):
        text = re.sub(r"`[^`]*`", "code", line)
        sentences = re.sub(r"^\s*(?:- |\d+\. )?(?:\*\*[^*]+[.:]\*\* )?", "", text)
        if len(line) > 200:
            wrong.append(f"{_name(page)}:{number} has {len(line)} characters")
        if re.search(r"[a-z0-9)][.?!] [A-Z]", re.sub(r"\([^)]*\)", "", sentences)):
            wrong.append(f"{_name(page)}:{number} has more than one sentence: {line}")
        if re.match(r"(?:What|Of) ", sentences):
            wrong.append(f"{_name(page)}:{number} doesn't begin with its subject: {line}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_tutorial_runs(tmp_path):
    """Its outputs come from its code, and the sampled run is the better one."""
    stored = nbformat.read(TUTORIAL, as_version=4)
    fresh = copy.deepcopy(stored)
    check = "assert sampled[-1][1] < full[-1][1] and recall(ranked) > 0.25"
    fresh.cells.append(nbformat.v4.new_code_cell(check))
    nbclient.NotebookClient(
        fresh,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    for old, new in zip(stored.cells, fresh.cells, strict=False):
        kinds = [[output.output_type for output in cell.get("outputs", [])] for cell in (old, new)]
        assert kinds[0] == kinds[1], f"stored outputs are of other code:\n{new.source}"


@pytest.mark.slow
def test_site_builds(tmp_path):
    """`make docs` is strict: links lead somewhere, and docstrings can be read."""
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "api" / "loss.html").read_text()
    assert 'id="sampled_softmax_cuda.sampled_softmax_loss"' in page
    assert "[*, D] float32" in page, "a shape was taken for emphasis"
    assert (tmp_path / "images" / "code_lm.png").exists()
    for named in set(re.findall(r'href="(\.\./[\w/.]+\.html)', page)):
        assert (tmp_path / "api" / named).exists(), f"a docstring links to {named}"
    assert 'href="../numerics.html"' in page, "a page that a docstring names is no link"
    assert "data:image/png" in (tmp_path / "tutorial.html").read_text(), "no figure"
