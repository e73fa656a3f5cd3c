"""Read PDB, mmCIF and BinaryCIF files (also gzipped) into backbone chains. Parsing is biotite's, the choices are ours.

A position is what one chain calls by one residue number and insertion code. It counts if N, CA, C and O are there.

* Alternate locations: one choice per position, the complete one of highest mean backbone occupancy; the first listed
  wins a tie. At point heterogeneity (two residue types at a position) the same rule picks type and location together.
* Modified residues take their parent's type by the PDB's component dictionary (MSE -> M, SEP -> S, TYS -> Y, ...).
  D-amino acids and residues without a single standard parent are X: their backbone is real, their letter would not be.
* A HETATM residue counts when a peptide bond ties it to a neighbour of its chain, or when it is an amino acid by the
  dictionary and has no OXT, that is, its carbonyl is bonded on (1a4w H 350). A free amino acid, other ligand, water,
  ion or sugar never does.
* Order is the order of the file: 1A may come before 1 (1a4w chain L), and numbers need not rise.
"""

import functools
import gzip
import io
import warnings
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.proteins.structure import AMINO_ACIDS, BACKBONE, MAX_PEPTIDE_BOND, THREE_LETTER, Chain

SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".bcif")
"""Readable file types; each also with ``.gz``."""

# Where the PDB's own files and the dictionary differ, or the dictionary's letter is not one of the twenty.
_PARENTS = {"PCA": "GLU", "SEC": "CYS", "PYL": "LYS"}
_UNKNOWN = len(AMINO_ACIDS) - 1


def split_suffix(path: Path) -> tuple[str, str]:
    """Stem and file type without ``.gz``: ``1abc.pdb.gz`` -> ``("1abc", ".pdb")``."""
    inner = Path(path.stem) if path.suffix.lower() == ".gz" else Path(path.name)
    return inner.stem, inner.suffix.lower()


@functools.cache
def _is_amino_acid(name: str) -> bool:
    from biotite.structure import info

    return "PEPTIDE LINKING" in (info.link_type(name) or "").upper()


@functools.cache
def residue_type(name: str) -> int:
    """Index in ``AMINO_ACIDS`` of a three-letter residue name, modified residues by their parent, else 20 (X)."""
    from biotite.structure import info

    name = _PARENTS.get(name, name)
    if name in THREE_LETTER:
        return THREE_LETTER.index(name)
    if info.link_type(name) not in ("L-PEPTIDE LINKING", "PEPTIDE LINKING", "L-PEPTIDE COOH CARBOXY TERMINUS"):
        return _UNKNOWN
    column = info.get_from_ccd("chem_comp", name, "mon_nstd_parent_comp_id")
    parent = "" if column is None else str(column.as_item())
    if parent in THREE_LETTER:
        return THREE_LETTER.index(parent)
    letter = info.one_letter_code(name) or "X"
    return AMINO_ACIDS.index(letter) if len(letter) == 1 and letter in AMINO_ACIDS else _UNKNOWN


def read_structure(path: str | Path, model: int = 1, chains: Collection[str] | None = None) -> list[Chain]:
    """Backbone chains of one model of a structure file, named ``stem_chain``, with author chain ids and numbering.

    Args:
        path: ``.pdb``, ``.ent``, ``.cif``, ``.mmcif`` or ``.bcif``, or one of these with ``.gz``.
        model: which model, counted from 1 in the order of the file.
        chains: keep only these author chain ids.

    Returns:
        Chains with at least one residue that has N, CA, C and O, in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown file type, empty or damaged file, no such model or chain, no protein residue.
    """
    path = Path(path)
    atoms = _read_atoms(path, model)
    if not np.isfinite(atoms.coord).all():
        raise ValueError(f"{path}: coordinates are not finite")
    table = _positions(atoms, path)
    table = table[_in_chain(atoms, table)]
    if not len(table):
        raise ValueError(f"{path}: no protein residues with N, CA, C and O")
    backbone, names = atoms.coord[table], atoms.res_name[table[:, 1]]
    first = table[:, 0]
    owner = atoms.chain_id[first]
    found = list(dict.fromkeys(owner.tolist()))
    absent = [chain for chain in chains or () if chain not in found]
    if absent:
        raise ValueError(f"{path}: no protein chain {absent[0]!r}; the file has {', '.join(map(repr, found))}")
    result = []
    stem = split_suffix(path)[0] + (f"_model{model}" if model > 1 else "")
    for chain_id in found:
        if chains is not None and chain_id not in chains:
            continue
        rows = np.flatnonzero(owner == chain_id)
        break_after = np.append(~_linked(owner[rows], backbone[rows]), False)
        result.append(
            Chain(
                name=f"{stem}_{chain_id}" if chain_id else stem,
                chain_id=chain_id,
                coords=backbone[rows].astype(np.float32),
                aatype=np.array([residue_type(name) for name in names[rows].tolist()], np.int8),
                resnum=atoms.res_id[first[rows]].astype(np.int32),
                icode=atoms.ins_code[first[rows]].astype("U1"),
                break_after=break_after,
                bfactor=atoms.b_factor[table[rows]].mean(1).astype(np.float32),
            )
        )
    return result


