"""Generated data sets with known laws: what tests and the demo compare with. See data/densities/README.md."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.checkpoint import data_path
from manifoldflow.distributions import Distribution, MeshBumps
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.mesh_shapes import torus_mesh
from manifoldflow.tasks.densities.so3_toy import SCALE, modes
from manifoldflow.tasks.densities.swissroll import swiss_roll

TRAIN, TEST = 10_000, 2_000
TURN = 2 * math.pi


class Embedded(NamedTuple):
    """A generated set.

    Attributes:
        name: of the set.
        space: the manifold.
        law: what the points were drawn from, with an exact density; None where there is none in closed form.
        train, test: points ``(N, *event)`` float32.
    """

    name: str
    space: Manifold
    law: Distribution | None
    train: Tensor
    test: Tensor


def sphere_mixture() -> Distribution:
    """Four von Mises-Fisher laws of different widths and weights."""
    means = ((0.36, 0.48, 0.8), (-0.6, 0.8, 0.0), (0.0, -0.6, -0.8), (-0.48, -0.64, 0.6))
    parts = tuple(mf.VonMisesFisher(k, mean) for k, mean in zip((40.0, 10.0, 20.0, 80.0), means, strict=True))
    return mf.Mixture(parts, (3.0, 4.0, 2.0, 1.0), mf.Sphere(2))


def sphere_checkerboard() -> Distribution:
    """4 x 6 fields of equal area."""
    return mf.Checkerboard(4, 6, mf.Sphere(2))


def torus_mixture() -> Distribution:
    """Three wrapped normals on the torus of two angles, one across the edge of the chart."""
    centres = ((0.2, 6.1), (2.5, 2.0), (4.5, 4.0))
    parts = tuple(
        mf.WrappedNormal(scale=s, mean=torch.tensor(c)) for s, c in zip((0.3, 0.5, 0.25), centres, strict=True)
    )
    return mf.Mixture(parts, (1.0, 2.0, 1.0), mf.Torus(2, TURN))


def torus_checkerboard() -> Distribution:
    """4 x 4 squares."""
    return mf.Checkerboard(4, 4, mf.Torus(2, TURN))


def torus5_mixture() -> Distribution:
    """Four products of five von Mises laws."""
    generator = torch.Generator().manual_seed(5)
    centres = (TURN * torch.rand(4, 5, generator=generator)).tolist()
    return mf.Mixture(tuple(mf.VonMisesFisher(1.0, tuple(c)) for c in centres), manifold=mf.Torus(5, TURN))


def so3_modes() -> Distribution:
    """27 heat kernels on a lattice of rotations, the set of :mod:`manifoldflow.tasks.densities.so3_toy`."""
    return mf.Mixture(tuple(mf.IGSO3(SCALE, mean=centre) for centre in modes()), manifold=mf.UnitQuaternion())


def so3_mixture() -> Distribution:
    """Eight broad heat kernels at the corners of a cube of rotation vectors, which a small network learns in a minute."""
    space = mf.UnitQuaternion()
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    centres = space.exp(space.origin((8,)), corners)
    return mf.Mixture(tuple(mf.IGSO3(0.65, mean=c) for c in centres), manifold=space)


def mesh_bumps_torus() -> Distribution:
    """Three bumps on the triangulated torus."""
    return MeshBumps.spread(torus_mesh())


LAWS: dict[str, Callable[[], Distribution]] = {
    "sphere_mixture": sphere_mixture,
    "sphere_checkerboard": sphere_checkerboard,
    "torus_mixture": torus_mixture,
    "torus_checkerboard": torus_checkerboard,
    "torus5_mixture": torus5_mixture,
    "so3_modes": so3_modes,
    "mesh_bumps_torus": mesh_bumps_torus,
    "so3_mixture": so3_mixture,
}
"""Sets whose law has a density; ``simplex_swissroll`` is the one that has none in closed form."""


def embedded_names() -> list[str]:
    """Names of the generated sets."""
    return [*LAWS, "simplex_swissroll"]


def make_set(name: str) -> tuple[Tensor, Tensor]:
    """The training and test points of a set, drawn anew: always the same."""
    if name == "simplex_swissroll":
        return swiss_roll(), swiss_roll(held_out=True)
    law = LAWS[name]()
    generator = torch.Generator().manual_seed(1 + list(LAWS).index(name))
    drawn = law.sample((TRAIN + TEST,), generator=generator, dtype=torch.float32)
    return drawn[:TRAIN], drawn[TRAIN:]


@functools.lru_cache(maxsize=4)
def load_embedded(name: str) -> Embedded:
    """A set from ``data/densities``.

    Raises:
        ValueError: no such set.
    """
    if name not in embedded_names():
        raise ValueError(f"unknown generated set {name!r}; they are {', '.join(embedded_names())}")
    with np.load(data_path(f"densities/{name}.npz"), allow_pickle=False) as file:
        train, test = torch.from_numpy(file["train"]), torch.from_numpy(file["test"])
    law = LAWS[name]() if name in LAWS else None
    space = mf.Simplex(3) if law is None else law.space
    return Embedded(name, space, law, train, test)
