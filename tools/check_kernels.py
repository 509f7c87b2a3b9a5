"""Keeps out of csrc/cuda what nvcc 13.0 miscompiles: `python tools/check_kernels.py`.

For 7.5 to 9.0 it loses members of a struct that is chosen as a whole between a __grid_constant__
parameter and another: `c = given_is_null ? parameter : computed` reads the first member from the
parameter on both ways. The parameter may also be behind a reference, or be a member of one. So in
code for the device

- a __grid_constant__ parameter is read by its members, or passed on by itself as an argument;
- the operands of ?: are no structs with a name, be it a parameter, a variable or a member;
- no variable is a copy of such a struct, to be overwritten in part;
- no struct that is made of members of one, and of other values, is stored as a whole: for 7.5 to
  12.0 the parameter itself is stored then. Taken by value, without __grid_constant__, it is right.

g++ compiles all of them rightly, so csrc/simt can't see the fault. Names of types are looked for in
the sources' text; `make ptx-check` executes what nvcc makes of them. Prints one line per offence as
path:line: message, and exits with 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("csrc/cuda", "csrc/core", "tests/simt")  # the last are examples to copy from

STRUCT = re.compile(r"\b(?:struct|class)\s+(?:__align__\(.*?\)\)?\s+)?(\w+)\s*(?=[{:<]|$)", re.M)
DEVICE = re.compile(r"\b__(?:global|device)__\b|\bSSC_HD\b")
GRID_CONSTANT = re.compile(
    r"const\s+__grid_constant__\s+[^,()]*?(?:<[^()]*?>)?\s*\b(\w+)\s*(?=[,)])"
)
TEMPLATE = r"(?:<[^;=(){}]*>)?"


class Function(NamedTuple):
    """A function for the device: its parameters and its body, and where they begin in the file."""

    parameters: str
    body: str
    start: int


def without_comments(text: str) -> str:
    """The same lines, so that offsets and numbers of lines stay."""
    return re.sub(r"//[^\n]*", lambda match: " " * len(match[0]), text)


def closing(text: str, opening: int) -> int:
    """The place of the bracket that closes the one at `opening`."""
    pairs = {"(": ")", "{": "}"}
    close, depth = pairs[text[opening]], 0
    for at in range(opening, len(text)):
        depth += (text[at] == text[opening]) - (text[at] == close)
        if depth == 0:
            return at
    return len(text)


def device_functions(text: str) -> Iterator[Function]:
    for mark in DEVICE.finditer(text):
        # __launch_bounds__(...) and __align__(...) have brackets too.
        bracket = re.compile(r"(?<!__launch_bounds__)(?<!__align__)\(").search(text, mark.end())
        if bracket is None:
            continue
        end = closing(text, bracket.start())
        brace = re.compile(r"[{;]").search(text, end)
        if brace is not None and brace[0] == "{":
            body = text[brace.start() : closing(text, brace.start())]
            yield Function(text[bracket.start() : end + 1], body, brace.start())


def struct_names(texts: list[str]) -> set[str]:
    return {name for text in texts for name in STRUCT.findall(text)}


def declared(text: str, structs: set[str], reference: str = "&?") -> set[str]:
    """Names of parameters, variables and members of a struct's type, references included."""
    types = "|".join(sorted(structs))
    return set(
        re.findall(rf"\b(?:{types})\s*{TEMPLATE}\s*{reference}\s*\b(\w+)\s*(?=[;,)={{])", text)
    )


def references(text: str, structs: set[str]) -> set[str]:
    return declared(text, structs, reference="&")


def check_function(
    function: Function, structs: set[str], members: set[str]
) -> Iterator[tuple[int, str]]:
    """(offset in the file, message) of each offence."""
    body = function.body
    given = set(GRID_CONSTANT.findall(function.parameters))
    whole = given | members | declared(function.parameters + body, structs)
    for name in given:
        for use in re.finditer(rf"\b{name}\b(?!\s*(?:\.|->))", body):
            before, after = body[: use.start()].rstrip()[-1:], body[use.end() :].lstrip()[:1]
            if before not in "(," or after not in ",)":
                yield use.start(), f"{name} is a __grid_constant__ parameter: read its members"
    for choice in re.finditer(r"\?[^?;]*?:[^;]*?(?=[;,)}])", body):
        first, _, second = choice[0][1:].partition(" : ")
        for operand in (first.strip(), second.strip()):
            last = re.fullmatch(r"(?:[\w\]\[]+(?:\.|->))*(\w+)", operand)
            if last is not None and last[1] in whole:
                yield choice.start(), f"{operand} is chosen as a whole: choose member by member"
    yield from stored_mixtures(given, body)
    types = "|".join(sorted(structs))
    of_others = given | members | references(function.parameters + body, structs)
    for copy in re.finditer(rf"\b(?:{types})\s*{TEMPLATE}\s+\w+\s*=\s*((?:\w+\.)*(\w+));", body):
        if copy[2] in of_others:
            yield copy.start(), f"a copy of {copy[1]}: read its members where they are"


def stored_mixtures(given: set[str], body: str) -> Iterator[tuple[int, str]]:
    """Structs in braces with members of a __grid_constant__ parameter that are stored whole."""
    if not given:
        return
    member = re.compile(rf"(?:^|,)\s*(?:{'|'.join(sorted(given))})\.[\w.]+\s*(?:,|$)")
    for made in re.finditer(r"([^;{}]*?)=?\s*(?:\b\w+)?\s*\{([^;{}]*)\}\s*;", body):
        if member.search(made[2]) is None:
            continue
        target = made[1].strip()
        name = re.search(r"(\w+)$", target)
        stored = name is None or re.search(r"^\*|->|\]|\.", target) is not None
        if stored or re.search(rf"[^=!<>]=\s*{name[1]}\s*;", body):
            message = "of a parameter's members, stored as a whole: take it by value"
            yield made.start(2), message


def check_text(text: str, structs: set[str], members: set[str]) -> Iterator[tuple[int, str]]:
    """(line, message) of each offence in a source."""
    bare = without_comments(text)
    found = {
        (function.start + offset, message)
        for function in device_functions(bare)
        for offset, message in check_function(function, structs, members)
    }
    for place, message in sorted(found):
        yield text.count("\n", 0, place) + 1, message


def members_of(texts: list[str], structs: set[str]) -> set[str]:
    """Names of members that are structs themselves."""
    types = "|".join(sorted(structs))
    pattern = rf"^\s+(?:const\s+)?(?:{types})\s*{TEMPLATE}\s+(\w+);"
    return {name for text in texts for name in re.findall(pattern, text, re.MULTILINE)}


def check_files(paths: list[Path]) -> Iterator[tuple[Path, int, str]]:
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    bare = [without_comments(text) for text in texts.values()]
    structs = struct_names(bare)
    members = members_of(bare, structs)
    for path, text in texts.items():
        for line, message in check_text(text, structs, members):
            yield path, line, message


def main() -> int:
    paths = [p for d in SOURCES for p in sorted((ROOT / d).rglob("*")) if p.suffix in (".h", ".cu")]
    offences = list(check_files(paths))
    for path, line, message in offences:
        print(f"{path.relative_to(ROOT)}:{line}: {message}")
    print(f"check_kernels: {len(offences)} offences" if offences else "check_kernels: ok")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
