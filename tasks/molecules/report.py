"""Drawn molecules: a picture of the best, and a page with structures, rewards, fronts, and turning conformers."""

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifoldflow.files import write_bytes
from manifoldflow.tasks.common.plots import new_figure
from manifoldflow.tasks.molecules.chemistry import parsed, rdkit

if TYPE_CHECKING:
    from markupsafe import Markup


def drawing(smiles: str, width: int = 240, height: int = 170) -> str:
    """A molecule as SVG; an empty picture of what is none."""
    rdkit()
    from rdkit.Chem.Draw import rdMolDraw2D

    pen = rdMolDraw2D.MolDraw2DSVG(width, height)
    mol = parsed(smiles)
    if mol is not None:
        rdMolDraw2D.PrepareAndDrawMolecule(pen, mol)
    pen.FinishDrawing()
    text = pen.GetDrawingText()
    return text[text.index("<svg") :]


def draw_grid(path: str | Path, smiles: Sequence[str], captions: Sequence[str], columns: int = 5) -> Path:
    """Molecules in a PNG picture, row by row; what is no molecule is left out."""
    rdkit()
    from rdkit.Chem.Draw import rdMolDraw2D

    pairs = [(m, c) for m, c in zip(map(parsed, smiles), captions, strict=True) if m is not None]
    rows, columns = max(1, -(-len(pairs) // columns)), max(1, min(columns, len(pairs)))
    pen = rdMolDraw2D.MolDraw2DCairo(260 * columns, 220 * rows, 260, 220)
    options: Any = pen.drawOptions()
    options.legendFontSize = 16
    pen.DrawMolecules([m for m, _ in pairs], legends=[c for _, c in pairs])
    pen.FinishDrawing()
    return write_bytes(path, pen.GetDrawingText())


def cards(smiles: Sequence[str], captions: Sequence[str]) -> "Markup":
    """Drawn molecules side by side, on white, as the colours of atoms are made for it."""
    from markupsafe import Markup

    style = "background:#fff;border-radius:8px;padding:4px;margin:0 0 4px"
    parts = []
    for text, caption in zip(smiles, captions, strict=True):
        drawn = Markup(drawing(text))  # RDKit's own lines: nothing of a file goes into them
        parts.append(
            Markup('<figure style="margin:0;width:230px"><div style="{}">{}</div><figcaption><b>{}</b><br>'
                   '<small style="overflow-wrap:anywhere">{}</small></figcaption></figure>').format(style, drawn, caption, text)
        )  # fmt: skip
    return Markup('<div style="display:flex;flex-wrap:wrap;gap:14px">{}</div>').format(Markup("").join(parts))


def write_report(
    path: str | Path,
    title: str,
    smiles: Sequence[str],
    captions: Sequence[str],
    *,
    facts: Mapping[str, str],
    plots: Mapping[str, Any] | None = None,
    views: int = 8,
    seed: int = 0,
) -> Path:
    """One HTML page without any file beside it.

    Args:
        path: file to write.
        title: of the page.
        smiles: molecules, the best first.
        captions: a line for each.
        facts: what was done, and what came of it.
        plots: headings and matplotlib figures.
        views: how many of the first are shown turning, as conformers of RDKit (ETKDG, MMFF).
        seed: of the conformers.
    """
    from manifoldflow.tasks.common import report
    from manifoldflow.tasks.common.viewer import Scene
    from manifoldflow.tasks.molecules.writing import conformer

    page = report.Report(title, chips=[("molecules shown", f"{len(smiles)}")])
    page.card("What was done", report.facts(facts))
    drawn = [(heading, report.figure(figure, heading)) for heading, figure in (plots or {}).items()]
    for i in range(0, len(drawn), 2):
        page.cards(drawn[i : i + 2])
    page.card("Molecules", cards(smiles, captions))
    scenes = []
    for text, caption in list(zip(smiles, captions, strict=True))[:views]:
        block = rdkit().MolToMolBlock(conformer(text, seed))
        scenes.append(Scene(block + "$$$$\n", "sdf", caption=f"{caption}\n{text}"))
    if scenes:
        note = "Conformers of RDKit (ETKDG, then MMFF): what these molecules may look like, not what a model made. Drag to turn."
        page.card("In three dimensions", page.grid(scenes), note=note)
    return page.write(path)


def histogram(groups: Mapping[str, Sequence[float]], label: str) -> Any:
    """Distributions of a number, one area a group."""
    figure, axes, colours = _axes()
    low = min((min(v) for v in groups.values() if len(v)), default=0.0)
    high = max((max(v) for v in groups.values() if len(v)), default=1.0)
    for colour, (name, values) in zip(colours * len(groups), groups.items(), strict=False):
        limits = (low, high if high > low else low + 1)
        axes.hist(
            values, bins=40, range=limits, density=True, histtype="stepfilled", alpha=0.5, label=name, color=colour
        )
    return _finished(figure, axes, label, "density")


def progress(reward: Sequence[float], label: str = "reward", count: int = 100) -> Any:
    """The rewards in the order of the calls, and the mean of the best so far."""
    figure, axes, colours = _axes()
    calls = range(1, len(reward) + 1)
    axes.plot(calls, reward, ".", markersize=2, alpha=0.3, label="every call", color=colours[2], rasterized=True)
    best: list[float] = []
    mean = []
    for value in reward:
        heapq.heappush(best, value)
        if len(best) > count:
            heapq.heappop(best)
        mean.append(sum(best) / len(best))
    axes.plot(calls, mean, label=f"mean of the best {count}", color=colours[0])
    return _finished(figure, axes, "calls", label)


def front(values: Any, names: Sequence[str]) -> Any:
    """Two objectives against each other ``(n, 2)``, with the molecules that no other beats."""
    from manifoldflow.tasks.molecules.metrics import pareto_front

    figure, axes, colours = _axes(5, 4.2)
    best = pareto_front(values[:, :2])
    ends = values[best][values[best][:, 0].argsort()]
    axes.plot(
        values[:, 0], values[:, 1], ".", markersize=3, alpha=0.4, label="molecules", color=colours[2], rasterized=True
    )
    axes.plot(ends[:, 0], ends[:, 1], "o-", markersize=4, label="front of Pareto", color=colours[1])
    return _finished(figure, axes, *names[:2])


def _axes(width: float = 6, height: float = 3) -> tuple[Any, Any, list[str]]:
    from manifoldflow.tasks.common.report import PALETTE

    figure = new_figure(width, height, extra="molecules")
    return figure, figure.subplots(), [PALETTE["accent"], PALETTE["second"], PALETTE["third"], PALETTE["reference"]]


def _finished(figure: Any, axes: Any, x: str, y: str) -> Any:
    from manifoldflow.tasks.common.report import style_axes

    axes.set(xlabel=x, ylabel=y)
    axes.legend(frameon=False)
    style_axes(axes)
    return figure
