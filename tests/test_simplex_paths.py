"""Paths to the corners of the simplex whose network predicts logits: Dirichlet, Fisher-Rao and straight."""

import pytest
import scipy.stats
import torch

import manifoldflow as mf
from testkit.exact import DirichletPosterior

DOUBLE = torch.float64


class Fixed(torch.nn.Module):
    """The same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x, t):
        return self.logits.to(x.dtype).expand(x.shape)


@pytest.mark.parametrize("k", [3, 20])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_dirichlet_field_of_one_corner_carries_its_law(k, power):
    path = mf.DirichletPath(most=12.0, power=power)
    sure = torch.full((k,), -1e4, dtype=DOUBLE)
    sure[1] = 0.0
    flow = mf.Flow(mf.Simplex(k), Fixed(sure), path=path)
    n, generator = 4000, torch.Generator().manual_seed(0)
    x0 = flow.draw_source((n,), dtype=DOUBLE, generator=generator)
    for method in ("euler", "rk4"):
        x = flow.sample(x0=x0, times=torch.linspace(0, 0.7, 81, dtype=DOUBLE), method=method)
        flow.spaces.check(x)
        alpha = float(path.alpha(torch.tensor(0.7)))
        assert scipy.stats.kstest(x[:, 1], scipy.stats.beta(alpha, k - 1).cdf).pvalue > 1e-3
        others = x[:, 2] / (1 - x[:, 1])
        assert scipy.stats.kstest(others, scipy.stats.beta(1, k - 2).cdf).pvalue > 1e-3


def test_dirichlet_draws_have_their_law():
    path = mf.DirichletPath(most=9.0).bind(mf.Simplex(5))
    x1 = torch.eye(5, dtype=DOUBLE)[torch.full((20_000,), 3)]
    x = path.sample(x1, x1, torch.full((20_000,), 0.5, dtype=DOUBLE), generator=torch.Generator().manual_seed(0)).x
    assert scipy.stats.kstest(x[:, 3], scipy.stats.beta(5.0, 4.0).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(x[:, 0], scipy.stats.beta(1.0, 8.0).cdf).pvalue > 1e-3


def test_dirichlet_velocity_is_the_mean_of_the_conditional_ones():
    path = mf.DirichletPath().bind(mf.Simplex(4))
    generator = torch.Generator().manual_seed(0)
    x = path.space.sample_uniform((6, 3), generator=generator, dtype=DOUBLE)
    logits = torch.randn(6, 3, 4, generator=generator, dtype=DOUBLE)
    t = torch.tensor(0.4, dtype=DOUBLE)
    each = torch.stack(
        [path.conditional_velocity(x, torch.eye(4, dtype=DOUBLE)[i].expand(x.shape), t) for i in range(4)]
    )
    mean = (logits.softmax(-1).movedim(-1, 0).unsqueeze(-1) * each).sum(0)
    assert (path.velocity(logits, x, t) - mean).abs().max() < 1e-6 * mean.abs().max()
    several = path.velocity(logits, x, torch.full((6,), 0.4, dtype=DOUBLE))
    assert (several - mean).abs().max() < 1e-10 * mean.abs().max()
    assert mean.sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("method, steps, limit", [("midpoint", 30, 0.012), ("euler", 200, 0.016)])
def test_dirichlet_samples_have_the_law_of_the_corners(method, steps, limit):
    p = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03], dtype=DOUBLE)
    flow = mf.Flow(mf.Simplex(5), torch.nn.Identity(), path=mf.DirichletPath(most=30.0))
    flow.model = DirichletPosterior(flow.path["x"], p)
    flow._takes = set()
    n = 20_000
    x = flow.sample((n,), steps=steps, method=method, generator=torch.Generator().manual_seed(0))
    assert ((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all()
    assert 0.5 * (x.mean(0) - p).abs().sum() < limit


@pytest.mark.parametrize("metric", ["fisher_rao", "flat"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_mean_log_is_the_mean_of_the_logs(metric, dtype):
    space = mf.Simplex(6, metric=metric)
    generator = torch.Generator().manual_seed(0)
    x = space.sample_uniform((50,), generator=generator, dtype=dtype)
    x = torch.cat([x, torch.eye(6, dtype=dtype), torch.tensor([[1 - 1e-5, 1e-5, 0, 0, 0, 0]], dtype=dtype)])
    p = torch.rand(len(x), 6, generator=generator, dtype=dtype).softmax(-1)
    p[50:56] = torch.eye(6, dtype=dtype).roll(1, 0) * 0.5 + torch.eye(6, dtype=dtype) * 0.5
    each = torch.stack([space.log(x.double(), torch.eye(6, dtype=DOUBLE)[i].expand(x.shape)) for i in range(6)], 1)
    truth = (p.double().unsqueeze(-1) * each).sum(1)
    limit = 3e-6 if dtype == torch.float32 else 1e-7
    assert (space.mean_log(x, p) - truth).abs().max() < limit


@pytest.mark.parametrize("metric", ["fisher_rao", "flat"])
def test_certain_logits_move_like_the_endpoint(metric):
    space = mf.Simplex(4, metric=metric)
    x = space.sample_uniform((8,), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    corner = torch.eye(4, dtype=DOUBLE)[[0, 1, 2, 3, 0, 1, 2, 3]]
    by_logits, by_point = mf.Geodesic().bind(space, "logits"), mf.Geodesic().bind(space, "endpoint")
    t, s = torch.tensor(0.3, dtype=DOUBLE), torch.tensor(0.5, dtype=DOUBLE)
    logits = (corner + 1e-30).log()
    assert (by_logits.velocity(logits, x, t) - by_point.velocity(corner, x, t)).abs().max() < 1e-9
    assert (by_logits.advance(logits, x, t, s).x - by_point.advance(corner, x, t, s).x).abs().max() < 1e-9
    assert (by_logits.advance(logits, x, t, torch.ones_like(t)).x == corner).all()


@pytest.mark.parametrize("kind, limit", [("fisher_rao", 0.08), ("flat", 0.06), ("dirichlet", 0.06)])
def test_trained_flows_reproduce_a_law_of_corners(kind, limit):
    """Two dependent tokens, so the posterior of one needs the other.

    On geodesics it jumps where the contracted simplex of a corner ends, and a small network rounds that off.
    """
    table = torch.tensor([[0.30, 0.05, 0.0], [0.0, 0.25, 0.05], [0.10, 0.0, 0.25]])

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(7, 64),
                torch.nn.SiLU(),
                torch.nn.Linear(64, 64),
                torch.nn.SiLU(),
                torch.nn.Linear(64, 6),
            )

        def forward(self, x, t):
            return self.net(torch.cat([x.flatten(1), t[:, None]], -1)).reshape(-1, 2, 3)

    torch.manual_seed(0)
    if kind == "dirichlet":
        flow = mf.Flow(mf.Simplex(3), Model(), path=mf.DirichletPath())
    else:
        flow = mf.Flow(mf.Simplex(3, metric=kind), Model(), predicts="logits")
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(flow.parameters(), lr=4e-3)
    for i in range(500):
        pair = torch.multinomial(table.flatten(), 512, replacement=True, generator=generator)
        tokens = torch.stack([pair // 3, pair % 3], -1)
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - i / 500)
        optimiser.zero_grad()
        flow.loss(mf.Simplex(3).one_hot(tokens), generator=generator).backward()
        optimiser.step()
    made = flow.sample((20_000, 2), steps=40, method="midpoint", generator=generator).argmax(-1)
    found = torch.bincount(made[:, 0] * 3 + made[:, 1], minlength=9) / len(made)
    assert 0.5 * (found - table.flatten()).abs().sum() < limit


def test_mix_is_linear_in_the_score():
    path = mf.DirichletPath().bind(mf.Simplex(3))
    a, b = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    assert torch.allclose(path.mix(a, b, 1.5).softmax(-1), torch.tensor([0.85, 0.1, 0.05]), atol=1e-6)
    assert path.mix(a, b, 4.0).softmax(-1).min() >= 0  # beyond the simplex it is projected
    assert torch.allclose(path.mix(a, b, 1.0).softmax(-1), a.exp(), atol=1e-6)
    tokens = mf.UniformJump().bind(mf.Tokens(3))
    mixed = tokens.mix(a, b, 2.0).softmax(-1)
    expected = a.exp() ** 2 / b.exp()
    assert torch.allclose(mixed, expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: mf.DirichletPath(most=1.0), ValueError, "above 1"),
        (lambda: mf.DirichletPath(power=0.5), ValueError, "at least 1"),
        (lambda: mf.DirichletPath().bind(mf.Sphere(2)), TypeError, "Simplex"),
        (lambda: mf.DirichletPath().bind(mf.Simplex(3), "velocity"), ValueError, "logits"),
        (lambda: mf.Geodesic().bind(mf.Sphere(2), "logits"), ValueError, "Simplex"),
        (
            lambda: mf.Flow(mf.Simplex(3), Fixed(torch.zeros(3)), path=mf.DirichletPath(), coupling=mf.MinibatchOT()),
            ValueError,
            "no coupling",
        ),
    ],
)
def test_mistakes_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    "flow",
    [
        lambda: mf.Flow(mf.Tokens(4, mask=True), torch.nn.Identity()),
        lambda: mf.Flow(mf.Tokens(4), torch.nn.Identity(), path=mf.UniformJump(own_evidence=True)),
        lambda: mf.Flow(mf.Simplex(4), torch.nn.Identity(), path=mf.DirichletPath()),
        lambda: mf.Flow(mf.Simplex(4), torch.nn.Identity(), predicts="logits"),
    ],
    ids=["masking", "uniform", "dirichlet", "fisher_rao"],
)
def test_the_cross_entropy_of_half_precision_logits_is_taken_in_single_precision(flow):
    path = flow().path["x"]
    x1 = torch.randint(4, (64, 5), generator=torch.Generator().manual_seed(0))
    if not isinstance(path.space, mf.Tokens):
        x1 = path.space.one_hot(x1)
        x0 = path.space.sample_uniform(x1.shape[:-1], generator=torch.Generator().manual_seed(1))
    else:
        x0 = torch.full_like(x1, path.space.size - 1)
    point = path.sample(x0, x1, torch.full((64,), 0.5), generator=torch.Generator().manual_seed(2))
    logits = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(3)).bfloat16()
    value = path.loss(logits, point)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, path.loss(logits.double(), point).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("metric", ["fisher_rao", "flat"])
@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("time", [0.1, 0.3, 0.7])
def test_the_own_evidence_of_a_point_completes_the_prior_to_the_posterior(metric, k, time):
    # Calibration is the definition of a posterior: among points that are given probability q, a share q has that corner.
    space = mf.Simplex(k, metric=metric)
    p = (torch.arange(1, k + 1, dtype=DOUBLE) / (k * (k + 1) / 2)).log()
    path = mf.Geodesic(own_evidence=True, predicts="logits").bind(space)
    n, generator = 200_000, torch.Generator().manual_seed(0)
    token = torch.multinomial(p.exp(), n, replacement=True, generator=generator)
    t = torch.full((n,), time, dtype=DOUBLE)
    x = path.sample(space.sample_uniform((n,), generator=generator, dtype=DOUBLE), space.one_hot(token, DOUBLE), t).x
    posterior = path.logits(p.expand(n, k), x, t).softmax(-1)
    for corner in (0, k - 1):
        said, is_it = posterior[:, corner], (token == corner).to(DOUBLE)
        place = (said * 20).long().clamp_max(19)
        count = torch.bincount(place, minlength=20)
        gap = torch.zeros(20, dtype=DOUBLE).index_add_(0, place, is_it - said)
        spread = torch.zeros(20, dtype=DOUBLE).index_add_(0, place, said * (1 - said)).sqrt()
        # 3e-4 of all points may lie where the penalty, which is steep but finite, stands for minus infinity.
        assert (gap.abs() <= 4.5 * spread + 3e-4 * n).all(), (gap, spread, count)
    if metric == "fisher_rao" and k > 2 and time < 0.5:  # later the corner is certain
        angle = x.sqrt().acos()
        stretch = ((angle / (1 - time)).clamp_max(torch.pi / 2).sin() / angle.sin()).log()

        def log_score(change):
            return (posterior.log() + change * stretch).log_softmax(-1).gather(1, token[:, None]).mean()

        assert log_score(0) > max(log_score(-1), log_score(1))  # one power less or more says less
    right = posterior.gather(1, token[:, None])
    assert right.min() > 0 and -right.log().mean() <= -p.exp().dot(p) + 1e-3  # it tells no less than the prior


@pytest.mark.parametrize("k, steps, limit", [(5, 20, 0.012), (20, 20, 0.025)])
def test_fisher_rao_samples_with_exact_evidence_have_the_law_of_the_corners(k, steps, limit):
    p = torch.linspace(1, 6, k, dtype=DOUBLE)
    p = p / p.sum()
    flow = mf.Flow(mf.Simplex(k), Fixed(p.log()), path=mf.Geodesic(own_evidence=True), predicts="logits")
    x = flow.sample(40_000, steps=steps, method="midpoint", generator=torch.Generator().manual_seed(0))
    share = x.double().mean(0)
    assert (share - p).abs().sum() / 2 < limit


def test_own_evidence_needs_logits_and_independent_uniform_noise():
    net = Fixed(torch.zeros(3))
    with pytest.raises(ValueError, match="logits"):
        mf.Flow(mf.Simplex(3), net, path=mf.Geodesic(own_evidence=True))
    with pytest.raises(ValueError, match="uniform source"):
        mf.Flow(mf.Simplex(3), net, path=mf.Geodesic(own_evidence=True), predicts="logits", coupling=mf.MinibatchOT())
