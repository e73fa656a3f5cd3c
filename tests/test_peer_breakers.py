"""Inputs on which published libraries return NaN or wrong numbers (PEERS.md, sections 1c and 9)."""

import math

import pytest
import torch

from manifoldflow.manifolds import SO3, Simplex, Sphere, Torus, UnitQuaternion
from manifoldflow.manifolds import rotation as rot
from manifoldflow.testing import pairs_at_length, point_gap

S2 = Sphere(2)
NEAR = [1e-6, 1e-5, 1e-4, 1e-2]


def gradient(function, x):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(function(x).square().sum() + function(x).sum(), x)
    return g


def test_distance_of_a_float32_point_to_itself_is_zero_where_its_square_exceeds_one():
    x = torch.tensor(
        [0.5283689498901367, -0.8086723685264587, -0.2586027979850769]
    )  # flow_matching: NaN; geoopt: 0.0141
    assert S2.dist(x, x) == 0
    many = S2.sample_uniform((4000,))
    assert S2.dist(many, many).abs().max() == 0
    assert S2.log(many, many).abs().max() == 0
    assert (S2.dist(many, -many) - math.pi).abs().max() < 1e-6  # geoopt: 3.1274


@pytest.mark.parametrize("length", NEAR)
def test_sphere_distance_keeps_its_digits_for_near_points(length):  # geoopt: 141 times too long at 1e-4
    x, y = pairs_at_length(S2, length, 1000, torch.float32)
    truth = S2.dist(x.double(), y.double())
    assert (S2.log(x, y).norm(dim=-1) - truth).abs().max() < 1e-7
    assert (S2.dist(x, y) - truth).abs().max() < 1e-7


@pytest.mark.parametrize("length", [0.0, 1e-8, 1e-4, math.pi - 1e-4, math.pi - 1e-6, math.pi])
def test_sphere_log_gradient_is_finite_near_and_far(length):  # flow_matching: NaN for 81 to 84 % of rows
    x, y = pairs_at_length(S2, length, 1000, torch.float32)
    assert torch.isfinite(gradient(lambda v: S2.log(v, y), x)).all()
    assert torch.isfinite(gradient(lambda v: S2.log(x, v), y)).all()


def test_derivatives_at_zero_tangents_and_equal_points_are_the_identity():  # peers: NaN for every row
    x = S2.sample_uniform((100,), dtype=torch.float64)
    u = torch.zeros_like(x)
    for function, at in ((lambda v: S2.exp(x, v), u), (lambda v: S2.log(x, v), x)):
        push = torch.func.jvp(function, (at,), (S2.tangent_basis(x)[:, 0],))[1]
        assert (push - S2.tangent_basis(x)[:, 0]).abs().max() < 1e-14


def test_log_at_an_exact_antipode_is_a_deterministic_tangent_of_length_pi():  # flow_matching: length 0
    x = torch.cat([S2.sample_uniform((1000,)), torch.eye(3), -torch.eye(3), torch.full((1, 3), 3**-0.5)])
    u = S2.log(x, -x)
    assert (u.norm(dim=-1) - math.pi).abs().max() < 2e-6
    assert (u * x).sum(-1).abs().max() < 2e-6
    assert torch.equal(u, S2.log(x, -x))
    assert (S2.exp(x, u) + x).abs().max() < 2e-6


@pytest.mark.parametrize("length", [1e-6, 1e-5, 1e-4, math.pi - 1e-4, math.pi - 1e-5, math.pi])
@pytest.mark.parametrize("dim", [2, 127])
def test_geodesic_targets_are_right_near_and_far(
    length, dim
):  # flow_matching: u_t off by 5 times its length, x_t off by 2
    sphere = Sphere(dim)
    x0, x1 = pairs_at_length(sphere, length, 500, torch.float32)
    t = torch.rand(500)
    xt, ut = sphere.geodesic(x0, x1, t)
    angle = sphere.dist(x0.double(), x1.double())
    assert (xt.norm(dim=-1) - 1).abs().max() < 1e-6
    assert (sphere.dist(x0.double(), xt.double()) - t * angle).abs().max() < 2e-6
    assert (sphere.dist(xt.double(), x1.double()) - (1 - t) * angle).abs().max() < 2e-6
    assert (ut.norm(dim=-1) - angle).abs().max() < 2e-6
    assert (sphere.exp(xt.double(), (1 - t).unsqueeze(-1) * ut.double()) - x1).abs().max() < 5e-6


