"""Drawn molecules: a picture of the best, and a page with structures, rewards, fronts, and turning conformers; it works offline."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from manifoldflow.files import write_bytes, write_text
from manifoldflow.tasks.common.plots import new_figure
from manifoldflow.tasks.molecules.chemistry import parsed, rdkit

CSS = """
:root { color-scheme: light dark; --line: #d4d7dd; --soft: #667; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } p.note { color: var(--soft); max-width: 75ch; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child { text-align: left; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 12px; }
figure.card { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: 6px; background: #fff; color: #222; }
figure.card svg { width: 100%; height: auto; display: block; }
figcaption { font-size: 12px; overflow-wrap: anywhere; } figcaption b { font-size: 13px; }
.plot svg { max-width: 100%; height: auto; background: #fff; border-radius: 8px; }
"""


def drawing(smiles: str, width: int = 240, height: int = 180) -> str:
    """A molecule as SVG."""
    rdkit()
    from rdkit.Chem.Draw import rdMolDraw2D

    pen = rdMolDraw2D.MolDraw2DSVG(width, height)
    pen.drawOptions().clearBackground = False
    mol = parsed(smiles)
    if mol is not None:
        rdMolDraw2D.PrepareAndDrawMolecule(pen, mol)
    pen.FinishDrawing()
    text = pen.GetDrawingText()
    return text[text.index("<svg") :]


def draw_grid(path: str | Path, smiles: Sequence[str], captions: Sequence[str], columns: int = 5) -> Path:
    """Molecules in a PNG picture, row by row."""
    rdkit()
    from rdkit.Chem import Draw
    from rdkit.Chem.Draw import rdMolDraw2D

    mols = [parsed(s) for s in smiles]
    rows = max(1, -(-len(mols) // columns))
    pen = rdMolDraw2D.MolDraw2DCairo(260 * columns, 220 * rows, 260, 220)
    pen.drawOptions().legendFontSize = 16
    del Draw
    pen.DrawMolecules([m for m in mols if m is not None], legends=[c for c, m in zip(captions, mols, strict=True) if m is not None])
    pen.FinishDrawing()
    return write_bytes(path, pen.GetDrawingText())


def write_report(
    path: str | Path,
    title: str,
    smiles: Sequence[str],
    captions: Sequence[str],
    *,
    facts: Mapping[str, str],
    plots: Mapping[str, Any] | None = None,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]] | None = None,
    views: int = 8,
    seed: int = 0,
) -> Path:
    """One HTML page without any file beside it.

    Args:
        path: file to write.
        title: of the page.
        smiles: molecules, the best first.
        captions: a line for each.
        facts: what was done, in a table of two columns.
        plots: headings and matplotlib figures.
        tables: headings, and for each the columns and rows of a table.
        views: how many of the first are shown turning, as conformers of RDKit (ETKDG, MMFF).
        seed: of the conformers.
    """
    from manifoldflow.tasks.common.viewer import POLICY, Scene, Viewers
    from manifoldflow.tasks.molecules.writing import conformer

    viewers = Viewers()
    parts = [f"<h1>{escape(title)}</h1>", _table(("", ""), [(k, v) for k, v in facts.items()])]
    for heading, figure in (plots or {}).items():
        parts.append(f'<h2>{escape(heading)}</h2><div class="plot">{_svg(figure)}</div>')
    for heading, (columns, rows) in (tables or {}).items():
        parts.append(f"<h2>{escape(heading)}</h2>{_table(columns, rows)}")
    parts.append("<h2>Molecules</h2><div class='cards'>")
    for text, caption in zip(smiles, captions, strict=True):
        head = f"<b>{escape(caption)}</b><br>" if caption else ""
        parts.append(f"<figure class='card'>{drawing(text)}<figcaption>{head}{escape(text)}</figcaption></figure>")
    parts.append("</div>")
    scenes = []
    for text, caption in list(zip(smiles, captions, strict=True))[:views]:
        block = rdkit().MolToMolBlock(conformer(text, seed))
        scenes.append(Scene(block + "$$$$\n", "sdf", caption=f"{caption}\n{text}"))
    if scenes:
        parts.append("<h2>In three dimensions</h2><p class='note'>Conformers of RDKit (ETKDG, then MMFF): what these molecules may look "
                     "like, not what a model made. Point at one to turn it.</p>")  # fmt: skip
        parts.append(viewers.grid(scenes))
    body = "\n".join(parts)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}{viewers.css()}</style></head><body>{body}{viewers.scripts()}</body></html>"
    )
    return write_text(path, page)


def histogram(groups: Mapping[str, Sequence[float]], label: str) -> Any:
    """Distributions of a number, one line a group."""
    figure = new_figure(7, 3, extra="molecules")
    axes = figure.subplots()
    low = min((min(v) for v in groups.values() if len(v)), default=0.0)
    high = max((max(v) for v in groups.values() if len(v)), default=1.0)
    for name, values in groups.items():
        axes.hist(values, bins=40, range=(low, high if high > low else low + 1), density=True, histtype="stepfilled", alpha=0.45, label=name)
    axes.set(xlabel=label, ylabel="density")
    axes.legend(frameon=False)
    return figure


def progress(reward: Sequence[float], label: str = "reward", count: int = 100) -> Any:
    """The rewards in the order of the calls, and the mean of the best so far."""
    import heapq

    figure = new_figure(7, 3, extra="molecules")
    axes = figure.subplots()
    axes.plot(range(1, len(reward) + 1), reward, ".", markersize=2, alpha=0.25, label="every call")
    best: list[float] = []
    mean = []
    for value in reward:
        heapq.heappush(best, value)
        if len(best) > count:
            heapq.heappop(best)
        mean.append(sum(best) / len(best))
    axes.plot(range(1, len(reward) + 1), mean, label=f"mean of the best {count}")
    axes.set(xlabel="calls", ylabel=label)
    axes.legend(frameon=False)
    return figure


def front(values: Any, names: Sequence[str]) -> Any:
    """Two objectives against each other, with the molecules that no other beats."""
    from manifoldflow.tasks.molecules.metrics import pareto_front

    figure = new_figure(5, 4.5, extra="molecules")
    axes = figure.subplots()
    best = pareto_front(values[:, :2])
    order = values[best][:, 0].argsort()
    axes.plot(values[:, 0], values[:, 1], ".", markersize=3, alpha=0.3, label="asked for")
    axes.plot(values[best][order, 0], values[best][order, 1], "o-", markersize=4, label="front of Pareto")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.legend(frameon=False)
    return figure


def _svg(figure: Any) -> str:
    import io

    made = io.StringIO()
    figure.savefig(made, format="svg")
    text = made.getvalue()
    return text[text.index("<svg") :]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns) if any(columns) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
