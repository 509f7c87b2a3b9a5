"""A hook of mkdocs: pages of the repository that lie outside docs/, and links that cross that line.

README.md is the first page; CONTRIBUTING.md, CHANGELOG.md and the READMEs of folders keep theirs.
Pages link to each other, to pictures and to sources by paths within the repository, as a reader of
the checkout wants it. In the site a link to a page or a picture leads to its copy there, and a link
to a source stays as the name alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "csrc/README.md": "csrc/README.md",
    "csrc/simt/README.md": "csrc/simt/README.md",
    "tests/ptx/README.md": "tests/ptx/README.md",
}
PICTURES = {".png", ".svg"}

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from outside docs/, and every picture that is linked from any page."""
    for path, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for picture in sorted(_linked_pictures(files)):
        place = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns the links of a page into those of the site."""
    source = _source(page.file)
    here = Path(page.file.src_uri).parent

    def turned(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, _, heading = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match[0]
        place = _place((source.parent / path).resolve())
        if place is None:
            return text if text.startswith("`") else f"`{text}`" if "." in text else text
        anchor = f"#{heading}" if heading else ""
        return f"{mark}[{text}]({os.path.relpath(place, here)}{anchor})"

    return _LINK.sub(turned, markdown)


def _source(file: File) -> Path:
    """Where a page lies in the repository."""
    return Path(str(file.abs_src_path)).resolve()


def _place(path: Path) -> str | None:
    """The path in the site of what lies at `path`, None if it is no part of it."""
    if not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return name if path.suffix in PICTURES else None


def _linked_pictures(files: Files) -> set[Path]:
    found = set()
    for file in files:
        if not file.src_uri.endswith(".md"):
            continue
        source = _source(file)
        for _, _, target in _LINK.findall(source.read_text(encoding="utf-8")):
            path = (source.parent / target).resolve()
            if (
                path.suffix in PICTURES
                and path.is_relative_to(ROOT)
                and not path.is_relative_to(DOCS)
            ):
                found.add(path)
    return found
