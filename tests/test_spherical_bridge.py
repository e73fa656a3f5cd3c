"""The bridge on the sphere against quadrature, and against fine simulations of the processes that it stands for."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch

import manifoldflow as mf
from manifoldflow.paths import projected_normal
from manifoldflow.paths.spherical_bridge import MaskCorner, SphericalBridge

DOUBLE = torch.float64
STARTS = ["uniform", "mask"]
every_start = pytest.mark.parametrize("start", STARTS)


class Fixed(torch.nn.Module):
    """The same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x, t):
        return self.logits.to(x.dtype).expand(*x.shape[:-1], -1)


def make_flow(k, start, model, **options):
    space = mf.Simplex(k + (start == "mask"))
    path = SphericalBridge(start, **options)
    return mf.Flow(space, model, path=path, source=path.bind(space).source)


def exact_flow(k, start, **options):
    """One token of a known law: with its own evidence the constant prior is the exact posterior."""
    p = torch.linspace(1, 5, k, dtype=DOUBLE) ** 2
    p = p / p.sum()
    return make_flow(k, start, Fixed(p.log()), own_evidence=True, **options), p


def corners(tokens, flow, dtype=torch.float32):
    return torch.eye(flow.spaces.dim + 1, dtype=dtype)[tokens]


def integral(z, dim, power=0):
    """log of the integral of r^(dim - 1 + power) exp(-r^2 / 2 + r z), by scipy."""
    top = 2 * dim / (math.sqrt(z * z + 4 * dim) - z)

    def f(r):
        return (
            math.exp((dim - 1 + power) * math.log(r / top) - 0.5 * (r * r - top * top) + z * (r - top))
            if r > 0
            else 0.0
        )

    value = scipy.integrate.quad(f, 0, top + 40, points=[top], epsabs=0, epsrel=1e-11, limit=500)[0]
    return math.log(value) + (dim - 1 + power) * math.log(top) - 0.5 * top * top + top * z


# ---------------------------------------------------------------- the law of directions


@pytest.mark.parametrize("dim", [2, 3, 4, 7, 15, 16, 21, 101, 513])
def test_densities_and_lengths_are_those_of_quadrature(dim):
    z = torch.tensor([-200.0, -30.0, -3.0, -0.5, 0.0, 1.0, 4.0, 8.0, 60.0, 500.0], dtype=DOUBLE)
    reference = 0.5 * dim * math.log(2) - math.log(2) + math.lgamma(dim / 2)
    truth = torch.tensor([integral(v, dim) - reference for v in z.tolist()], dtype=DOUBLE)
    error = (projected_normal.log_density(z, dim) - truth).abs()
    assert (error < 1e-6 + 1e-9 * truth.abs()).all()
    single = (projected_normal.log_density(z.float(), dim) - truth).abs()
    assert (single < 1e-5 + 1e-6 * truth.abs()).all()
    inverse = torch.tensor([math.exp(integral(v, dim, -1) - integral(v, dim)) for v in z.tolist()], dtype=DOUBLE)
    assert (projected_normal.mean_inverse_length(z, dim) / inverse - 1).abs().max() < (1e-5 if dim == 2 else 1e-6)
    assert (projected_normal.mean_inverse_length(z.float(), dim) / inverse - 1).abs().max() < 2e-5


@pytest.mark.parametrize("dim", [2, 3, 20, 513])
@pytest.mark.parametrize("z", [-50.0, -2.0, 0.0, 3.0, 50.0, 1e4])
def test_lengths_are_drawn_from_their_law(dim, z):
    top = 2 * dim / (math.sqrt(z * z + 4 * dim) - z)
    delta = np.linspace(-14, 9, 40_001) / math.sqrt(top * top + dim)
    e = np.expm1(delta)
    density = np.exp(dim * (delta - e) - 0.5 * (top * e) ** 2)  # over log(r / top)
    share = (np.cumsum(density) - 0.5 * density) / density.sum()
    for dtype in (torch.float32, DOUBLE):
        given = torch.full((100_000,), z, dtype=dtype)
        r = projected_normal.draw_length(given, dim, generator=torch.Generator().manual_seed(0)).double().numpy()
        at = np.interp(np.log(r / top), delta, share)
        assert scipy.stats.kstest(at, "uniform").pvalue > 1e-3


