"""Environments keep their promises, and their exact answers are those of listing everything."""

import itertools
import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow import gflownet as gf
from manifoldflow.gflownet import metrics
from manifoldflow.training import TrainConfig, fit


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def reward_by_letters(x):
    return (x["token"] * (x["token"] < 3) * torch.tensor([0.5, 0.2, 0.9])[: x["token"].shape[1]]).sum(-1)


ENVS = {
    "append": lambda: gf.Sequences("ACG", 3, reward_by_letters),
    "both ends": lambda: gf.Sequences("ACG", 3, reward_by_letters, grows="both"),
    "any length": lambda: gf.Sequences("ACG", 3, reward_by_letters, shortest=1),
    "any length, both ends": lambda: gf.Sequences("ACG", 3, reward_by_letters, shortest=0, grows="both"),
    "bits": lambda: gf.BitSequences(8, 2, modes=3, sharpness=6.0),
    "sets": lambda: gf.ItemSets(torch.tensor([0.3, -0.5, 1.0, 0.1, -1.2]), 3),
    "Ising": lambda: gf.Ising(2, 0.4, field=0.2),
    "Ising, open": lambda: gf.Ising(2, 0.4, periodic=False),
    "grid": lambda: gf.Hypergrid(3, 3),
}


@pytest.mark.parametrize("make", ENVS.values(), ids=ENVS)
def test_environments_keep_their_promises_and_count_their_ways(make):
    env = make()
    gf.check_env(env)
    every = gf.enumerate_env(env)
    count = len(every.done)
    assert len(torch.unique(env.key(every.states))) == count
    # The number of ways by adding up over the actions that lead there.
    ways = torch.zeros(count, dtype=torch.float64)
    ways[0] = 1
    total = ways
    for _ in range(env.horizon):
        gained = (every.allowed * total.unsqueeze(1)).flatten()
        total = torch.zeros_like(ways).index_add(0, every.next.flatten(), gained)
        ways = ways + total
    assert torch.allclose(env.log_paths(every.states).double(), ways.log(), atol=1e-5)
    if hasattr(env, "log_z"):
        exact = float(env.log_reward(every.objects).double().logsumexp(0))
        assert abs(env.log_z - exact) < 1e-5
    # Untrained, an importance estimate of log Z is right: masks, steps and undoing agree.
    torch.manual_seed(0)
    model = gf.GFlowNet(env, gf.Mlp(env.observed, env.actions, 8))
    value, _ = model.log_z_estimate(20_000, generator=gen())
    assert abs(float(value) - float(env.log_reward(every.objects).double().logsumexp(0))) < 0.05
    found, log_p = model.exact(every)
    guess = model.log_prob(found.objects, samples=500, generator=gen())
    assert (guess - log_p).abs().max() < 0.35


def test_the_set_tasks_have_their_published_exact_answers():
    """METHODS B8."""
    truth = {
        "small": (11.892389, 0.299962, 0.263281),
        "medium": (45.378950, 1.00757e6, 999_302),
        "large": (48.391947, 908_804, 900_296),
    }
    for name, (log_z, best, mean) in truth.items():
        env = gf.ItemSets.standard(name)
        top = env.best(100)
        assert abs(env.log_z - log_z) < 1e-6
        assert abs(float(top[0]) / best - 1) < 6e-6 and abs(float(top.mean()) / mean - 1) < 3e-6
    env = gf.ItemSets(torch.tensor([0.3, -0.5, 1.0, 0.1, -1.2, 0.3]), 3)
    rewards = sorted((math.exp(-sum(c)) for c in itertools.combinations(env.energy.tolist(), 3)), reverse=True)
    assert torch.allclose(env.best(20), torch.tensor(rewards, dtype=torch.float64))


def test_exact_sets_have_the_law_of_their_rewards():
    env = gf.ItemSets(torch.tensor([0.3, -0.5, 1.0, 0.1, -1.2]), 3)
    every = gf.enumerate_env(env)
    law = env.log_reward(every.objects).double().softmax(0)
    drawn, known = env.key(env.exact(20_000, generator=gen())), env.key(every.objects)
    share = (drawn.unsqueeze(1) == known).double().mean(0)
    assert abs(float(share.sum()) - 1) < 1e-12 and (share - law).abs().max() < 4 * (0.25 / 20_000) ** 0.5


def test_the_transfer_matrix_of_a_larger_lattice_is_that_of_all_configurations():
    for periodic in (True, False):
        env = gf.Ising(3, 0.35, field=0.1, periodic=periodic)
        every = 1 - 2 * (torch.arange(512).unsqueeze(1) >> torch.arange(9) & 1).to(torch.int8)
        assert abs(env.log_z - float(env.log_reward(every).double().logsumexp(0))) < 1e-5


def test_sequences_are_strings_and_back_and_bits_are_near_their_modes():
    env = gf.Sequences("ACGT", 5, shortest=2)
    texts = ["AC", "GGTTA", "TTT"]
    assert env.strings(env.states(texts)) == texts
    with pytest.raises(ValueError, match="sequence 1 is 'AXC'"):
        env.states(["AC", "AXC"])
    seen = []
    counted = gf.Reward(lambda strings: seen.extend(strings) or [1.0 + s.count("G") for s in strings])
    env = gf.Sequences("ACGT", 4, counted)
    x = env.states(["GGGG", "ACAC", "GGGG"])
    assert torch.allclose(env.log_reward(x), torch.tensor([5.0, 1.0, 5.0], dtype=torch.float64).log())
    assert seen == ["GGGG", "ACAC"]
    bits = gf.BitSequences(12, 3, modes=torch.eye(12)[:2], sharpness=2.0)
    x = bits.states([chr(33 + 4) + "!!!", "!!!!"])
    assert bits.as_bits(x).sum(-1).tolist() == [1, 0] and bits.distance(x).tolist() == [0, 1]
    assert torch.allclose(bits.log_reward(x), torch.tensor([0.0, -2 / 12]))