def test_geodesic_at_an_exact_antipode_goes_half_way_round():
    x = S2.sample_uniform((200,))
    xt, ut = S2.geodesic(x, -x, 0.5)
    assert (S2.dist(x, xt) - math.pi / 2).abs().max() < 2e-6
    assert (ut.norm(dim=-1) - math.pi).abs().max() < 2e-6


def test_geodesic_takes_sets_of_points():  # flow_matching raises for (B, N, 3)
    x0, x1 = S2.sample_uniform((4, 5)), S2.sample_uniform((4, 5))
    t = torch.rand(4)
    xt, ut = S2.geodesic(x0, x1, t)
    assert xt.shape == ut.shape == (4, 5, 3)
    assert (xt[2, 3] - S2.geodesic(x0[2, 3], x1[2, 3], t[2])[0]).abs().max() < 1e-6


def test_sphere_exp_leaves_the_positive_orthant():  # fisher-flow: (+0.98999, 0.14112, 0)
    y = S2.exp(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0]))
    assert (y - torch.tensor([math.cos(3), math.sin(3), 0.0])).abs().max() < 1e-6


@pytest.mark.parametrize("gap", [1e-2, 5e-3, 1e-3, 1e-4, 1e-6, 0.0])
def test_rotation_log_keeps_its_digits_near_pi(gap):  # FrameFlow, ReQFlow, geomstats: 3e-2 rad wrong
    axis = torch.nn.functional.normalize(torch.randn(2000, 3, dtype=torch.float64), dim=-1)
    truth = rot.rotvec_to_matrix((math.pi - gap) * axis)
    w = rot.matrix_to_rotvec(truth.float())
    assert (w.norm(dim=-1) - (math.pi - gap)).abs().max() < 1e-6
    assert (rot.rotvec_to_matrix(w.double()) - truth).abs().max() < 1e-6


HALF_TURNS = [
    torch.diag(torch.tensor(d)) for d in ([1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0])
]


@pytest.mark.parametrize("matrix", HALF_TURNS, ids=["identity", "x", "y", "z"])
def test_rotation_log_and_quaternion_have_finite_gradients_at_identity_and_half_turns(
    matrix,
):  # FrameFlow, e3nn, eigh: NaN
    assert torch.isfinite(gradient(rot.matrix_to_rotvec, matrix)).all()
    assert torch.isfinite(gradient(rot.matrix_to_quaternion, matrix)).all()
    assert (rot.rotvec_to_matrix(rot.matrix_to_rotvec(matrix)) - matrix).abs().max() < 1e-6


def test_rotation_exp_gradient_at_zero_is_the_generators():  # FrameFlow: NaN; e3nn: 5e5
    jacobian = torch.func.jacfwd(rot.rotvec_to_matrix)(torch.zeros(3))
    assert (jacobian - torch.stack([rot.hat(e) for e in torch.eye(3)], -1)).abs().max() < 1e-7


@pytest.mark.parametrize("angle", [0.0, 1e-4, 1.0, math.pi])
def test_matrix_to_quaternion_gradient_is_finite_and_sign_fixed(angle):  # openfold's eigh: NaN rows, random sign
    w = angle * torch.nn.functional.normalize(torch.randn(2000, 3), dim=-1)
    matrix = rot.rotvec_to_matrix(w)
    assert torch.isfinite(gradient(rot.matrix_to_quaternion, matrix)).all()
    assert (rot.matrix_to_quaternion(matrix)[..., 0] >= 0).all()


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 3, 4), (2, 5, 4)])
def test_quaternion_log_of_sets_is_the_log_of_each(shape):  # ReQFlow: wrong by up to 1.6 rad, or raises
    q = UnitQuaternion().project(torch.randn(shape))
    each = torch.stack([rot.quaternion_to_rotvec(v) for v in q.flatten(0, -2)]).reshape(*shape[:-1], 3)
    assert (rot.quaternion_to_rotvec(q) - each).abs().max() < 1e-6


