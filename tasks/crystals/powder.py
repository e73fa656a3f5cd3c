"""Powder patterns as a laboratory would measure them: pymatgen's lines, with a width."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.crystals.structure import Crystal

__all__ = ["LARGEST", "Pattern", "pattern"]

LARGEST = 20_000.0
"""Cubic angstrom: lines grow in number with the volume, and a model's failure may have a cell of any size."""


class Pattern(NamedTuple):
    """A pattern.

    Args:
        angle: 2 theta in degrees, evenly spaced.
        intensity: strongest line 1.
        lines, heights: positions and heights of the lines.
    """

    angle: NDArray[np.float64]
    intensity: NDArray[np.float64]
    lines: NDArray[np.float64]
    heights: NDArray[np.float64]


def pattern(
    crystal: Crystal, wavelength: str = "CuKa", low: float = 10.0, high: float = 90.0, width: float = 0.3
) -> Pattern:
    """The pattern between two angles; flat for a cell of more than :data:`LARGEST` cubic angstrom, whose lines are beyond count.

    Args:
        crystal: any.
        wavelength: as pymatgen names it.
        low, high: 2 theta, degrees.
        width: of a line at half its height, degrees.
    """
    from pymatgen.analysis.diffraction.xrd import XRDCalculator

    angle = np.linspace(low, high, 1201)
    if not 0 < crystal.volume <= LARGEST:
        return Pattern(angle, np.zeros_like(angle), np.zeros(0), np.zeros(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = XRDCalculator(wavelength).get_pattern(crystal.to_pymatgen(), two_theta_range=(low, high))
    lines, heights = np.asarray(found.x, float), np.asarray(found.y, float)
    sigma = width / 2.3548
    curve = (
        (heights * np.exp(-0.5 * ((angle[:, None] - lines) / sigma) ** 2)).sum(1)
        if len(lines)
        else np.zeros_like(angle)
    )
    top = curve.max() if len(lines) and curve.max() > 0 else 1.0
    return Pattern(angle, curve / top, lines, heights / max(heights.max(initial=0), 1e-12))
