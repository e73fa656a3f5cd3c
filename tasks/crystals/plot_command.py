"""What ``manifoldflow plot crystals`` runs."""

from pathlib import Path

from manifoldflow.tasks.common.runs import command_line
from manifoldflow.tasks.common.tables import plural
from manifoldflow.tasks.crystals.describe import SYMMETRY, describe

__all__ = ["plot"]


def plot(
    structures: str,
    out: str = "crystals.html",
    reference: str | None = None,
    truth: str | None = None,
    relaxed: bool = True,
    tolerance: float = SYMMETRY,
    most: int = 200,
    title: str | None = None,
) -> None:
    """Draw crystals: a page with cells that turn, powder patterns and histograms (`.html`), or a picture (`.png`, `.pdf`).

    Args:
        structures: a file or folder of structures, such as that of `sample`; files `*_relaxed.*` are shown beside their own.
        out: what to write; the ending says which.
        reference: structures (file, folder or prepared set) whose distributions are drawn behind.
        truth: known structures: each crystal is shown beside the one of its formula that it matches best.
        relaxed: show relaxed versions that lie beside.
        tolerance: of the space groups, angstrom.
        most: crystals at most.
        title: headline.
    """
    from manifoldflow.tasks.crystals.matching import PUBLISHED, match_pairs
    from manifoldflow.tasks.crystals.reading import load_crystals
    from manifoldflow.tasks.crystals.relax import Relaxed, shift_of
    from manifoldflow.tasks.crystals.report import Entry, write_overview, write_report
    from manifoldflow.tasks.crystals.store import CrystalDataset

    if Path(out).suffix.lower() not in (".html", ".png", ".pdf", ".svg"):
        raise ValueError(f"--out {out}: a page ends in .html, a picture in .png, .pdf or .svg")
    if most < 1:
        raise ValueError(f"--most must be at least 1, got {most}")
    found, rejected = load_crystals(structures, closest=0.0, reduce=False)  # overlapping atoms are to be seen
    after = {c.name.removesuffix("_relaxed"): c for c in found if c.name.endswith("_relaxed")}
    crystals = [c for c in found if not c.name.endswith("_relaxed")][:most]
    if not crystals:
        reason = f"; the first reason: {rejected[0]}" if rejected else ""
        raise ValueError(f"{structures}: no crystal can be drawn{reason}")
    results: list[Relaxed | None] = []
    for crystal in crystals:
        mate = after.get(crystal.name) if relaxed else None
        same = mate is not None and len(mate) == len(crystal) and (mate.species == crystal.species).all()
        shift = shift_of(crystal, mate) if mate is not None and same else float("nan")
        results.append(None if mate is None else Relaxed(mate, shift=shift, converged=True))
    rows = describe(
        crystals,
        files=[c.name for c in crystals],
        relaxed=results if any(r is not None for r in results) else None,
        tolerance=tolerance,
    )
    known: dict[int, tuple[int, float]] = {}
    truths = load_crystals(truth)[0] if truth is not None else []
    pairs = [(i, j) for i, c in enumerate(crystals) for j, t in enumerate(truths) if t.formula == c.formula]
    if pairs:
        matches = match_pairs([(crystals[i], truths[j]) for i, j in pairs], (PUBLISHED,), progress="matching")
        for (i, j), rms in zip(pairs, matches.rms[:, 0].tolist(), strict=True):
            if i not in known or rms < known[i][1] or known[i][1] != known[i][1]:
                known[i] = (j, rms)
    entries = [
        Entry(c, f, r, *((truths[known[i][0]], known[i][1]) if i in known else ()))
        for i, (c, f, r) in enumerate(zip(crystals, rows, results, strict=True))
    ]
    beside = None
    if reference is not None:
        dataset = CrystalDataset(reference)
        beside = [dataset[i] for i in range(len(dataset))]
    formulas = {row.formula for row in rows}
    headline = title or (f"Crystals of {formulas.pop()}" if len(formulas) == 1 else "Crystals")
    if out.lower().endswith(".html"):
        remarks = [str(one) for one in rejected[:10]]
        path = write_report(
            entries, out, title=headline, command=command_line(), reference=beside, remarks=remarks, tolerance=tolerance
        )
    else:
        path = write_overview(entries, out, title=headline, reference=beside)
    print(f"wrote {path} ({plural(len(entries), 'crystal')})")
    for one in rejected[:10]:
        print(f"not read: {one}")
