"""Laws with exact densities: against scipy, quadrature, and their own draws."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import manifoldflow as mf

DOUBLE = torch.float64
TURN = 2 * math.pi
AXIS = (0.36, 0.48, 0.8)


def turned(space):
    """A point away from the origin, as numbers in a row."""
    x = space.exp(space.origin((), dtype=DOUBLE), 0.4 * space.tangent_basis(space.origin((), dtype=DOUBLE)).sum(0))
    return tuple(x.flatten().tolist())


def laws():
    so3, q = mf.SO3(), mf.UnitQuaternion()
    near = mf.VonMisesFisher(20.0, AXIS, mf.Sphere(2))
    return {
        "von Mises-Fisher on S2": near,
        "weak one on S2": mf.VonMisesFisher(0.3, AXIS, mf.Sphere(2)),
        "on S1": mf.VonMisesFisher(2.0, None, mf.Sphere(1)),
        "on S4": mf.VonMisesFisher(5.0, turned(mf.Sphere(4)), mf.Sphere(4)),
        "von Mises on T2": mf.VonMisesFisher(4.0, (1.0, 6.0), mf.Torus(2, TURN)),
        "von Mises on T1 of period 1": mf.VonMisesFisher(4.0, (0.9,), mf.Torus(1)),
        "matrix Fisher": mf.VonMisesFisher(3.0, turned(so3), so3),
        "of quaternions": mf.VonMisesFisher(3.0, turned(q), q),
        "mixture on S2": mf.Mixture((near, mf.VonMisesFisher(3.0)), (1.0, 3.0)),
        "mixture of wrapped normals": mf.Mixture(
            tuple(mf.WrappedNormal(scale=s, mean=torch.full((2,), 2.0 * s)) for s in (0.2, 0.6)),
            manifold=mf.Torus(2, TURN),
        ),
        "mixture of heat kernels": mf.Mixture((mf.IGSO3(0.5), mf.IGSO3(1.0)), manifold=so3),
        "Dirichlet, Fisher-Rao": mf.Dirichlet((2.0, 3.0, 1.5), mf.Simplex(3)),
        "Dirichlet, flat": mf.Dirichlet((2.0, 3.0, 1.5), mf.Simplex(3, "flat")),
        "checkerboard on S2": mf.Checkerboard(4, 6, mf.Sphere(2)),
        "checkerboard on T2": mf.Checkerboard(4, 4, mf.Torus(2)),
    }


@pytest.mark.parametrize("name", laws())
def test_density_integrates_to_one(name):
    law = laws()[name]
    generator = torch.Generator().manual_seed(0)
    x = law.space.sample_uniform((200_000,), generator=generator, dtype=DOUBLE)
    share = torch.exp(law.log_prob(x) + law.space.log_volume)
    assert abs(float(share.mean()) - 1) < 5 * float(share.std()) / 200_000**0.5 + 1e-9


@pytest.mark.parametrize("name", laws())
def test_draws_follow_the_density(name):
    """The mean of a bounded test function over draws and over the density (uniform points as weights)."""
    law = laws()[name]
    generator = torch.Generator().manual_seed(1)
    drawn = law.sample((40_000,), generator=generator, dtype=DOUBLE)
    law.space.check(drawn, 1e-6)
    x = law.space.sample_uniform((200_000,), generator=generator, dtype=DOUBLE)
    weight = torch.exp(law.log_prob(x) + law.space.log_volume).clamp_max(1e6)
    for point in law.space.sample_uniform((4,), generator=generator, dtype=DOUBLE):
        a = torch.exp(-law.space.dist(point.expand_as(drawn), drawn))
        b = weight * torch.exp(-law.space.dist(point.expand_as(x), x))
        error = math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
        assert abs(float(a.mean() - b.mean())) < 5 * error


def radial(space, steps=20_000, reach=math.pi):
    """Points at angles from the origin, and the volume of the shell of each: the law must be one around the origin."""
    angle = (torch.arange(steps, dtype=DOUBLE) + 0.5) * (reach / steps)
    start = space.origin((), dtype=DOUBLE)
    basis = space.tangent_basis(start)
    x = space.exp(start, angle.reshape(-1, *(1,) * space.tangent_ndim) * basis[0])
    d = space.dim
    if isinstance(space, mf.SO3 | mf.UnitQuaternion):
        shell = 4 * math.pi * (2 * torch.sin(angle / 2)) ** 2
    else:
        shell = 2 * math.pi ** (d / 2) / math.gamma(d / 2) * torch.sin(angle) ** (d - 1)
    return x, shell * (reach / steps), angle


def grid(space, rows=400, columns=400):
    """Points of a two-dimensional space and the volume of each cell, from the textbook's element of area."""
    a, b = torch.meshgrid(*[(torch.arange(n, dtype=DOUBLE) + 0.5) / n for n in (columns, rows)], indexing="ij")
    a, b = a.flatten(), b.flatten()
    if isinstance(space, mf.Torus):
        return torch.stack([a, b], -1) * space.period, torch.full_like(a, space.period**2 / len(a))
    if isinstance(space, mf.Sphere):
        z, turn = 2 * b - 1, TURN * a
        flat = (1 - z * z).sqrt()
        return torch.stack([flat * turn.cos(), flat * turn.sin(), z], -1), torch.full_like(a, 4 * math.pi / len(a))
    # Simplex: p_1 = u (2 - u) and p_2 = (1 - p_1) s (2 - s) ... would bunch at one side; sines squared bunch at all three.
    u, v = torch.sin(math.pi / 2 * a) ** 2, torch.sin(math.pi / 2 * b) ** 2
    p = torch.stack([u, (1 - u) * v, (1 - u) * (1 - v)], -1)
    lebesgue = (1 - u) * (math.pi / 2) ** 2 * torch.sin(math.pi * a) * torch.sin(math.pi * b) / len(a)
    return p, lebesgue * (3**0.5 if space.metric == "flat" else p.prod(-1) ** -0.5)


