"""Atom records of PDB, PQR, mmCIF and BinaryCIF files, as plain columns.

Only atoms that a backbone may need are looked at, and of those only the amino acids' must be sound: a simulation's waters
may carry wrapped numbers, hexadecimal ones or stars, and nobody minds.
"""

import io
import re
import warnings
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.proteins.conventions import ATOMS, WATERS, is_amino_acid

FARTHEST = 1e5
"""Coordinates beyond this, in angstrom, are no molecule's."""
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LONG_SERIAL = re.compile(r"(?:ATOM  |HETATM)\d{6,}(?= )")


@dataclass
class Atoms:
    """Columns of equal length, in the order of the file.

    Args:
        where: line (PDB) or row (mmCIF), for messages.
        hetero: of a HETATM record.
        atom, rank: column 0 to 4 (N, CA, C, O, second oxygen) and rank of the spelling; see ``conventions.ATOMS``.
        altloc, resname, chain, icode, segment: as written, blanks and mmCIF's ``.`` and ``?`` taken off.
        number: residue number.
        block: how many TER records stand above.
        coord: ``(A, 3)``, angstrom.
        occupancy, bfactor: 1 and 0 where the file says nothing.
    """

    where: NDArray[np.int64]
    hetero: NDArray[np.bool_]
    atom: NDArray[np.int64]
    rank: NDArray[np.int64]
    altloc: NDArray[Any]
    resname: NDArray[Any]
    chain: NDArray[Any]
    number: NDArray[np.int64]
    icode: NDArray[Any]
    segment: NDArray[Any]
    block: NDArray[np.int64]
    coord: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    bfactor: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.atom)

    def take(self, rows: NDArray[Any]) -> "Atoms":
        """The atoms of these rows."""
        return Atoms(*(getattr(self, f.name)[rows] for f in fields(self)))

    def name(self, i: int) -> str:
        """A residue for a message: ``ALA 52A of chain 'B'``."""
        return f"{self.resname[i]} {self.number[i]}{self.icode[i]} of chain {str(self.chain[i])!r}"


def _columns(rows: list[tuple[Any, ...]]) -> Atoms:
    columns = list(zip(*rows, strict=True)) if rows else [()] * 14
    kinds: list[Any] = [int, bool, int, int, "U", "U", "U", int, "U", "U", int, float, float, float]
    arrays = [np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)]
    arrays[11] = arrays[11].reshape(-1, 3)
    return Atoms(*arrays)


def residue_number(text: str) -> int:
    """A residue number, decimal or hybrid-36 (A000 is 10000 in four columns).

    Raises:
        ValueError: neither.
    """
    try:
        return int(text)
    except ValueError:
        pass
    text = text.strip()
    upper = text.upper()
    if len(text) != 4 or not upper.isalnum() or not upper[0].isalpha() or upper[0] not in _DIGITS:
        raise ValueError(f"residue number {text!r} is not a number")
    if text not in (upper, text.lower()):
        raise ValueError(f"residue number {text!r} is not a number")
    value = sum(_DIGITS.index(c) * 36**i for i, c in enumerate(reversed(upper)))
    first = 10 * 36**3
    return value - first + 10**4 + (0 if text == upper else 26 * 36**3)


def read_pdb(text: str, model: int | None, tokens: bool = False) -> tuple[list[Atoms], int]:
    """Atoms of a model of a PDB file (none if there is no such model), and the number of models.

    MODEL, ENDMDL and END each end a model if atoms follow. Columns are those of PDB 3.3; besides, residue names may have
    four letters, chains two (both start in column 21, told apart over the file), residue numbers five digits, and atom
    serial numbers six and more.

    Args:
        text: the file.
        model: from 1; None for all of them.
        tokens: PQR, where words separated by blanks count and not columns.
    """
    count, fresh, block = 0, True, 0
    lines: list[tuple[int, int, int, str]] = []
    for where, line in enumerate(text.splitlines(), 1):
        record = line[:6].rstrip().upper()
        if record in ("ATOM", "HETATM") or line.startswith(("ATOM ", "HETATM")):
            if fresh:
                count, fresh, block = count + 1, False, 0
            if model is None or count == model:
                lines.append((count, where, block, line))
        elif record == "TER":
            block += 1
        elif record in ("MODEL", "ENDMDL", "END"):
            fresh = True
    is_wide = not tokens and _has_wide_chains([line for *_, line in lines])
    rows: dict[int, list[tuple[Any, ...]]] = {number: [] for number, *_ in lines}
    for number, where, block, line in lines:
        row = _words(line, where, block) if tokens else _fixed(line, where, block, is_wide)
        if row is not None:
            rows[number].append(row)
    return [_columns(part) for part in rows.values()], count


def _has_wide_chains(lines: list[str]) -> bool:
    """Whether column 21 belongs to the chain, not to the residue's name.

    It does where two residues in a row have the same letters in columns 21 and 22, with a name of three letters before
    that is known and none of four that is: one residue called CYSX is not a chain XA.
    """
    before = ("", "")
    for line in lines:
        chain, place = line[20:22], line[20:27]
        if place == before[1] or not is_amino_acid(line[17:20].strip()):
            continue
        if " " in chain or len(chain) < 2 or is_amino_acid(line[17:21].strip()):
            chain = ""
        if chain and chain == before[0]:
            return True
        before = (chain, place)
    return False