def _linked(chain_id: NDArray[Any], backbone: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether each row is joined to the next by a peptide bond, ``(rows - 1,)``."""
    distance = np.linalg.norm(backbone[1:, 0] - backbone[:-1, 2], axis=-1)
    return (distance <= MAX_PEPTIDE_BOND) & (chain_id[1:] == chain_id[:-1])


def _in_chain(atoms: Any, table: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each position is a residue of a protein chain: all but HETATM that stand alone."""
    linked = _linked(atoms.chain_id[table[:, 0]], atoms.coord[table]) if len(table) else np.zeros(0, bool)
    keep = ~atoms.hetero[table[:, 1]].astype(bool)
    keep[:-1] |= linked
    keep[1:] |= linked
    with_oxt = {
        (atoms.chain_id[i], atoms.res_id[i], atoms.ins_code[i]) for i in np.flatnonzero(atoms.atom_name == "OXT")
    }
    for row in np.flatnonzero(~keep):
        i = table[row, 1]
        is_free = (atoms.chain_id[i], atoms.res_id[i], atoms.ins_code[i]) in with_oxt
        keep[row] = not is_free and _is_amino_acid(atoms.res_name[i])
    return keep


def _positions(atoms: Any, path: Path) -> NDArray[np.int64]:
    """Atom indices ``(P, 4)`` of the chosen N, CA, C, O of each complete position."""
    atom_of = np.full(len(atoms.atom_name), -1)
    for column, name in enumerate(BACKBONE):
        atom_of[atoms.atom_name == name] = column
    index = np.flatnonzero(atom_of >= 0)
    # Position numbers by first appearance of (chain, number, insertion code).
    codes = [
        np.unique(field[index], return_inverse=True)[1] for field in (atoms.chain_id, atoms.res_id, atoms.ins_code)
    ]
    key = np.stack(codes, -1).reshape(-1, 3)
    _, begin, label = np.unique(key, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(begin)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    position = position[label.reshape(-1)]
    # A column filled twice means alternatives; only those positions need the slow choice below.
    slot = position * len(BACKBONE) + atom_of[index]
    times = np.bincount(slot, minlength=len(order) * len(BACKBONE)).reshape(-1, len(BACKBONE))
    table = np.full((len(order), len(BACKBONE)), -1)
    table[position, atom_of[index]] = index
    by_position = np.argsort(position, kind="stable")
    bounds = np.searchsorted(position[by_position], np.arange(len(order) + 1))
    for p in np.flatnonzero((times > 1).any(-1)):
        table[p] = _choose(atoms, index[by_position[bounds[p] : bounds[p + 1]]], atom_of, path)
    return table[(table >= 0).all(-1)]


def _choose(atoms: Any, members: NDArray[np.int64], atom_of: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
    """The atoms of the best (residue type, alternate location) at one position, -1 where an atom is missing."""
    altloc = atoms.altloc_id
    best, best_score = np.full(len(BACKBONE), -1), (-1, -1.0)
    options = dict.fromkeys((atoms.res_name[i], altloc[i]) for i in members)
    for name, location in options:
        row = np.full(len(BACKBONE), -1)
        for i in members:
            if atoms.res_name[i] != name or altloc[i] not in (location, ""):
                continue
            column = atom_of[i]
            if row[column] >= 0 and altloc[row[column]] == altloc[i]:
                where = f"residue {name} {atoms.res_id[i]}{atoms.ins_code[i]} of chain {str(atoms.chain_id[i])!r}"
                raise ValueError(f"{path}: {where} is listed twice; give the chains distinct ids or residue numbers")
            if row[column] < 0 or altloc[i] == location:
                row[column] = i
        present = row[row >= 0]
        score = (len(present), float(atoms.occupancy[present].mean()))
        if score > best_score:
            best, best_score = row, score
    return best


def _read_atoms(path: Path, model: int) -> Any:
    """All atoms of a model with chain, residue, altloc, occupancy and B-factor; every failure is one clear error."""
    kind = split_suffix(path)[1]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: is a folder, expected a structure file")
    if kind not in SUFFIXES:
        raise ValueError(
            f"{path}: unknown file type {kind or path.suffix!r}; expected {', '.join(SUFFIXES)} (or with .gz)"
        )
    if model < 1:
        raise ValueError(f"model must be at least 1, got {model}")
    content = path.read_bytes()
    if path.suffix.lower() == ".gz" and content:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path}: the gzip data is damaged or cut short ({error}); fetch the file again"
            ) from error
    if not content.strip():
        raise ValueError(f"{path}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # biotite warns of guessed elements and odd CRYST1 records, unused here
            atoms, count = _parse(content, kind, model)
    except ImportError as error:
        raise ImportError("structure files need biotite: pip install 'manifoldflow[proteins]'") from error
    except Exception as error:  # biotite and numpy raise many types on malformed text
        reason = str(error).strip().splitlines()
        raise ValueError(f"{path}: not a readable {kind[1:]} file ({reason[0] if reason else error!r})") from error
    if atoms is None:
        if count:
            raise ValueError(f"{path}: has {count} models, model {model} was asked for")
        raise ValueError(f"{path}: no protein residues with N, CA, C and O (the file has no atoms)")
    # '.' and '?' are how mmCIF writes "none", blanks how PDB does.
    for field in ("altloc_id", "ins_code", "chain_id"):
        values = np.char.strip(getattr(atoms, field).astype(str))
        atoms.set_annotation(
            field, np.where(np.isin(values, (".", "?")), "", values) if field != "chain_id" else values
        )
    return atoms


def _parse(content: bytes, kind: str, model: int) -> tuple[Any, int]:
    """Atoms of a model (None if there is no such model) and the number of models."""
    fields = ["b_factor", "occupancy"]
    if kind in (".pdb", ".ent"):
        from biotite.structure.io import pdb

        text = content.decode("utf-8", errors="replace")
        pdb_file = pdb.PDBFile.read(io.StringIO("\n".join(map(_complete_line, text.splitlines()))))
        if not any(line.startswith(("ATOM", "HETATM")) for line in pdb_file.lines):
            return None, 0
        count = pdb_file.get_model_count()
        if model > count:
            return None, count
        return pdb_file.get_structure(model=model, altloc="all", extra_fields=fields), count
    from biotite.structure.io import pdbx

    cif: Any
    if kind == ".bcif":
        cif = pdbx.BinaryCIFFile.read(io.BytesIO(content))
    else:
        cif = pdbx.CIFFile.read(io.StringIO(content.decode("utf-8", errors="replace")))
    if not len(cif) or "atom_site" not in cif.block:
        return None, 0
    site = cif.block["atom_site"]
    present = [field for field, column in zip(fields, ("B_iso_or_equiv", "occupancy"), strict=True) if column in site]
    # Columns that biotite asks for and minimal writers leave out.
    for column, value in (("pdbx_PDB_model_num", "1"), ("pdbx_PDB_ins_code", "."), ("label_alt_id", ".")):
        if column not in site:
            site[column] = np.full(site.row_count, value)
    count = pdbx.get_model_count(cif)
    if model > count:
        return None, count
    atoms = pdbx.get_structure(cif, model=model, altloc="all", extra_fields=present)
    for field, default in (("b_factor", 0.0), ("occupancy", 1.0)):
        if field not in present:
            atoms.set_annotation(field, np.full(len(atoms), default))
    return atoms, count


def _complete_line(line: str) -> str:
    """Pad an atom line to 80 columns; a blank occupancy is 1 and a blank B-factor 0, as older programs leave them."""
    if not line.startswith(("ATOM", "HETATM")):
        return line
    line = line.ljust(80)
    if not line[54:60].strip() or not line[60:66].strip():
        line = f"{line[:54]}{line[54:60].strip() or '1.00':>6}{line[60:66].strip() or '0.00':>6}{line[66:]}"
    return line
