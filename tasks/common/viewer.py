"""3D views of molecules and crystals for pages that work offline: 3Dmol.js, embedded once, and one view per scene.

    views = Viewers()
    page = views.grid([Scene.crystal(["Na", "Cl"], frac, lattice, caption="NaCl"), Scene(sdf_text, "sdf")])
    html = f"<style>{views.css()}</style> {page} {views.scripts()}"

A page with hundreds of scenes stays quick: a scene is drawn when it comes into sight, as a still, and one live view moves
to the scene that is pointed at, tapped or focused. Data travel as JSON that cannot end its element, so no file can bring a
script along. Nothing is fetched: pages run under ``default-src 'none'`` (:data:`POLICY`).
"""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from manifoldflow.checkpoint import data_path

__all__ = ["POLICY", "Format", "Model", "Scene", "Style", "Viewers", "as_json"]

HERE = Path(__file__).parent
Format = Literal["cif", "sdf", "xyz", "pdb", "mol2"]
Style = Literal["ball", "stick", "sphere"]
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy that a page with views satisfies: no network, no files beside it."""
COVALENT = (
    "H.31 He.28 Li1.28 Be.96 B.84 C.76 N.71 O.66 F.57 Ne.58 Na1.66 Mg1.41 Al1.21 Si1.11 P1.07 S1.05 Cl1.02 Ar1.06 K2.03 "
    "Ca1.76 Sc1.7 Ti1.6 V1.53 Cr1.39 Mn1.39 Fe1.32 Co1.26 Ni1.24 Cu1.32 Zn1.22 Ga1.22 Ge1.2 As1.19 Se1.2 Br1.2 Kr1.16 "
    "Rb2.2 Sr1.95 Y1.9 Zr1.75 Nb1.64 Mo1.54 Tc1.47 Ru1.46 Rh1.42 Pd1.39 Ag1.45 Cd1.44 In1.42 Sn1.39 Sb1.39 Te1.38 I1.39 "
    "Xe1.4 Cs2.44 Ba2.15 La2.07 Ce2.04 Pr2.03 Nd2.01 Pm1.99 Sm1.98 Eu1.98 Gd1.96 Tb1.94 Dy1.92 Ho1.92 Er1.89 Tm1.9 Yb1.87 "
    "Lu1.87 Hf1.75 Ta1.7 W1.62 Re1.51 Os1.44 Ir1.41 Pt1.36 Au1.36 Hg1.32 Tl1.45 Pb1.46 Bi1.48 Po1.4 At1.5 Rn1.5 Fr2.6 "
    "Ra2.21 Ac2.15 Th2.06 Pa2.0 U1.96 Np1.9 Pu1.87 Am1.8 Cm1.69"
)
"""Covalent radii in angstrom (Cordero et al. 2008), for the bonds of crystals."""


@dataclass(frozen=True)
class Model:
    """One structure as text.

    Args:
        text: the file's content.
        format: what it is. XYZ with ``Lattice="..."`` in its second line, and CIF, bring their cell.
        color: of all its atoms, such as ``"#d8485f"``, to tell two models of a scene apart; by element if absent.
    """

    text: str
    format: Format
    color: str | None = None


@dataclass(frozen=True)
class Scene:
    """What one view shows.

    Args:
        text: a structure as text, or several models that are laid over each other.
        format: of the text.
        caption: plain text below the view, first line bold.
        style: balls and sticks, sticks, or spheres that touch.
        supercell: cells along the three vectors, drawn with the atoms on all their faces; for models that have a cell.
        cell: draw the box of the cell.
    """

    text: str | Sequence[Model]
    format: Format = "xyz"
    caption: str = ""
    style: Style = "ball"
    supercell: tuple[int, int, int] = (1, 1, 1)
    cell: bool = True

    @classmethod
    def crystal(cls, species: Sequence[str], frac: Any, lattice: Any, **options: Any) -> "Scene":
        """The scene of a crystal.

        Args:
            species: symbols, ``n`` of them.
            frac: fractional coordinates ``(n, 3)``.
            lattice: rows are the cell vectors in angstrom ``(3, 3)``.
            options: of the scene (``caption``, ``style``, ...).
        """
        return cls(crystal_xyz(species, frac, lattice), "xyz", **options)

    def models(self) -> list[Model]:
        """Its models."""
        return [Model(self.text, self.format)] if isinstance(self.text, str) else list(self.text)


def crystal_xyz(species: Sequence[str], frac: Any, lattice: Any) -> str:
    """A crystal as XYZ with its cell in the second line, which 3Dmol reads.

    Args:
        species: symbols.
        frac: fractional coordinates ``(n, 3)``; wrapped into the cell.
        lattice: rows are the cell vectors in angstrom ``(3, 3)``.

    Raises:
        ValueError: shapes that do not match, or numbers that are not finite.
    """
    points, cell = np.asarray(frac, float).reshape(-1, 3), np.asarray(lattice, float)
    if cell.shape != (3, 3) or len(points) != len(species):
        raise ValueError(f"{len(species)} species, positions {points.shape} and a cell {cell.shape} make no crystal")
    if not (np.isfinite(points).all() and np.isfinite(cell).all()):
        raise ValueError("positions or cell vectors are not finite")
    points = points - np.floor(points)
    box = " ".join(f"{x:.5f}" for x in cell.ravel())
    rows = [f"{s} {x:.5f} {y:.5f} {z:.5f}" for s, (x, y, z) in zip(species, points @ cell, strict=True)]
    return "\n".join([str(len(rows)), f'Lattice="{box}"', *rows])


@dataclass
class Viewers:
    """All views of one page. The library and the data are embedded once, by :meth:`scripts` at the end of the body."""

    scenes: list[dict[str, Any]] = field(default_factory=list)

    def view(self, scene: Scene) -> str:
        """The HTML of one view."""
        if any(n < 1 for n in scene.supercell):
            raise ValueError(f"a supercell has at least one cell along each vector, got {scene.supercell}")
        models = [{"t": m.text, "f": m.format} | ({"c": m.color} if m.color else {}) for m in scene.models()]
        entry: dict[str, Any] = {"m": models, "style": scene.style, "cells": list(scene.supercell), "cell": scene.cell}
        self.scenes.append(entry)
        first, _, rest = scene.caption.partition("\n")
        words = (
            f"<figcaption><b>{escape(first)}</b>" + (f"<span>{escape(rest)}</span>" if rest else "") + "</figcaption>"
        )
        label = escape(
            f"3D view: {scene.caption.strip() or 'structure'}; arrow keys turn it, plus and minus zoom", quote=True
        )
        return (
            f'<figure class="mol"><div class="mol-stage" tabindex="0" role="img" data-scene="{len(self.scenes) - 1}" '
            f'aria-label="{label}"></div>{words if scene.caption else ""}</figure>'
        )

    def grid(self, scenes: Iterable[Scene], least: int = 220, tools: bool = True) -> str:
        """Views side by side, as many in a row as fit.

        Args:
            scenes: what they show.
            least: width of one in pixels.
            tools: with buttons above that change all of the grid: style, number of cells, turning.
        """
        before = len(self.scenes)
        shown = "".join(self.view(scene) for scene in scenes)
        models = [model for scene in self.scenes[before:] for model in scene["m"]]
        has_cells = any('Lattice="' in model["t"] or model["f"] == "cif" for model in models)
        buttons = self._tools(has_cells) if tools else ""
        return f'<div class="mol-box">{buttons}<div class="mol-grid" style="--least:{least}px">{shown}</div></div>'

    @staticmethod
    def _tools(has_cells: bool) -> str:
        def button(kind: str, value: str, text: str) -> str:
            return f'<button type="button" data-{kind}="{value}" aria-pressed="false">{text}</button>'

        styles = [("ball", "Balls and sticks"), ("stick", "Sticks"), ("sphere", "Spheres")]
        row = [button("style", value, text) for value, text in styles]
        if has_cells:
            row += ['<i class="mol-gap"></i>', button("cells", "1", "1 cell"), button("cells", "2", "2 × 2 × 2")]
        row += ['<i class="mol-gap"></i>', '<button type="button" data-spin aria-pressed="false">Turn</button>']
        return f'<div class="mol-tools" role="group" aria-label="How the structures are drawn">{"".join(row)}</div>'

    @staticmethod
    def css() -> str:
        """Styles of the views; they use the variables of the report where there are any."""
        return (HERE / "viewer.css").read_text(encoding="utf-8")

    def scripts(self) -> str:
        """The library, the data and the driver; for the end of the body. Empty where the page has no view."""
        if not self.scenes:
            return ""
        data = as_json({"scenes": self.scenes, "radii": _radii()})
        licence = data_path("viewer/LICENSE.3Dmol").read_text(encoding="utf-8")
        return (
            f"<!--\n{licence.replace('--', '- -')}\n-->\n"
            f'<script type="application/json" id="mol-data">{data}</script>\n'
            f'<script type="application/octet-stream" id="mol-library">{_library()}</script>\n'
            f"<script>\n{(HERE / 'viewer.js').read_text(encoding='utf-8')}</script>\n"
        )


def as_json(content: Any) -> str:
    """JSON for a script element: nothing in it can close the element, or be read as markup."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _library() -> str:
    """3Dmol.js as base64 of gzip, which the page unpacks when the first view comes into sight."""
    return base64.b64encode(data_path("viewer/3Dmol-min.js.gz").read_bytes()).decode()


@cache
def _radii() -> dict[str, float]:
    found = {}
    for word in COVALENT.split():
        symbol = word.rstrip("0123456789.")
        found[symbol] = float(word[len(symbol) :])
    return found
