"""A peptide made here, atom by atom from internal coordinates, so that tests of geometry need no data and no code of ours."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Engh & Huber 1991: angstrom and degrees.
N_CA, CA_C, C_N, C_O = 1.458, 1.525, 1.329, 1.231
N_CA_C, CA_C_N, C_N_CA, CA_C_O = 111.0, 117.2, 121.7, 120.1
HELIX, STRAND = (-57.8, -47.0), (-120.0, 130.0)

Array = NDArray[np.float64]


def place(a: Array, b: Array, c: Array, length: float, angle: float, torsion: float) -> Array:
    """The atom d with |cd| = length, angle b-c-d and torsion a-b-c-d in degrees (IUPAC: clockwise from b to c is positive)."""
    theta, chi = math.radians(angle), math.radians(torsion)
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    third = np.cross(normal, axis)
    return c + length * (-math.cos(theta) * axis + math.sin(theta) * (math.cos(chi) * third + math.sin(chi) * normal))


def peptide(torsions: Sequence[tuple[float, float]], omega: float = 180.0) -> Array:
    """Atoms N, CA, C, O ``(N, 4, 3)`` of a chain with (phi, psi) in degrees; O lies opposite to the next N, in its plane."""
    n, ca = np.zeros(3), np.array([N_CA, 0.0, 0.0])
    angle = math.radians(180 - N_CA_C)
    c = ca + CA_C * np.array([math.cos(angle), math.sin(angle), 0.0])
    residues = []
    for i, (_, psi) in enumerate(torsions):
        o = place(n, ca, c, C_O, CA_C_O, psi + 180)
        residues.append(np.stack([n, ca, c, o]))
        if i + 1 < len(torsions):
            following = place(n, ca, c, C_N, CA_C_N, psi)
            next_ca = place(ca, c, following, N_CA, C_N_CA, omega)
            n, ca, c = following, next_ca, place(c, following, next_ca, CA_C, N_CA_C, torsions[i + 1][0])
    return np.stack(residues)


def helix(length: int) -> Array:
    """An ideal alpha helix."""
    return peptide([HELIX] * length)


def atom_line(
    name: str,
    residue: str,
    chain: str,
    number: int | str,
    xyz: Sequence[float],
    *,
    record: str = "ATOM",
    icode: str = " ",
    segment: str = "",
    altloc: str = " ",
    occupancy: float = 1.0,
    serial: int | str = 1,
) -> str:
    """One line of PDB format 3.3; residue names of four letters and chains of two go where programs put them."""
    spelled = f"{name:<4}" if len(name) == 4 else f" {name:<3}"
    three = f"{residue:>3} " if len(residue) < 4 else residue
    place = f"{three}{chain:>1}" if len(chain) < 2 else f"{residue:>3}{chain}"
    x, y, z = xyz
    head = f"{record:<6}{serial!s:>5} {spelled}{altloc}{place}{number!s:>4}{icode}   {x:8.3f}{y:8.3f}{z:8.3f}"
    return f"{head}{occupancy:6.2f}{0:6.2f}      {segment:<4}{name[0]:>2}"


def pdb_lines(
    coords: Array,
    *,
    chain: str = "A",
    residues: Sequence[str] | str = "ALA",
    numbers: Sequence[int | str] | None = None,
    icodes: Sequence[str] | None = None,
    atoms: Sequence[str] = ("N", "CA", "C", "O"),
    segment: str = "",
    record: str = "ATOM",
) -> list[str]:
    """Atom lines of a chain."""
    lines = []
    for i, residue in enumerate(coords):
        name = residues if isinstance(residues, str) else residues[i]
        number = i + 1 if numbers is None else numbers[i]
        icode = " " if icodes is None else icodes[i] or " "
        lines += [
            atom_line(atom, name, chain, number, xyz, icode=icode, segment=segment, record=record)
            for atom, xyz in zip(atoms, residue, strict=False)
        ]
    return lines
