"""GFlowNets and diffusion samplers: one balance, one simulate, one fit; laws by dynamic programming and closed forms."""

import math

import pytest
import torch
from torch import nn

import manifoldflow as mf
from manifoldflow import gflownet as gf
from manifoldflow.training import TrainConfig, fit


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def config(steps, rate, **options):
    return TrainConfig(
        max_steps=steps,
        learning_rate=rate,
        weight_decay=0.0,
        ema=0.0,
        warmup_steps=1,
        gradient_clip=100.0,
        progress=False,
        seed=0,
        **options,
    )


def trained(model, steps, rate, size):
    return fit(model, [{"size": size}], config(steps, rate), out=None)


@pytest.mark.slow
def test_a_grid_and_an_energy_are_learned_by_the_same_balance_through_the_same_simulate_and_fit():
    torch.manual_seed(0)
    env = gf.Hypergrid(2, 8)
    grid = trained(gf.GFlowNet(env, gf.Mlp(env.observed, env.actions, 64)), 600, 5e-3, 64)
    assert abs(float(grid.log_z.detach()) - 3.109061) < 0.01 and abs(env.log_z - 3.109061) < 1e-6
    assert grid.total_variation() < 0.02

    space, sigma = mf.Euclidean(2), 2.0
    centres = torch.tensor([[1.2, 1.0], [-1.2, -0.6]])

    def log_density(x):  # two normals of mass 1 each: log Z = log 2
        return (-(x[:, None] - centres).square().sum(-1) - math.log(math.pi)).logsumexp(1)

    class Drift(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 2))
            nn.init.zeros_(self.net[-1].weight)

        def forward(self, x, t):
            return self.net(torch.cat([x, t[:, None]], -1))

    walk = gf.DriftedWalk(lambda drift: mf.RandomWalk(space, sigma, drift=drift), Drift())
    bridge = gf.PinnedBridge(space, torch.zeros(2), sigma)
    sampler = gf.Balance(walk, bridge, log_density, lambda n: torch.zeros(n, 2), torch.linspace(0, 1, 13))
    before = sampler.log_z_estimate(4000, generator=gen())
    trained(sampler, 200, 5e-3, 128)
    after = sampler.log_z_estimate(4000, generator=gen())
    assert abs(float(after[0]) - math.log(2)) < 0.05
    assert after[1] > before[1] + 0.1


@pytest.mark.parametrize("height", [2, 5, 16])
def test_the_reward_of_the_grid_has_its_exact_sum(height):
    """METHODS B8: at H = 16 floating point put 9 modes where there are 4; exact log Z 4.183576."""
    env = gf.Hypergrid(2, height)
    gf.check_env(env)
    if height == 16:
        assert abs(env.log_z - 4.183576) < 1e-6
        place = torch.cartesian_prod(torch.arange(16), torch.arange(16))
        assert int((env.log_reward({"place": place}) > math.log(2.5)).sum()) == 4 * 2 * 2 // 4


def test_dynamic_programming_agrees_with_what_a_policy_draws():
    torch.manual_seed(1)
    env = gf.Hypergrid(2, 4)
    model = gf.GFlowNet(env, gf.Mlp(env.observed, env.actions, 16))
    every, log_p = model.exact()
    assert len(every.done) == 2 * 16 and abs(float(log_p.exp().sum()) - 1) < 1e-6
    n = 20_000
    made = env.key(model.sample(n, generator=gen()))
    known = env.key(every.objects)
    seen = (made.unsqueeze(1) == known).double().mean(0)
    assert 0.5 * (seen - log_p.exp()).abs().sum() < 3 * (16 / n) ** 0.5


def test_an_importance_estimate_of_log_z_is_unbiased_for_an_untrained_policy():
    torch.manual_seed(2)
    env = gf.Hypergrid(2, 3)
    model = gf.GFlowNet(env, gf.Mlp(env.observed, 2 * env.actions, 16), backward="learned")
    value, share = model.log_z_estimate(40_000, generator=gen())
    assert abs(float(value) - env.log_z) < 0.03 and 0 < share <= 1


def perfect(env):
    """The policy, flows and log Z of a grid by dynamic programming with the uniform backward policy: all losses are 0 there."""

    class Exact(nn.Module):
        def forward(self, seen):
            return table[keys(seen)]

    every = gf.enumerate_env(env)
    order = every.states["place"].sum(-1) + every.done
    flow = torch.zeros(len(every.done), dtype=torch.float64)
    odds = torch.full((len(every.done), env.actions), -1e9, dtype=torch.float64)
    back = env.backward_mask(every.states).sum(-1).clamp_min(1)
    reward = env.log_reward(every.states).double()
    for i in order.argsort(descending=True).tolist():
        if every.done[i]:
            flow[i] = reward[i].exp()
            continue
        for a in range(env.actions):
            if every.allowed[i, a]:
                j = int(every.next[i, a])
                odds[i, a] = (flow[j] / back[j]).log()
                flow[i] += flow[j] / back[j]
    table = torch.cat([odds, flow.log().unsqueeze(1)], 1)
    seen = env.observe(every.states)

    def keys(x):
        return (x.unsqueeze(1) == seen).all(-1).to(torch.uint8).argmax(-1)

    return Exact(), float(flow[0].log())