@pytest.mark.parametrize("name", [n for n, law in laws().items() if law.space.dim == 2])
def test_density_integrates_to_one_on_a_grid_to_a_ten_thousandth(name):
    law = laws()[name]
    x, volume = grid(law.space)
    assert abs(float((law.log_prob(x).exp() * volume).sum()) - 1) < 1e-4


SPACES = [mf.Sphere(1), mf.Sphere(2), mf.Sphere(3), mf.Sphere(6), mf.SO3(), mf.UnitQuaternion()]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("kappa", [0.0, 1e-13, 1e-6, 0.3, 30.0, 9.9e3, 1.1e4, 1e6])
def test_normaliser_is_right_from_uniform_to_a_thousandth_of_a_radian(space, kappa):
    reach = min(math.pi, 20 / math.sqrt(kappa + 1e-300))
    x, volume, _ = radial(space, reach=reach)
    law = mf.VonMisesFisher(kappa, manifold=space)
    assert abs(float((law.log_prob(x).exp() * volume).sum()) - 1) < 1e-6
    assert torch.isfinite(law.log_prob(radial(space, 100)[0].float())).all()


@pytest.mark.parametrize("kappa", [0.0, 1e-6, 0.3, 30.0, 1.1e4, 1e6])
def test_product_of_von_mises_integrates_to_one_on_tori_of_any_period(kappa):
    for space in (mf.Torus(1), mf.Torus(1, TURN)):
        reach = space.period * min(0.5, 3 / math.sqrt(kappa + 1e-300))
        x = (torch.arange(20_000, dtype=DOUBLE) + 0.5) / 20_000 * 2 * reach - reach
        law = mf.VonMisesFisher(kappa, (0.0,), space)
        assert abs(float(law.log_prob(x.unsqueeze(-1)).exp().sum()) * 2 * reach / 20_000 - 1) < 1e-6
        # in d dimensions it is the product
        many = mf.Torus(5, space.period)
        point = x[::4_000].unsqueeze(0)
        both = mf.VonMisesFisher(kappa, (0.0,) * 5, many).log_prob(point), law.log_prob(point.mT).sum()
        assert abs(float(both[0] - both[1])) < 1e-9


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("kappa", [0.0, 0.3, 30.0, 1e6])
def test_angles_of_draws_have_the_cumulative_law_of_the_density(space, kappa):
    """Kolmogorov-Smirnov at a level of 1e-6, 40,000 draws: 0.013."""
    n = 40_000
    law = mf.VonMisesFisher(kappa, manifold=space)
    drawn = law.sample((n,), generator=torch.Generator().manual_seed(4), dtype=DOUBLE)
    found = space.dist(space.origin((), dtype=DOUBLE).expand_as(drawn), drawn).sort().values
    reach = min(math.pi, 20 / math.sqrt(kappa + 1e-300))
    x, volume, angle = radial(space, reach=reach)
    truth = (law.log_prob(x).exp() * volume).cumsum(0)
    expected = np.interp(found.numpy(), angle.numpy() + 0.5 * reach / len(angle), truth.numpy())
    assert np.abs(expected - (np.arange(n) + 0.5) / n).max() < 2.7 / n**0.5


