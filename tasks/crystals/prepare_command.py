"""What ``manifoldflow prepare crystals`` runs: structure files and tables in, one memory-mapped data set out."""

import csv
from dataclasses import dataclass, field, replace
from pathlib import Path

from manifoldflow.tasks.common.tables import plural
from manifoldflow.tasks.crystals.reading import CLOSEST, Rejected, read_crystals, structure_files
from manifoldflow.tasks.crystals.store import CrystalWriter


@dataclass
class Prepared:
    """What :func:`prepare` made.

    Args:
        folder: the data set.
        crystals, atoms: what is in it.
        rejected: of every file, row and structure that is not.
    """

    folder: Path
    crystals: int = 0
    atoms: int = 0
    rejected: list[Rejected] = field(default_factory=list)


def prepare(
    data: list[str] | str,
    out: str,
    max_atoms: int = 64,
    closest: float = CLOSEST,
    column: str | None = None,
    name: str | None = None,
    primitive: bool = False,
) -> Prepared:
    """Make one training set of crystal structures.

    Structures are Niggli-reduced. What cannot be read, is disordered or does not fit is listed with its place and the reason at
    the end and in ``rejected.csv`` of the data set, and the run goes on. The data set appears under its name only when complete.

    Args:
        data: CIF, POSCAR, extended XYZ or CSV file (also .gz), or a folder, searched recursively; several as a list, such as
            [a.cif,structures/].
        out: folder of the data set; an older data set there is replaced, a folder with anything else in it is refused.
        max_atoms: cells with more atoms are left out.
        closest: structures with atoms nearer than this (angstrom) are left out.
        column: of tables: the column that holds CIFs; cif if there is one.
        name: of tables: the column of names; material_id, id or name if there is one. Other columns are kept as labels.
        primitive: take primitive cells (spglib, 1e-3 A) instead of the cells of the files.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: no crystal is left.
    """
    from rich.progress import Progress

    if max_atoms < 1:
        raise ValueError(f"max_atoms must be at least 1, got {max_atoms}")
    if not closest >= 0:
        raise ValueError(f"closest must be at least 0, got {closest:g}")
    files = structure_files([data] if isinstance(data, str) else data)
    result = Prepared(Path(out))
    counts: dict[str, int] = {}
    with CrystalWriter(out) as writer:
        with Progress(transient=True) as progress:
            task = progress.add_task("reading crystals", total=len(files))
            for path in files:
                for item in read_crystals(path, column=column, name=name, closest=closest):
                    if isinstance(item, Rejected):
                        result.rejected.append(item)
                        continue
                    crystal = None
                    try:
                        crystal = item.primitive() if primitive else item.reduced()
                        fault = (
                            f"{len(crystal)} atoms, more than max_atoms = {max_atoms}"
                            if len(crystal) > max_atoms
                            else ""
                        )
                    except ValueError as error:
                        fault = str(error)
                    if fault or crystal is None:
                        result.rejected.append(Rejected(str(path), "", item.name, fault))
                        continue
                    unique = crystal.name or path.stem
                    while unique in writer:
                        counts[crystal.name] = counts.get(crystal.name, 1) + 1
                        unique = f"{crystal.name}-{counts[crystal.name]}"
                    writer.add(replace(crystal, name=unique), str(path))
                progress.advance(task)
        if not writer.entries:
            raise ValueError(
                f"no crystal is left of {plural(len(files), 'file')}; the first reason: {result.rejected[0]}"
            )
        write_rejected(writer.temporary / "rejected.csv", result.rejected)
        result.crystals, result.atoms = len(writer.entries), sum(entry["length"] for entry in writer.entries)
    _report(result, len(files))
    return result


def write_rejected(path: Path, rejected: list[Rejected]) -> None:
    """The table of what was rejected: file, row, name, reason."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = [(item.source, item.row, item.name, item.reason) for item in rejected]
        csv.writer(file).writerows([("source", "row", "name", "reason"), *rows])


def _report(result: Prepared, files: int, most: int = 20) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    made = f"{plural(result.crystals, 'crystal')}, {plural(result.atoms, 'atom')}"
    console.print(f"{result.folder}: {made} from {plural(files, 'file')}")
    if result.rejected:
        console.print(f"{len(result.rejected)} left out (all in {result.folder / 'rejected.csv'}):")
        for item in result.rejected[:most]:
            console.print(f"  {item}")
        if len(result.rejected) > most:
            console.print(f"  ... and {len(result.rejected) - most} more")