# ---------------------------------------------------------------- the law of x_t


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("k", [2, 3, 8])
def test_points_from_the_uniform_source_have_their_density(k, t):
    path = SphericalBridge(noise=0.7).bind(mf.Simplex(k))
    e = torch.eye(k, dtype=DOUBLE)[torch.ones(20_000, dtype=torch.int64)]
    x = path.sample(e, e, torch.full((20_000,), t, dtype=DOUBLE), generator=torch.Generator().manual_seed(0)).x
    path.space.check(x)
    angle = np.linspace(0, math.pi, 4001)  # of the corner
    value = path.evidence(torch.from_numpy(np.cos(angle))[:, None].repeat(1, k), torch.tensor(t, dtype=DOUBLE))
    by_scipy = [integral(t * math.cos(a) / (0.7 * (1 - t)), k) for a in angle[::200]]
    z = torch.from_numpy(t * np.cos(angle) / (0.7 * (1 - t)))
    ours = projected_normal.log_density(z, k)
    assert np.ptp(ours[::200].numpy() - by_scipy) < 2e-6 and value.abs().max() < 1e-9  # equal entries, equal evidence
    density = np.exp(ours.numpy() - ours.numpy().max()) * np.sin(angle) ** (k - 2)
    share = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    at = np.interp(np.arccos(x[:, 1].clamp(-1, 1).numpy()), angle, share / share[-1])
    assert scipy.stats.kstest(at, "uniform").pvalue > 1e-3
    if k > 2:
        assert (
            scipy.stats.kstest(x[:, 0] / (x[:, 0].square() + x[:, 2:].square().sum(-1)).sqrt(), _cosines(k - 1)).pvalue
            > 1e-3
        )


def _cosines(dim):
    """The distribution function of one entry of a uniform point of the sphere in ``dim`` dimensions."""
    if dim == 2:
        return lambda c: 1 - np.arccos(np.clip(c, -1, 1)) / math.pi
    return lambda c: scipy.stats.beta(0.5 * (dim - 1), 0.5 * (dim - 1)).cdf(0.5 * (1 + np.asarray(c)))


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_points_from_the_mask_are_those_of_a_simulated_brownian_bridge(noise):
    """In 1,000 steps of Euler and Maruyama around the sphere, in double precision, then projected."""
    path = SphericalBridge("mask", noise=noise).bind(mf.Simplex(4))
    n, steps, generator = 4000, 1000, torch.Generator().manual_seed(0)
    start, end = torch.eye(4, dtype=DOUBLE)[3].expand(n, 4), torch.eye(4, dtype=DOUBLE)[1].expand(n, 4)
    y, h, seen = start.clone(), 1 / steps, {}
    for i in range(800):
        y = y + h * (end - y) / (1 - i * h) + noise * h**0.5 * torch.randn(n, 4, generator=generator, dtype=DOUBLE)
        seen[i + 1] = y if i + 1 in (250, 800) else None
    for step in (250, 800):
        t = torch.full((n,), step * h, dtype=DOUBLE)
        x = path.sample(start, end, t, generator=generator).x
        for i in range(4):
            assert scipy.stats.ks_2samp(x[:, i], mf.Sphere(3).project(seen[step])[:, i]).pvalue > 1e-3


@every_start
@pytest.mark.parametrize("t", [0.05, 0.4, 0.7])
def test_the_own_evidence_completes_the_prior_to_the_posterior(start, t):
    """Calibration is the definition of a posterior: among points that are given probability q, a share q has that corner."""
    k, n, generator = 4, 100_000, torch.Generator().manual_seed(0)
    flow, p = exact_flow(k, start)
    path = flow.path["x"]
    token = torch.multinomial(p, n, replacement=True, generator=generator)
    e, time = corners(token, flow, DOUBLE), torch.full((n,), t, dtype=DOUBLE)
    x = path.sample(e, e, time, generator=generator).x
    said = path.logits(p.log().expand(n, k), x, time).softmax(-1)
    for corner in range(k):
        place = (said[:, corner] * 20).long().clamp_max(19)
        gap = torch.zeros(20, dtype=DOUBLE).index_add_(0, place, (token == corner).to(DOUBLE) - said[:, corner])
        spread = torch.zeros(20, dtype=DOUBLE).index_add_(0, place, said[:, corner] * (1 - said[:, corner])).sqrt()
        assert (gap.abs() <= 4.5 * spread + 1e-6 * n).all()

    def score(factor):
        logits = p.log() + factor * path.evidence(x, time)
        return logits.log_softmax(-1).gather(1, token[:, None]).mean()

    assert score(1.0) > max(score(0.8), score(1.25), float((p * p.log()).sum()))
    assert (path.logits(p.log().float().expand(n, k), x.float(), time.float()).softmax(-1) - said).abs().max() < 2e-4


