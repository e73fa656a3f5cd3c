"""Read PDB, PQR, mmCIF and BinaryCIF files (also gzipped) into backbone chains.

A residue is what one chain calls by one number and insertion code. It counts if N, CA and C are there; a missing O is
put where the peptide plane has it, and counted in ``Chain.missing``.

* Alternate locations: one choice per residue, the complete one of highest mean backbone occupancy; the first listed
  wins a tie. At point heterogeneity (two residue types at a position) the same rule picks type and location together.
* Names of residues and atoms: see ``conventions``. Modified residues take their parent's type (MSE -> M, SEP -> S).
  D-amino acids and residues without a single standard parent are X: their backbone is real, their letter would not be.
* A HETATM residue counts when a peptide bond ties it to a neighbour of its chain, or when it is an amino acid by the
  dictionary and has no OXT, that is, its carbonyl is bonded on (1a4w H 350). A free amino acid, other ligand, water,
  ion or sugar never does.
* Chains: by chain id. Where that is blank, by segment (columns 73 to 76) and else by TER; where one id holds a residue
  twice, by segment, TER or numbers that start again, whichever tells them apart. Such chains are called by their
  segment, or by the next free letter.
* Order is the order of the file: 1A may come before 1 (1a4w chain L), and numbers need not rise.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.files import read_bytes
from manifoldflow.tasks.proteins.chains import name_chains
from manifoldflow.tasks.proteins.conventions import is_amino_acid, residue_type
from manifoldflow.tasks.proteins.records import FARTHEST, Atoms, read_cif, read_pdb
from manifoldflow.tasks.proteins.structure import BACKBONE, MAX_PEPTIDE_BOND, Chain, rebuild_oxygen

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".bcif", ".pqr")
"""Readable file types; each also with ``.gz``. Numbered assemblies (``.pdb1``) are PDB files."""
LIMIT = 2**29
"""Bytes that a packed structure file may unpack to: six million atoms in PDB format."""
_CLOSEST = 0.5  # angstrom; bonded atoms are never closer


def split_suffix(path: Path) -> tuple[str, str]:
    """Stem and file type without ``.gz``: ``1abc.pdb.gz`` -> ``("1abc", ".pdb")``."""
    inner = Path(path.stem) if path.suffix.lower() == ".gz" else Path(path.name)
    return inner.stem, re.sub(r"^\.pdb\d+$", ".pdb", inner.suffix.lower())


def read_structure(path: str | Path, model: int = 1, chains: Collection[str] | None = None) -> list[Chain]:
    """Backbone chains of one model of a structure file, named ``stem_chain``, with author chain ids and numbering.

    Args:
        path: ``.pdb``, ``.ent``, ``.pqr``, ``.cif``, ``.mmcif`` or ``.bcif``, or one of these with ``.gz``.
        model: which model, counted from 1 in the order of the file.
        chains: keep only these author chain ids.

    Returns:
        Chains with at least one residue that has N, CA and C, in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown file type, empty or damaged file, coordinates that are not finite or beyond 100,000 A,
            no such model or chain, no protein residue.
    """
    path = Path(path)
    if model < 1:
        raise ValueError(f"model must be at least 1, got {model}")
    return _chains(path, _read_atoms(path, model)[0][0], model, chains)


def read_models(path: str | Path) -> list[list[Chain]]:
    """:func:`read_structure` of every model of a file: a trajectory, an NMR ensemble, an assembly."""
    path = Path(path)
    return [_chains(path, atoms, number, None) for number, atoms in enumerate(_read_atoms(path, None)[0], 1)]


def count_models(path: str | Path) -> int:
    """How many models a file holds."""
    return _read_atoms(Path(path), 1)[1]


def _chains(path: Path, atoms: Atoms, model: int, wanted: Collection[str] | None) -> list[Chain]:
    atoms = _protein(atoms)
    atoms.chain = name_chains(atoms)
    try:
        table = _positions(atoms)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    missing = _missing(atoms, table)
    table = table[(table[:, :3] >= 0).all(-1)]
    _check_coordinates(atoms, table, path)
    table = table[_in_chain(atoms, table)]
    if not len(table):
        raise ValueError(f"{path}: no protein residues with N, CA and C{_why_none(atoms)}")
    owner = atoms.chain[table[:, 0]]
    found = list(dict.fromkeys(owner.tolist()))
    absent = [chain for chain in wanted or () if chain not in found]
    if absent:
        raise ValueError(f"{path}: no protein chain {absent[0]!r}; the file has {', '.join(map(repr, found))}")
    result = []
    stem = split_suffix(path)[0] + (f"_model{model}" if model > 1 else "")
    for chain_id in found:
        if wanted is not None and chain_id not in wanted:
            continue
        rows = table[owner == chain_id, :4]
        first = rows[:, 0]
        coords = atoms.coord[rows]
        break_after = np.append(~_linked(owner[owner == chain_id], coords), False)
        no_oxygen = rows[:, 3] < 0
        if no_oxygen.any():
            coords[no_oxygen] = rebuild_oxygen(coords, break_after)[no_oxygen]
        given = rows >= 0
        result.append(
            Chain(
                name=f"{stem}_{chain_id}" if chain_id else stem,
                chain_id=chain_id,
                coords=coords.astype(np.float32),
                aatype=np.array(
                    [residue_type(str(atoms.resname[i]), bool(atoms.hetero[i])) for i in rows[:, 1]], np.int8
                ),
                resnum=atoms.number[first].astype(np.int32),
                icode=atoms.icode[first].astype("U1"),
                break_after=break_after,
                bfactor=((atoms.bfactor[rows] * given).sum(1) / given.sum(1)).astype(np.float32),
                missing=missing.get(chain_id, 0),
            )
        )
    return result


def _protein(atoms: Atoms) -> Atoms:
    """The atoms of residues that may be protein: amino acids by name, and whatever has N, CA and C."""
    fields = (atoms.chain, atoms.segment, atoms.block, atoms.number, atoms.icode, atoms.resname)
    if not len(atoms):
        return atoms
    label = np.unique(np.stack([np.unique(f, return_inverse=True)[1] for f in fields], -1), axis=0, return_inverse=True)
    group = label[1].reshape(-1)
    has = np.zeros((group.max() + 1, 5), bool)
    has[group, atoms.atom] = True
    named = {str(name): is_amino_acid(str(name)) for name in np.unique(atoms.resname)}
    is_named = np.array([named[str(name)] for name in atoms.resname])
    atoms = atoms.take(np.flatnonzero(has[group, :3].all(-1) | is_named))
    # Of two spellings of O in one residue and location the first rank counts.
    keep = np.ones(len(atoms), bool)
    if (atoms.rank > 0).any():
        place = list(
            zip(atoms.chain, atoms.segment, atoms.block, atoms.number, atoms.icode, atoms.resname, strict=True)
        )
        best = {place[i] for i in np.flatnonzero((atoms.atom == 3) & (atoms.rank == 0))}
        for i in np.flatnonzero(atoms.rank > 0):
            keep[i] = place[i] not in best
    return atoms.take(np.flatnonzero(keep))


def _linked(chain_id: NDArray[Any], backbone: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether each row is joined to the next by a peptide bond, ``(rows - 1,)``."""
    distance = np.linalg.norm(backbone[1:, 0] - backbone[:-1, 2], axis=-1)
    return (distance <= MAX_PEPTIDE_BOND) & (chain_id[1:] == chain_id[:-1])


