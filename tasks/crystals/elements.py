"""The elements as rows of tables: symbols, radii, electronegativities, and how near two of them are."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# symbol, covalent radius (Cordero et al. 2008; 2.00 where there is none), atomic radius (Slater 1964), electronegativity
# (Pauling), atomic weight (IUPAC; that of the longest-lived isotope where there is none); angstrom, g/mol
_TABLE = """
H,0.31,0.25,2.2,1.008 He,0.28,-,-,4.002602 Li,1.28,1.45,0.98,6.94 Be,0.96,1.05,1.57,9.012183 B,0.84,0.85,2.04,10.81
C,0.76,0.7,2.55,12.011 N,0.71,0.65,3.04,14.007 O,0.66,0.6,3.44,15.999 F,0.57,0.5,3.98,18.9984 Ne,0.58,-,-,20.1797
Na,1.66,1.8,0.93,22.98977 Mg,1.41,1.5,1.31,24.305 Al,1.21,1.25,1.61,26.98154 Si,1.11,1.1,1.9,28.085
P,1.07,1.0,2.19,30.97376 S,1.05,1.0,2.58,32.06 Cl,1.02,1.0,3.16,35.45 Ar,1.06,0.71,-,39.948 K,2.03,2.2,0.82,39.0983
Ca,1.76,1.8,1,40.078 Sc,1.70,1.6,1.36,44.95591 Ti,1.60,1.4,1.54,47.867 V,1.53,1.35,1.63,50.9415
Cr,1.39,1.4,1.66,51.9961 Mn,1.39,1.4,1.55,54.93804 Fe,1.32,1.4,1.83,55.845 Co,1.26,1.35,1.88,58.93319
Ni,1.24,1.35,1.91,58.6934 Cu,1.32,1.35,1.9,63.546 Zn,1.22,1.35,1.65,65.38 Ga,1.22,1.3,1.81,69.723
Ge,1.20,1.25,2.01,72.63 As,1.19,1.15,2.18,74.92159 Se,1.20,1.15,2.55,78.971 Br,1.20,1.15,2.96,79.904
Kr,1.16,-,3,83.798 Rb,2.20,2.35,0.82,85.4678 Sr,1.95,2.0,0.95,87.62 Y,1.90,1.8,1.22,88.90584 Zr,1.75,1.55,1.33,91.224
Nb,1.64,1.45,1.6,92.90637 Mo,1.54,1.45,2.16,95.95 Tc,1.47,1.35,1.9,97.90721 Ru,1.46,1.3,2.2,101.07
Rh,1.42,1.35,2.28,102.9055 Pd,1.39,1.4,2.2,106.42 Ag,1.45,1.6,1.93,107.8682 Cd,1.44,1.55,1.69,112.414
In,1.42,1.55,1.78,114.818 Sn,1.39,1.45,1.96,118.71 Sb,1.39,1.45,2.05,121.76 Te,1.38,1.4,2.1,127.6
I,1.39,1.4,2.66,126.9045 Xe,1.40,-,2.6,131.293 Cs,2.44,2.6,0.79,132.9055 Ba,2.15,2.15,0.89,137.327
La,2.07,1.95,1.1,138.9055 Ce,2.04,1.85,1.12,140.116 Pr,2.03,1.85,1.13,140.9077 Nd,2.01,1.85,1.14,144.242
Pm,1.99,1.85,1.13,144.9128 Sm,1.98,1.85,1.17,150.36 Eu,1.98,1.85,1.2,151.964 Gd,1.96,1.8,1.2,157.25
Tb,1.94,1.75,1.1,158.9254 Dy,1.92,1.75,1.22,162.5 Ho,1.92,1.75,1.23,164.9303 Er,1.89,1.75,1.24,167.259
Tm,1.90,1.75,1.25,168.9342 Yb,1.87,1.75,1.1,173.054 Lu,1.87,1.75,1.27,174.9668 Hf,1.75,1.55,1.3,178.49
Ta,1.70,1.45,1.5,180.9479 W,1.62,1.35,2.36,183.84 Re,1.51,1.35,1.9,186.207 Os,1.44,1.3,2.2,190.23
Ir,1.41,1.35,2.2,192.217 Pt,1.36,1.35,2.28,195.084 Au,1.36,1.35,2.54,196.9666 Hg,1.32,1.5,2,200.592
Tl,1.45,1.9,1.62,204.38 Pb,1.46,1.8,2.33,207.2 Bi,1.48,1.6,2.02,208.9804 Po,1.40,1.9,2,208.9824 At,1.50,-,2.2,209.9872
Rn,1.50,-,2.2,222.0176 Fr,2.60,-,0.7,223.0197 Ra,2.21,2.15,0.9,226.0254 Ac,2.15,1.95,1.1,227.0277
Th,2.06,1.8,1.3,232.0377 Pa,2.00,1.8,1.5,231.0359 U,1.96,1.75,1.38,238.0289 Np,1.90,1.75,1.36,237.0482
Pu,1.87,1.75,1.28,244.0642 Am,1.80,1.75,1.3,243.0614 Cm,1.69,-,1.3,247.0703 Bk,2.00,-,1.3,247.0703
Cf,2.00,-,1.3,251.0796 Es,2.00,-,1.3,252.083 Fm,2.00,-,1.3,257.0951 Md,2.00,-,1.3,258.0984 No,2.00,-,1.3,259.101
Lr,2.00,-,1.3,262.11
"""

_ROWS = [word.split(",") for word in _TABLE.split()]
SYMBOLS: tuple[str, ...] = tuple(row[0] for row in _ROWS)
"""By species number: 0 is H, 102 is Lr. Species are atomic numbers minus one, so that every token is an element."""
ELEMENTS = len(SYMBOLS)
"""Number of species: ``Tokens(ELEMENTS)``."""
_NUMBER = {symbol: number for number, symbol in enumerate(SYMBOLS)} | {"D": 0, "T": 0}
_NOBLE = (2, 10, 18, 36, 54, 86, 118)


def species_number(symbol: str) -> int:
    """The species of an element's symbol; deuterium and tritium are hydrogen.

    Raises:
        ValueError: no element of the table.
    """
    try:
        return _NUMBER[symbol]
    except KeyError:
        raise ValueError(f"{symbol!r} is no element of the table (H to Lr)") from None


def _column(i: int) -> NDArray[np.float64]:
    return np.array([float("nan") if row[i] == "-" else float(row[i]) for row in _ROWS])


COVALENT = _column(1)
"""Covalent radii in angstrom by species, ``(ELEMENTS,)``."""
ATOMIC = np.where(np.isnan(_column(2)), _column(1), _column(2))
"""Slater's atomic radii in angstrom by species; the covalent one where he gives none."""
ELECTRONEGATIVITY = _column(3)
"""Pauling's, by species; NaN for He, Ne and Ar."""


MASSES = _column(4)
"""Atomic weights by species."""


@cache
def masses(dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """:data:`MASSES` as a tensor, one per dtype and device."""
    return torch.as_tensor(MASSES, dtype=dtype, device=device)


@cache
def covalent_radii(dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """:data:`COVALENT` as a tensor, one per dtype and device."""
    return torch.as_tensor(COVALENT, dtype=dtype, device=device)


def period_and_group() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Period (1 to 7) and group (1 to 18) by species; lanthanides and actinides are in group 3."""
    z = np.arange(1, ELEMENTS + 1)
    period = 1 + np.searchsorted(_NOBLE, z)
    start = np.array((0, *_NOBLE))[period - 1]
    length = np.array(_NOBLE)[period - 1] - start
    at = z - start  # from 1 inside the period
    group = np.where(at <= 2, at, at + 18 - length)
    group = np.where((length == 32) & (at > 2) & (group <= 3), 3, group)
    return period, np.where((z == 2), 18, group)


def symbols_of(species: Any) -> list[str]:
    """Symbols of species numbers."""
    return [SYMBOLS[number] for number in np.asarray(species).tolist()]