def test_four_radians_are_reduced_and_the_sign_of_a_quaternion_does_not_matter():  # ReQFlow: 4.0 and 2.283
    w = 4.0 * torch.nn.functional.normalize(torch.randn(100, 3), dim=-1)
    q = rot.rotvec_to_quaternion(w)
    assert (rot.quaternion_to_rotvec(q).norm(dim=-1) - (2 * math.pi - 4)).abs().max() < 1e-6
    assert torch.equal(rot.quaternion_to_rotvec(q), rot.quaternion_to_rotvec(-q))
    space, other = UnitQuaternion(), UnitQuaternion().sample_uniform((100,))
    assert (space.log(q, other) - space.log(-q, other)).abs().max() < 1e-6
    assert point_gap(space, space.geodesic(q, -other, 0.3)[0], space.geodesic(q, other, 0.3)[0]) < 1e-6


def test_rotation_log_keeps_its_digits_below_1e_4():  # e3nn loses all of them
    w = 1e-6 * torch.nn.functional.normalize(torch.randn(1000, 3), dim=-1)
    assert (rot.matrix_to_rotvec(rot.rotvec_to_matrix(w)) - w).abs().max() < 1e-12
    assert (SO3().log(torch.eye(3), rot.rotvec_to_matrix(w)) - w).abs().max() < 1e-12


CORNERS = {
    "one-hot to uniform": ([1.0, 0, 0, 0], [0.25] * 4, [0.75, 1 / 12, 1 / 12, 1 / 12]),
    "one-hot to another": ([1.0, 0, 0, 0], [0, 1.0, 0, 0], [0.5, 0.5, 0, 0]),
    "one-hot to itself": ([1.0, 0, 0, 0], [1.0, 0, 0, 0], [1.0, 0, 0, 0]),
    "inner point to itself": ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
}


@pytest.mark.parametrize("p, q, middle", CORNERS.values(), ids=CORNERS.keys())
def test_simplex_geodesic_from_corners(p, q, middle):  # fisher-flow: NaN; SFM: stays at the start
    simplex, p, q = Simplex(4), torch.tensor(p), torch.tensor(q)
    xt, ut = simplex.geodesic(p, q, 0.5)
    assert (xt - torch.tensor(middle)).abs().max() < 1e-6
    assert (ut.norm() - simplex.dist(p, q)).abs() < 2e-6
    assert (simplex.exp(p, simplex.log(p, q)) - q).abs().max() < 2e-6
    for function in (
        lambda v: simplex.log(v, q),
        lambda v: simplex.geodesic(v, q, 0.5)[0],
        lambda v: simplex.exp(v, simplex.log(p, q)),
    ):
        assert torch.isfinite(gradient(function, p)).all()


@pytest.mark.parametrize("period", [1.0, 2 * math.pi])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_wrapped_points_never_reach_the_period(period, dtype):  # flow_matching: 6.283185482 > 2 pi; flowmm: 1.0
    torus = Torus(1, period)
    below = torch.tensor([[-1e-8], [-1e-20], [0.0], [period], [-period], [math.nextafter(period, 0)]], dtype=dtype)
    wrapped = torus.project(below)
    assert (wrapped >= 0).all() and (wrapped.double() < period).all()
    moved = torus.exp(torch.zeros(1, dtype=dtype), below)
    assert (moved >= 0).all() and (moved.double() < period).all()
    assert (torch.func.jvp(torus.project, (below,), (torch.ones_like(below),))[1] == 1).all()