def _in_chain(atoms: Atoms, table: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each position is a residue of a protein chain: all but HETATM that stand alone."""
    if not len(table):
        return np.zeros(0, bool)
    linked = _linked(atoms.chain[table[:, 0]], atoms.coord[table])
    keep = ~atoms.hetero[table[:, 1]]
    keep[:-1] |= linked
    keep[1:] |= linked
    for row in np.flatnonzero(~keep):
        is_free = table[row, 4] >= 0 or table[row, 3] < 0
        keep[row] = not is_free and is_amino_acid(str(atoms.resname[table[row, 1]]))
    return keep


def _check_coordinates(atoms: Atoms, table: NDArray[np.int64], path: Path) -> None:
    """Raise ``ValueError`` for the first residue whose backbone no molecule could have."""
    coord = atoms.coord[table[:, :3]]
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(np.where((table[:, :4] >= 0)[..., None], atoms.coord[table[:, :4]], 0.0)).max((1, 2))
        close = np.linalg.norm(np.diff(coord, axis=1), axis=-1).min(1)
    for bad, problem in (
        (~np.isfinite(size), "coordinates that are not finite"),
        (size > FARTHEST, f"a coordinate beyond {FARTHEST:,.0f} A"),
        (close < _CLOSEST, "atoms in one place"),
    ):
        if bad.any():
            i = table[int(bad.argmax()), 1]
            others = f" ({int(bad.sum())} such residues)" if bad.sum() > 1 else ""
            raise ValueError(f"{path}: residue {atoms.name(i)} has {problem}{others}")


def _missing(atoms: Atoms, table: NDArray[np.int64]) -> dict[str, int]:
    """Backbone atoms by chain that its residues (of ATOM records) lack."""
    count: dict[str, int] = {}
    for row in table[(table[:, :4] < 0).any(-1)]:
        i = row[row >= 0][0]
        if not atoms.hetero[i]:
            chain = str(atoms.chain[i])
            count[chain] = count.get(chain, 0) + int((row[:4] < 0).sum())
    return count


def _why_none(atoms: Atoms) -> str:
    if not (atoms.atom == 1).any():
        return ""
    if not np.isin(atoms.atom, (0, 2)).any():
        return " (a trace of CA atoms alone does not say where N and C are)"
    return " (each of its amino acids lacks one of them)"


def _positions(atoms: Atoms) -> NDArray[np.int64]:
    """Atom indices ``(P, 5)`` of the chosen N, CA, C, O and second oxygen of each position, -1 where there is none."""
    if not len(atoms):
        return np.zeros((0, 5), np.int64)
    width = len(BACKBONE) + 1
    codes = [np.unique(field, return_inverse=True)[1] for field in (atoms.chain, atoms.number, atoms.icode)]
    # Position numbers by first appearance of (chain, number, insertion code).
    _, begin, label = np.unique(np.stack(codes, -1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(begin)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    position = position[label.reshape(-1)]
    # A column filled twice means alternatives; only those positions need the slow choice below.
    times = np.bincount(position * width + atoms.atom, minlength=len(order) * width).reshape(-1, width)
    table = np.full((len(order), width), -1)
    table[position, atoms.atom] = np.arange(len(atoms))
    by_position = np.argsort(position, kind="stable")
    bounds = np.searchsorted(position[by_position], np.arange(len(order) + 1))
    for p in np.flatnonzero((times > 1).any(-1)):
        table[p] = _choose(atoms, by_position[bounds[p] : bounds[p + 1]])
    return table


def _choose(atoms: Atoms, members: NDArray[np.int64]) -> NDArray[np.int64]:
    """The atoms of the best (residue type, alternate location) at one position, -1 where an atom is missing."""
    altloc = atoms.altloc
    best, best_score, twice = np.full(len(BACKBONE) + 1, -1), (-1, -1.0), None
    for name, location in dict.fromkeys((atoms.resname[i], altloc[i]) for i in members):
        row, again = np.full(len(BACKBONE) + 1, -1), None
        for i in members:
            if atoms.resname[i] != name or altloc[i] not in (location, ""):
                continue
            column = atoms.atom[i]
            if row[column] >= 0 and altloc[row[column]] == altloc[i]:
                if column == 4 or (column == 3 and atoms.rank[i] > 0) or not is_amino_acid(str(name)):
                    continue
                again = i
            if row[column] < 0 or altloc[i] == location:
                row[column] = i
        present = row[:4][row[:4] >= 0]
        score = (len(present), float(atoms.occupancy[present].mean()) if len(present) else 0.0)
        if score > best_score:
            best, best_score, twice = row, score, again
    if twice is not None and (best[:3] >= 0).all():
        raise ValueError(
            f"residue {atoms.name(twice)} is listed twice; give the chains distinct ids or residue numbers"
        )
    return best


def _read_atoms(path: Path, model: int | None) -> tuple[list[Atoms], int]:
    """Atoms of a model, or of all, and the number of models; every failure is one clear error."""
    kind = split_suffix(path)[1]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: is a folder, expected a structure file")
    if kind not in SUFFIXES:
        raise ValueError(
            f"{path}: unknown file type {kind or path.suffix!r}; expected {', '.join(SUFFIXES)} (or with .gz)"
        )
    content = read_bytes(path, LIMIT)
    if not content.strip():
        raise ValueError(f"{path}: the file is empty")
    try:
        if kind in (".pdb", ".ent", ".pqr"):
            atoms, count = read_pdb(content.decode("utf-8-sig", errors="replace"), model, tokens=kind == ".pqr")
        else:
            atoms, count = read_cif(content, model, binary=kind == ".bcif")
    except ImportError as error:
        raise ImportError("structure files need biotite: pip install 'manifoldflow[proteins]'") from error
    except Exception as error:  # biotite and numpy raise many types on malformed text
        reason = str(error).strip().splitlines()
        raise ValueError(f"{path}: not a readable {kind[1:]} file ({reason[0] if reason else repr(error)})") from error
    if not atoms:
        if count:
            raise ValueError(f"{path}: has {count} models, model {model} was asked for")
        raise ValueError(f"{path}: no protein residues with N, CA and C (the file has no atoms)")
    return atoms, count
