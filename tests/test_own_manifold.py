"""A sphere that a user wrote, knowing nothing of the library's, does all that mf.Sphere does, with the same numbers.

It has exp, log, a projection and a basis in the plain textbook form; no closed form of any law.
"""

from dataclasses import dataclass

import pytest
import torch

import manifoldflow as mf
from manifoldflow.coupling import MinibatchOT
from manifoldflow.manifolds import Manifold
from manifoldflow.paths import BumpNoise, Geodesic, StochasticInterpolant
from manifoldflow.testing import check_manifold

DOUBLE = torch.float64


@dataclass(frozen=True)
class Globe(Manifold):
    """The sphere S^d as in a textbook."""

    d: int = 2

    @property
    def dim(self):
        return self.d

    @property
    def event_shape(self):
        return (self.d + 1,)

    def origin(self, shape=(), *, dtype=None, device=None):
        return torch.eye(self.d + 1, dtype=dtype, device=device)[0].expand(*shape, self.d + 1)

    def exp(self, x, u):
        r = (u.square().sum(-1, keepdim=True) + 1e-30).sqrt()
        return r.cos() * x + r.sin() / r * u

    def log(self, x, y):
        step = self.to_tangent(x, y - x)
        sine = (step.square().sum(-1, keepdim=True) + 1e-30).sqrt()
        return torch.atan2(sine, (x * y).sum(-1, keepdim=True)) / sine * step

    def project(self, x):
        return x / x.norm(dim=-1, keepdim=True)

    def to_tangent(self, x, u):
        return u - (x * u).sum(-1, keepdim=True) * x

    def tangent_basis(self, x):
        return torch.linalg.qr(torch.cat([x.unsqueeze(-1), torch.eye(self.d + 1).to(x).expand(*x.shape, -1)], -1))[
            0
        ].mT[..., 1:, :]

    log_volume = property(lambda self: mf.Sphere(self.d).log_volume)

    def sample_uniform(self, shape=(), *, generator=None, dtype=None, device=None):
        return self.project(torch.randn(*shape, self.d + 1, generator=generator, dtype=dtype, device=device))


@dataclass(frozen=True)
class ClosedGlobe(Globe):
    """The same, and says that its geodesics close."""

    closed_geodesic = 6.283185307179586


OURS, THEIRS = mf.Sphere(2), Globe(2)


