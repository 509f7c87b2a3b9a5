"""An extension of griffe, which reads the docstrings for the site: two spellings of ours.

`[*, D]` is a shape, no emphasis of Markdown; and `Example:` holds doctests, which griffe looks for
under `Examples:`.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

# Code between backticks and lines of doctests stay as they are.
_STAR = re.compile(r"(`[^`]*`)|\[\*(?=[\],])")


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
        lines.append(line)
    return "\n".join(lines)
