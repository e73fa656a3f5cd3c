"""Monte Carlo against closed forms: laws that must stay, normalisers that are known."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.energies import (
    Base,
    Energy,
    bennett,
    effective_share,
    hmc,
    log_mean,
    log_mean_error,
    parallel_tempering,
    resampled,
    sequential_monte_carlo,
    systematic,
    walkers_at,
)
from manifoldflow.energies.moves import kinetic, leapfrog
from manifoldflow.energies.smc import next_temperature
from manifoldflow.energies.tempering import evened
from manifoldflow.state import fields

SPACES = {
    "plane": mf.Euclidean(3),
    "torus": mf.Torus(2, period=2 * math.pi),
    "sphere": mf.Sphere(2),
    "rotations": mf.SO3(),
    "quaternions": mf.UnitQuaternion(),
    "together": {"x": mf.Euclidean(2), "r": mf.SO3()},
}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def bumpy(spaces):
    """A smooth log-density that is even in the sign of a quaternion."""

    def log_density(x):
        total = 0.0
        for n, v in fields(x).items():
            space = fields(spaces)[n]
            seen = space.embed(v, 1).flatten(1)
            weight = torch.linspace(-1.5, 2.0, seen.shape[1], dtype=v.dtype)
            total = total + (seen * weight).sum(-1) - (0.5 * v.square().sum(-1) if space.is_linear else 0.0)
        return total

    return log_density


def base_of(spaces):
    laws = {n: (mf.Normal(2.0) if s.is_linear else mf.Uniform()).bind(s) for n, s in fields(spaces).items()}

    def sample(count, generator=None):
        made = {n: law.sample((count,), generator=generator) for n, law in laws.items()}
        return made if isinstance(spaces, dict) else made["x"]

    return Base(sample, lambda x: sum(laws[n].log_prob(v) for n, v in fields(x).items()))


@pytest.mark.parametrize("name", SPACES)
def test_leapfrogs_along_geodesics_can_be_turned_round_and_keep_the_energy_to_second_order(name):
    spaces = SPACES[name]
    energy, base = Energy(bumpy(spaces), spaces), base_of(spaces)
    x = {n: v.double() for n, v in fields(base.sample(16, gen())).items()}
    x = x if isinstance(spaces, dict) else x["x"]
    start = walkers_at(energy, base, x)
    momentum = {n: fields(spaces)[n].random_tangent(v, generator=gen(1)) for n, v in fields(x).items()}
    beta = torch.full((16,), 0.7, dtype=torch.float64)

    def total(walkers, p):
        return walkers.log_density(beta) - kinetic(spaces, walkers.x, p)

    lost = []
    for count in (20, 40):
        step = torch.full((16,), 1.0 / count, dtype=torch.float64)
        there, moved, broken = leapfrog(energy, base, start, momentum, beta, step, count)
        assert not broken.any()
        lost.append((total(there, moved) - total(start, momentum)).abs().mean())
        back, _, _ = leapfrog(energy, base, there, {n: -p for n, p in moved.items()}, beta, step, count)
        for n, v in fields(back.x).items():
            assert fields(spaces)[n].dist(v, fields(x)[n]).max() < 1e-6
            assert fields(spaces)[n].dist(fields(there.x)[n], fields(x)[n]).max() > 0.1
    assert 3 < lost[0] / lost[1] < 5


@pytest.mark.parametrize("leapfrogs", [1, 4])
@pytest.mark.parametrize("name", ["torus", "sphere", "rotations"])
def test_moves_leave_a_law_as_it_is_with_a_step_that_rejects(name, leapfrogs):
    """From exact samples, by rejection from uniform ones: means of functions stay; without the test of Metropolis they do not."""
    spaces = SPACES[name]
    log_density = bumpy(spaces)
    many = spaces.sample_uniform((60_000,), generator=gen())
    value = log_density(many)
    keep = torch.rand(60_000, generator=gen(1)).log() < value - value.max()
    x = many[keep][:4000]
    energy, base = Energy(log_density, spaces), base_of(spaces)
    now, rate = walkers_at(energy, base, x), []
    before = spaces.embed(x, 1).flatten(1)
    step = torch.tensor(1.1 if leapfrogs == 1 else 0.8)
    for i in range(6):
        now, accepted = hmc(energy, base, now, torch.ones(len(x)), step, leapfrogs=leapfrogs, generator=gen(2 + i))
        rate.append(float(accepted.mean()))
    after = spaces.embed(now.x, 1).flatten(1)
    assert 0.2 < sum(rate) / len(rate) < 0.95
    error = ((before.var(0) + after.var(0)) / len(x)).sqrt()
    assert ((after.mean(0) - before.mean(0)).abs() < 4 * error + 1e-6).all()
    assert (now.log_reward - log_density(now.x)).abs().max() < 1e-5


CENTRE = torch.tensor([1.0, -2.0, 0.5])


def gaussian(x):
    r"""7 times a normal of deviation 0.6: log Z = log 7."""
    return mf.Normal(0.6, mf.Euclidean(3)).log_prob(x - CENTRE) + math.log(7)


@pytest.mark.parametrize("temperatures", [40, None], ids=["grid", "adaptive"])
def test_sequential_monte_carlo_finds_the_normaliser_and_the_moments_of_a_normal(temperatures):
    energy = Energy(gaussian, mf.Euclidean(3))
    made = sequential_monte_carlo(
        energy, base_of(mf.Euclidean(3)), size=2000, temperatures=temperatures, keep=0.9, generator=gen()
    )
    assert abs(made.log_z - math.log(7)) < 0.08
    assert made.calls == energy.calls == 2000 * (1 + 5 * len(made.trace))
    x = resampled(made, 4000, generator=gen(1))
    assert (x.mean(0) - CENTRE).abs().max() < 0.08 and (x.std(0) - 0.6).abs().max() < 0.06
    assert [row["beta"] for row in made.trace] == sorted(row["beta"] for row in made.trace)


def test_sequential_monte_carlo_is_unbiased_without_moves():
    """Without moves it is importance sampling from the base, whose mean weight is Z whatever the grid."""
    energy = Energy(gaussian, mf.Euclidean(3))
    made = [
        sequential_monte_carlo(
            energy, base_of(mf.Euclidean(3)), size=20_000, temperatures=3, moves=0, resample_below=0.0, generator=gen(i)
        ).log_z
        for i in range(8)
    ]
    assert abs(log_mean(torch.tensor(made)) - math.log(7)) < 0.05


def test_parallel_tempering_finds_both_modes_and_the_normaliser_of_a_mixture():
    space = mf.Euclidean(1)

    def log_density(x):  # 3/4 at -4 and 1/4 at 4, deviation 0.3: moves alone never cross
        parts = torch.stack([0.75 * torch.ones(()), 0.25 * torch.ones(())]).log()
        off = x - torch.tensor([-4.0, 4.0])
        return (parts - 0.5 * (off / 0.3).square() - math.log(0.3 * (2 * math.pi) ** 0.5)).logsumexp(-1) + 2.0

    energy = Energy(log_density, space)
    base = Base(lambda n, g=None: 4 * torch.randn(n, 1, generator=g), lambda x: mf.Normal(4.0, space).log_prob(x))
    made = parallel_tempering(energy, base, levels=8, chains=40, rounds=150, leapfrogs=2, generator=gen())
    assert abs(made.log_z - 2.0) < 0.06
    assert abs(float((made.x < 0).float().mean()) - 0.75) < 0.06
    assert made.calls == energy.calls and made.trace[-1]["log_z"] == made.log_z


def test_tempering_covers_several_fields():
    spaces = SPACES["together"]

    def log_density(x):  # a normal of deviation 1 times exp(2 tr R)
        return -0.5 * x["x"].square().sum(-1) + 2 * x["r"].diagonal(dim1=-2, dim2=-1).sum(-1)

    many = mf.SO3().sample_uniform((400_000,), generator=gen(), dtype=torch.float64)
    exact = math.log(2 * math.pi) + float(log_mean(2 * many.diagonal(dim1=-2, dim2=-1).sum(-1)) + mf.SO3().log_volume)
    energy = Energy(log_density, spaces)
    made = sequential_monte_carlo(energy, base_of(spaces), size=3000, temperatures=30, generator=gen(1))
    assert abs(made.log_z - exact) < 0.1


def test_bennett_is_exact_for_normals_and_knows_the_numbers_of_samples():
    r"""Two normals of deviation 1 and 1.5, the second 5 times as heavy: R_1 / R_0 at samples of both."""
    g = gen()
    a, b = torch.randn(40_000, 2, generator=g, dtype=torch.float64), 1.5 * torch.randn(10_000, 2, generator=g).double()

    def ratio(x):
        first = -0.5 * x.square() - math.log((2 * math.pi) ** 0.5)
        return -0.5 * (x / 1.5).square() - math.log(1.5 * (2 * math.pi) ** 0.5) + math.log(5) - first

    assert (bennett(ratio(a), ratio(b)) - math.log(5)).abs().max() < 0.02


def test_estimates_from_weights():
    weight = torch.tensor([1.0, 2.0, 3.0]).log()
    assert abs(float(log_mean(weight)) - math.log(2)) < 1e-6
    assert abs(float(effective_share(weight)) - 36 / (3 * 14)) < 1e-6
    draws = torch.randn(500, 1000, generator=gen())  # of log-normal weights
    spread = torch.stack([log_mean(d) for d in draws]).std()
    made = torch.stack([log_mean_error(d) for d in draws]).median()
    assert 0.85 < float(made / spread) < 1.15


def test_systematic_resampling_draws_each_as_often_as_its_weight_up_to_one():
    share = torch.rand(50, generator=gen()).double()
    count = torch.bincount(systematic(share.log(), generator=gen(1)), minlength=50)
    expected = 50 * share / share.sum()
    assert ((count - expected).abs() < 1).all() and count.sum() == 50


def test_an_adaptive_temperature_keeps_the_share_that_was_asked_for():
    up = 30 * torch.randn(5000, generator=gen())
    weight = torch.zeros(5000)
    beta = next_temperature(up, weight, torch.tensor(0.1), 0.9)
    assert abs(float(effective_share((beta - 0.1) * up)) - 0.9) < 0.01
    assert next_temperature(1e-3 * up, weight, torch.tensor(0.1), 0.9) == 1


def test_the_ladder_moves_to_where_exchanges_are_rejected():
    beta = torch.linspace(0, 1, 5)
    made = evened(beta, torch.tensor([0.8, 0.0, 0.0, 0.0]))
    assert made[0] == 0 and made[-1] == 1 and bool((made.diff() > 0).all()) and float(made[3]) < 0.25
    assert (evened(beta, torch.full((4,), 0.3)) - beta).abs().max() < 1e-6


@pytest.mark.parametrize(
    "call",
    [
        lambda e, b: sequential_monte_carlo(e, b, size=1),
        lambda e, b: sequential_monte_carlo(e, b, keep=1.0),
        lambda e, b: parallel_tempering(e, b, levels=1),
        lambda e, b: parallel_tempering(e, b, burn=1.0),
    ],
)
def test_settings_out_of_range_are_refused_before_any_call(call):
    energy = Energy(gaussian, mf.Euclidean(3))
    with pytest.raises(ValueError, match="must"):
        call(energy, base_of(mf.Euclidean(3)))
    assert energy.calls == 0


def test_a_population_without_mass_is_an_error_in_one_line():
    energy = Energy(lambda x: torch.full((len(x),), -torch.inf) + 0 * x.sum(-1), mf.Euclidean(3), name="nothing")
    with pytest.raises(RuntimeError, match="nothing: no particle has any mass"):
        sequential_monte_carlo(energy, base_of(mf.Euclidean(3)), size=10, temperatures=2)
