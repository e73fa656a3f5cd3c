"""Molecules to files: SMILES lists, tables and SDF, complete or not at all; SDF in 3D by RDKit's conformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifoldflow.files import write_text
from manifoldflow.tasks.common.files import write_csv
from manifoldflow.tasks.molecules.chemistry import parsed, rdkit

FORMATS = (".smi", ".csv", ".sdf")


def write_molecules(
    path: str | Path,
    smiles: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    mols: Sequence[Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write molecules; the ending of the name says how.

    Args:
        path: ``.smi`` (SMILES and name), ``.csv`` (with the columns) or ``.sdf`` (properties; three dimensions by ETKDG and
            MMFF where ``mols`` brings no coordinates, the plane where that fails).
        smiles: one a molecule.
        names: of the molecules; numbers if absent.
        columns: further numbers or texts, one a molecule.
        mols: RDKit molecules with coordinates to write instead of made ones.
        seed: of the conformers.

    Raises:
        ValueError: another ending, or lengths that differ.
    """
    path, columns = Path(path), dict(columns or {})
    kind = path.suffix.lower()
    check_format(path)
    names = list(names) if names is not None else [f"{i:05d}" for i in range(1, len(smiles) + 1)]
    for what, values in {"names": names, **columns}.items():
        if len(values) != len(smiles):
            raise ValueError(f"{path}: {len(values)} {what} for {len(smiles)} molecules")
    if kind == ".csv":
        return write_csv(
            path,
            ["smiles", "name", *columns],
            (
                [s, n, *(_text(v[i]) for v in columns.values())]
                for i, (s, n) in enumerate(zip(smiles, names, strict=True))
            ),
        )
    if kind == ".smi":
        return write_text(path, "".join(f"{s} {_line(n)}".rstrip() + "\n" for s, n in zip(smiles, names, strict=True)))
    parts = []
    for i, (s, n) in enumerate(zip(smiles, names, strict=True)):
        mol = mols[i] if mols is not None else conformer(s, seed)
        mol = rdkit().Mol(mol)
        mol.SetProp("_Name", _line(n))
        block = rdkit().MolToMolBlock(mol)
        fields = {"smiles": s} | {k: _text(v[i]) for k, v in columns.items()}
        parts.append(block + "".join(f"> <{_line(k)}>\n{_value(v)}\n\n" for k, v in fields.items()) + "$$$$\n")
    return write_text(path, "".join(parts))


def check_format(path: str | Path) -> None:
    """Raise ValueError unless the ending is one of those that can be written."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: molecules are written to files that end in {', '.join(FORMATS)}")


def conformer(smiles: str, seed: int = 0) -> Any:
    """A molecule with hydrogens and one conformer: ETKDG, then MMFF; flat where that fails.

    Raises:
        ValueError: no molecule.
    """
    from rdkit.Chem import AllChem

    mol = parsed(smiles)
    if mol is None:
        raise ValueError(f"{smiles!r} is no molecule")
    full = rdkit().AddHs(mol)
    how = AllChem.ETKDGv3()  # type: ignore[attr-defined]
    how.randomSeed, how.maxIterations = seed + 1, 20
    if AllChem.EmbedMolecule(full, how) != 0:  # type: ignore[attr-defined]
        AllChem.Compute2DCoords(mol)  # type: ignore[attr-defined]
        return mol
    AllChem.MMFFOptimizeMolecule(full, maxIters=200)  # type: ignore[attr-defined]
    return full


def _line(text: str) -> str:
    """A name in one line, as lists of SMILES and SDF have them."""
    return " ".join(text.split())


def _value(text: str) -> str:
    """A value of an SDF property: an empty line would end it, a line of dollars its record."""
    lines = [f" {line}" if line.startswith(("$$$$", ">")) else line for line in text.splitlines() if line.strip()]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
