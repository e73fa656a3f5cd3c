"""PDB and mmCIF text of one backbone, of one chain or several."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.proteins.structure import BACKBONE


@dataclass
class Sample:
    """One backbone without padding, ready to print."""

    name: str
    chain: list[str]  # of each residue, as all that follows
    coords: NDArray[np.float64]
    resnum: list[int]
    icode: list[str]
    residue: list[str]
    bfactor: list[float]


def pdb_atoms(sample: Sample) -> list[str]:
    """ATOM and TER lines; PDB format 3.3, 80 columns."""
    rounded = np.round(sample.coords, 3) + 0.0  # no "-0.000"
    low, high = rounded.min(), rounded.max()
    if low <= -1000 or high >= 10000:
        raise ValueError(
            f"{sample.name}: coordinates {low:.0f}..{high:.0f} A do not fit a PDB file; centre or write_cif"
        )
    atoms = len(BACKBONE) * len(sample.resnum)
    if atoms + len(set(sample.chain)) > 99_999:  # TER takes a serial number too
        raise ValueError(f"{sample.name}: {atoms:,} atoms do not fit a PDB file (99,998 and TER); use write_cif")
    if min(sample.resnum) < -999 or max(sample.resnum) > 9999:
        span = f"{min(sample.resnum)}..{max(sample.resnum)}"
        raise ValueError(f"{sample.name}: residue numbers {span} do not fit a PDB file (-999..9999); use write_cif")
    for chain in set(sample.chain):
        if len(chain) != 1 or not chain.isascii() or not chain.isprintable():
            raise ValueError(f"{sample.name}: chain id {chain!r} must be one character in a PDB file; use write_cif")
    if min(sample.bfactor) < -99.99 or max(sample.bfactor) > 999.99:
        raise ValueError(f"{sample.name}: bfactor must be in -99.99..999.99 in a PDB file")
    lines = []
    serial = 0
    for row, atom_coords in enumerate(rounded.tolist()):
        chain, number, icode = sample.chain[row], sample.resnum[row], sample.icode[row] or " "
        place = f"{sample.residue[row]:>3} {chain}{number:4d}{icode}"
        for name, (a, b, c) in zip(BACKBONE, atom_coords, strict=True):
            serial += 1
            xyz = f"{a:8.3f}{b:8.3f}{c:8.3f}"
            tail = f"  1.00{sample.bfactor[row]:6.2f}          {name[0]:>2}  "
            lines.append(f"ATOM  {serial:5d}  {name:<3} {place}   {xyz}{tail}")
        if sample.chain[row + 1 : row + 2] != [chain]:
            serial += 1
            lines.append(f"TER   {serial:5d}      {place}".ljust(80))
    return lines


def pdb_text(sample: Sample) -> str:
    """A PDB file."""
    return "\n".join([*pdb_atoms(sample), "END".ljust(80), ""])


_ATOM_SITE = (
    "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
    "pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_comp_id auth_asym_id "
    "auth_atom_id pdbx_PDB_model_num"
).split()


def cif_text(sample: Sample) -> str:
    """One data block: a polymer entity with its sequence for every chain, and the atoms."""
    chains = [
        (chain, [row for row, _ in rows]) for chain, rows in groupby(enumerate(sample.chain), lambda item: item[1])
    ]
    for chain, _ in chains:
        if not chain or not chain.isascii() or not chain.isalnum():
            raise ValueError(f"{sample.name}: chain id {chain!r} must be letters and digits in an mmCIF file")
    block = "".join(c if (c.isascii() and c.isalnum()) or c in "_-." else "_" for c in sample.name)
    lines = [f"data_{block}", "#", f"_entry.id {block}", "#"]
    lines += ["loop_", "_entity.id", "_entity.type", *(f"{k} polymer" for k in range(1, len(chains) + 1)), "#"]
    lines += ["loop_", "_entity_poly.entity_id", "_entity_poly.type", "_entity_poly.pdbx_strand_id"]
    lines += [f"{k} polypeptide(L) {chain}" for k, (chain, _) in enumerate(chains, 1)]
    lines += ["#", "loop_", "_struct_asym.id", "_struct_asym.entity_id"]
    lines += [f"{chain} {k}" for k, (chain, _) in enumerate(chains, 1)]
    lines += ["#", "loop_", "_entity_poly_seq.entity_id", "_entity_poly_seq.num", "_entity_poly_seq.mon_id"]
    for k, (_, rows) in enumerate(chains, 1):
        lines += [f"{k} {i} {sample.residue[row]}" for i, row in enumerate(rows, 1)]
    lines += ["#", "loop_", *(f"_atom_site.{field}" for field in _ATOM_SITE)]
    serial = 0
    rounded = (np.round(sample.coords, 3) + 0.0).tolist()
    for k, (chain, rows) in enumerate(chains, 1):
        for i, row in enumerate(rows, 1):
            residue, number, icode = sample.residue[row], sample.resnum[row], sample.icode[row] or "?"
            for name, (a, b, c) in zip(BACKBONE, rounded[row], strict=True):
                serial += 1
                where = f"{name[0]} {name} . {residue} {chain} {k} {i} {icode} {a:.3f} {b:.3f} {c:.3f}"
                factors = f"1.00 {sample.bfactor[row]:.2f} {number} {residue} {chain} {name} 1"
                lines.append(f"ATOM {serial} {where} {factors}")
    return "\n".join([*lines, "#", ""])