# ---------------------------------------------------------------- samplers


@every_start
@pytest.mark.parametrize("k", [2, 5, 8])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_token_by_itself_is_sampled_exactly_at_any_number_of_steps(start, k, steps):
    flow, p = exact_flow(k, start, noise=0.8, schedule=mf.Polynomial(1.5))
    n, generator = 10_000, torch.Generator().manual_seed(0)
    x = flow.sample(n, steps=steps, generator=generator)
    assert ((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all() and (x[:, k:] == 0).all()
    assert 0.5 * (x[:, :k].double().mean(0) - p).abs().sum() < 0.02
    half = flow.sample(n, times=torch.linspace(0, 0.6, steps + 1), generator=generator)
    e = corners(torch.multinomial(p, n, replacement=True, generator=generator), flow)
    truth = flow.path["x"].sample(e, e, torch.full((n,), 0.6), generator=generator).x
    for i in range(half.shape[1]):
        assert scipy.stats.ks_2samp(half[:, i], truth[:, i]).pvalue > 1e-4


@pytest.mark.parametrize(
    "k, method, steps, schedule",
    [
        (2, "midpoint", 30, mf.Linear()),
        (8, "midpoint", 30, mf.Linear()),
        (3, "rk4", 12, mf.Linear()),
        (3, "midpoint", 30, mf.Polynomial(2.0)),
    ],
)
def test_the_velocity_carries_the_law_of_the_uniform_source(k, method, steps, schedule):
    flow, p = exact_flow(k, "uniform", schedule=schedule)
    n, generator = 5000, torch.Generator().manual_seed(0)
    x0 = flow.draw_source((n,), dtype=DOUBLE, generator=generator)
    x = flow.sample(x0=x0, steps=steps, method=method, generator=generator)
    assert 0.5 * (x.mean(0) - p).abs().sum() < 0.025
    for t in (0.4, 0.75):
        e = corners(torch.multinomial(p, n, replacement=True, generator=generator), flow, DOUBLE)
        truth = flow.path["x"].sample(e, e, torch.full((n,), t, dtype=DOUBLE), generator=generator).x
        x = flow.sample(x0=x0, times=torch.linspace(0, t, steps + 1, dtype=DOUBLE), method=method)
        for i in range(k):
            assert scipy.stats.ks_2samp(x[:, i], truth[:, i]).pvalue > 1e-4


def test_a_geodesic_random_walk_with_the_drift_has_the_law_of_the_bridge_from_the_mask():
    r"""dX = u dt + c sqrt(E[1/|y|^2 | X]) dB in 200 steps, with moments by a sum over r and the posterior by it too."""
    noise, n, t_end, steps = 0.6, 2000, 0.7, 200
    flow, p = exact_flow(2, "mask", noise=noise)
    path, sphere, generator = flow.path["x"], flow.spaces, torch.Generator().manual_seed(0)
    x = torch.eye(3, dtype=DOUBLE)[2].expand(n, 3)
    for i in range(steps):
        t = torch.tensor((i + 0.5) / steps * t_end, dtype=DOUBLE)
        deviation = noise * (t * (1 - t)).sqrt()
        z = ((1 - t) * x[:, 2:] + t * x[:, :2]) / deviation  # (n, 2)
        top = 0.5 * (z + (z * z + 12).sqrt())
        r = (top[..., None] + torch.linspace(-5, 5, 61, dtype=DOUBLE)).clamp_min(1e-9)
        density = torch.exp(
            2 * (r / top[..., None]).log() - 0.5 * (r - z[..., None]).square() + 0.5 * (top - z)[..., None].square()
        )
        total = density.sum(-1)
        inverse = (density / r).sum(-1) / total / deviation
        square = (density / r**2).sum(-1) / total / deviation**2
        log_joint = p.log() + total.log() + 2 * top.log() - 0.5 * (top - z).square() + 0.5 * z.square()
        posterior = log_joint.softmax(-1)
        drift = sphere.to_tangent(x, torch.nn.functional.pad(posterior * inverse, (0, 1)) / (1 - t))
        if i % 100 == 50:
            assert (path.drift(p.log().expand(n, 2), x, t) - drift).abs().max() < 5e-3 * drift.abs().max()
        h = t_end / steps
        dB = sphere.to_tangent(x, torch.randn(n, 3, generator=generator, dtype=DOUBLE)) * h**0.5
        x = sphere.exp(x, h * drift + noise * (posterior * square).sum(-1, keepdim=True).sqrt() * dB)
    made = flow.sample(n, times=torch.linspace(0, t_end, 11), generator=generator)
    for i in range(3):
        assert scipy.stats.ks_2samp(x[:, i], made[:, i]).pvalue > 1e-3


@every_start
def test_two_dependent_tokens_have_their_law(start):
    k, table = 3, torch.tensor([[0.30, 0.05, 0.0], [0.0, 0.25, 0.05], [0.10, 0.0, 0.25]], dtype=DOUBLE)

    class Posterior(torch.nn.Module):
        def forward(self, x, t):
            seen = flow.path["x"].evidence(x, t).to(DOUBLE).softmax(-1)
            joint = seen[:, 0, :, None] * seen[:, 1, None, :] * table
            return torch.stack([joint.sum(2), joint.sum(1)], 1).clamp_min(1e-300).log().to(x.dtype)

    flow = make_flow(k, start, Posterior())
    tv = {}
    for steps in (4, 60):
        made = flow.sample((10_000, 2), steps=steps, generator=torch.Generator().manual_seed(0)).argmax(-1)
        found = torch.bincount(made[:, 0] * k + made[:, 1], minlength=k * k) / len(made)
        tv[steps] = float(0.5 * (found - table.flatten()).abs().sum())
    assert tv[60] < 0.03 and tv[4] > 2 * tv[60]  # tokens that depend on each other need small steps


def test_a_trained_flow_reproduces_a_law_of_corners():
    table = torch.tensor([[0.30, 0.05, 0.0], [0.0, 0.25, 0.05], [0.10, 0.0, 0.25]])

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(9, 64),
                torch.nn.SiLU(),
                torch.nn.Linear(64, 64),
                torch.nn.SiLU(),
                torch.nn.Linear(64, 6),
            )

        def forward(self, x, t):
            return self.net(torch.cat([x.flatten(1), t[:, None]], -1)).reshape(-1, 2, 3)

    torch.manual_seed(0)
    flow = make_flow(3, "mask", Model(), own_evidence=True)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for i in range(250):
        pair = torch.multinomial(table.flatten(), 512, replacement=True, generator=generator)
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - i / 250)
        optimiser.zero_grad()
        flow.loss(corners(torch.stack([pair // 3, pair % 3], -1), flow), generator=generator).backward()
        optimiser.step()
    made = flow.sample((10_000, 2), steps=40, generator=generator).argmax(-1)
    found = torch.bincount(made[:, 0] * 3 + made[:, 1], minlength=9) / len(made)
    assert 0.5 * (found - table.flatten()).abs().sum() < 0.08


# ---------------------------------------------------------------- contracts


@every_start
@pytest.mark.parametrize("own_evidence", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_losses_and_gradients_are_finite_at_all_times(start, own_evidence, dtype):
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(5 + (start == "mask"), 5, dtype=dtype)

        def forward(self, x, t):
            return self.net(x)

    flow = make_flow(5, start, Model(), own_evidence=own_evidence)
    x1 = corners(torch.randint(5, (64, 3)), flow, dtype)
    for t in (0.0, 1e-12, 1e-6, 0.5, 1 - 1e-6, 1.0):
        flow.zero_grad()
        loss = flow.loss(x1, t=torch.full((64,), t, dtype=dtype))
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in flow.parameters())
        assert loss.dtype == dtype
    x = flow.sample(
        x0=flow.draw_source((16, 3), dtype=dtype),
        times=torch.tensor([0.0, 1e-9, 1e-3, 0.9, 1 - 1e-6, 1.0], dtype=dtype),
    )
    assert x.dtype == dtype and (x.sum(-1) == 1).all() and (x.amax(-1) == 1).all()


def test_half_precision_logits_lose_no_evidence():
    path = SphericalBridge(own_evidence=True).bind(mf.Simplex(6))
    e = torch.eye(6)[torch.arange(6)]
    point = path.sample(e, e, torch.full((6,), 0.8), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(6, 6).bfloat16()
    torch.testing.assert_close(path.loss(logits, point), path.loss(logits.float(), point))


@every_start
def test_known_corners_stay_and_the_model_sees_them_clean(start):
    k, times = 4, []

    class Model(torch.nn.Module):
        def forward(self, x, t, *, mask=None):
            times.append(t)
            return torch.zeros(*x.shape[:-1], k)

    space = mf.Simplex(k + (start == "mask"))
    path = SphericalBridge(start)
    flow = mf.Flow(
        space, Model(), path=path, source=path.bind(space).source, pin=lambda m, g: m & (torch.arange(6) < 2)
    )
    known = torch.eye(space.categories)[torch.tensor([[1, 2, 3, 0, 0, 0]])].expand(5, 6, -1)
    known_mask = (torch.arange(6) < 3).expand(5, 6)
    states = flow.sample((5, 6), known=known, known_mask=known_mask, steps=4, trajectory=True)
    assert (states[:, :, :3] == known[:, :3]).all() and times[0].shape == (5, 6) and (times[0][:, :3] == 1).all()
    assert (states[-1].amax(-1) == 1).all()
    assert flow.loss(known).isfinite()


def test_guidance_blends_logits_with_one_evidence():
    path = SphericalBridge(own_evidence=True).bind(mf.Simplex(3))
    a, b = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    x, t = mf.Sphere(2).sample_uniform((1,), generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    ours = path.logits(path.mix(a, b, 2.0).expand(1, 3), x, t).softmax(-1)
    truth = (2 * a - b + path.evidence(x, t)).softmax(-1)
    torch.testing.assert_close(ours, truth)


@every_start
@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_padding_stays(start, method):
    if (start, method) == ("mask", "midpoint"):
        return
    flow = make_flow(4, start, Fixed(torch.zeros(4)))
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    states = flow.sample((2, 5), mask=mask, steps=4, method=method, trajectory=True)
    assert (states[:, ~mask] == states[0, ~mask]).all() and (states[-1].amax(-1) == 1).all()


@every_start
def test_the_flow_knows_where_the_bridge_starts(start):
    space, path, model = mf.Simplex(5), SphericalBridge(start), Fixed(torch.zeros(5 - (start == "mask")))
    flow = mf.Flow(space, model, path=path)
    assert flow.source["x"] == path.bind(space).source and flow.sample(3, steps=2).shape == (3, 5)
    with pytest.raises(ValueError, match="starts from"):
        mf.Flow(space, model, path=path, source=MaskCorner() if start == "uniform" else mf.Uniform())
    with pytest.raises(ValueError, match="no coupling"):
        mf.Flow(space, model, path=path, coupling=mf.MinibatchOT())


@every_start
def test_an_oracle_tilts_a_bridge(start):
    flow, p = exact_flow(4, start)
    weight = torch.tensor([2.0, 0.0, 0.0, -1.0], dtype=DOUBLE)
    guided = mf.guidance.Oracle(flow, lambda q: (q * weight).sum((1, 2)))
    made = guided.sample((10_000, 1), steps=8, generator=torch.Generator().manual_seed(0))[:, 0, :4].double().mean(0)
    truth = p * weight.exp() / (p * weight.exp()).sum()
    assert 0.5 * (made - truth).abs().sum() < 0.02


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: SphericalBridge("corner"), ValueError, "start"),
        (lambda: SphericalBridge(noise=0.0), ValueError, "noise"),
        (lambda: SphericalBridge().bind(mf.Tokens(4)), TypeError, "Simplex"),
        (lambda: SphericalBridge("mask").bind(mf.Simplex(2)), ValueError, "three corners"),
        (lambda: SphericalBridge().bind(mf.Simplex(3), "velocity"), ValueError, "logits"),
        (lambda: MaskCorner(mf.Sphere(2)).log_prob(torch.eye(3)), TypeError, "density"),
        (lambda: make_flow(3, "mask", Fixed(torch.zeros(4))).sample(2, steps=2), ValueError, "logits of 3 tokens"),
        (lambda: make_flow(3, "mask", Fixed(torch.zeros(3))).sample(2, method="midpoint"), ValueError, "no flow"),
        (lambda: make_flow(3, "mask", Fixed(torch.zeros(3))).sample(2, times=[1.0, 0.5]), ValueError, "backward"),
    ],
)
def test_mistakes_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
