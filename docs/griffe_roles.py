"""Docstrings write formulas and references as reStructuredText roles; the site is Markdown."""

import inspect
import re
from typing import Any

import griffe

ROLE = re.compile(r":(math|class|meth|func|mod|attr):`~?([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::\s*(.+(?:\n(?!\s*\n).+)*)", re.MULTILINE)
TABLE = re.compile(r"^ *=+ +=+\n(?:.+\n)+? *=+ +=+$(?!\n(?=.*\S))", re.MULTILINE)
LITERAL = re.compile(r"``([^`]+)``")


def to_markdown(text: str) -> str:
    """``:math:`x``` and ``:class:`X``` become code, ``.. math::`` and tables code blocks."""

    def block(match: re.Match[str]) -> str:
        lines = [line.strip() for line in match[2].splitlines()]
        return "\n".join(["", *(match[1] + line for line in ["```tex", *lines, "```"]), ""])

    def table(match: re.Match[str]) -> str:
        return f"```text\n{inspect.cleandoc(match[0])}\n```"

    return BLOCK.sub(block, TABLE.sub(table, ROLE.sub(r"`\2`", LITERAL.sub(r"`\1`", text))))


class Roles(griffe.Extension):
    """Applied to every object before its docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
