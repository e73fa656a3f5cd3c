"""Every manifold keeps every promise of ``manifoldflow.testing.check_manifold`` in both precisions."""

import math

import pytest
import torch

from manifoldflow.manifolds import SO3, Centered, Checked, Euclidean, Simplex, Sphere, Torus, UnitQuaternion
from manifoldflow.testing import check_manifold, check_path, pairs_at_length, point_gap

TO_PI = (0.0, 1e-8, 1e-6, 1e-4, 1e-2, 1.0, math.pi - 1e-2, math.pi - 1e-4, math.pi - 1e-6, math.pi)
TO_HALF_PERIOD = (0.0, 1e-8, 1e-4, 1e-2, 0.3, 0.5)
CASES = {
    "euclidean": (Euclidean(3), (0.0, 1e-4, 1.0)),
    "sphere1": (Sphere(1), TO_PI),
    "sphere2": (Sphere(2), TO_PI),
    "sphere127": (Sphere(127), TO_PI),
    "torus": (Torus(3), TO_HALF_PERIOD),
    "torus-2pi": (Torus(2, 2 * math.pi), TO_PI),
    "so3": (SO3(), TO_PI),
    "quaternion": (UnitQuaternion(), TO_PI),
    "simplex": (Simplex(4), (0.0, 1e-8, 1e-4, 1e-2, 0.05)),
    "simplex20": (Simplex(20), (0.0, 1e-8, 1e-4, 1e-2, 0.05)),
    "simplex-flat": (Simplex(4, "flat"), (0.0, 1e-8, 1e-4, 1e-3)),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_manifold_conforms(case, dtype):
    manifold, lengths = case
    check_manifold(manifold, dtype=dtype, lengths=lengths)


@each
def test_geodesic_path_conforms(case):
    from manifoldflow.paths import Exponential, Geodesic

    check_path(Geodesic(), case[0])
    check_path(Geodesic(schedule=Exponential(3.0)), case[0])


@each
def test_exp_log_and_geodesic_pass_gradcheck(case):
    manifold, _ = case
    x, y = pairs_at_length(manifold, 0.04, 2)
    if isinstance(manifold, Simplex):  # away from the boundary, where finite differences of sqrt(p) mean nothing
        x, y = (0.5 * v + 0.5 * manifold.origin(dtype=v.dtype) for v in (x, y))

    def all_of_it(a, b):
        return manifold.log(a, b), manifold.exp(a, manifold.log(a, b)), *manifold.geodesic(a, b, 0.3)

    assert torch.autograd.gradcheck(all_of_it, (x.requires_grad_(), y.requires_grad_()), atol=1e-5, rtol=1e-3)


@each
def test_traces_without_graph_breaks(case):
    check_manifold(case[0], lengths=case[1][-1:], count=4, transforms=False, compile=True)


def test_compiles_to_cpp_and_agrees():
    sphere = Sphere(2)
    x, y = pairs_at_length(sphere, 2.0, 3000, torch.float32)
    xt, ut = torch.compile(sphere.geodesic, fullgraph=True)(x, y, torch.full((3000,), 0.3))
    assert point_gap(sphere, xt, sphere.geodesic(x, y, 0.3)[0]) < 1e-6
    assert point_gap(sphere, ut, sphere.geodesic(x, y, 0.3)[1]) < 2e-6


@pytest.mark.parametrize("space", [Sphere(2), SO3(), UnitQuaternion()], ids=["sphere", "so3", "quaternion"])
def test_compiled_for_the_cpu_the_maps_agree_with_eager_from_0_to_the_cut_locus(space):
    # 3,500 points: small batches keep the eager formulas when compiled.
    pairs = [pairs_at_length(space, length, 700, torch.float32) for length in (0.0, 1e-4, 1.0, 3.0, math.pi - 1e-3)]
    x, y = (torch.cat(points) for points in zip(*pairs, strict=True))
    t = torch.linspace(0, 1, len(x))

    def maps(x, y, t):
        u = space.log(x, y)
        return space.exp(x, u), *space.geodesic(x, y, t), space.interpolate(x, y, t), u

    *eager, u = maps(x, y, t)
    *compiled, v = torch.compile(maps, fullgraph=True, backend="aot_eager")(x, y, t)
    for name, a, b in zip(("exp", "geodesic", "velocity", "interpolate"), eager, compiled, strict=True):
        assert (a - b).abs().max() < 4e-6, name
    assert (u - v).abs().max() < 4e-6


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_computed_in_float32_and_keeps_its_dtype(case, dtype):
    manifold, lengths = case
    x, y = (v.to(dtype) for v in pairs_at_length(manifold, lengths[-1], 8, torch.float32))
    u = manifold.log(x, y)
    assert u.dtype == dtype
    assert torch.equal(u, manifold.log(x.float(), y.float()).to(dtype))
    assert manifold.geodesic(x, y, 0.5)[0].dtype == dtype


@each
def test_autocast_does_not_touch_geometry(case):
    manifold, lengths = case
    x, y = pairs_at_length(manifold, lengths[-1], 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = manifold.exp(x, manifold.log(x, y))
    assert inside.dtype == torch.float32
    assert point_gap(manifold, inside, y) < 2e-6


@each
def test_points_may_have_any_leading_axes(case):
    manifold, lengths = case
    x, y = pairs_at_length(manifold, lengths[-2], 6)
    wide_x, wide_y = x.unflatten(0, (2, 3)), y.unflatten(0, (2, 3))
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    xt, ut = manifold.geodesic(wide_x, wide_y, t)
    flat = manifold.geodesic(x, y, t.repeat_interleave(3))
    assert point_gap(manifold, xt.flatten(0, 1), flat[0]) < 1e-14
    assert point_gap(Euclidean(1), ut.flatten(0, 1), flat[1]) < 1e-14


@each
def test_origin_and_uniform_samples_lie_on_the_manifold(case):
    manifold, _ = case
    manifold.check(manifold.origin((2, 3)), atol=1e-6)
    if not isinstance(manifold, Euclidean):
        manifold.check(manifold.sample_uniform((500,)), atol=1e-5)


@pytest.mark.parametrize("period", [1.0, 2 * math.pi])
def test_torus_log_stays_in_the_half_open_interval(period):
    torus = Torus(1, period)
    steps = (
        torch.linspace(-3, 3, 97, dtype=torch.float64).unsqueeze(-1) * period
    )  # includes odd multiples of period / 2
    u = torus.log(torch.zeros(1, dtype=torch.float64), steps)
    assert u.min() == -period / 2
    assert u.max() < period / 2


def test_centered_removes_the_mean_of_real_points_only():
    space = Centered(Euclidean(3))
    mask = torch.tensor([[True, True, True, False]])
    x = space.center(torch.randn(1, 4, 3, dtype=torch.float64) + 5, mask)
    assert x[:, :3].sum(1).abs().max() < 1e-14
    assert x[:, 3].abs().max() == 0


def test_flat_simplex_projection_is_the_closest_point():
    simplex = Simplex(5, "flat")
    y = torch.randn(50, 5, dtype=torch.float64)
    p = simplex.project(y)
    simplex.check(p, 1e-12)
    others = simplex.sample_uniform((50, 2000), dtype=torch.float64)
    assert ((others - y.unsqueeze(1)).norm(dim=-1).amin(1) >= (p - y).norm(dim=-1)).all()


def test_fisher_rao_distance_is_twice_the_bhattacharyya_angle():
    p, q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    assert abs(float(Simplex(3).dist(p, q)) - 2 * math.acos(float((p * q).sqrt().sum()))) < 1e-14


def test_checked_names_the_method_and_the_fault():
    sphere = Checked(Sphere(2))
    x = torch.tensor([[1.0, 0.0, 0.0]])
    assert sphere.exp(x, torch.tensor([[0.0, 1.0, 0.0]])).shape == x.shape
    with pytest.raises(ValueError, match=r"exp: a vector lies .* off the tangent space"):
        sphere.exp(x, torch.tensor([[1.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"log: .*off the manifold"):
        sphere.log(x, 2 * x)
    with pytest.raises(ValueError, match=r"log: .*shape"):
        sphere.log(x, x[..., :2])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Sphere(0), "dim"),
        (lambda: Torus(3, -1.0), "period"),
        (lambda: Simplex(1), "categories"),
        (lambda: Simplex(3, "round"), "metric"),
    ],
)
def test_bad_hyper_parameters_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