def test_mixture_draws_its_components_by_their_weights():
    parts = tuple(mf.VonMisesFisher(500.0, m) for m in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    x = mf.Mixture(parts, (5.0, 3.0, 2.0), mf.Sphere(2)).sample((30_000,), generator=torch.Generator().manual_seed(2))
    shares = torch.bincount(x.argmax(-1), minlength=3).double() / len(x)
    assert (shares - torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE)).abs().max() < 5 * 0.5 / 30_000**0.5


@pytest.mark.parametrize("name", laws())
def test_draws_keep_shape_type_mask_and_seed(name):
    law = laws()[name]
    mask = torch.tensor([[True, False, True], [True, True, False]])
    a, b = (law.sample((2, 3), mask=mask, generator=torch.Generator().manual_seed(6)) for _ in range(2))
    assert a.shape == (2, 3, *law.space.event_shape)
    assert a.dtype == torch.float32
    assert torch.equal(a, b)
    assert torch.equal(a[~mask], law.space.origin((2,)))
    assert (law.log_prob(a, mask=mask)[~mask] == 0).all()
    assert torch.isfinite(law.log_prob(a, mask=mask)).all()


@pytest.mark.parametrize("kappa", [0.5, 20.0, 1e4, 1e6])
def test_von_mises_fisher_is_scipys(kappa):
    x = mf.VonMisesFisher(kappa, AXIS, mf.Sphere(2)).sample((20,), dtype=DOUBLE)
    truth = stats.vonmises_fisher(np.array(AXIS), kappa).logpdf(x.numpy())
    # scipy's own 1 - <mu, x> has an error of 1e-16 kappa
    assert np.abs(mf.VonMisesFisher(kappa, AXIS, mf.Sphere(2)).log_prob(x).numpy() - truth).max() < 1e-9 + 1e-14 * kappa


@pytest.mark.parametrize("kappa", [0.5, 20.0, 1e4])
def test_von_mises_is_scipys(kappa):
    x = torch.linspace(0, 6.2, 40, dtype=DOUBLE).unsqueeze(-1)
    truth = stats.vonmises(kappa, loc=1.0).logpdf(x[:, 0].numpy())
    assert np.abs(mf.VonMisesFisher(kappa, (1.0,), mf.Torus(1, TURN)).log_prob(x).numpy() - truth).max() < 1e-8 * kappa


