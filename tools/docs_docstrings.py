"""An extension of griffe, which reads the docstrings for the site: three spellings of ours.

`[*, D]` is a shape, no emphasis of Markdown; `Example:` holds doctests, which griffe looks for
under `Examples:`; and docs/numerics.md, say, is a page of the site.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

# Code between backticks and lines of doctests stay as they are.
_STAR = re.compile(r"(`[^`]*`)|\[\*(?=[\],])")
_PAGE = re.compile(r"\bdocs/(\w+)\.md\b")


class Spellings(griffe.Extension):
    """Rewrites every docstring once it is collected."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _respelled(obj.docstring.value)


def _respelled(docstring: str) -> str:
    lines = []
    for line in docstring.splitlines():
        if line.strip() == "Example:":
            line = line.replace("Example:", "Examples:")
        elif not line.lstrip().startswith((">>>", "...")):
            line = _STAR.sub(lambda match: match[1] or r"[\*", line)
            line = _PAGE.sub(r"[docs/\1.md](../\1.html)", line)  # from a page of api/
        lines.append(line)
    return "\n".join(lines)
