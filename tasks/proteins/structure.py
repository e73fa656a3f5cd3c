"""Protein backbones from files: the shared npz layouts, PDB, mmCIF and BinaryCIF (also gzipped)."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifoldflow.files import LIMIT, open_npz

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWYX"
"""One-letter codes by index; 20 = X, a residue with a backbone whose parent is not one of the twenty."""
THREE_LETTER = "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR UNK".split()
"""Three-letter codes in the order of ``AMINO_ACIDS``."""
BACKBONE = ("N", "CA", "C", "O")
MAX_PEPTIDE_BOND = 1.75
"""Two consecutive residues are bonded if C and the next N are at most this far apart, in angstrom."""

_C_O = 1.231
_CA_C_O = math.radians(120.4)
_END_PSI = math.radians(140.0)


@dataclass
class Chain:
    """The backbone of one chain: residues that have N, CA and C, in file order.

    Args:
        name: unique name, file stem and author chain id by default (``1abc_A``).
        chain_id: author chain id.
        coords: ``(N, 4, 3)`` float32, angstrom, atoms N, CA, C, O.
        aatype: ``(N,)`` int8, index in ``AMINO_ACIDS``.
        resnum: ``(N,)`` int32, author residue number.
        icode: ``(N,)`` one-character strings, insertion code, empty where there is none.
        break_after: ``(N,)`` bool, no peptide bond to the next residue of the chain; False for the last.
        bfactor: ``(N,)`` float32, mean over the four atoms, 0 where unknown.
        missing: backbone atoms that the file lacks: O that was rebuilt, and those of residues that were left out.
    """

    name: str
    chain_id: str
    coords: NDArray[np.float32]
    aatype: NDArray[np.int8]
    resnum: NDArray[np.int32]
    icode: NDArray[np.str_]
    break_after: NDArray[np.bool_]
    bfactor: NDArray[np.float32]
    missing: int = 0

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def sequence(self) -> str:
        """One-letter codes."""
        return "".join(AMINO_ACIDS[i] for i in self.aatype)


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def rebuild_oxygen(coords: NDArray[np.floating], break_after: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Put the missing carbonyl O on a backbone of N, CA, C.

    With a bonded successor, O lies in the plane of CA, C and the next N, 1.231 A from C, at 120.4 degrees from CA, on
    the side away from N. Where there is none (chain end, break), the dihedral N-CA-C-O is psi + 180 degrees with an
    extended psi of 140 degrees, the same choice as ``geometry.atoms_from_frames``.

    Args:
        coords: ``(N, 3 or more, 3)`` angstrom, N, CA, C first; other atoms are ignored.
        break_after: ``(N,)`` bool, no peptide bond to the next row. The last row never has a successor. Rows of several
            chains may be concatenated when it is True at the last residue of each.

    Returns:
        ``(N, 4, 3)`` float32, angstrom.
    """
    nac = np.asarray(coords, np.float64)[:, :3]
    n, ca, c = nac[:, 0], nac[:, 1], nac[:, 2]
    to_ca = _unit(ca - c)
    toward = np.roll(n, -1, axis=0) - c
    in_plane = _unit(toward - (toward * to_ca).sum(-1, keepdims=True) * to_ca)
    planar = math.cos(_CA_C_O) * to_ca - math.sin(_CA_C_O) * in_plane
    # No successor: axes of the dihedral about CA -> C, its zero where N points.
    to_n = n - ca
    cis = _unit(to_n - (to_n * to_ca).sum(-1, keepdims=True) * to_ca)
    side = np.cross(-to_ca, cis)
    torsion = _END_PSI + math.pi
    swing = math.cos(torsion) * cis + math.sin(torsion) * side
    end = math.cos(_CA_C_O) * to_ca + math.sin(_CA_C_O) * swing
    is_end = np.array(break_after, bool)
    is_end[-1:] = True
    o = c + _C_O * np.where(is_end[:, None], end, planar)
    return np.concatenate([nac, o[:, None]], 1).astype(np.float32)


def read_npz(path: str | Path) -> list[Chain]:
    """Chains of the shared npz layout (``name, offset, coords, aatype, break_after``; concatenated residues).

    Files with N, CA, C alone get their O from :func:`rebuild_oxygen`. Files without ``resnum`` are numbered from 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz, or an array is missing or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with open_npz(path, LIMIT) as archive:
            data = {key: archive[key] for key in archive.files}
    except Exception as error:  # numpy raises zipfile, zlib, EOF and value errors here
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a readable npz file ({reason})") from error
    missing = sorted({"name", "offset", "coords", "aatype", "break_after"} - data.keys())
    if missing:
        raise ValueError(f"{path}: array {missing[0]!r} is missing; expected name, offset, coords, aatype, break_after")
    offset, coords, rows = data["offset"], data["coords"], len(data["coords"])
    if coords.ndim != 3 or coords.shape[1] not in (3, 4) or coords.shape[2] != 3:
        raise ValueError(f"{path}: coords has shape {coords.shape}, expected (residues, 3 or 4 atoms, 3)")
    if len(offset) != len(data["name"]) + 1 or offset[-1] != rows or offset[0] != 0 or (np.diff(offset) < 1).any():
        raise ValueError(f"{path}: offset does not cut {rows} residues into {len(data['name'])} chains")
    for key in ("aatype", "break_after", "resnum", "icode", "bfactor"):
        if key in data and data[key].shape != (rows,):
            raise ValueError(f"{path}: {key} has shape {data[key].shape}, expected ({rows},)")
    if coords.shape[1] == 3:
        is_end = data["break_after"].copy()
        is_end[offset[1:] - 1] = True
        coords = rebuild_oxygen(coords, is_end)
    coords = coords.astype(np.float32)
    lookup = np.full(256, len(AMINO_ACIDS) - 1, np.int8)
    lookup[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = np.arange(len(AMINO_ACIDS))
    aatype = lookup[np.ascontiguousarray(data["aatype"].astype("S1")).view(np.uint8)]
    within = np.arange(rows) - np.repeat(offset[:-1], np.diff(offset))
    resnum = data.get("resnum", within + 1).astype(np.int32)
    icode = data["icode"].astype("U1") if "icode" in data else np.zeros(rows, "U1")
    bfactor = data["bfactor"].astype(np.float32) if "bfactor" in data else np.zeros(rows, np.float32)
    break_after = data["break_after"].astype(bool)
    break_after[offset[1:] - 1] = False
    chains = []
    for name, begin, end in zip(data["name"].tolist(), offset[:-1], offset[1:], strict=True):
        part = slice(begin, end)
        chain_id = name.rpartition("_")[2]
        chains.append(
            Chain(
                name, chain_id, coords[part], aatype[part], resnum[part], icode[part], break_after[part], bfactor[part]
            )
        )
    return chains