def test_dirichlet_is_scipys():
    alpha = (2.0, 3.0, 0.5)
    x = mf.Dirichlet(alpha, mf.Simplex(3)).sample((50,), dtype=DOUBLE)
    truth = stats.dirichlet(np.array(alpha)).logpdf(x.numpy().T / x.numpy().sum(-1))
    for metric in ("fisher_rao", "flat"):
        space = mf.Simplex(3, metric)
        ours = mf.Dirichlet(alpha, space).log_prob(x) + space.log_volume_per_lebesgue(x)
        assert np.abs(ours.numpy() - truth).max() < 1e-9


def test_small_alphas_give_no_nan():
    x = mf.Dirichlet(0.01, mf.Simplex(5)).sample((2_000,), generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(x).all()
    assert (x.sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("kappa", [0.0, 1.0, 100.0, 1e6])
def test_angles_have_the_mean_cosine_of_the_closed_form(kappa):
    """On S^2: coth(kappa) - 1 / kappa."""
    x = mf.VonMisesFisher(kappa, AXIS, mf.Sphere(2)).sample(
        (50_000,), generator=torch.Generator().manual_seed(0), dtype=DOUBLE
    )
    h = 1 - (x @ torch.tensor(AXIS, dtype=DOUBLE))
    truth = 1.0 if kappa == 0 else 1 - 1 / math.tanh(kappa) + 1 / kappa
    assert abs(float(h.mean()) - truth) < 5 * float(h.std()) / len(h) ** 0.5


def test_recipes_are_completed_by_a_flow_and_bad_ones_refused():
    mixture = mf.Mixture((mf.VonMisesFisher(3.0), mf.VonMisesFisher(5.0)))
    flow = mf.Flow(mf.Sphere(2), model=mf.nn.TangentMLP(mf.Sphere(2), 8, 1), source=mixture)
    assert flow.sample(3, steps=2).shape == (3, 3)
    for make, words in (
        (lambda: mf.VonMisesFisher(-1.0), "at least 0"),
        (lambda: mf.VonMisesFisher(1.0, (1.0, 1.0, 1.0), mf.Sphere(2)), "off the manifold"),
        (lambda: mf.VonMisesFisher(1.0, manifold=mf.Euclidean(2)), "spheres, tori and rotations"),
        (lambda: mf.Mixture(()), "at least one"),
        (lambda: mf.Mixture((mf.Uniform(),), (1.0, 2.0)), "1 positive numbers"),
        (lambda: mf.Mixture((mf.Uniform(mf.Sphere(2)), mf.Uniform(mf.Torus(2)))), "different manifolds"),
        (lambda: mf.Dirichlet((1.0, -1.0)), "positive"),
        (lambda: mf.Dirichlet((1.0, 1.0), mf.Simplex(3)), "2 alphas for 3"),
        (lambda: mf.Checkerboard(3, 4), "even"),
        (lambda: mf.Checkerboard(manifold=mf.Sphere(3)), "Torus\\(2\\) and Sphere"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_far_draws_are_as_rare_as_the_density_says():
    """kappa (1 - cos) of von Mises-Fisher on S^2 is exponential; more than 12 has the probability e^-12, 6 in a million.

    A table with steps of equal probability spreads its last step over the whole tail: 60 in a million, whatever the kappa.
    """
    n, generator = 1_000_000, torch.Generator().manual_seed(0)
    pole = torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE)
    for kappa in (20.0, 1e4):
        law = mf.VonMisesFisher(kappa, (0.0, 0.0, 1.0), mf.Sphere(2))
        x = law.sample((n,), generator=generator, dtype=DOUBLE)
        h = 2 * kappa * torch.sin(0.5 * law.space.dist(pole.expand_as(x), x)).square()
        assert int((h > 12).sum()) < 25
    turn = mf.VonMisesFisher(1e4, (0.0,), mf.Torus(1, TURN)).sample((n,), generator=generator, dtype=DOUBLE)
    far = (turn + math.pi).remainder(TURN) - math.pi
    assert int((far.abs() > 0.045).sum()) < 25  # 4.5 deviations: 7 in a million
