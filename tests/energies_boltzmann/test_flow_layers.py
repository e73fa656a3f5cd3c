"""Invertible layers: inverses, log-determinants against autograd, symmetries, and zuko's splines as an independent truth."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from manifoldflow.flows import (
    Affine,
    BodyTransformer,
    Chain,
    CircularSpline,
    DoubleMoebius,
    FieldCoupling,
    FromZuko,
    Inverted,
    Layer,
    LineSpline,
    Mixing,
    Projective,
    RotationCoupling,
    SplitCoupling,
    circular_spline,
    double_moebius,
    line_spline,
    projective,
    rotation_flow,
)
from manifoldflow.flows.moebius import into_ball
from manifoldflow.flows.splines import circular_turn, make_knots, rational_quadratic
from manifoldflow.flows.transforms import triangular
from manifoldflow.manifolds.rotation import quaternion_multiply


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quaternions(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.nn.functional.normalize(draw(n, 4, seed=seed, dtype=dtype), dim=-1)


def shaken(layer: Layer, seed: int = 0, scale: float = 0.3) -> Layer:
    """A layer far from the identity that it begins as."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return layer


def sphere_log_det(f: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    """log |det df| of a map of S^3 by autograd, in the frames q (0, e_k) of the Lie algebra; ``q`` ``(B, 4)``."""
    frame = torch.nn.functional.pad(torch.eye(3, dtype=q.dtype), (1, 0))

    def one(p: Tensor) -> Tensor:
        basis = torch.stack([quaternion_multiply(p, e) for e in frame])
        image = f(p.unsqueeze(0)).squeeze(0)
        target = torch.stack([quaternion_multiply(image, e) for e in frame])
        jacobian = torch.func.jacfwd(lambda v: f(v.unsqueeze(0)).squeeze(0))(p)
        return torch.linalg.slogdet(target @ jacobian @ basis.T)[1]

    return torch.stack([one(p) for p in q])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("radius", [0.0, 0.3, 0.9, 0.949])
def test_double_moebius_inverse_undoes_it(radius: float, dtype: torch.dtype, tolerance: float) -> None:
    q = quaternions(500, dtype=dtype)
    w = radius * quaternions(500, 1, dtype)
    there, log_det = double_moebius(q, w)
    back, log_back = double_moebius(there, w, inverse=True)
    assert (back - q).abs().max() < tolerance
    assert (log_det + log_back).abs().max() < 20 * tolerance
    assert (torch.linalg.vector_norm(there, dim=-1) - 1).abs().max() < 1e-6


def test_double_moebius_is_the_average_of_a_moebius_map_and_its_antipode() -> None:
    q, w = quaternions(50), 0.7 * quaternions(50, 1)

    def moebius(p: Tensor) -> Tensor:
        gap = p - w
        return (1 - (w * w).sum(-1, keepdim=True)) / (gap * gap).sum(-1, keepdim=True) * gap - w

    expected = torch.nn.functional.normalize(moebius(q) - moebius(-q), dim=-1)
    assert (double_moebius(q, w)[0] - expected).abs().max() < 1e-13


@pytest.mark.parametrize("radius", [0.2, 0.94])
def test_double_moebius_log_determinant_is_that_of_autograd(radius: float) -> None:
    q, w = quaternions(20), radius * quaternions(1, 1)
    assert (
        double_moebius(q, w.expand(20, 4))[1] - sphere_log_det(lambda p: double_moebius(p, w)[0], q)
    ).abs().max() < 1e-10
    single = double_moebius(q.float(), w.expand(20, 4).float())[1]
    assert (single - sphere_log_det(lambda p: double_moebius(p, w)[0], q)).abs().max() < 1e-4


def test_maps_of_rotations_commute_with_the_sign_exactly() -> None:
    q, free = quaternions(200, dtype=torch.float32), draw(200, 9, dtype=torch.float32)
    w = into_ball(free[:, :4])
    assert torch.equal(double_moebius(-q, w)[0], -double_moebius(q, w)[0])
    assert torch.equal(double_moebius(-q, w)[1], double_moebius(q, w)[1])
    assert torch.equal(Projective()(-q, free)[0], -Projective()(q, free)[0])
    for layer in (shaken(RotationCoupling("phase")), shaken(RotationCoupling("share")), Mixing()):
        there, log_det = layer(q)
        away, log_away = layer(-q)
        assert torch.equal(away, -there) and torch.equal(log_away, log_det), layer


def test_projective_inverts_and_is_affine_in_the_gnomonic_chart() -> None:
    q, free = quaternions(30), draw(30, 9)
    layer = Projective()
    there, log_det = layer(q, free)
    back, log_back = layer(there, free, inverse=True)
    assert (back - q).abs().max() < 1e-11 and (log_det + log_back).abs().max() < 1e-11
    lower = triangular(torch.nn.functional.pad(free, (1, 0)), 4)
    one = projective(q[:5], lower[:1].expand(5, 4, 4))[1]
    assert (one - sphere_log_det(lambda p: projective(p, lower[:1])[0], q[:5])).abs().max() < 1e-10
    chart, image = q[:, 1:] / q[:, :1], there[:, 1:] / there[:, :1]
    expected = lower[:, 1:, 0] + (lower[:, 1:, 1:] @ chart.unsqueeze(-1)).squeeze(-1)
    assert (image - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("changes", ["phase", "share"])
def test_rotation_coupling_inverts_with_the_log_determinant_of_autograd(changes: str) -> None:
    layer, q = shaken(RotationCoupling(changes).double()), quaternions(30)
    there, log_det = layer(q)
    back, log_back = layer.inverse(there)
    assert (there - q).abs().max() > 0.1
    assert (back - q).abs().max() < 1e-6  # lengths have a floor of 1e-7
    assert (log_det + log_back).abs().max() < 1e-5
    assert (log_det - sphere_log_det(lambda p: layer(p)[0], q)).abs().max() < 1e-5


def test_rotation_coupling_is_continuous_where_the_phase_passes_the_seam() -> None:
    layer = shaken(RotationCoupling("phase").double(), seed=3)
    angle = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)
    q = torch.stack([0.8 * angle.cos(), 0.8 * angle.sin(), torch.full_like(angle, 0.6), torch.zeros_like(angle)], -1)
    there = layer(q)[0]
    assert (there[1:] - there[:-1]).abs().max() < 0.2  # a jump would be 1.6


def test_rotation_flow_pushes_the_uniform_density_to_one_of_total_mass_one() -> None:
    flow = shaken(rotation_flow(2).double(), scale=0.12)
    q = quaternions(200_000)
    log_density = flow.inverse(q)[1]  # with respect to the uniform density
    mean, error = log_density.exp().mean(), log_density.exp().std() / len(q) ** 0.5
    assert abs(mean - 1) < 4 * error and error < 0.02


def test_circular_spline_is_periodic_smooth_at_the_seam_and_invertible() -> None:
    x = torch.linspace(-4, 9, 3000, dtype=torch.float64)
    free = draw(1, 25).expand(3000, 25)
    there, log_slope = circular_spline(x, free, 2 * math.pi)
    turned, log_turned = circular_spline(x + 2 * math.pi, free, 2 * math.pi)
    gap = (turned - there + math.pi).remainder(2 * math.pi) - math.pi
    assert gap.abs().max() < 1e-12 and (log_turned - log_slope).abs().max() < 1e-10
    back, log_back = circular_spline(there, free, 2 * math.pi, inverse=True)
    assert ((back - x + math.pi).remainder(2 * math.pi) - math.pi).abs().max() < 1e-10
    assert (log_back + log_slope).abs().max() < 1e-9
    assert ((there >= 0) & (there < 2 * math.pi)).all()
    # C1 at the seam: the slopes from the left and from the right agree, and the displacement has no jump
    sides = torch.tensor([-1e-9, 1e-9], dtype=torch.float64)
    turn, log_sides = circular_turn(sides, free[:2], 2 * math.pi)
    assert abs(log_sides[0] - log_sides[1]) < 1e-6 and abs(turn[0] - turn[1]) < 1e-7


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_log_slopes_are_those_of_autograd(inverse: bool) -> None:
    x, free = 6 * draw(400), draw(400, 25, seed=1)
    splines = [circular_spline, line_spline]
    for spline, size in zip(splines, (3.0, 4.0), strict=True):
        mapped = functools.partial(spline, inverse=inverse)
        slope = torch.func.jvp(lambda v, f=mapped, s=size: f(v, free, s)[0], (x,), (torch.ones_like(x),))[1]
        assert (slope.log() - mapped(x, free, size)[1]).abs().max() < 1e-9


def test_line_spline_inverts_and_is_straight_outside() -> None:
    x, free = 6 * draw(500), draw(500, 25, seed=1)
    there, log_slope = line_spline(x, free, 4.0)
    back, log_back = line_spline(there, free, 4.0, inverse=True)
    assert (back - x).abs().max() < 1e-9 and (log_slope + log_back).abs().max() < 1e-9
    scale, shift = free[:, 23].exp(), free[:, 24]
    far = (x * scale + shift).abs() > 4
    assert far.any() and (there - x * scale - shift)[far].abs().max() < 1e-12


def test_splines_are_those_of_zuko() -> None:
    zuko = pytest.importorskip("zuko")
    width, height, slope = draw(60, 8), draw(60, 8, seed=1), draw(60, 7, seed=2)
    theirs = zuko.transforms.MonotonicRQSTransform(width, height, slope, bound=1.0)
    x = 2 * torch.rand(60, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1
    knots = make_knots(width, height, draw(60, 9))._replace(
        x=(theirs.horizontal + 1) / 2, y=(theirs.vertical + 1) / 2, slope=theirs.derivatives
    )
    image, log_slope = rational_quadratic((x + 1) / 2, knots)
    expected, log_expected = theirs.call_and_ladj(x)
    assert (2 * image - 1 - expected).abs().max() < 1e-12 and (log_slope - log_expected).abs().max() < 1e-11


@pytest.mark.parametrize(
    "transform", [CircularSpline(), LineSpline(), Affine(3), DoubleMoebius(), Projective()], ids=str
)
def test_no_free_numbers_no_change(transform: Affine) -> None:
    x = quaternions(7) if transform in (DoubleMoebius(), Projective()) else draw(7, 3).abs()
    shape = x.shape[: x.ndim - transform.event_ndim]
    there, log_det = transform(x, torch.zeros(*shape, transform.free, dtype=torch.float64))
    assert (there - x).abs().max() < 1e-12 and log_det.abs().max() < 1e-12 and log_det.shape == shape


def _split_chain() -> Chain:
    transforms = {"line": LineSpline(4), "angle": CircularSpline(4)}
    masks = [
        {"line": [True, False, True], "angle": [False, True]},
        {"line": [False, True, False], "angle": [True, False]},
    ]
    return Chain(SplitCoupling(transforms, kept, width=16) for kept in masks)


def test_split_couplings_of_lines_and_circles_invert_with_the_log_determinant_of_autograd() -> None:
    flow = shaken(_split_chain().double())
    x = {"line": draw(6, 3), "angle": draw(6, 2, seed=1).remainder(2 * math.pi)}
    there, log_det = flow(x)
    back, log_back = flow.inverse(there)
    assert all((back[k] - x[k]).abs().max() < 1e-9 for k in x) and (log_det + log_back).abs().max() < 1e-9

    def flat(v: Tensor) -> Tensor:
        made = flow({"line": v[None, :3], "angle": v[None, 3:]})[0]
        return torch.cat([made["line"], made["angle"]], -1)[0]

    for i in range(6):
        jacobian = torch.func.jacfwd(flat)(torch.cat([x["line"][i], x["angle"][i]]))
        assert abs(torch.linalg.slogdet(jacobian)[1] - log_det[i]) < 1e-8


def bodies(n: int = 5, size: int = 3) -> dict[str, Tensor]:
    return {"pos": 0.1 * draw(size, n, 3), "rot": quaternions(size * n, 1).unflatten(0, (size, n))}


def _body_chain(n: int = 5, sites: int = 0) -> Chain:
    fields = {"pos": Affine(3), "rot": Projective()}
    even = torch.arange(n) % 2 == 0

    def one(field: str, changed: Tensor | None = None) -> FieldCoupling:
        network = BodyTransformer(fields, fields[field].free, sites=sites, width=16, heads=2, blocks=1)
        return FieldCoupling(field, fields[field], network, changed)

    return Chain([one("rot"), one("pos"), one("rot", even), one("pos", ~even)])


def test_couplings_of_bodies_invert_and_keep_what_they_do_not_change() -> None:
    flow, x = shaken(_body_chain(sites=5).double()), bodies()
    there, log_det = flow(x)
    back, log_back = flow.inverse(there)
    assert all((back[k] - x[k]).abs().max() < 1e-9 for k in x)
    assert (log_det + log_back).abs().max() < 1e-9 and (there["rot"] - x["rot"]).abs().max() > 0.05
    only = flow.layers[3](x)[0]
    assert torch.equal(only["rot"], x["rot"]) and torch.equal(only["pos"][:, ::2], x["pos"][:, ::2])


def test_couplings_of_bodies_have_the_log_determinant_of_autograd() -> None:
    """In a chart of all bodies: the gnomonic one of each quaternion, whose volume against the sphere's is |chart|^4."""
    flow, x = shaken(_body_chain(n=2).double()), bodies(n=2, size=2)

    def from_chart(v: Tensor) -> dict[str, Tensor]:
        pos, tangent = v[:6].reshape(1, 2, 3), v[6:].reshape(1, 2, 3)
        return {
            "pos": pos,
            "rot": torch.nn.functional.normalize(torch.nn.functional.pad(tangent, (1, 0), value=1.0), dim=-1),
        }

    def chart(state: dict[str, Tensor]) -> Tensor:
        return torch.cat([state["pos"].flatten(), (state["rot"][..., 1:] / state["rot"][..., :1]).flatten()])

    for i in range(2):
        v = chart({k: value[i : i + 1] for k, value in x.items()})
        jacobian = torch.func.jacrev(lambda u: chart(flow(from_chart(u))[0]))(v)
        image = chart(flow(from_chart(v))[0])
        volume = [-2 * (1 + u[6:].reshape(2, 3).square().sum(-1)).log().sum() for u in (v, image)]
        expected = torch.linalg.slogdet(jacobian)[1] + volume[1] - volume[0]
        assert abs(expected - flow(from_chart(v))[1]) < 1e-8


def test_the_transformer_of_bodies_has_no_order() -> None:
    flow, x = shaken(Chain(list(_body_chain().layers[:2])).double()), bodies()
    order = torch.tensor([3, 0, 4, 1, 2])
    there, log_det = flow(x)
    moved, log_moved = flow({k: v[:, order] for k, v in x.items()})
    assert (
        all((moved[k] - there[k][:, order]).abs().max() < 1e-12 for k in x)
        and (log_det - log_moved).abs().max() < 1e-12
    )


def test_zuko_transforms_are_layers() -> None:
    autoregressive = pytest.importorskip("zuko.flows.autoregressive")
    flow = FromZuko(autoregressive.MaskedAutoregressiveTransform(3, passes=2, hidden_features=[16])).double()
    x = draw(5, 3)
    there, log_det = flow(x)
    back, log_back = Inverted(flow)(there)
    assert (back - x).abs().max() < 1e-6 and (log_det + log_back).abs().max() < 1e-6
    jacobian = torch.func.jacfwd(lambda v: flow(v[None])[0][0])(x[0])
    assert abs(torch.linalg.slogdet(jacobian)[1] - log_det[0]) < 1e-6


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="the layer needs the field 'rot', the state has pos"):
        Mixing("rot")({"pos": draw(2, 3)})
    with pytest.raises(ValueError, match="keeps every number"):
        SplitCoupling({"": CircularSpline()}, {"": [True, True]})
    with pytest.raises(ValueError, match="maps vectors"):
        SplitCoupling({"": Affine(3)}, {"": [True, True, False]})
    with pytest.raises(ValueError, match="'phase' or 'share', got 'angle'"):
        RotationCoupling("angle")
    with pytest.raises(ValueError, match="3 K \\+ 1 numbers, got 24"):
        circular_spline(draw(2), draw(2, 24), 1.0)