LOSSES = {
    "trajectory": gf.trajectory_balance,
    "variance": gf.log_partition_variance,
    "detailed": gf.detailed_balance,
    "subtrajectory": gf.subtrajectory_balance(0.9),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_zero_at_the_exact_flow_and_only_there(loss):
    env = gf.Hypergrid(2, 4)
    policy, log_z = perfect(env)
    assert abs(log_z - env.log_z) < 1e-9
    model = gf.GFlowNet(env, policy, loss=loss, flows=True).double()
    model.log_z.data.fill_(log_z)
    assert model.total_variation() < 1e-12
    drawn = model.draw(64, generator=gen())
    assert model.loss_of(drawn)["balance"] < 1e-10
    noise = torch.randn(env.actions + 1, generator=gen(1), dtype=torch.float64)
    model.policy.register_forward_hook(lambda module, given, made: made + noise)
    assert model.loss_of(drawn)["balance"] > 1e-3


@pytest.mark.parametrize("name", ["trajectory", "detailed", "subtrajectory"])
def test_training_lowers_the_exact_total_variation(name):
    torch.manual_seed(0)
    env = gf.Hypergrid(2, 5)
    model = gf.GFlowNet(env, gf.Mlp(env.observed, env.actions + 1, 32), loss=LOSSES[name], flows=True, epsilon=0.05)
    before = model.total_variation()
    trained(model, 250, 5e-3, 32)
    assert model.total_variation() < 0.25 * before


def test_trajectories_drawn_backward_from_objects_have_both_probabilities():
    env = gf.Hypergrid(2, 4)
    model = gf.GFlowNet(env, gf.Mlp(env.observed, env.actions, 8))
    x = model.sample(50, generator=gen())
    path = model.taken_apart(x, generator=gen(1))
    assert env.same(path.end, x).all() and env.same(path.at(0), env.initial(50)).all()
    scores = model.scores(path)
    steps = x["place"].sum(-1) + 1
    assert torch.equal(scores.moved.sum(0), steps)
    # P_B is one over the number of orders, of those that lead to the place
    ways = torch.lgamma(steps.double()) - torch.lgamma(x["place"].double() + 1).sum(-1)
    orders = model.scores(path).log_backward.sum(0)
    assert orders.exp().le(1 + 1e-6).all() and ways.ge(-1e-9).all()
    again = mf.trajectory_log_prob(model.onward, path)
    assert (again - scores.log_forward.sum(0)).abs().max() < 1e-5


class Subset(gf.Env):
    """k of n items; the reward is the product of their worths, and unfinished sets have earned theirs already."""

    def __init__(self, worth, k):
        self.worth, self.k, self.horizon = worth, k, k
        self.actions = self.observed = len(worth)

    def initial(self, n, *, device=None):
        return torch.zeros(n, self.actions, dtype=torch.bool, device=device)

    def is_done(self, x):
        return x.sum(-1) >= self.k

    def forward_mask(self, x):
        return ~x & ~self.is_done(x).unsqueeze(-1)

    def backward_mask(self, x):
        return x

    def step(self, x, action):
        return x | nn.functional.one_hot(action, self.actions).bool()

    def undo(self, x, action):
        return x & ~nn.functional.one_hot(action, self.actions).bool()

    def log_reward(self, x):
        return (x * self.worth.log()).sum(-1)

    log_partial_reward = log_reward

    def observe(self, x):
        return x.to(self.worth.dtype)

    def key(self, x):
        return (x * 2 ** torch.arange(self.actions)).sum(-1)


@pytest.mark.parametrize(
    "loss", [gf.detailed_balance, gf.subtrajectory_balance(0.8)], ids=["detailed", "subtrajectory"]
)
def test_forward_looking_losses_are_zero_at_the_exact_flow_over_what_is_earned(loss):
    """F(set) by hand: the sum over all finished sets that hold it of R / (number of orders of the rest's removal)."""
    env = Subset(torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64), 2)
    gf.check_env(env)
    every = gf.enumerate_env(env)
    sets = every.states
    done = sets[every.done]
    holds = (sets.unsqueeze(1) <= done).all(-1)  # (S, objects)
    missing = 2 - sets.sum(-1, keepdim=True)
    share = torch.lgamma(sets.sum(-1) + 1.0) - torch.lgamma(torch.tensor(3.0)) + torch.lgamma(missing.squeeze(-1) + 1.0)
    log_flow = ((holds * env.log_reward(done).exp()).sum(1)).log() + share.double()

    class Exact(nn.Module):
        def forward(self, seen):
            at = (seen.unsqueeze(1) == env.observe(sets)).all(-1).to(torch.uint8).argmax(-1)
            leads = log_flow[every.next[at]] - env.backward_mask(sets)[every.next[at]].sum(-1).double().log()
            relative = log_flow[at] - env.log_partial_reward(sets[at])
            return torch.cat([leads, relative.unsqueeze(-1)], -1)

    model = gf.GFlowNet(env, Exact(), loss=loss, forward_looking=True).double()
    z = sum(a * b for i, a in enumerate(env.worth) for b in env.worth[i + 1 :])
    model.log_z.data.fill_(float(z.log()))
    assert model.total_variation() < 1e-12
    drawn = model.draw(32, generator=gen())
    assert model.loss_of(drawn)["balance"] < 1e-12
    model.policy.register_forward_hook(lambda module, given, made: made + made.new_tensor([0, 0, 0, 0, 0.3]))
    assert model.loss_of(drawn)["balance"] > 1e-2  # the flow over what is earned matters where nothing is finished


