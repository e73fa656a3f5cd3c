"""The public checks find what they are for; and gaps that no other file covers."""

import math
from itertools import pairwise
from typing import Any

import geoopt
import pytest
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds import FromGeoopt
from manifoldflow.manifolds.rotation import matrix_to_quaternion, rotvec_to_matrix
from manifoldflow.tasks.proteins.model import FrameTransformer, NetworkConfig
from manifoldflow.testing import check_equivariance, check_manifold, check_path, pairs_at_length

FRAMES = {"trans": mf.Euclidean(3), "rots": mf.SO3()}


def frames(count: int = 9) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "trans": 8 * torch.randn(2, count, 3, generator=g),
        "rots": mf.Uniform(mf.SO3()).sample((2, count), generator=g),
    }


def network() -> FrameTransformer:
    torch.manual_seed(0)
    model = FrameTransformer(NetworkConfig(width=16, depth=2, heads=2, points=2, hidden=16, pair_hidden=4))
    for layer in model.layers:
        torch.nn.init.normal_(layer.move.weight, std=0.1)  # the motions start at zero
    return model.eval()


# ---------------------------------------------------------------- check_equivariance


def test_an_equivariant_network_passes_with_matrices_and_quaternions() -> None:
    model, x, t = network(), frames(), torch.tensor([0.3, 0.8])
    check_equivariance(lambda y: model(y, t), x, spaces=FRAMES)
    quaternions = {"trans": x["trans"], "rots": matrix_to_quaternion(x["rots"])}
    check_equivariance(
        lambda y: model(y, t), quaternions, spaces={"trans": mf.Euclidean(3), "rots": mf.UnitQuaternion()}
    )