def points(n, seed=0, dtype=DOUBLE):
    return OURS.sample_uniform((n,), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_it_keeps_the_promises_of_a_manifold():
    # to 1e-10: transport is by differences of points 0.1 apart
    check_manifold(THEIRS, lengths=(0.0, 1e-4, 0.3, 1.0), tolerance=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_geometry_measured_agrees_with_the_closed_forms(d):
    ours, theirs = mf.Sphere(d), Globe(d)
    g = torch.Generator().manual_seed(0)
    x, y = (ours.sample_uniform((40,), generator=g, dtype=DOUBLE) for _ in range(2))
    u, w = ours.random_tangent(x, generator=g), ours.random_tangent(x, generator=g)
    u = u * (torch.linspace(0.01, 3.0, 40, dtype=DOUBLE).unsqueeze(-1) / u.norm(dim=-1, keepdim=True))
    z = 0.7 * u
    assert (theirs.transport(x, w, y) - ours.transport(x, w, y)).abs().max() < 1e-8
    v = ours.transport(x, w, ours.exp(x, u))
    assert (theirs.dexp_inv(x, u, v) - ours.dexp_inv(x, u, v)).abs().max() < 1e-8
    assert (theirs.log_exp_volume(x, u) - ours.log_exp_volume(x, u)).abs().max() < 1e-8
    assert (theirs.is_minimising(x, 1.2 * u) == ours.is_minimising(x, 1.2 * u)).all()
    assert (theirs.riemannian_gradient(x, w + 2 * x) - ours.riemannian_gradient(x, w + 2 * x)).abs().max() < 1e-12
    assert (theirs.rate(x, u) - u).abs().max() < 1e-12
    assert (theirs.from_rate(x, u + 3 * x) - u).abs().max() < 1e-12
    there, moved, carried = ours.carry_noise(x, w, u, z)
    for mine, yours in zip((there, moved, carried), theirs.carry_noise(x, w, u, z), strict=True):
        assert (mine - yours).abs().max() < 1e-8
    bend = theirs.volume_gradient(x, u, there, carried / 0.7)
    assert (bend - ours.volume_gradient(x, u, there, carried / 0.7)).abs().max() < 1e-7


def test_wrapped_normal_has_the_density_of_ours():
    x = points(200)
    mean = points(1, seed=1)[0]
    for scale in (0.1, 0.4):
        ours = mf.WrappedNormal(OURS, scale, mean).log_prob(x)
        near = OURS.dist(mean, x) < 6 * scale  # beyond, the tangents that go around count as well
        assert (mf.WrappedNormal(THEIRS, scale, mean).log_prob(x) - ours)[near].abs().max() < 1e-6
    for scale in (0.4, 2.0):
        ours = mf.WrappedNormal(OURS, scale, mean).log_prob(x)
        assert (mf.WrappedNormal(ClosedGlobe(2), scale, mean).log_prob(x) - ours).abs().max() < 1e-6


def test_von_mises_fisher_has_the_density_and_the_draws_of_ours():
    x = points(50)
    for kappa in (0.0, 1.0, 30.0, 3000.0):
        ours, theirs = mf.VonMisesFisher(kappa, manifold=OURS), mf.VonMisesFisher(kappa, manifold=THEIRS)
        assert (ours.log_prob(x) - theirs.log_prob(x)).abs().max() < 1e-5 * (1 + kappa**0.5)
        drawn = theirs.sample((20_000,), generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
        want = 1.0 / torch.tensor(kappa).tanh() - 1 / kappa if kappa else 0.0  # the mean cosine (Fisher 1953)
        assert abs(float(drawn[:, 0].mean()) - float(want)) < 4 * float(drawn[:, 0].std()) / 20_000**0.5 + 1e-6


def test_von_mises_fisher_refuses_what_differs_by_direction():
    @dataclass(frozen=True)
    class Tube(Manifold):
        """A flat torus of two circles of different lengths: compact, but not alike in every direction."""

        dim = 2
        event_shape = (2,)
        sizes = (1.0, 3.0)

        def origin(self, shape=(), *, dtype=None, device=None):
            return torch.zeros(*shape, 2, dtype=dtype, device=device)

        def project(self, x):
            return x.remainder(x.new_tensor(self.sizes))

        def exp(self, x, u):
            return self.project(x + u)

        def log(self, x, y):
            size = y.new_tensor(self.sizes)
            return y - x - size * ((y - x) / size).round()

        def to_tangent(self, x, u):
            return u

        def tangent_basis(self, x):
            return torch.eye(2, dtype=x.dtype).expand(*x.shape, 2)

    with pytest.raises(ValueError, match="direction"):
        mf.VonMisesFisher(1.0, manifold=Tube())


def test_a_stochastic_interpolant_has_the_targets_of_ours():
    x0, x1 = points(60, 1), points(60, 2)
    t = torch.linspace(0.02, 0.98, 60, dtype=DOUBLE)
    ours, theirs = (StochasticInterpolant(BumpNoise(0.3)).bind(s) for s in (OURS, THEIRS))
    centre, direction = OURS.geodesic(x0, x1, t)
    z = OURS.random_tangent(centre, generator=torch.Generator().manual_seed(0))
    a, b = (path.around(centre, direction, z, t, x1) for path in (ours, theirs))
    for name in ("x", "velocity", "drift", "noise"):
        assert (getattr(a, name) - getattr(b, name)).abs().max() < 1e-6, name


def test_noise_of_the_generic_frame_is_standard_normal():
    x = points(1, 4)[0].expand(100_000, 3)
    z = THEIRS.random_tangent(x, generator=torch.Generator().manual_seed(0))
    assert (z * x).sum(-1).abs().max() < 1e-12
    covariance = z.mT @ z / len(z)
    assert (covariance - (torch.eye(3) - torch.outer(x[0], x[0]))).abs().max() < 0.02


def flows():
    made = []
    for space in (OURS, THEIRS):
        torch.manual_seed(0)
        made.append(mf.Flow(space, model=mf.nn.TangentMLP(space, width=16, depth=2)))
    return made


def test_a_flow_of_it_has_the_same_loss_samples_and_density():
    ours, theirs = flows()
    x1 = points(64, 5, torch.float32)
    losses = [f.loss(x1, generator=torch.Generator().manual_seed(1)) for f in (ours, theirs)]
    assert (losses[0] - losses[1]).abs() < 1e-5
    for method in ("euler", "midpoint", "rk4"):
        drawn = [
            f.sample(32, steps=8, method=method, generator=torch.Generator().manual_seed(2)) for f in (ours, theirs)
        ]
        assert (drawn[0] - drawn[1]).abs().max() < 1e-4, method
    densities = [f.double().log_prob(x1.double(), steps=16) for f in (ours, theirs)]
    assert (densities[0] - densities[1]).abs().max() < 1e-6


def test_transport_pairs_and_averaged_targets_are_those_of_ours():
    x0, x1 = points(40, 6), points(40, 7)
    pairs = [MinibatchOT()(x0, x1, spaces=s)[0] for s in (OURS, THEIRS)]
    assert torch.equal(*pairs)
    made = []
    for space in (OURS, THEIRS):
        torch.manual_seed(0)
        path = Geodesic(average_targets=True)
        flow = mf.Flow(space, model=mf.nn.TangentMLP(space, width=16, depth=2), path=path)
        made.append(flow.loss(x1.float(), generator=torch.Generator().manual_seed(1)))
    assert (made[0] - made[1]).abs() < 1e-5


def test_networks_see_the_same_features():
    x = points(20, 8, torch.float32)
    for make in (mf.nn.Coordinates, mf.nn.FourierFeatures):
        assert torch.equal(make(OURS)(x), make(THEIRS)(x))


def test_hooks_that_say_what_a_space_is():
    from manifoldflow.distributions import default_source

    flat, sets = mf.Euclidean(3), mf.Centered(mf.Euclidean(3))
    kinds = {
        s: type(default_source(s)).__name__ for s in (flat, sets, OURS, mf.Torus(2), mf.PoincareBall(2), mf.SPD(2))
    }
    assert list(kinds.values()) == ["Normal", "Normal", "Uniform", "Uniform", "WrappedNormal", "WrappedNormal"]
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    centred = sets.center(x, mask)
    assert (centred.sum(1)).abs().max() < 1e-12 and (centred[1, 3:] == 0).all()
    assert torch.equal(flat.center(x, mask), x)
    assert torch.equal(THEIRS.center(x, mask), x)


def test_rotations_turn_what_lies_in_space():
    from manifoldflow.manifolds.rotation import matrix_to_quaternion, quaternion_to_matrix

    g = torch.Generator().manual_seed(0)
    turn, x = mf.SO3().sample_uniform((4,), generator=g, dtype=DOUBLE), torch.randn(4, 7, 3, generator=g, dtype=DOUBLE)
    assert (mf.Euclidean(3).rotate(turn, x) - torch.einsum("bij,bnj->bni", turn, x)).abs().max() < 1e-14
    frames = mf.SO3().sample_uniform((4, 7), generator=g, dtype=DOUBLE)
    want = torch.einsum("bij,bnjk->bnik", turn, frames)
    assert (mf.SO3().rotate(turn, frames) - want).abs().max() < 1e-14
    quaternions = mf.UnitQuaternion().rotate(turn, matrix_to_quaternion(frames))
    assert (quaternion_to_matrix(quaternions) - want).abs().max() < 1e-14
    assert torch.equal(mf.Torus(3).rotate(turn, x), x)
    assert torch.equal(mf.Euclidean(3).translate(x[:, 0], x)[:, 1], x[:, 0] + x[:, 1])


def test_the_fisher_rao_simplex_is_covered_by_a_sphere():
    simplex, g = mf.Simplex(4), torch.Generator().manual_seed(0)
    assert simplex.cover == mf.Sphere(3) and mf.Simplex(4, "flat").cover == mf.Simplex(4, "flat") and OURS.cover == OURS
    x, u = simplex.sample_uniform((50,), generator=g, dtype=DOUBLE), torch.randn(50, 4, generator=g, dtype=DOUBLE)
    u = simplex.to_tangent(x, u)
    z = simplex.lift(x)
    end = simplex.cover.exp(z, simplex.lift_tangent(z, u))
    assert (simplex.fold(end) - simplex.exp(x, u)).abs().max() < 1e-14
    assert torch.equal(simplex.is_inside(end), (end >= -1e-6).all(-1)) and not simplex.is_inside(end).all()
    assert THEIRS.is_inside(points(3)).all()


def test_wrappers_hand_on_every_law():
    geoopt = pytest.importorskip("geoopt")
    x, y = points(5, 1), points(5, 2)
    for wrapped in (mf.manifolds.Checked(OURS), mf.manifolds.FromGeoopt(geoopt.Sphere(), (3,))):
        assert wrapped.closed_geodesic == OURS.closed_geodesic and wrapped.default_source == "uniform"
        assert torch.equal(wrapped.log_wrapped_normal(x, y, 0.7), OURS.log_wrapped_normal(x, y, 0.7))
        assert torch.equal(wrapped.log_exp_volume(x, OURS.log(x, y)), OURS.log_exp_volume(x, OURS.log(x, y)))
