"""What a run leaves behind: its molecules as a table, a picture of the best, and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from manifoldflow.tasks.molecules.chemistry import parsed
from manifoldflow.tasks.molecules.metrics import has_alert
from manifoldflow.tasks.molecules.report import draw_grid, front, histogram, progress, write_report
from manifoldflow.tasks.molecules.rewards import logp, qed, sa_score, tpsa, weight
from manifoldflow.tasks.molecules.writing import write_molecules

PICTURE, PAGE = "molecules.png", "report.html"


def beside(table: str | Path) -> tuple[str, str]:
    """Names of the picture and the page of a table: ``molecules.png`` and ``report.html`` of the usual one, ``a.png`` and
    ``a.html`` of ``a.csv``, so that samples in one folder keep their own."""
    stem = Path(table).stem
    return (PICTURE, PAGE) if stem == Path(PICTURE).stem else (f"{stem}.png", f"{stem}.html")


def properties(smiles: Sequence[str]) -> dict[str, list[Any]]:
    """What chemists look at first, a column each; empty where a molecule is none."""
    mols = [parsed(s) for s in smiles]
    columns: dict[str, Any] = {"qed": qed, "sa_score": sa_score, "logp": logp, "mw": weight, "tpsa": tpsa}
    made: dict[str, list[Any]] = {n: [None if m is None else f(m) for m in mols] for n, f in columns.items()}
    return made | {"alert": [None if m is None else int(has_alert(m)) for m in mols]}


def write_results(
    table: str | Path,
    folder: str | Path,
    smiles: Sequence[str],
    values: Tensor,
    names: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, str],
    asked: Tensor | None = None,
    best: int = 30,
    described: int = 1000,
    seed: int = 0,
    reference: Mapping[str, Sequence[float]] | None = None,
) -> list[Path]:
    """Write the table, a picture and a page (:func:`beside`).

    Args:
        table: file of the molecules (.csv, .smi, .sdf), in the order given.
        folder: of picture and page.
        smiles, values, names: molecules, their rewards ``(n, M)``, and what those are called.
        title, facts: of the page.
        asked: rewards in the order of the calls ``(calls,)``, of a search.
        best: molecules that are drawn.
        described: molecules of which properties are computed; the table leaves them empty for the rest.
        seed: of the conformers.
        reference: rewards of other sets, for the histogram.

    Returns:
        The files, the picture second and the page third.
    """
    folder = Path(folder)
    picture, page = beside(table)
    known = properties(smiles[:described])
    rest = len(smiles) - min(described, len(smiles))
    columns = {n: values[:, i].tolist() for i, n in enumerate(names)} | {n: v + [None] * rest for n, v in known.items()}
    files = [write_molecules(table, smiles, columns=columns, seed=seed)]
    captions = []
    for row in values[:best].tolist():
        captions.append(
            ", ".join(f"{n} {v:.3f}" for n, v in zip(names, row, strict=True)) if len(names) > 1 else f"{row[0]:.3f}"
        )
    files.append(draw_grid(folder / picture, smiles[:best], captions))
    plots: dict[str, Any] = {}
    if asked is not None:
        plots["The search"] = progress(asked.tolist())
    groups = {names[i]: values[:, i].tolist() for i in range(len(names))}
    plots["Rewards"] = histogram({**groups, **(reference or {})}, "reward")
    if len(names) > 1:
        plots["Objectives against each other"] = front(values, names)
    else:
        plots["Drug-likeness against ease of making"] = _quality(known)
    files.append(write_report(folder / page, title, smiles[:best], captions, facts=facts, plots=plots, seed=seed))
    return files


def _quality(known: Mapping[str, Sequence[Any]]) -> Any:
    import torch

    pairs = [(q, (10 - s) / 9) for q, s in zip(known["qed"], known["sa_score"], strict=True) if q is not None]
    return front(torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2), ("qed", "sa, (10 - SA score) / 9"))