BROKEN = {
    "ignores the turn": ("trans", lambda y, out: {**out, "trans": out["trans"] + torch.tensor([0.0, 0.0, 0.01])}),
    "ignores the shift": ("trans", lambda y, out: {**out, "trans": 0.999 * out["trans"]}),
    "turns in the laboratory": (
        "rots",
        lambda y, out: {**out, "rots": rotvec_to_matrix(torch.tensor([0.0, 0.01, 0.0])) @ out["rots"]},
    ),
    "mirrors": ("rots", lambda y, out: {**out, "rots": out["rots"].mT}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_network_that_is_not_equivariant_is_found_and_its_field_named(fault: str) -> None:
    model, t = network(), torch.tensor([0.3, 0.8])
    name, change = BROKEN[fault]
    with pytest.raises(AssertionError, match=rf"equivariance of field '{name}'"):
        check_equivariance(lambda y: change(y, model(y, t)), frames(), spaces=FRAMES)


def test_fields_without_a_pose_must_not_change() -> None:
    spaces = {**FRAMES, "kind": mf.Simplex(3)}
    x = {**frames(), "kind": mf.Simplex(3).sample_uniform((2, 9))}

    def invariant(y: Any) -> Any:
        return {**y, "kind": torch.softmax((y["trans"] - y["trans"].mean(1, keepdim=True)).norm(dim=-1), -1)[..., None]}

    check_equivariance(invariant, x, spaces=spaces)
    with pytest.raises(AssertionError, match="'kind'"):
        check_equivariance(lambda y: {**y, "kind": y["trans"]}, x, spaces=spaces)


def test_a_bare_tensor_is_a_state_too() -> None:
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    check_equivariance(lambda y: y.mean(1, keepdim=True).expand_as(y), x, spaces=mf.Euclidean(3))
    with pytest.raises(AssertionError):
        check_equivariance(lambda y: y.abs(), x, spaces=mf.Euclidean(3))


# ---------------------------------------------------------------- check_manifold and check_path


def broken(**methods: Any) -> Any:
    """A sphere with some methods replaced by ``method(sphere, *arguments)``."""
    good = mf.Sphere(2)
    body = {name: lambda self, *a, m=method, **k: m(good, *a, **k) for name, method in methods.items()}
    return type("Broken", (mf.Sphere,), body)(2)


FAULTS = {
    "exp": (dict(exp=lambda s, x, u: s.exp(x, 1.0001 * u)), r"exp\(x, log\(x, y\)\) - y"),
    "exp shape": (dict(exp=lambda s, x, u: s.exp(x, u).unsqueeze(0)), "exp has shape"),
    "log off the tangent space": (dict(log=lambda s, x, y: s.log(x, y) + 1e-6 * x), "log is not tangent|exp"),
    "dist": (dict(dist=lambda s, x, y: 1.001 * s.dist(x, y)), r"dist - \|log\|"),
    "chord for arc": (dict(dist=lambda s, x, y: (y - x).norm(dim=-1)), r"dist - \|log\||not finite"),
    "dist shape": (dict(dist=lambda s, x, y: s.dist(x, y)[..., None]), "dist has shape"),
    "project": (dict(project=lambda s, x: 1.001 * x), "project moves a point"),
    "nan gradient": (
        dict(log=lambda s, x, y: s.log(x, y) * (1 + 0 * (y - x).square().sum(-1, keepdim=True).sqrt())),
        "gradient of .* is not finite",
    ),
    "basis": (dict(tangent_basis=lambda s, x: 1.01 * s.tangent_basis(x)), "tangent_basis is not orthonormal"),
    "transport by projection": (
        dict(transport=lambda s, x, u, y: s.to_tangent(y, u)),
        "transport is not an isometry",
    ),
    "geodesic in the chord": (
        dict(geodesic=lambda s, x, y, t: chord(s, x, y, t)),
        "geodesic does not|speed of the geodesic",
    ),
    "geodesic velocity": (dict(geodesic=lambda s, x, y, t: scaled(s.geodesic(x, y, t))), "speed of the geodesic"),
}


def chord(s: mf.Sphere, x: Tensor, y: Tensor, t: Any) -> tuple[Tensor, Tensor]:
    w = t.unsqueeze(-1) if isinstance(t, Tensor) and t.ndim else t
    at = s.project((1 - w) * x + w * y)
    return at, s.to_tangent(at, y - x)


def scaled(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return pair[0], 1.001 * pair[1]


def test_the_unbroken_sphere_passes() -> None:
    check_manifold(broken())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_manifold_is_found_and_the_promise_named(fault: str) -> None:
    methods, message = FAULTS[fault]
    with pytest.raises(AssertionError, match=message):
        check_manifold(broken(**methods))


class Bent(mf.Geodesic):
    """A geodesic path with one promise broken."""

    fault: str = ""

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> mf.PathPoint:
        early = t if self.fault not in ("start", "end") else (0.999 * t + (0.001 if self.fault == "start" else 0.0))
        point = super().sample(x0, x1, early, generator=generator)
        if self.fault == "velocity":
            return point._replace(velocity=point.velocity * (1 + 1e-3))
        return point


@pytest.mark.parametrize(("fault", "message"), [("start", "start x0"), ("end", "end x1"), ("velocity", "derivative")])
@pytest.mark.parametrize("space", [mf.Sphere(2), mf.SO3(), mf.Torus(2)], ids=str)
def test_a_broken_path_is_found_and_the_promise_named(space: Any, fault: str, message: str) -> None:
    check_path(Bent(), space)
    with pytest.raises(AssertionError, match=message):
        check_path(type("Bent" + fault, (Bent,), {"fault": fault})(), space)


# ---------------------------------------------------------------- order of the integrators on a manifold without closed forms


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_integrators_keep_their_order_on_a_geoopt_ball(method: str, order: int) -> None:
    ball = FromGeoopt(geoopt.PoincareBall(), (2,))
    x = torch.tensor([[0.3, -0.2], [-0.1, 0.4], [0.0, 0.0]], dtype=torch.float64)

    def velocity(y: Tensor, t: Tensor) -> Tensor:
        return torch.stack([(3 * t).sin() - y[..., 1], 0.5 * (2 * t).cos() + y[..., 0] ** 2], -1)

    def arrive(steps: int, by: str) -> Tensor:
        return mf.simulate(mf.ode_kernel(velocity, ball, by), x, mf.linear_grid(steps, 0.0, 0.5, dtype=torch.float64))

    # Tangents of the ball are those of the plane, so the same curve solves y' = v(y, t) there: scipy is the judge.
    from scipy.integrate import solve_ivp

    truth = torch.stack(
        [
            torch.as_tensor(
                solve_ivp(
                    lambda t, y: velocity(torch.as_tensor(y), torch.tensor(t)).numpy(),
                    (0.0, 0.5), p.numpy(), rtol=1e-12, atol=1e-13,
                ).y[:, -1]
            )
            for p in x
        ]
    )  # fmt: skip
    steps = [4, 8, 16]
    errors = [float((arrive(n, method) - truth).norm(dim=-1).max()) for n in steps]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(slopes) > order - 0.25, (errors, slopes)
    assert errors[-1] < {1: 0.1, 2: 1e-2, 4: 1e-5}[order]


# ---------------------------------------------------------------- compiled geometry


@pytest.mark.parametrize("dim", [2, 3])
def test_compiled_sphere_agrees_with_eager(dim: int) -> None:
    """Graphs are captured with the coordinate-wise formulas that the compiler gets, without building C++."""
    sphere = mf.Sphere(dim)
    torch.compiler.reset()
    exp = torch.compile(sphere.exp, fullgraph=True, backend="aot_eager")
    log = torch.compile(sphere.log, fullgraph=True, backend="aot_eager")
    for length in (0.0, 1e-6, 0.5, math.pi - 1e-6, math.pi):
        x, y = pairs_at_length(sphere, length, 16, torch.float64)
        u = sphere.log(x, y)
        assert (exp(x, u) - sphere.exp(x, u)).abs().max() < 1e-14
        difference = log(x, y) - u
        # At an antipode the direction hangs on the last digit of the chord.
        assert (sphere.exp(x, log(x, y)) - y).abs().max() < 1e-13
        assert difference.abs().max() < (1e-12 if length < 3 else 10.0)
        assert (log(x, y).norm(dim=-1) - u.norm(dim=-1)).abs().max() < 1e-13