def _fixed(line: str, where: int, block: int, is_wide: bool) -> tuple[Any, ...] | None:
    if line[11:12].isdigit() and (found := _LONG_SERIAL.match(line)):
        line = line[:6] + line[found.end() - 5 :]
    known = ATOMS.get(line[12:16].strip())
    if known is None:
        return None
    resname = (line[17:20] if is_wide else line[17:21]).strip()
    if resname in WATERS:
        return None
    chain = (line[20:22] if is_wide else line[21:22]).strip()
    try:
        number, icode = line[22:26], line[26:27].strip()
        if icode.isdigit() and len(number.strip()) == 4:  # five digits, as CHARMM writes them
            number, icode = number + icode, ""
        coord = (float(line[30:38]), float(line[38:46]), float(line[46:54]))
        value = residue_number(number)
    except ValueError as error:
        if not is_amino_acid(resname):
            return None
        reason = (
            str(error) if "residue number" in str(error) else f"coordinates {line[30:54].strip()!r} are not numbers"
        )
        raise ValueError(f"line {where}: {reason}") from None
    hetero = line[:6] == "HETATM"
    occupancy, bfactor = _number(line[54:60], 1.0), _number(line[60:66], 0.0)
    segment = line[72:76].strip()
    text = (line[16:17].strip(), resname, chain, value, icode, segment)
    return (where, hetero, *known, *text, block, coord, occupancy, bfactor)


def _words(line: str, where: int, block: int) -> tuple[Any, ...] | None:
    """A line of PQR: record, serial, atom, residue, chain or none, number, x, y, z, charge, radius."""
    words = line.split()
    found = re.fullmatch(r"(-?\d+)([A-Za-z]?)", words[-6]) if len(words) in (10, 11) else None
    coord = tuple(_number(word, float("nan")) for word in words[-5:-2])
    if found is None or not np.isfinite(coord).all():
        return _fixed(line, where, block, is_wide=False)  # words that touch stand in the columns of PDB
    known = ATOMS.get(words[2])
    if known is None or words[3] in WATERS:
        return None
    chain = words[4] if len(words) == 11 else ""
    text = ("", words[3], chain, int(found[1]), found[2], "")
    return (where, words[0] == "HETATM", *known, *text, block, coord, 1.0, 0.0)


def _number(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:
        return otherwise


_CIF_WORD = re.compile(r"^\s*(_\S+|loop_|data_|global_|save_|stop_)", re.IGNORECASE)


def read_cif(content: bytes, model: int | None, binary: bool = False) -> tuple[list[Atoms], int]:
    """Atoms of a model of an mmCIF file (None: of all), and the number of models; author names and numbers before the label ones.

    The first data block that holds atoms is read, and a warning names the others that do. Keywords and tags may be of any
    case, ``group_PDB`` and all columns that have a default may be missing.
    """
    from biotite.structure.io import pdbx

    cif: Any
    if binary:
        cif = pdbx.BinaryCIFFile.read(io.BytesIO(content))
    else:
        lines = content.decode("utf-8-sig", errors="replace").splitlines()
        # CIF is not case sensitive, biotite is.
        lines = [_CIF_WORD.sub(lambda m: m[0].lower(), line) if "_" in line else line for line in lines]
        cif = pdbx.CIFFile.read(io.StringIO("\n".join(lines)))
    blocks = {}
    for name in cif:
        sites = [cif[name][key] for key in cif[name] if key.lower() == "atom_site"]
        if sites and sites[0].row_count:
            blocks[name] = sites[0]
    if not blocks:
        return [], 0
    if len(blocks) > 1:
        names = ", ".join(list(blocks)[1:4])
        warnings.warn(f"the first data block is read; others hold atoms too: {names}", stacklevel=4)
    site = next(iter(blocks.values()))
    tags = {key.lower(): key for key in site}

    def column(*names: str, default: str = "") -> NDArray[Any]:
        """The first of these columns; where it says nothing, the next."""
        result = np.full(site.row_count, "", dtype="U1")
        for name in names:
            if name in tags:
                values = np.char.strip(site[tags[name]].as_array(str))
                values = np.where(np.isin(values, (".", "?")), "", values)
                result = np.where(result == "", values, result)
        return np.where(result == "", default, result)

    models = column("pdbx_pdb_model_num", default="1")
    order = list(dict.fromkeys(models.tolist()))
    if model is not None and model > len(order):
        return [], len(order)
    atom = column("auth_atom_id", "label_atom_id")
    if "cartn_x" not in tags or not (atom != "").any():
        raise ValueError("_atom_site lacks atom names or coordinates")
    text = [
        column("label_alt_id"),
        column("auth_comp_id", "label_comp_id"),
        column("auth_asym_id", "label_asym_id"),
        column("auth_seq_id", "label_seq_id"),
        column("pdbx_pdb_ins_code"),
    ]
    values = [column(name) for name in ("cartn_x", "cartn_y", "cartn_z")]
    occupancy, bfactor, hetero = column("occupancy"), column("b_iso_or_equiv"), column("group_pdb") == "HETATM"
    wanted = order if model is None else [order[model - 1]]
    rows: dict[str, list[tuple[Any, ...]]] = {number: [] for number in wanted}
    for i in np.flatnonzero(np.isin(models, wanted) & np.isin(atom, list(ATOMS))).tolist():
        altloc, resname, chain, number, icode = (str(part[i]) for part in text)
        if resname in WATERS:
            continue
        try:
            coord, place = tuple(float(value[i]) for value in values), int(number)
        except ValueError:
            if not is_amino_acid(resname):
                continue
            raise ValueError(f"atom {i + 1} ({resname} {number}): its number or coordinates are not numbers") from None
        words = (altloc, resname, chain, place, icode, "")
        factors = (_number(occupancy[i], 1.0), _number(bfactor[i], 0.0))
        rows[str(models[i])].append((i + 1, bool(hetero[i]), *ATOMS[str(atom[i])], *words, 0, coord, *factors))
    return [_columns(part) for part in rows.values()], len(order)
