"""``manifoldflow prepare molecules``: a raw file as a clean list."""

from pathlib import Path
from typing import Literal

from manifoldflow.tasks.common.tables import plural
from manifoldflow.tasks.molecules.reading import Rules, read_molecules
from manifoldflow.tasks.molecules.writing import check_format, write_molecules

RULES = Rules()


def prepare(
    data: str,
    out: str = "molecules.smi",
    column: str | None = None,
    rules: Rules = RULES,
    duplicates: Literal["drop", "keep"] = "drop",
    conformers: Literal["records", "merge"] = "records",
    strict: bool = False,
) -> None:
    """Read molecules from a SMILES list, a table or an SDF, clean them, and write them; what is left out is named.

    Args:
        data: the file, plain or gzipped.
        out: file to write: .smi, .csv (with the other columns) or .sdf.
        column: of a table: name or number of the SMILES.
        rules: salts, charges, isotopes, radicals, dummies: what to do with them; max_atoms and elements: what is allowed.
        duplicates: write each molecule once, the first, or as often as it stands there.
        conformers: of an SDF: records of one name and graph that follow each other are records, or one molecule.
        strict: stop at the first bad record.
    """
    check_format(out)
    found = read_molecules(data, rules=rules, column=column, conformers=conformers, strict=strict)
    print(found.summary())
    records, seen = [], set()
    for record in found.records:
        if duplicates == "keep" or record.smiles not in seen:
            records.append(record)
        seen.add(record.smiles)
    names = list(dict.fromkeys(k for r in records for k in r.properties))
    # A table has one column of SMILES and one of names, those that are written now.
    taken = {n: f"{n}_in_file" if n in ("smiles", "name") else n for n in names}
    columns = {taken[n]: [r.properties.get(n) for r in records] for n in names}
    if columns.get("smiles_in_file") == [r.smiles for r in records]:
        del columns["smiles_in_file"]
    has_places = all(r.mol.GetNumConformers() for r in records)
    write_molecules(
        Path(out),
        [r.smiles for r in records],
        names=[r.name for r in records],
        columns=columns,
        mols=[r.mol for r in records] if has_places else None,
    )
    print(f"wrote {plural(len(records), 'molecule')} to {out}")