# ---------------------------------------------------------------- mistakes that check_env finds


class Wrong(gf.Hypergrid):
    def __init__(self, kind):
        super().__init__(2, 4)
        self.kind = kind
        if kind == "horizon":
            self.horizon = 5

    def forward_mask(self, x):
        mask = super().forward_mask(x)
        if self.kind == "illegal action":
            mask[:, 0] = ~x["done"]
        if self.kind == "done acts":
            mask[:, 2] = True
        return mask

    def backward_mask(self, x):
        mask = super().backward_mask(x)
        if self.kind == "backward mismatch":
            mask[:, 1] = False
        return mask

    def step(self, x, action):
        if self.kind == "illegal action":
            moved = super().step(x, action)
            return {**moved, "place": moved["place"].clamp_max(3)}
        if self.kind == "random step":
            action = torch.where(torch.rand(len(action)) < 0.5, action, 2)
        return super().step(x, action)

    def is_done(self, x):
        done = super().is_done(x)
        return done | (x["place"].sum(-1) >= 4) if self.kind == "wrong done" else done

    def undo(self, x, action):
        before = super().undo(x, action)
        if self.kind == "reward of a non-terminal":  # the object's mark stays when its stop is undone
            before = {**before, "done": x["done"]}
        return {**before, "place": before["place"].roll(1, -1)} if self.kind == "undo" else before

    def log_reward(self, x):
        value = super().log_reward(x)
        if self.kind == "reward of the batch":
            value = value - value.mean()
        return value / 0 * 0 if self.kind == "reward" else value

    def log_partial_reward(self, x):
        return self.log_reward(x) + (self.kind == "partial reward")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("illegal action", "leaves the state as it is"),
        ("done acts", "allows an action of a state that is done"),
        ("wrong done", "allows an action of a state that is done"),
        ("reward of a non-terminal", "undo does not lead back|has a reward, but is no end"),
        ("reward of the batch", "depends on what else is in the batch"),
        ("partial reward", "log_partial_reward of an object is not"),
        ("backward mismatch", "backward_mask forbids"),
        ("random step", "not deterministic"),
        ("horizon", "too short"),
        ("undo", "undo does not lead back|leads to where it is forbidden"),
        ("reward", "NaN"),
    ],
)
def test_planted_mistakes_are_found(kind, words):
    with pytest.raises(AssertionError, match=words):
        gf.check_env(Wrong(kind))


@pytest.mark.parametrize(
    ("reward", "words"),
    [(lambda x: torch.zeros(3), "one number a sample"), (lambda x: torch.full((8,), torch.nan), "NaN for sample 0")],
)
def test_rewards_that_are_none_are_refused(reward, words):
    env = gf.Hypergrid(2, 3)
    env.log_reward = reward
    model = gf.GFlowNet(env, gf.Mlp(env.observed, env.actions, 8))
    with pytest.raises(ValueError, match=words):
        model.loss_of(model.draw(8, generator=gen()))


def test_the_loss_runs_on_meta_tensors():
    """Where any host read raises: the hot path of a GFlowNet waits for no device."""
    env = gf.Hypergrid(2, 4)
    model = gf.GFlowNet(env, gf.Mlp(env.observed, env.actions + 1, 8), loss=gf.subtrajectory_balance(), flows=True).to(
        "meta"
    )
    horizon = env.horizon + 1
    states = {
        "place": torch.zeros(horizon, 5, 2, dtype=torch.int64, device="meta"),
        "done": torch.zeros(horizon, 5, dtype=torch.bool, device="meta"),
    }
    made = mf.Trajectory(states, torch.arange(float(horizon), device="meta"))
    assert model.loss_of(made)["balance"].device.type == "meta"