def test_metrics():
    keys = torch.tensor([3, 3, 1, 2])
    reward = torch.tensor([5.0, 5.0, 1.0, 4.0])
    assert metrics.top_mean(reward, keys, 2) == 4.5 and metrics.top_mean(reward, count=2) == 5.0
    assert metrics.unique(torch.tensor([[1], [0], [1]])).flatten().tolist() == [1, 0]
    assert metrics.modes_found(torch.tensor([[0.1, 3.0], [0.2, 2.0]]), 2.0) == 2
    a, b = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 3.0, 3.0, 9.0])
    assert abs(metrics.rank_correlation(a, b) - 1) < 1e-12
    from scipy.stats import spearmanr

    x, y = torch.randn(50, generator=gen()).round(decimals=1), torch.randn(50, generator=gen(1)).round(decimals=1)
    assert abs(metrics.rank_correlation(x, y) - spearmanr(x, y).statistic) < 1e-12


# ---------------------------------------------------------------- continuous steps


def continuous(space, energy, steps=5, scale=0.6):
    torch.manual_seed(0)
    start = mf.Uniform(space)
    return gf.Balance(
        gf.WrappedSteps(space, scale, range=4.0),
        gf.WrappedSteps(space, scale, range=1.0).requires_grad_(False),
        lambda x: -energy(x),
        lambda n: start.sample((n,)),
        torch.linspace(0, 1, steps + 1),
        log_start=start.log_prob,
    )


def off_the_law(model, energy, points, weight, bins=16):
    """Total variation between samples and the law, by the energy and by the first coordinate, in bins of equal mass."""
    made, worst = model.sample(20_000, generator=gen()), 0.0
    for look in (energy, lambda x: x.flatten(1)[:, 0].contiguous()):
        order = look(points).argsort()
        edges = look(points)[order][torch.searchsorted(weight[order].cumsum(0), torch.arange(1, bins) / bins)]
        share = torch.bincount(torch.bucketize(look(made), edges), minlength=bins) / len(made)
        worst = max(worst, float(0.5 * (share - 1 / bins).abs().sum()))
    return worst


SPACES = {
    "torus": (mf.Torus(1, period=2 * math.pi), lambda x: 1.5 * (2 * x[..., 0]).cos() + x[..., 0].sin(), 0.12),
    "sphere": (mf.Sphere(2), lambda x: -3 * x[..., 2].square() - x[..., 0], 0.27),
    "rotations": (mf.SO3(), lambda x: -0.8 * x.diagonal(dim1=-2, dim2=-1).sum(-1), 0.12),
}


@pytest.mark.parametrize("name", SPACES)
def test_continuous_steps_on_a_manifold_have_densities_that_integrate_and_learn_the_law(name):
    space, energy, limit = SPACES[name]
    model = continuous(space, energy)
    uniform = mf.Uniform(space)
    points = uniform.sample((200_000,), generator=gen())
    truth = float((-energy(points) - uniform.log_prob(points)).logsumexp(0)) - math.log(200_000)
    kernel = model.onward
    for last in (kernel.drift.net[-1], kernel.spread[-1]):
        torch.nn.init.normal_(last.weight, std=0.1)
    x = uniform.sample((1,), generator=gen(1)).expand(20_000, *points.shape[1:])
    t = torch.tensor(0.3)
    with torch.no_grad():
        mass = (kernel.log_prob(x, points[:20_000], t, t) - uniform.log_prob(points[:20_000])).exp().mean()
        assert abs(float(mass) - 1) < 0.06
        y = kernel(x, None, t, t, generator=gen(2)).x
        near = energy(y) < energy(y).median()  # a half of the space that the law of the steps knows nothing of
        inside = energy(points) < energy(y).median()
        density = (kernel.log_prob(x, points[:20_000], t, t) - uniform.log_prob(points[:20_000])).exp()
        assert abs(float((density * inside[:20_000]).mean()) - float(near.float().mean())) < 0.05
    model = continuous(space, energy)
    weight = -energy(points)
    weight = (weight - weight.logsumexp(0)).exp()
    before = off_the_law(model, energy, points, weight)
    config = TrainConfig(
        max_steps=100, learning_rate=1e-2, weight_decay=0.0, ema=0.0, warmup_steps=1, gradient_clip=10.0, progress=False
    )
    model = fit(model, [{"size": 128}], config, out=None)
    after = off_the_law(model, energy, points, weight)
    assert after < limit < 0.75 * before, (before, after)
    assert abs(float(model.log_z_estimate(4000, generator=gen())[0]) - truth) < 0.12


def test_steps_scored_at_once_are_those_scored_one_by_one():
    space, energy, _ = SPACES["sphere"]
    model = continuous(space, energy)
    made = model.draw(7)
    one = torch.stack([model.onward.log_prob(made.at(i), made.at(i + 1), *made.times[i : i + 2]) for i in range(5)])
    assert torch.allclose(model.onward.log_probs_of(made), one, atol=1e-5)
    with pytest.raises(ValueError, match="scale must be positive"):
        gf.WrappedSteps(space, 0.0)
