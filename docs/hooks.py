"""Pages whose text lives beside the code it describes, so that it exists once: the site shows that file instead of the stub."""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {
    "proteins.md": "tasks/proteins/README.md",
    "densities.md": "tasks/densities/README.md",
    "dna.md": "tasks/dna/README.md",
    "benchmarks.md": "benchmarks/README.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the stub of a page by its file, with links that work from ``docs/``."""
    source = SHOWN.get(page.file.src_uri)
    if source is None:
        return LINK.sub(lambda link: _relink(link, "docs"), markdown)
    text = (ROOT / source).read_text(encoding="utf-8")
    return LINK.sub(lambda link: _relink(link, posixpath.dirname(source)), text)


def _relink(link: re.Match[str], folder: str) -> str:
    """A link as seen from ``docs/``; to a file that is no page, its name alone."""
    picture, label, target, anchor = link.groups()
    path = posixpath.normpath(posixpath.join(folder, target))
    for page, source in SHOWN.items():
        if path == source:
            path = f"docs/{page}"
    if path.startswith("docs/"):
        return f"{picture}[{label}]({path.removeprefix('docs/')}{anchor or ''})"
    return label if label.strip("`") == path else f"{label} (`{path}`)"
