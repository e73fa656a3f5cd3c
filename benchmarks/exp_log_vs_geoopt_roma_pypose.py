"""How fast and exact are exp and log, forward and backward, beside geoopt, flow_matching, roma and pypose?

| | inputs | peers |
|---|---|---|
| S^2 | uniform points, tangents of length up to 3; pairs of them | geoopt, flow_matching |
| SO(3) | rotation vectors of angle up to 3 <-> matrices | roma, pypose |
| quaternion | the same, <-> unit quaternions | roma, pypose |

B = 1,000 and 100,000, gradient of the sum of the output. Eager: at most 1.3 times the time of the fastest peer that is
exact (error below 1e-5 forward, at angles from 1e-4 to 3 rad; where no peer is, the ratio is that to the fastest and there
is no target). Compiled: faster than every peer, exact or not, in eager mode or compiled where it compiles.
pypose stores quaternions as [x, y, z, w] and makes matrices from them; its results are converted outside the timing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from benchmarks._bench import OURS, Report, compare, largest, run
from manifoldflow.manifolds.rotation import (
    matrix_to_rotvec,
    quaternion_to_rotvec,
    rotvec_to_matrix,
    rotvec_to_quaternion,
)

Map = Callable[..., Any]


def cases(batch: int) -> dict[str, tuple[list[Tensor], dict[str, Map], Tensor]]:
    """Per case: inputs, candidates, true values (float64)."""
    import geoopt
    import pypose
    import roma
    from flow_matching.utils.manifolds import Sphere as PeerSphere

    g = torch.Generator().manual_seed(0)
    space, sphere, peer = mf.Sphere(2), geoopt.Sphere(), PeerSphere()
    x, y = (space.sample_uniform((batch,), generator=g) for _ in range(2))
    angle = torch.logspace(-4, 0.477, batch).unsqueeze(-1)
    u = angle * torch.nn.functional.normalize(space.to_tangent(x, torch.randn(batch, 3, generator=g)), dim=-1)
    y = space.exp(x.double(), u.double()).float()
    w = angle * torch.nn.functional.normalize(torch.randn(batch, 3, generator=g), dim=-1)
    r, q = rotvec_to_matrix(w.double()).float(), rotvec_to_quaternion(w.double()).float()
    return {
        "S^2 exp": (
            [x, u],
            {OURS: space.exp, "geoopt": sphere.expmap, "flow_matching": peer.expmap},
            space.exp(x.double(), u.double()),
        ),
        "S^2 log": (
            [x, y],
            {OURS: space.log, "geoopt": sphere.logmap, "flow_matching": peer.logmap},
            space.log(x.double(), y.double()),
        ),
        "SO(3) exp": (
            [w],
            {OURS: rotvec_to_matrix, "roma": roma.rotvec_to_rotmat, "pypose": lambda v: pypose.so3(v).Exp().matrix()},
            rotvec_to_matrix(w.double()),
        ),
        "SO(3) log": (
            [r],
            {
                OURS: matrix_to_rotvec,
                "roma": roma.rotmat_to_rotvec,
                "pypose": lambda m: pypose.mat2SO3(m, check=False).Log().tensor(),
            },
            matrix_to_rotvec(r.double()),
        ),
        "quaternion exp": (
            [w],
            {
                OURS: rotvec_to_quaternion,
                "roma": roma.rotvec_to_unitquat,
                "pypose": lambda v: pypose.so3(v).Exp().tensor(),
            },
            rotvec_to_quaternion(w.double()),
        ),
        "quaternion log": (
            [q],
            {
                OURS: quaternion_to_rotvec,
                "roma": roma.unitquat_to_rotvec,
                "pypose": lambda p: pypose.SO3(p).Log().tensor(),
            },
            quaternion_to_rotvec(q.double()),
        ),
    }


def inputs_of(case: str, name: str, inputs: list[Tensor]) -> list[Tensor]:
    """Fresh leaves that require a gradient, in the candidate's component order."""
    turned = [v.roll(-1, -1) if case == "quaternion log" and name != OURS else v for v in inputs]
    return [v.detach().clone().requires_grad_() for v in turned]


def outputs_of(case: str, name: str, value: Tensor) -> Tensor:
    """Quaternions back in the order [w, x, y, z]."""
    return value.roll(1, -1) if case == "quaternion exp" and name != OURS else value


def backward(function: Map, leaves: list[Tensor], weight: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and gradient with a fixed output gradient."""

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*leaves), leaves, weight)

    return step


def body(report: Report, budget: float) -> None:
    for batch in (1_000, 100_000):
        for case, (inputs, candidates, truth) in cases(batch).items():
            off = {}
            forward: dict[str, Map] = {}
            both: dict[str, Map] = {}
            compiled_forward: dict[str, Map] = {}
            compiled_both: dict[str, Map] = {}
            for name, function in candidates.items():
                leaves = inputs_of(case, name, inputs)
                plain = [v.detach() for v in leaves]
                value = outputs_of(case, name, function(*plain))
                off[name] = (
                    min(largest(value, truth), largest(-value, truth))
                    if case.startswith("quaternion")
                    else largest(value, truth)
                )
                weight = torch.ones_like(function(*plain))
                forward[name] = lambda f=function, a=plain: f(*a)
                both[name] = backward(function, leaves, weight)
                quick = torch.compile(function, dynamic=False)
                try:
                    quick(*plain)
                    grad = backward(quick, leaves, weight)
                    grad()
                except Exception as error:  # a peer that does not compile takes part in eager mode only
                    print(f"{name} {case} does not compile: {type(error).__name__}")
                    continue
                compiled_forward[name if name == OURS else f"{name} compiled"] = lambda f=quick, a=plain: f(*a)
                compiled_both[name if name == OURS else f"{name} compiled"] = grad
                off[f"{name} compiled"] = off[name]
            for what, eager, compiled in (
                ("forward", forward, compiled_forward),
                ("forward+backward", both, compiled_both),
            ):
                label = f"{case}, {what}, B={batch:,}"
                report.add(compare(f"{label}, eager", eager, error=off, exact=1e-5, target=1 / 1.3, budget=budget))
                rivals: dict[str, Map] = (
                    {OURS: compiled[OURS]}
                    | {n: f for n, f in eager.items() if n != OURS}
                    | {n: f for n, f in compiled.items() if n != OURS}
                )
                report.add(
                    compare(f"{label}, compiled", rivals, error=off, exact=float("inf"), target=1.0, budget=budget)
                )


if __name__ == "__main__":
    run(__doc__.splitlines()[0], body, ["geoopt", "flow_matching", "roma", "pypose"])
