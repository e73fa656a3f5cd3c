"""Diffusion samplers: densities that integrate, exact reversals, unbiased weights, a perfect control."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow import gflownet as gf
from manifoldflow.energies import (
    Brownian,
    Control,
    ControlledWalk,
    CoordinateControl,
    DiffusionSampler,
    Energy,
    MlpControl,
    OrnsteinUhlenbeck,
    ReferenceBack,
    Replay,
    bounded_balance,
    grid,
)
from manifoldflow.energies.diffusion import Drawn, Seed
from manifoldflow.energies.references import log_step
from manifoldflow.energies.walks import clipped
from manifoldflow.state import fields
from manifoldflow.training import TrainConfig, fit
from manifoldflow.training.module import share

SPACES = {
    "plane": mf.Euclidean(2),
    "torus": mf.Torus(2, period=2 * math.pi),
    "sphere": mf.Sphere(2),
    "rotations": mf.SO3(),
    "together": {"x": mf.Euclidean(2), "r": mf.SO3()},
}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def flat_log_density(spaces):
    """A normal on flat fields, a tilt on the others: 3 times a law with a known normaliser, and its log Z."""
    laws = {n: mf.Normal(1.3, s) if s.is_linear else mf.VonMisesFisher(2.0, None, s) for n, s in fields(spaces).items()}
    return lambda x: sum(laws[n].log_prob(v) for n, v in fields(x).items()) + math.log(3), math.log(3)


def sampler_of(spaces, *, steps=8, guided=False, noisy=0.0, loss=None, **options):
    log_density, log_z = flat_log_density(spaces)
    torch.manual_seed(0)
    network = MlpControl(spaces, 2.0, width=16, depth=2, sloped=guided)
    if noisy:
        with torch.no_grad():
            for p in network.net[-1].parameters():
                p.normal_(0, noisy, generator=gen(1))
    made = DiffusionSampler(
        Energy(log_density, spaces), Brownian(spaces, 2.0), network, grid(steps),
        guided=guided, loss=loss or gf.trajectory_balance, **options,
    )  # fmt: skip
    return made, log_z


def references():
    yield "bridge", Brownian(SPACES["plane"], 2.0)
    yield "stationary", OrnsteinUhlenbeck(SPACES["plane"], 1.5, 3.0)
    learned = OrnsteinUhlenbeck(SPACES["plane"], 1.5, 3.0, learned=True)
    learned.own["x"].data.copy_(0.5 * torch.randn(3, 2, generator=gen(7)))
    yield "learned", learned.requires_grad_(False)
    for name in ("torus", "sphere", "rotations", "together"):
        yield name, Brownian(SPACES[name], 1.2)


@pytest.mark.parametrize(("name", "reference"), list(references()), ids=[n for n, _ in references()])
def test_the_way_back_is_the_exact_reversal_of_the_reference(name, reference):
    """p_t(x) P_F(y | x) = p_s(y) P_B(x | y), at single steps of any length."""
    x = {n: v.double() for n, v in fields(reference.start(40, generator=gen())).items()}
    x = {
        n: v + (0.7 * torch.randn(v.shape, generator=gen(1)) if fields(reference.spaces)[n].is_linear else 0)
        for n, v in x.items()
    }
    x = x if isinstance(reference.spaces, dict) else x["x"]
    y_parts = {}
    for n, v in fields(x).items():
        space = fields(reference.spaces)[n]
        y_parts[n] = space.exp(v, 0.8 * space.random_tangent(v, generator=gen(2)))
    y = y_parts if isinstance(reference.spaces, dict) else y_parts["x"]
    t, s = torch.full((40,), 0.3, dtype=torch.float64), torch.full((40,), 0.75, dtype=torch.float64)
    on = {n: reference.forward(n, v, t, s) for n, v in fields(x).items()}
    back = {n: reference.backward(n, v, s, t) for n, v in fields(y).items()}
    spaces = fields(reference.spaces)
    forward = reference.log_marginal(x, t) + sum(log_step(spaces[n], fields(x)[n], on[n], fields(y)[n]) for n in on)
    backward = reference.log_marginal(y, s) + sum(log_step(spaces[n], fields(y)[n], back[n], fields(x)[n]) for n in on)
    assert (forward - backward).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["torus", "sphere", "rotations"])
def test_densities_of_drifted_steps_integrate_to_one(name):
    space = SPACES[name]
    count = 30_000
    x = space.sample_uniform((1,), generator=gen(), dtype=torch.float64)
    mean = 0.9 * space.random_tangent(x, generator=gen(1))
    y = space.sample_uniform((count,), generator=gen(2), dtype=torch.float64)
    deviation = torch.full((count,), 0.45, dtype=torch.float64)
    density = log_step(space, x.expand_as(y), (mean.expand(count, -1), deviation), y).exp()
    total, error = density.mean() * math.exp(space.log_volume), density.std() / count**0.5 * math.exp(space.log_volume)
    assert abs(float(total) - 1) < 4 * float(error)
    steps = space.exp(
        x.expand(4000, *x.shape[1:]), mean + 0.45 * space.random_tangent(x.expand(4000, *x.shape[1:]), generator=gen(3))
    )
    drawn = space.embed(steps, 1).flatten(1).mean(0)
    weighed = (space.embed(y, 1).flatten(1) * density.unsqueeze(1)).mean(0) / density.mean()
    assert (drawn - weighed).abs().max() < 0.05


def test_a_deviation_of_every_coordinate_is_a_product_of_normals():
    space = mf.Euclidean(3)
    x, y = torch.zeros(4, 3), torch.randn(4, 3, generator=gen())
    deviation = torch.rand(4, 3, generator=gen(1)) + 0.5
    known = torch.distributions.Normal(0.0, deviation).log_prob(y).sum(-1)
    assert (log_step(space, x, (None, deviation), y) - known).abs().max() < 1e-5


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("name", SPACES)
def test_one_pass_scores_what_the_steps_score_one_by_one(name, guided):
    made, _ = sampler_of(SPACES[name], guided=guided, noisy=0.3)
    drawn = made.draw(6, generator=gen())
    trajectory, times = drawn.trajectory, drawn.trajectory.times
    with torch.no_grad():
        scores = made.scores(drawn)
        for i in range(len(times) - 1):
            here, there = trajectory.at(i), trajectory.at(i + 1)
            on = made.onward.log_prob(here, there, times[i], times[i + 1])
            back = made.back.log_prob(there, here, times[i + 1], times[i])
            assert (on - scores.log_forward[i]).abs().max() < 2e-3
            assert (back - scores.log_backward[i]).abs().max() < 2e-3


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("name", SPACES)
def test_weights_of_any_control_estimate_the_normaliser(name, guided):
    """A random control is a bad sampler and still unbiased: its weights know."""
    made, log_z = sampler_of(SPACES[name], guided=guided, noisy=0.2)
    found = made.weighted(5000, generator=gen(3))
    assert found.log_z_error < 0.15
    assert abs(found.log_z - log_z) < 4 * found.log_z_error + 0.01
    assert found.bound < log_z


@pytest.mark.parametrize("name", ["plane", "sphere", "together"])
def test_a_way_back_with_a_network_is_scored_in_one_pass_and_leaves_the_weights_unbiased(name):
    spaces = SPACES[name]
    torch.manual_seed(0)
    back = MlpControl(spaces, 2.0, width=16, depth=1)
    with torch.no_grad():
        for p in back.net[-1].parameters():
            p.normal_(0, 0.1, generator=gen(5))
    made, log_z = sampler_of(spaces, noisy=0.2, back=back)
    drawn = made.draw(6, generator=gen())
    trajectory, times = drawn.trajectory, drawn.trajectory.times
    with torch.no_grad():
        scores = made.scores(drawn)
        for i in range(len(times) - 1):
            one = made.back.log_prob(trajectory.at(i + 1), trajectory.at(i), times[i + 1], times[i])
            assert (one - scores.log_backward[i]).abs().max() < 2e-3
    found = made.weighted(5000, generator=gen(3))
    assert found.log_z_error < 0.2 and abs(found.log_z - log_z) < 4 * found.log_z_error + 0.01
    led = made.led_back(
        found.x, generator=gen(4)
    )  # the kernel moves as its law says: as its own trajectories from t = 0
    assert made.loss_of(Drawn(led, made.energy(led.end)))["balance"].isfinite()


def narrowing(learned):
    """A funnel in three dimensions, by four steps."""
    space = mf.Euclidean(3)

    def log_density(x):
        first, rest = x[:, 0], x[:, 1:]
        return mf.Normal(1.5, mf.Euclidean(1)).log_prob(first[:, None]) - (
            0.5 * rest.square().sum(-1) * (-2 * first).exp() + 2 * first + math.log(2 * math.pi)
        )

    torch.manual_seed(0)
    back = MlpControl(space, 1.5, width=32, depth=2) if learned else None
    return DiffusionSampler(
        Energy(log_density, space), OrnsteinUhlenbeck(space, 1.5, learned=True), MlpControl(space, 1.5, width=32, depth=2),
        grid(4, 1.0), loss="kl", widest=3.0, back=back,
    )  # fmt: skip


def test_a_learned_way_back_follows_a_funnel_in_four_steps():
    bounds = []
    for learned in (True, False):
        made = fit(narrowing(learned), [{"size": 64}], config(250), out=None).weighted(4000, generator=gen())
        bounds.append(made.bound)
    assert bounds[0] > -0.7 and bounds[0] > bounds[1] + 0.4, bounds


def test_annealing_begins_from_the_law_that_was_given_not_from_the_one_that_is_learned():
    reference = OrnsteinUhlenbeck(mf.Euclidean(2), 1.5, learned=True)
    x = torch.randn(5, 2, generator=gen())
    before, start = reference.log_given(x), reference.log_start(x)
    assert (before - start).abs().max() < 1e-5
    reference.own["x"].data.fill_(0.5)
    assert torch.equal(reference.log_given(x), before) and (reference.log_start(x) - start).abs().max() > 0.1


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_processes_that_share_trajectories_have_the_loss_of_all_of_them(guided):
    made, _ = sampler_of(SPACES["together"], guided=guided, noisy=0.1, replayed=0.0)
    drawn = made.draw(7, generator=gen())
    parts = [share(drawn, rank, 2) for rank in range(2)]
    assert [len(p.log_reward) for p in parts] == [4, 3]
    with torch.no_grad():
        whole, *each = (float(made.loss_of(part)["balance"]) for part in (drawn, *parts))
    assert abs(whole - (4 * each[0] + 3 * each[1]) / 7) < 1e-3
    seeds = [share(Seed(7, 3, 5), rank, 2) for rank in range(2)]
    assert [s.size for s in seeds] == [4, 3] and seeds[0].seed != seeds[1].seed and seeds[0].number == 3


class Perfect(torch.nn.Module):
    r"""The control of Brownian motion from 0 towards N(m, v): :math:`\sigma^2 \nabla \log h_t` in closed form."""

    def __init__(self, sigma, mean, variance):
        super().__init__()
        self.sigma, self.mean, self.variance = sigma, mean, variance

    def forward(self, x, t, slope=None):
        precision = 1 / self.variance - 1 / self.sigma**2
        centre = self.mean / self.variance / precision
        spread = 1 / precision + self.sigma**2 * (1 - t)
        drift = self.sigma * (1 - t).sqrt().unsqueeze(-1) * (centre - x) / spread.unsqueeze(-1)
        return Control({"x": drift}, {"x": torch.zeros_like(x)}, torch.zeros(len(x)), torch.zeros(len(x)))


def test_the_perfect_control_samples_a_normal_with_nearly_even_weights():
    mean, variance, sigma = torch.tensor([1.5, -1.0]), 0.5, 2.0
    law = mf.Normal(variance**0.5, mf.Euclidean(2))
    shares = []
    for steps in (10, 80):
        made = DiffusionSampler(
            Energy(lambda x: law.log_prob(x - mean) + 5.0, mf.Euclidean(2)),
            Brownian(mf.Euclidean(2), sigma), Perfect(sigma, mean, variance), grid(steps),
        )  # fmt: skip
        found = made.weighted(4000, generator=gen())
        shares.append(found.share)
        assert abs(found.log_z - 5.0) < 0.03
    assert shares[1] > 0.92 > 0.75 > shares[0]
    assert (found.x.mean(0) - mean).abs().max() < 0.05 and (found.x.std(0) - variance**0.5).abs().max() < 0.03


def test_flows_of_states_end_in_the_reward_and_begin_in_z():
    made, _ = sampler_of(mf.Euclidean(2), guided=True, loss=gf.subtrajectory_balance(1.0))
    drawn = made.draw(5, generator=gen())
    made.log_z.data.fill_(1.7)
    flow = made.scores(drawn).log_flow
    assert torch.equal(flow[-1], drawn.log_reward) and (flow[0] - 1.7).abs().max() == 0
    middle = drawn.trajectory.at(4)
    t = drawn.trajectory.times[4]
    guess = t * made.energy(middle) + (1 - t) * mf.Normal(2.0 * float(t) ** 0.5, mf.Euclidean(2)).log_prob(middle)
    assert (flow[4] - guess).abs().max() < 1e-4  # an untrained network adds nothing
    assert made.loss_of(drawn)["balance"].isfinite()


@pytest.mark.parametrize(("guided", "calls"), [(False, 6), (True, 6 * 9)])
def test_energy_calls_are_those_of_the_trajectories(guided, calls):
    """One a trajectory without slopes, and one a step with them; scoring asks nothing twice, the buffer remembers rewards."""
    made, _ = sampler_of(mf.Euclidean(2), guided=guided, replayed=0.5, explore=0.1)
    drawn = made.draw(6, generator=gen())
    assert made.energy.calls == calls
    made.loss_of(drawn)
    assert made.energy.calls == calls and len(made.replay) == 6
    again = made.draw(6, generator=gen(1))  # the second step is one of the buffer
    assert made.energy.calls == calls
    assert (made.energy(again.trajectory.end) - again.log_reward).abs().max() < 1e-4
    before = made.energy.calls
    made.loss_of(again)
    assert made.energy.calls == before + (6 * 8 if guided else 0)


def test_exploration_widens_the_noise_and_falls_to_nothing():
    made, _ = sampler_of(mf.Euclidean(2), explore=3.0, explore_steps=10, replayed=0.0)
    wide = made.draw(2000, generator=gen()).trajectory.end.std()
    made.load_training_state(made.training_state() | {"drawn": 10})
    plain = made.draw(2000, generator=gen()).trajectory.end.std()
    assert made.training_state()["drawn"] == 11
    assert 3.5 < float(wide / plain) < 4.5 and abs(float(plain) / 2.0 - 1) < 0.05


def test_local_search_moves_the_buffer_towards_the_mass():
    made, _ = sampler_of(mf.Euclidean(2), search_every=1, search_moves=30, search_size=50)
    made.replay.add(5 + torch.randn(100, 2, generator=gen()), torch.full((100,), -30.0))
    made.search(gen(1))
    fresh = made.replay.log_reward[100:]
    assert len(fresh) == 50 * 3 and float(fresh.mean()) > -6 and float(made.search_step) > 0.1


def test_the_buffer_prefers_the_best_and_forgets_the_oldest():
    replay = Replay(100, sharpness=0.01)
    replay.add(torch.arange(150.0).unsqueeze(1), torch.cat([torch.arange(149.0), torch.tensor([-torch.inf])]))
    assert len(replay) == 100 and float(replay.states["x"].min()) == 49
    x, reward = replay.draw(4000, generator=gen())
    assert torch.equal(x[:, 0], reward)
    best, half = float((reward == 148).float().mean()), float((reward >= 99).float().mean())
    expected = torch.arange(100) + 1.0
    assert abs(best - float((1 / expected)[0] / (1 / expected).sum())) < 0.03 and half > 0.8


def test_the_reverse_divergence_is_the_mean_log_weight_and_has_its_gradient():
    made, log_z = sampler_of(mf.Euclidean(2), loss="kl", noisy=0.3)
    made = made.double()
    seed = Seed(64, 0, 11)
    loss = made.loss_of(seed)["divergence"]
    found = made.weighted(64, generator=torch.Generator().manual_seed(11))
    assert abs(float(loss.detach()) + found.bound) < 1e-9 and float(loss.detach()) > -log_z
    loss.backward()
    weight = made.onward.network.net[-1].weight
    value = float(weight.grad[0, 3])
    with torch.no_grad():
        weight[0, 3] += 1e-5
        high = float(made.loss_of(seed)["divergence"])
        weight[0, 3] -= 2e-5
        low = float(made.loss_of(seed)["divergence"])
    assert abs((high - low) / 2e-5 - value) < 1e-5 * (1 + abs(value))


def config(steps, rate=1e-2):
    return TrainConfig(
        max_steps=steps, learning_rate=rate, weight_decay=0.0, ema=0.0, warmup_steps=1, gradient_clip=50.0, progress=False,
        precision="32-true", log_every=5,
    )  # fmt: skip


LOSSES = {
    "tb": ({"loss": bounded_balance()}, Brownian),
    "vargrad": ({"loss": bounded_balance(learned=False)}, Brownian),
    "dgfs": ({"loss": gf.subtrajectory_balance(1.0), "guided": True, "replayed": 0.0}, Brownian),
    "pis": ({"loss": "kl"}, Brownian),
    "dds": ({"loss": "kl"}, OrnsteinUhlenbeck),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_method_learns_two_modes_through_fit(name):
    options, reference = LOSSES[name]
    space = mf.Euclidean(1)

    def log_density(x):  # log Z = 1
        off = x - torch.tensor([-1.5, 1.5])
        return (-0.5 * (off / 0.4).square() - math.log(0.8 * (2 * math.pi) ** 0.5)).logsumexp(-1) + 1.0

    torch.manual_seed(0)
    network = MlpControl(space, 2.0, width=24, depth=2, sloped=options.get("guided", False))
    made = DiffusionSampler(
        Energy(log_density, space), reference(space, 2.0), network, grid(10), explore_steps=20, **options
    )
    before = made.weighted(2000, generator=gen())
    after = fit(made, [{"size": 64}], config(40), out=None).weighted(2000, generator=gen())
    assert after.bound > before.bound + 0.3 and abs(after.log_z - 1) < 0.1 + 4 * after.log_z_error
    # Reverse KL leans to either mode while it learns, and its weights know; the others look at both.
    weight = after.log_weight if options.get("loss") == "kl" else torch.zeros_like(after.log_weight)
    assert 0.2 < float((weight.softmax(0) * (after.x[:, 0] > 0)).sum()) < 0.8


@pytest.mark.parametrize("name", ["torus", "sphere", "rotations", "together"])
def test_samplers_on_manifolds_learn_through_fit(name):
    made, log_z = sampler_of(SPACES[name], steps=6)
    before = made.weighted(1000, generator=gen())
    after = fit(made, [{"size": 64}], config(25), out=None).weighted(1000, generator=gen())
    assert after.bound > before.bound + 0.1 and abs(after.log_z - log_z) < 4 * after.log_z_error + 0.05


def test_a_network_of_coordinates_sees_all_of_them():
    torch.manual_seed(0)
    network = CoordinateControl(mf.Euclidean(3), 2.0, width=16, sloped=True)
    for p in network.net[-1].parameters():
        torch.nn.init.normal_(p)
    x, t = torch.randn(5, 3, generator=gen()).requires_grad_(True), torch.rand(5, generator=gen(1))
    made = network(x, t, torch.randn(5, 3, generator=gen(2)))
    assert made.drift["x"].shape == made.width["x"].shape == (5, 3) and made.flow.shape == (5,)
    slopes = torch.autograd.grad(made.drift["x"][:, 0].sum(), x)[0]
    assert (slopes.abs() > 0).all()


def test_slopes_are_clipped_by_coordinate_on_flat_space_and_by_length_elsewhere():
    u = torch.tensor([[10.0, 0.1, 0.0]])
    assert torch.equal(clipped(mf.Euclidean(3), u, u, 3.0), torch.tensor([[3.0, 0.1, 0.0]]))
    x = torch.tensor([[0.0, 0.0, 1.0]])
    made = clipped(mf.Sphere(2), x, u, 3.0)
    assert abs(float(made.norm()) - 3) < 1e-6 and abs(float(made[0, 1] / made[0, 0]) - 0.01) < 1e-6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Brownian(mf.Euclidean(2), 0.0), "sigma must be positive"),
        (lambda: OrnsteinUhlenbeck(mf.Sphere(2), 1.0), "flat space"),
        (lambda: grid(0), "at least 1"),
        (lambda: Replay(0), "at least 1"),
        (lambda: sampler_of(mf.Euclidean(2), replayed=1.0), "replayed must lie"),
        (lambda: sampler_of(mf.Euclidean(2), loss="tv"), "or 'kl'"),
        (lambda: CoordinateControl(mf.Sphere(2)), "use MlpControl"),
    ],
)
def test_wrong_settings_are_said_in_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_kernels_of_a_sampler_are_kernels_of_the_library():
    """Moves of the walk under the one simulate, whose steps are scored by the kernel's own log_prob."""
    space = mf.Sphere(2)
    walk = ControlledWalk(Brownian(space, 1.0), MlpControl(space, width=8, depth=1))
    back = ReferenceBack(Brownian(space, 1.0))
    made = mf.simulate(walk, space.sample_uniform((4,), generator=gen()), grid(5), generator=gen(1), log_prob=True)
    assert (mf.trajectory_log_prob(walk, made) - made.log_prob.sum(0)).abs().max() < 1e-5
    assert mf.trajectory_log_prob(back, made.reversed()).shape == (4,)
