"""log_prob against closed forms, quadrature, finite differences and itself at other step counts."""

import math

import pytest
import torch
from torch import nn

import manifoldflow as mf
from manifoldflow.sampling.likelihood import divergence, quadrature_weights, trace_nodes

DOUBLE = torch.float64


class Field(nn.Module):
    """A hand-made velocity field ``function(x, t)``."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, t):
        return self.function(x, t)


def smooth_flow(space, seed=0, width=32, gain=4.0):
    """A flow with a random smooth field of moderate size."""
    torch.manual_seed(seed)
    net = mf.nn.TangentMLP(space, width, 2, frequencies=2).double()
    with torch.no_grad():
        net.net[-1].weight *= gain
    return mf.Flow(space, model=net).eval()


CLOSED = {
    "sphere1": mf.Sphere(1),
    "sphere2": mf.Sphere(2),
    "sphere4": mf.Sphere(4),
    "torus": mf.Torus(2, 2 * math.pi),
    "so3": mf.SO3(),
    "quaternion": mf.UnitQuaternion(),
}
EVERY = {
    **CLOSED,
    "euclidean": mf.Euclidean(3),
    "simplex": mf.Simplex(4),
    "simplex-flat": mf.Simplex(4, "flat"),
}
closed = pytest.mark.parametrize("space", CLOSED.values(), ids=CLOSED.keys())
every = pytest.mark.parametrize("space", EVERY.values(), ids=EVERY.keys())


def some_points(space, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(space, mf.Euclidean):
        return torch.randn(count, space.d, dtype=DOUBLE, generator=generator)
    return space.sample_uniform((count,), generator=generator, dtype=DOUBLE)


@closed
def test_density_of_any_smooth_field_integrates_to_one(space):
    flow = smooth_flow(space)
    x = some_points(space, 4000)
    weight = (flow.log_prob(x, steps=12) + space.log_volume).exp()
    assert weight.std() > 0.02, "the field moves nothing, so the test shows nothing"
    assert abs(float(weight.mean()) - 1) < 4 * float(weight.std()) / len(x) ** 0.5


def test_gaussian_scaled_by_a_linear_field_has_its_closed_form_density():
    # x' = a x turns N(0, 1) into N(0, e^2a).
    a = torch.tensor([0.7, -0.4, 0.2], dtype=DOUBLE)
    flow = mf.Flow(mf.Euclidean(3), model=Field(lambda x, t: a * x))
    x = torch.randn(20, 3, dtype=DOUBLE)
    exact = torch.distributions.Normal(torch.zeros(3, dtype=DOUBLE), a.exp()).log_prob(x).sum(-1)
    assert (flow.log_prob(x, steps=20) - exact).abs().max() < 1e-6
    assert (flow.log_prob(x, method=mf.Adaptive(1e-8, 1e-8)) - exact).abs().max() < 1e-6


def test_dipole_field_on_the_sphere_has_its_closed_form_density():
    # x' = c (a - <a, x> x) moves z = <a, x> by z' = c (1 - z^2): a Moebius map with density (cosh c - z sinh c)^-2 / 4 pi.
    c, axis = 0.9, torch.tensor([0.0, 0.6, 0.8], dtype=DOUBLE)
    flow = mf.Flow(mf.Sphere(2), model=Field(lambda x, t: c * (axis - (x @ axis).unsqueeze(-1) * x)))
    x = some_points(mf.Sphere(2), 50)
    exact = -2 * (math.cosh(c) - math.sinh(c) * (x @ axis)).log() - math.log(4 * math.pi)
    assert (flow.log_prob(x, steps=30) - exact).abs().max() < 1e-6


def test_frame_divergence_of_a_field_with_a_normal_part_is_that_of_its_tangent_part():
    # div of the projection of a constant vector b on S^d is -d <b, x>.
    for d in (1, 2, 5):
        sphere = mf.Sphere(d)
        b, x = torch.randn(d + 1, dtype=DOUBLE), some_points(sphere, 9)
        _, div = divergence(lambda y, t, s=sphere, b=b: s.to_tangent(y, b.expand_as(y)), sphere, x, torch.zeros(()))
        assert (div + d * (x @ b)).abs().max() < 1e-12


def test_left_invariant_fields_of_rotations_have_no_divergence_and_right_invariant_ones_neither():
    w = torch.tensor([0.3, -1.0, 0.5], dtype=DOUBLE)
    x = some_points(mf.SO3(), 9)
    for field in (lambda r, t: w.expand(len(r), 3), lambda r, t: (r.mT @ w.unsqueeze(-1)).squeeze(-1)):
        _, div = divergence(field, mf.SO3(), x, torch.zeros(()))
        assert div.abs().max() < 1e-12


@every
def test_gradient_in_x_matches_finite_differences(space):
    flow = smooth_flow(space, gain=2.0)
    x = some_points(space, 3)
    if isinstance(space, mf.Simplex):  # away from the boundary
        x = 0.5 * x + 0.5 * space.origin(dtype=DOUBLE)
    move = space.frame_moves(x)[0][:, 0]
    x.requires_grad_()
    slope = (torch.autograd.grad(flow.log_prob(x, steps=6).sum(), x)[0] * move).flatten(1).sum(-1)
    along, h = space.tangent_basis(x.detach())[:, 0], 1e-5
    ends = [flow.log_prob(space.exp(x.detach(), sign * h * along), steps=6) for sign in (1, -1)]
    assert slope.abs().max() > 1e-3
    assert ((ends[0] - ends[1]) / (2 * h) - slope).abs().max() < 1e-6 * max(1, float(slope.abs().max()))


def test_gradient_in_the_parameters_matches_finite_differences():
    flow = smooth_flow(mf.Sphere(2), width=8)
    x = some_points(mf.Sphere(2), 4)
    weight = flow.model.net[0].weight
    value = flow.log_prob(x, steps=4, differentiable=True).sum()
    slope = torch.autograd.grad(value, weight)[0][2, 1]
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[2, 1] += sign * 1e-5
            ends.append(flow.log_prob(x, steps=4).sum())
            weight[2, 1] -= sign * 1e-5
    assert abs((ends[0] - ends[1]) / 2e-5 - slope) < 1e-6


@every
def test_hutchinson_estimate_is_unbiased(space):
    flow = smooth_flow(space)
    x = some_points(space, 4)
    exact = flow.log_prob(x, steps=8)
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack(
        [flow.log_prob(x, steps=8, divergence="hutchinson", probes=4, generator=generator) for _ in range(60)]
    )
    deviation = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 4.5 * deviation + 1e-9).all()


@pytest.mark.parametrize("kind", [mf.nn.TangentMLP, mf.nn.TangentResNet])
def test_networks_own_derivative_equals_forward_mode(kind):
    for space in CLOSED.values():
        for features in (None, mf.nn.FourierFeatures(space, 16, 8.0)):
            torch.manual_seed(0)
            net = kind(space, 16, 3, features=features).double()
            for weight in net.parameters():  # residual blocks start at zero
                torch.nn.init.normal_(weight, std=0.3)
            x, t = some_points(space, 5), torch.full((5,), 0.3, dtype=DOUBLE)
            moves = space.frame_moves(x)[0].movedim(1, 0)
            v, dv = net.push_forward(x, t, moves)
            for move, derivative in zip(moves, dv, strict=True):
                value, expected = torch.func.jvp(lambda y, net=net, t=t: net(y, t), (x,), (move,))
                assert (value - v).abs().max() < 1e-13
                assert (expected - derivative).abs().max() < 1e-12


def test_error_estimate_covers_the_error():
    flow = smooth_flow(mf.Sphere(2), gain=6.0)
    x = some_points(mf.Sphere(2), 200)
    truth = flow.log_prob(x, steps=200, trace_every=1)
    value, error = flow.log_prob(x, steps=16, return_error=True)
    assert 0 < (value - truth).abs().max() < error.max()
    value, error = flow.log_prob(x, method=mf.Adaptive(1e-4, 1e-4), return_error=True)
    assert 0 < (value - truth).abs().max() < 10 * error.max()


@pytest.mark.parametrize("method, order", [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_log_prob_converges_with_the_order_of_the_integrator(method, order):
    flow = smooth_flow(mf.Sphere(2), gain=3.0)
    x = some_points(mf.Sphere(2), 30)
    truth = flow.log_prob(x, steps=200, trace_every=1)
    errors = [float((flow.log_prob(x, steps=n, method=method) - truth).abs().mean()) for n in (32, 64)]
    assert math.log2(errors[0] / errors[1]) > order - 0.5


def test_rotations_have_one_density_as_matrices_and_as_quaternions():
    from manifoldflow.manifolds.rotation import quaternion_to_matrix

    quaternions = smooth_flow(mf.UnitQuaternion())
    net = quaternions.model

    def as_matrix_field(r, t):
        from manifoldflow.manifolds.rotation import matrix_to_quaternion

        return net(matrix_to_quaternion(r), t)

    matrices = mf.Flow(mf.SO3(), model=Field(as_matrix_field))
    q = some_points(mf.UnitQuaternion(), 12)
    value = quaternions.log_prob(q, steps=10)
    assert (quaternions.log_prob(-q, steps=10) - value).abs().max() < 1e-12
    assert (matrices.log_prob(quaternion_to_matrix(q), steps=10) - value).abs().max() < 1e-9


def test_density_on_the_simplex_changes_measure_as_the_square_root_map_does():
    # Uniform on the orthant is Dirichlet(1/2): scipy's density is with respect to dp_1 ... dp_{K-1}.
    from scipy.stats import dirichlet

    for space, alpha in ((mf.Simplex(4), 0.5), (mf.Simplex(4, "flat"), 1.0)):
        p = some_points(space, 6)
        ours = mf.Uniform(space).log_prob(p) + space.log_volume_per_lebesgue(p)
        assert (ours - torch.tensor(dirichlet([alpha] * 4).logpdf(p.numpy().T))).abs().max() < 1e-10


def test_sets_fields_and_masks_add_their_divergences():
    # Independent linear fields: the density of a set with padding is the sum over real elements and fields.
    a, b = 0.5, -0.3

    class Both(nn.Module):
        def forward(self, x, t, *, mask=None):
            return {"u": a * x["u"], "v": b * x["v"]}

    flow = mf.Flow({"u": mf.Euclidean(2), "v": mf.Euclidean(1)}, model=Both())
    mask = torch.tensor([[True, True, False], [True, True, True]])
    x = {"u": torch.randn(2, 3, 2, dtype=DOUBLE), "v": torch.randn(2, 3, 1, dtype=DOUBLE)}
    x = {k: torch.where(mask.unsqueeze(-1), v, 0.0) for k, v in x.items()}
    exact = sum(
        (torch.distributions.Normal(0.0, math.exp(s)).log_prob(x[k]).sum(-1) * mask).sum(-1)
        for k, s in (("u", a), ("v", b))
    )
    assert (flow.log_prob(x, steps=20, mask=mask) - exact).abs().max() < 1e-5
    few = flow.log_prob(x, steps=20, mask=mask, chunk=3)
    assert (few - flow.log_prob(x, steps=20, mask=mask)).abs().max() < 1e-12


def test_mean_free_sets_have_the_density_of_their_subspace():
    # x' = a x on mean-free sets: N(0, 1) becomes N(0, e^2a) on (n - 1) d dimensions.
    a = 0.4
    flow = mf.Flow(mf.Centered(mf.Euclidean(3)), model=Field(lambda x, t: a * x))
    x = flow.path["x"].space.center(torch.randn(4, 5, 3, dtype=DOUBLE))
    exact = mf.Normal(math.exp(a), mf.Centered(mf.Euclidean(3))).log_prob(x)
    assert (flow.log_prob(x, steps=20) - exact).abs().max() < 1e-6


def test_rows_bound_what_the_network_sees_and_change_nothing():
    sizes = []

    def field(x, t):
        sizes.append(x.shape[0])
        return torch.sin(3 * x)

    flow = mf.Flow(mf.Euclidean(6), model=Field(field))
    x = torch.randn(64, 6, dtype=DOUBLE)
    whole = flow.log_prob(x, steps=4)
    sizes.clear()
    assert (flow.log_prob(x, steps=4, chunk=10) - whole).abs().max() < 1e-12
    assert max(sizes) <= 10


def test_quadrature_is_exact_to_degree_five_on_any_grid():
    nodes = [1.0, 0.93, 0.7, 0.55, 0.2, 0.0]
    weights = quadrature_weights(nodes)
    for power in range(6):
        assert abs(sum(w * t**power for w, t in zip(weights, nodes, strict=True)) + 1 / (power + 1)) < 1e-13
    assert quadrature_weights([0.0, 1.0]) == pytest.approx([0.5, 0.5])


def test_shrinking_steps_integrate_a_growing_divergence():
    """v = -x / (1 - t + f) has the divergence -1 / (1 - t + f), which is even in the clock of Late(f) and not in the time."""
    fine = 1e-3
    space = mf.Euclidean(1)
    flow = mf.Flow(space, model=Field(lambda x, t: -x / (1 - t[:, None] + fine)), time_warp=mf.Late(fine))
    x = torch.tensor([[0.2]], dtype=DOUBLE)
    grow = math.log1p(1 / fine)
    truth = mf.Normal(manifold=space).log_prob(x * math.exp(grow)) + grow
    for steps in (30, 60):
        assert (flow.log_prob(x, steps=steps) - truth).abs() < 200 * (grow / steps) ** 4


def test_points_of_the_simplex_that_come_from_outside_have_no_density():
    """Everything contracts by 0.6 towards the middle: the image of the orthant has the source's mass, the rest none."""
    space = mf.Simplex(3)
    middle = torch.full((3,), 1 / 3, dtype=DOUBLE)
    field = Field(lambda x, t: 0.5 * space.log(x, middle.expand_as(x)))
    flow = mf.Flow(space, model=field)
    x = space.sample_uniform((20_000,), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    density = flow.log_prob(x, steps=12).exp()
    assert 0.2 < (density == 0).double().mean() < 0.8
    error = float(density.std()) * math.exp(space.log_volume) / len(x) ** 0.5
    assert abs(float(density.mean()) * math.exp(space.log_volume) - 1) < 4 * error


def test_trace_nodes_hold_both_ends():
    assert trace_nodes(3, 2) == [0, 1, 2]
    assert trace_nodes(65, 2) == list(range(65))  # too few to leave any out
    assert trace_nodes(66, 2) == [*range(0, 65, 2), 65]
    assert trace_nodes(101, 3)[-3:] == [96, 99, 100]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"x": torch.full((2, 3), 0.9)}, "off the manifold"),
        ({"x": torch.full((2, 3), math.nan)}, "NaN"),
        ({"x": torch.eye(3), "times": [0.0, 0.5, 1.0]}, "decrease"),
        ({"x": torch.eye(3), "t_max": 1.5}, "t_max"),
        ({"x": torch.eye(3), "steps": 1, "return_error": True}, "at least 2"),
        ({"x": torch.eye(3), "trace_every": 0}, "trace_every"),
        ({"x": {"y": torch.eye(3)}}, "fields"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    flow = mf.Flow(mf.Sphere(2), model=mf.nn.TangentMLP(mf.Sphere(2), 8, 1))
    with pytest.raises(ValueError, match=words):
        flow.log_prob(**arguments)


def test_stiff_field_ends_the_adaptive_solver_with_a_message():
    flow = mf.Flow(mf.Euclidean(1), model=Field(lambda x, t: 1e6 * torch.sin(1e6 * x)))
    with pytest.raises(FloatingPointError, match="stiff"):
        flow.log_prob(torch.randn(3, 1), method=mf.Adaptive(1e-7, 1e-7, most=50))
