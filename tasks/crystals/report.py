"""The page and the picture about a set of crystals: cells that turn, powder patterns, histograms, one row for each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from manifoldflow.tasks.common.plots import new_figure, save_figure
from manifoldflow.tasks.common.report import PALETTE, Report, code, facts, figure, notes, several, table, text
from manifoldflow.tasks.common.tables import plural, share
from manifoldflow.tasks.common.viewer import Scene
from manifoldflow.tasks.crystals.describe import Facts
from manifoldflow.tasks.crystals.elements import symbols_of
from manifoldflow.tasks.crystals.energies import SURROGATE
from manifoldflow.tasks.crystals.plots import TAKEN, draw_cell, element_names, histogram, powder_plot, shares_plot
from manifoldflow.tasks.crystals.relax import Relaxed
from manifoldflow.tasks.crystals.structure import Crystal, collate, densities, wrap
from manifoldflow.tasks.crystals.writing import symmetry_of

__all__ = ["Entry", "write_overview", "write_report"]

SHOWN = 120
"""Structures with a view; more make the page large and no easier to read."""
PATTERNS = 12
"""Structures with a powder pattern, which pymatgen takes a second for."""


@dataclass(frozen=True)
class Entry:
    """One crystal of a report.

    Args:
        crystal: as it was made.
        facts: its row.
        relaxed: what relaxation gave.
        truth: the known crystal that it is to be, or comes nearest to.
        rms: normalised distance to the truth, NaN where they do not match.
    """

    crystal: Crystal
    facts: Facts
    relaxed: Relaxed | None = None
    truth: Crystal | None = None
    rms: float = float("nan")


def write_report(
    entries: Sequence[Entry],
    out: str | Path,
    *,
    title: str = "Generated crystals",
    command: str = "",
    info: Mapping[str, Any] | None = None,
    reference: Sequence[Crystal] | None = None,
    remarks: Iterable[str] = (),
    tolerance: float = 0.1,
) -> Path:
    """Write the page: one HTML file that needs neither a network nor anything beside it.

    Args:
        entries: the crystals.
        out: the file.
        title: headline.
        command: that makes them again.
        info: names and values worth knowing of the model and the run.
        reference: crystals to compare histograms with.
        remarks: sentences for the reader.
        tolerance: of symmetry, angstrom; for the space groups of the reference.

    Raises:
        ValueError: no crystals.
    """
    if not entries:
        raise ValueError("a report needs at least one crystal")
    page = Report(title, chips=_chips(entries))
    if listed := list(remarks):
        page.card("What to note", notes(listed))
    _views(page, entries, tolerance)
    _patterns(page, entries)
    _histograms(page, entries, reference, tolerance)
    _rows(page, entries)
    _about(page, command, info or {})
    return page.write(out)


def _chips(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    formulas = {e.facts.formula for e in entries}
    apart = sum(e.facts.contact >= TAKEN for e in entries)
    found = [("structures", f"{len(entries):,}"), ("formulas", f"{len(formulas):,}")]
    found.append(("no overlapping atoms", f"{100 * apart / len(entries):.0f} %"))
    shifts = [e.relaxed.shift for e in entries if e.relaxed is not None and not e.relaxed.fault]
    if shifts:
        found.append(("median shift by relaxation", f"{np.median(shifts):.2f} Å"))
    with_truth = [e for e in entries if e.truth is not None]
    if with_truth:
        found.append(
            ("match the known structure", f"{sum(np.isfinite(e.rms) for e in with_truth)} of {len(with_truth)}")
        )
    return found


def _scene(crystal: Crystal, caption: str, tolerance: float) -> Scene:
    shown = conventional(crystal, tolerance)
    return Scene.crystal(symbols_of(shown.species), shown.frac, shown.cell, caption=caption)


def conventional(crystal: Crystal, tolerance: float) -> Crystal:
    """The conventional cell, as people know it, with the atoms where they are; the crystal itself where there is none."""
    import spglib

    parts: Any = (crystal.cell, crystal.frac, crystal.species + 1)
    try:
        found = spglib.standardize_cell(parts, to_primitive=False, no_idealize=True, symprec=tolerance)
    except Exception:  # spglib raises errors of its own, from version to version
        found = None
    if found is None or len(found[2]) > 4 * len(crystal):
        return crystal
    cell, frac, numbers = found
    return Crystal(
        np.asarray(numbers, np.int64) - 1, wrap(np.asarray(frac, float)), np.asarray(cell, float), crystal.name
    )


def _views(page: Report, entries: Sequence[Entry], tolerance: float) -> None:
    scenes = []
    with_truth = any(e.truth is not None for e in entries)
    with_relaxed = any(e.relaxed is not None and e.relaxed.crystal is not None for e in entries)
    for e in entries[:SHOWN]:
        f = e.facts
        name = f.file.rpartition(".")[0] or e.crystal.name or f.formula
        scenes.append(
            _scene(
                e.crystal,
                f"{f.formula} · {f.space_group}\n{name}\n{f.density:.2f} g/cm³, contact {f.contact:.2f}",
                tolerance,
            )
        )
        if e.relaxed is not None and e.relaxed.crystal is not None:
            words = f"{f.formula}, relaxed\n{_energy(e.relaxed)}shift {e.relaxed.shift:.2f} Å"
            scenes.append(_scene(e.relaxed.crystal, words, tolerance))
        if e.truth is not None:
            match = f"RMSE {e.rms:.3f}" if np.isfinite(e.rms) else "no match"
            scenes.append(
                _scene(
                    e.truth, f"{e.truth.formula}, known\n{match} · {symmetry_of(e.truth, tolerance).symbol}", tolerance
                )
            )
    beside = [
        word
        for word, is_there in (("relaxed by CHGNet", with_relaxed), ("the known structure", with_truth))
        if is_there
    ]
    note = "Drag to turn, click and scroll to zoom; on a phone tap first. Conventional cells, with atoms on all faces."
    if beside:
        note = f"Each as it was made{', then ' + ' and '.join(beside)}. {note}"
    if len(entries) > SHOWN:
        note += f" The first {SHOWN} of {len(entries)} are shown."
    page.card("Structures", page.grid(scenes), note=note, anchor="structures")


def _energy(relaxed: Relaxed) -> str:
    return f"{relaxed.energy:.3f} eV/atom, " if np.isfinite(relaxed.energy) else ""


def _patterns(page: Report, entries: Sequence[Entry]) -> None:
    plots = []
    for e in entries[:PATTERNS]:
        crystals, labels = [e.crystal], ["made"]
        if e.relaxed is not None and e.relaxed.crystal is not None:
            crystals, labels = [*crystals, e.relaxed.crystal], [*labels, "relaxed"]
        if e.truth is not None:
            crystals, labels = [*crystals, e.truth], [*labels, "known"]
        caption = f"{e.facts.formula} ({e.facts.file})" if e.facts.file else e.facts.formula
        drawn = powder_plot(crystals, labels)
        plots.append(figure(drawn, f"powder pattern of {e.facts.formula}", caption))
    more = f" Of the first {PATTERNS} of {len(entries)}." if len(entries) > PATTERNS else ""
    note = f"Simulated by pymatgen for Cu Kα, lines 0.3° wide, each scaled to its strongest.{more}"
    page.card("Powder patterns", several(plots), note=note)


def _histograms(page: Report, entries: Sequence[Entry], reference: Sequence[Crystal] | None, tolerance: float) -> None:
    made, known = [e.crystal for e in entries], list(reference or [])
    ours = [e.facts for e in entries]

    def drawn(draw: Any, alt: str) -> Markup:
        plot = new_figure(4.6, 2.9, extra="crystals")
        draw(plot.subplots())
        return figure(plot, alt)

    density = densities(collate(known, dtype=torch.float64)).tolist() if known else None
    symbols = [symmetry_of(c, tolerance).symbol for c in known] if known else None
    parts = [
        drawn(lambda a: histogram(a, [f.density for f in ours], "density (g/cm³)", density), "histogram of densities"),
        drawn(
            lambda a: histogram(a, [f.contact for f in ours], "closest contact / sum of radii", None, TAKEN),
            "histogram of closest contacts",
        ),
        drawn(lambda a: shares_plot(a, [f.space_group for f in ours], "space group", symbols), "space groups"),
        drawn(
            lambda a: shares_plot(
                a, element_names(made), "element, share of atoms", element_names(known) if known else None
            ),
            "elements",
        ),
    ]
    shifts = [f.shift for f in ours if np.isfinite(f.shift)]
    if shifts:
        parts.append(drawn(lambda a: histogram(a, shifts, "shift by relaxation (Å)"), "histogram of shifts"))
    above = [f.above_hull for f in ours if np.isfinite(f.above_hull)]
    if above:
        parts.append(
            drawn(lambda a: histogram(a, above, "CHGNet, above the known hull (eV/atom)"), "histogram of energies")
        )
    note = f"Beside {plural(len(known), 'reference crystal')}." if known else ""
    page.card("Distributions", several(parts), note=note + " The dashed line marks where atoms begin to overlap.")


def _rows(page: Report, entries: Sequence[Entry]) -> None:
    has_energy = any(np.isfinite(e.facts.energy) or e.facts.relaxation for e in entries)
    has_truth = any(e.truth is not None for e in entries)
    columns = ["structure", "formula", "Z", "space group", "density (g/cm³)", "contact", "charges"]
    columns += ["energy (eV/atom)", "above hull (eV/atom)", "shift (Å)", "relaxation"] if has_energy else []
    has_near = any(e.facts.nearest for e in entries)
    columns += (["nearest training structure", "distance"] if has_near else []) + (
        ["RMSE to known"] if has_truth else []
    )
    rows = []
    for e in entries:
        f = e.facts
        row: list[Any] = [f.file or e.crystal.name, f.formula, f.units, f"{f.space_group} ({f.space_group_number})"]
        row += [f.density, f.contact, f.charges.partition(":")[0]]
        row += [f.energy, f.above_hull, f.shift, f.relaxation] if has_energy else []
        row += [f"{f.nearest_formula} {f.nearest}".strip() or None, f.nearest_distance] if has_near else []
        row += [e.rms] if has_truth else []
        rows.append(row)
    unbalanced = sum(f.facts.charges.startswith("no") for f in entries)
    parts: list[Markup] = [table(columns, rows)]
    if unbalanced:
        parts.append(text(f"{share(unbalanced, len(entries))} have no charge balance from tabulated oxidation states."))
    note = "Click a heading to sort. Contact: closest contact over the sum of covalent radii."
    if has_energy:
        note += (
            f" Energies: {SURROGATE}, after relaxation; the hull knows about 3,500 structures and not all that compete."
        )
    page.card("Every structure", *parts, note=note)


def _about(page: Report, command: str, info: Mapping[str, Any]) -> None:
    if command or info:
        again = [code(command)] if command else []
        page.card("How these were made", *again, facts(info))


def write_overview(
    entries: Sequence[Entry],
    out: str | Path,
    title: str = "Generated crystals",
    reference: Sequence[Crystal] | None = None,
) -> Path:
    """Write one picture: up to eight cells, densities, contacts, space groups, elements."""
    if not entries:
        raise ValueError("an overview needs at least one crystal")
    plot = new_figure(13, 7.6, extra="crystals", layout=None)
    plot.text(0.03, 0.955, title, fontsize=19, color=PALETTE["ink"], weight="bold")
    chips = "     ".join(f"{name}: {value}" for name, value in _chips(entries))
    plot.text(0.03, 0.918, chips, fontsize=11, color=PALETTE["soft"])
    for i, e in enumerate(entries[:8]):
        axes = plot.add_axes((0.02 + i * 0.121, 0.6, 0.116, 0.21))
        draw_cell(axes, conventional(e.crystal, 0.1))
        axes.set_title(f"{e.facts.formula}\n{e.facts.space_group}", fontsize=10, color=PALETTE["ink"])
    known = list(reference or [])
    density = densities(collate(known, dtype=torch.float64)).tolist() if known else None
    boxes = [plot.add_axes((0.055 + 0.242 * i, 0.12, 0.19, 0.38)) for i in range(4)]
    ours = [e.facts for e in entries]
    histogram(boxes[0], [f.density for f in ours], "density (g/cm³)", density)
    histogram(boxes[1], [f.contact for f in ours], "closest contact / sum of radii", None, TAKEN)
    shares_plot(boxes[2], [f.space_group for f in ours], "space group", None, 9)
    shares_plot(
        boxes[3], element_names([e.crystal for e in entries]), "element", element_names(known) if known else None, 9
    )
    return save_figure(plot, out, dpi=130)
