"""Pages whose text lives beside the code it describes, so that it exists once: the site shows that file instead of the stub."""

import ast
import importlib.util
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {
    "proteins.md": "tasks/proteins/README.md",
    "densities.md": "tasks/densities/README.md",
    "dna.md": "tasks/dna/README.md",
    "crystals.md": "tasks/crystals/README.md",
    "molecules.md": "tasks/molecules/README.md",
    "benchmarks.md": "benchmarks/README.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


NAMES = re.compile(r"^<!-- names: (?P<module>\S+)(?P<full> full)?(?: except (?P<left_out>.+?))? -->$", re.MULTILINE)


def with_names(markdown: str) -> str:
    """``<!-- names: MODULE [full] [except A B] -->`` becomes an entry for every name in ``__all__`` of a package.

    So a page of the reference never lacks a name. Without ``full`` a class is shown without its methods.
    """

    def entries(found: re.Match[str]) -> str:
        left_out = (found["left_out"] or "").split()
        names = [name for name in public_names(found["module"]) if name not in left_out]
        options = "" if found["full"] else "\n    options:\n      members: []"
        return "\n\n".join(f"::: {found['module']}.{name}{options}" for name in names)

    return NAMES.sub(entries, markdown)


def public_names(module: str) -> list[str]:
    """``__all__`` of a package, read without importing it."""
    tree = ast.parse((ROOT / module.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{module} has no __all__")


def on_files(files: Any, *, config: Any) -> Any:
    """Every notebook is a page as well, with a link to the notebook itself."""
    from mkdocs.structure.files import File

    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "docs" / "run_notebooks.py")
    assert spec is not None and spec.loader is not None
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        title, _, rest = notebooks.to_markdown(json.loads(path.read_text(encoding="utf-8"))).partition("\n")
        text = f"{title}\n\n[This page as a notebook]({path.name})\n{rest}"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the stub of a page by its file, with links that work from ``docs/``."""
    source = SHOWN.get(page.file.src_uri)
    if page.file.src_uri.startswith("api/"):
        return with_names(markdown)
    if page.file.src_uri.startswith("notebooks/"):
        return markdown
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
    if path.startswith("docs/notebooks/") and path.endswith(".ipynb"):
        path = path.removesuffix(".ipynb") + ".md"  # its page
    if path.startswith("docs/"):
        return f"{picture}[{label}]({path.removeprefix('docs/')}{anchor or ''})"
    return label if label.strip("`") == path else f"{label} (`{path}`)"
