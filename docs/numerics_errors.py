"""Errors of log, exp and geodesics of several libraries in float32, against float64 on the same inputs; see make_images.py."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds import rotation as rot

PAIRS = 200
ANGLES = [*torch.logspace(-8, 0, 41, dtype=torch.float64).tolist()]
ANGLES += [math.pi / 2] + [math.pi - a for a in reversed(ANGLES)] + [math.pi]
Maps = dict[str, Callable[..., Tensor]]


def find(name: str) -> Any:
    """A library, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def sphere_libraries() -> dict[str, Maps]:
    """``log(x, y)``, ``exp(x, u)`` and ``half(x, y)`` on S^2."""
    space = mf.Sphere(2)
    found: dict[str, Maps] = {
        "manifoldflow": {"log": space.log, "exp": space.exp, "half": lambda x, y: space.geodesic(x, y, 0.5)[0]}
    }
    if find("flow_matching"):
        manifolds = importlib.import_module("flow_matching.utils.manifolds")
        peer = manifolds.Sphere()

        def half(x: Tensor, y: Tensor) -> Tensor:
            return manifolds.geodesic(peer, x, y)(torch.tensor([0.5]))[:, 0]

        found["flow_matching"] = {"log": peer.logmap, "exp": peer.expmap, "half": half}
    if geoopt := find("geoopt"):
        sphere = geoopt.Sphere()
        found["geoopt"] = {
            "log": sphere.logmap,
            "exp": sphere.expmap,
            "half": lambda x, y: sphere.expmap(x, 0.5 * sphere.logmap(x, y)),
        }
    return found


def rotation_libraries() -> dict[str, Maps]:
    """``log(R)``, ``exp(w)`` and ``half(q, p)`` of unit quaternions (w, x, y, z)."""
    space = mf.UnitQuaternion()
    found: dict[str, Maps] = {
        "manifoldflow": {
            "log": rot.matrix_to_rotvec,
            "exp": rot.rotvec_to_matrix,
            "half": lambda q, p: space.geodesic(q, p, 0.5)[0],
        }
    }
    if roma := find("roma"):

        def slerp(q: Tensor, p: Tensor) -> Tensor:
            way = roma.unitquat_slerp(q.roll(-1, -1), p.roll(-1, -1), torch.tensor([0.5]), shortest_arc=True)[0]
            return way.roll(1, -1)

        found["roma"] = {"log": roma.rotmat_to_rotvec, "exp": roma.rotvec_to_rotmat, "half": slerp}
    if pypose := find("pypose"):

        def middle(q: Tensor, p: Tensor) -> Tensor:
            a, b = (pypose.SO3(v.roll(-1, -1)) for v in (q, p))
            return (a @ pypose.so3(0.5 * (a.Inv() @ b).Log().tensor()).Exp()).tensor().roll(1, -1)

        found["pypose"] = {
            "log": lambda r: pypose.mat2SO3(r, check=False).Log().tensor(),
            "exp": lambda w: pypose.so3(w).Exp().matrix(),
            "half": middle,
        }
    return found


def unit(*shape: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors, float64."""
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def angle_between(x: Tensor, y: Tensor) -> Tensor:
    """Of vectors of any length, by chords, in float64."""
    x, y = (torch.nn.functional.normalize(v.double(), dim=-1) for v in (x, y))
    return 2 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1))


def turn_between(q: Tensor, p: Tensor) -> Tensor:
    """Rotation angle between quaternions, in float64."""
    half = angle_between(q, p)
    return 2 * torch.minimum(half, math.pi - half)


def sphere_errors(library: Maps, angle: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Errors in radians, one per pair of points."""
    x = unit(PAIRS, 3, generator=generator)
    side = torch.linalg.cross(x, unit(PAIRS, 3, generator=generator))
    side = torch.nn.functional.normalize(side, dim=-1)
    x32, y32 = x.float(), (math.cos(angle) * x + math.sin(angle) * side).float()
    u32 = (angle * side).float()
    true_angle = angle_between(x32, y32)
    log = library["log"](x32, y32).double().norm(dim=-1) - true_angle
    base, tangent = x32.double(), u32.double()
    length = tangent.norm(dim=-1, keepdim=True)
    reached = length.cos() * base + length.sin() * tangent / length
    middle = library["half"](x32, y32)
    both = [(angle_between(middle, end) - true_angle / 2).abs() for end in (x32, y32)]
    return {
        "log": log.abs(),
        "exp": (library["exp"](x32, u32).double() - reached).norm(dim=-1),
        "half": torch.maximum(*both),
    }


def rotation_errors(library: Maps, angle: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Errors in radians (of exp: the largest entry of the matrix), one per rotation."""
    w = angle * unit(PAIRS, 3, generator=generator)
    matrix = rot.rotvec_to_matrix(w)
    q = unit(PAIRS, 4, generator=generator)
    q32, p32 = q.float(), rot.quaternion_multiply(q, rot.rotvec_to_quaternion(w)).float()
    true_angle = turn_between(q32, p32)
    middle = library["half"](q32, p32)
    both = [(turn_between(middle, end) - true_angle / 2).abs() for end in (q32, p32)]
    return {
        "log": (library["log"](matrix.float()).double().norm(dim=-1) - angle).abs(),
        "exp": (library["exp"](w.float()).double() - rot.rotvec_to_matrix(w.float().double())).abs().amax((-1, -2)),
        "half": torch.maximum(*both),
    }


def measure() -> dict[str, dict[str, dict[str, list[float]]]]:
    """Largest error by space, library and map, one per entry of ``ANGLES``; NaN where a result is not a number."""
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for space, libraries, errors in (
        ("the sphere", sphere_libraries(), sphere_errors),
        ("rotations", rotation_libraries(), rotation_errors),
    ):
        table[space] = {}
        for name, library in libraries.items():
            rows: dict[str, list[float]] = {"log": [], "exp": [], "half": []}
            for number, angle in enumerate(ANGLES):
                for key, value in errors(library, angle, torch.Generator().manual_seed(number)).items():
                    rows[key].append(float(value.max()))  # max of a tensor with NaN is NaN
            table[space][name] = rows
    return table
