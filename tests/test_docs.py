"""The documentation: its Python examples run, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("csrc/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


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


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files(page):
    for path, heading in LINK.findall(page.read_text()):
        if path.startswith(("http://", "https://")):
            continue
        target = page.parent / path
        assert target.exists(), f"{_name(page)} links to {path}, which does not exist"
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert heading in anchors, f"{_name(page)} links to {path}#{heading}, no such heading"


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
