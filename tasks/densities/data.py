"""Data sets by name, and any table of points on a named manifold."""

import difflib
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.quaternion import UnitQuaternion
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.manifolds.torus import Torus
from manifoldflow.tasks.common.files import find_shared
from manifoldflow.tasks.densities.spaces import TOLERANCE, distance_off, sizes, space_of, to_points
from manifoldflow.tasks.densities.tables import Table, read_table

Units = Literal["degrees", "radians"]

EARTH = ("earthquake", "volcano")
TORSIONS = ("General", "Glycine", "Proline", "Pre-Pro")
ROTAMERS = ("GLN", "LYS", "MET", "HIS", "TRP", "CYS")
NAMED = (*EARTH, *(f"torsions:{n}" for n in TORSIONS), *(f"rotamers:{n}" for n in ROTAMERS))

SHOWN = 5
"""Row numbers that an error lists before it says how many more there are."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """Points on a manifold.

    Attributes:
        name: of the set, or the file it came from.
        space: the manifold.
        x: points ``(N, *event)``, float64.
        columns: names of the columns the points were made from.
        groups: a label per row that says which rows belong together (chains), or None.
        units: of the columns that are angles, None where there are none.
    """

    name: str
    space: Manifold
    x: Tensor
    columns: list[str]
    groups: np.ndarray | None = None
    units: Units | None = None

    def __len__(self) -> int:
        return len(self.x)


def load_data(
    spec: str,
    manifold: str | None = None,
    *,
    columns: str | Sequence[str] | None = None,
    units: Units | None = None,
    group_column: str | None = None,
    drop_nan: bool = False,
    data_folder: str | Path | None = None,
) -> DataSet:
    """A data set by name, or any CSV, TSV or NPZ table on a named manifold.

    Names: ``earthquake``, ``volcano`` (sphere); ``torsions:General`` and the other residue classes (torus of phi, psi);
    ``rotamers:GLN`` and the other residue types (torus of phi, psi and all chi); the generated sets of
    :mod:`manifoldflow.tasks.densities.embedded`.

    Args:
        spec: name or file.
        manifold: of a file, such as ``"sphere"``, ``"torus:3"``, ``"so3"``; see
            :data:`manifoldflow.tasks.densities.spaces.NAMES`.
        columns: of a file: column names or numbers from 1, as a list or with commas; of an NPZ file the array's name.
        units: of angles; degrees unless told otherwise, radians for rotation vectors.
        group_column: column whose equal values belong together (chains, patients), for splits that keep them on one side.
        drop_nan: leave out rows with a missing number instead of refusing them.
        data_folder: folder with ``earth/`` and ``torsions/``; see :func:`find_shared`.

    Raises:
        FileNotFoundError: the file is not there; says where it was looked for.
        ValueError: an unknown name, a column that is missing, rows that are not points of the manifold.
    """
    spec = spec.strip()
    named = {n.lower(): n for n in NAMED}.get(spec.lower())
    embedded = _embedded_names()
    if named or spec in embedded:
        for option, value in (("manifold", manifold), ("columns", columns), ("units", units)):
            if value is not None:
                raise ValueError(f"--{option} is for your own files; the set {spec!r} has its own")
    if named:
        return _named(named, drop_nan, data_folder)
    if spec in embedded:
        from manifoldflow.tasks.densities.embedded import load_embedded

        made = load_embedded(spec)
        return DataSet(spec, made.space, torch.cat([made.train, made.test]).double(), [])
    looks_like_file = Path(spec).suffix != "" or os.sep in spec or Path(spec).exists()
    if not looks_like_file:
        known = [*NAMED, *embedded]
        close = difflib.get_close_matches(spec.lower(), [n.lower() for n in known], n=1, cutoff=0.5)
        hint = f" (did you mean {next(n for n in known if n.lower() == close[0])!r}?)" if close else ""
        raise ValueError(f"unknown data set {spec!r}{hint}; the sets are {', '.join(known)}; or give a file")
    if manifold is None:
        raise ValueError(f"{spec}: say where its points live, as in --manifold sphere, torus:2 or so3")
    listed = [c.strip() for c in columns.split(",")] if isinstance(columns, str) else list(columns or [])
    table = read_table(spec, listed)
    is_array = table.word == "row"
    return from_table(table, manifold, [] if is_array else listed, units, group_column, drop_nan)


def from_table(
    table: Table,
    manifold: str,
    columns: Sequence[str] = (),
    units: Units | None = None,
    group_column: str | None = None,
    drop_nan: bool = False,
) -> DataSet:
    """Points of a table; see :func:`load_data`."""
    names = list(columns) or _default_columns(table, manifold, group_column)
    if not names:
        raise ValueError(f"{table.path}: no column holds numbers; its columns are {', '.join(table.names)}")
    space = space_of(sizes(manifold, len(names)))
    on_earth = isinstance(space, Sphere) and space.dim == 2 and len(names) == 2
    is_vector = not isinstance(space, Sphere | Torus) and len(names) == 3 and space_name_is_rotation(space)
    has_angles = on_earth or is_vector or isinstance(space, Torus)
    in_degrees = (units or ("radians" if is_vector else "degrees")) == "degrees"
    if units is not None and not has_angles:
        raise ValueError(f"--units {units}: the columns {', '.join(names)} on {manifold} are no angles")
    if on_earth and _is_longitude(names[0]) and _is_latitude(names[1]):
        names.reverse()
    values = table.numbers(names)
    keep = _finite_rows(table, values, names, drop_nan)
    values, lines = values[keep], table.lines[keep]
    if len(values) < 2:
        raise ValueError(f"{table.path}: a data set needs at least 2 rows, this has {len(values)}")
    if on_earth:
        _check_latitudes(table, values, lines, names, in_degrees)
    if has_angles:
        _doubt_units(table, values, in_degrees, on_earth)
    numbers = torch.from_numpy(values)
    points = to_points(space, numbers, in_degrees)
    _check_on_manifold(table, space, points, numbers, lines)
    groups = None if group_column is None else table.text(group_column)[keep]
    said: Units | None = ("degrees" if in_degrees else "radians") if has_angles else None
    return DataSet(table.path.name, space, space.project(points), names, groups, said)


def space_name_is_rotation(space: Manifold) -> bool:
    """Whether points are rotations, in either form."""
    from manifoldflow.manifolds.so3 import SO3

    return isinstance(space, SO3 | UnitQuaternion)


def merge_equal(x: Tensor, space: Manifold, digits: int = 6) -> Tensor:
    """Row number of the first of every group of equal points (up to ``digits`` decimals), in order of appearance."""
    keys = point_keys(x, space, digits)
    _, first = np.unique(keys, axis=0, return_index=True)
    return torch.from_numpy(np.sort(first))


def point_keys(x: Tensor, space: Manifold, digits: int = 6) -> np.ndarray:
    """Whole numbers ``(N, k)`` that are equal for equal points: rounded coordinates, periodic and free of quaternion signs."""
    if isinstance(space, Torus):
        turns = x.double() / space.period
        x = torch.cat([(2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()], -1)
    elif isinstance(space, UnitQuaternion):
        x = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
    return np.round(x.double().flatten(1).numpy() * 10**digits).astype(np.int64)


def _named(name: str, drop_nan: bool, data_folder: str | Path | None) -> DataSet:
    kind, _, part = name.partition(":")
    if not part:
        table = read_table(find_shared(f"earth/{name}.csv", data_folder))
        made = from_table(table, "sphere", drop_nan=drop_nan)
    elif kind == "torsions":
        table = read_table(find_shared("torsions/protein_backbone_torsions.tsv.gz", data_folder))
        rows = table.columns[3] == part
        cut = Table(table.path, ["chain", "phi", "psi", "class"], [c[rows] for c in table.columns], table.lines[rows])
        made = from_table(cut, "torus", ["phi", "psi"], "degrees", "chain", drop_nan)
    else:
        table = read_table(find_shared("torsions/top8000_rotamers.npz", data_folder), [part])
        chis = len(table.names) - 3
        names = ["phi", "psi", *(f"chi{i + 1}" for i in range(chis)), "chain"]
        named_table = Table(table.path, names, table.columns, table.lines, table.word)
        made = from_table(named_table, "torus", names[:-1], "degrees", "chain", drop_nan)
    # Chains of one entry are copies of each other often enough, so they stay together.
    groups = None if made.groups is None else np.array([str(g).split("_")[0].lower() for g in made.groups])
    return DataSet(name, made.space, made.x, made.columns, groups, made.units)


def _embedded_names() -> list[str]:
    try:
        from manifoldflow.tasks.densities.embedded import embedded_names
    except ImportError:
        return []
    return list(embedded_names())


def _default_columns(table: Table, manifold: str, group_column: str | None) -> list[str]:
    numeric = table.numeric()
    kind = manifold.partition(":")[0].lower()
    if kind == "sphere":
        lat = [n for n in table.names if _is_latitude(n)]
        lon = [n for n in table.names if _is_longitude(n)]
        if len(lat) == 1 and len(lon) == 1:
            return [lat[0], lon[0]]
        if bool(lat) != bool(lon):
            have, lack = ("latitude", "longitude") if lat else ("longitude", "latitude")
            raise ValueError(
                f"{table.path} has a {have} column ({', '.join(lat or lon)}) and none for the {lack}; its columns are "
                f"{', '.join(table.names)}; name both with --columns lat,lon"
            )
    return [n for n in numeric if group_column is None or n.lower() != group_column.lower()]


def _is_latitude(name: str) -> bool:
    return name.lower().startswith("lat")


def _is_longitude(name: str) -> bool:
    return name.lower().startswith(("lon", "lng"))


def _rows(table: Table, lines: np.ndarray) -> str:
    shown = ", ".join(str(n) for n in lines[:SHOWN])
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"{table.word}{'s' * (len(lines) > 1)} {shown}{more}"


def _finite_rows(table: Table, values: np.ndarray, names: list[str], drop_nan: bool) -> np.ndarray:
    keep = np.isfinite(values).all(-1)
    bad = table.lines[~keep]
    if len(bad) and not drop_nan:
        raise ValueError(
            f"{table.path}, {_rows(table, bad)}: {len(bad)} of {len(keep)} rows have no number or an infinite one in "
            f"{', '.join(names)}; mend them, or leave them out with --drop-nan"
        )
    if len(bad):
        warnings.warn(f"{table.path}: {len(bad)} of {len(keep)} rows left out, they lack a number", stacklevel=3)
    return keep


def _check_latitudes(table: Table, values: np.ndarray, lines: np.ndarray, names: list[str], in_degrees: bool) -> None:
    limit = 90.0 if in_degrees else math.pi / 2
    off = np.abs(values[:, 0]) > limit * (1 + 1e-9)
    if off.any():
        row = int(off.argmax())
        swapped = " (the columns may be swapped: latitude comes first)" if np.abs(values[:, 1]).max() <= limit else ""
        unit = "degrees" if in_degrees else "radians"
        raise ValueError(
            f"{table.path}, {_rows(table, lines[off])}: {names[0]} is {values[row, 0]:g}, a latitude lies between "
            f"-{limit:.4g} and {limit:.4g} {unit}{swapped}"
        )


def _doubt_units(table: Table, values: np.ndarray, in_degrees: bool, on_earth: bool) -> None:
    most = np.abs(values).max(0)
    if in_degrees:
        small = most[0] <= math.pi / 2 and most[1] <= math.pi if on_earth else bool((most <= 2 * math.pi).all())
        if small and len(values) > 2:
            warnings.warn(
                f"{table.path}: all angles lie within {most.max():.3g} of 0, which looks like radians read as degrees; "
                "if so pass --units radians",
                stacklevel=3,
            )
    elif (most > 4 * math.pi).any():
        warnings.warn(
            f"{table.path}: angles up to {most.max():.4g} look like degrees read as radians; if so pass --units degrees",
            stacklevel=3,
        )


def _check_on_manifold(table: Table, space: Manifold, points: Tensor, numbers: Tensor, lines: np.ndarray) -> None:
    off = distance_off(space, points, numbers).numpy()
    bad = off > TOLERANCE
    if bad.any():
        worst = int(off.argmax())
        raise ValueError(
            f"{table.path}, {_rows(table, lines[bad])}: {int(bad.sum())} of {len(bad)} rows do not lie on {space}; the worst, "
            f"{table.word} {lines[worst]}, is off by {off[worst]:.3g} (tolerance {TOLERANCE:g})"
        )
