"""The bound of a state of tokens and points against what is known of simple ones."""

import math

import torch
from torch import nn

import manifoldflow as mf

DOUBLE = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


class Apart(nn.Module):
    """Tokens and points that know nothing of each other: points from N(0, 1) to N(0, 1/4), tokens with fixed odds."""

    odds = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE).log()

    def forward(self, x, t):
        s = t.reshape(-1, 1, 1)
        var = (1 - s) ** 2 + s**2 / 4
        pos = (-(1 - s) + s / 4) / var * x["pos"]
        return {"pos": pos, "kind": self.odds.expand(*x["kind"].shape, 3)}


def test_the_parts_of_independent_fields_add_up():
    flow = mf.Flow({"pos": mf.Euclidean(1), "kind": mf.Tokens(3, mask=True)}, Apart())
    x = {
        "pos": torch.randn(4, 2, 1, generator=gen(), dtype=DOUBLE),
        "kind": torch.tensor([[0, 1], [1, 1], [2, 0], [2, 2]]),
    }
    value, error = flow.log_prob_bound(x, samples=60, steps=20, generator=gen(1), return_error=True)
    points = torch.distributions.Normal(0.0, 0.5).log_prob(x["pos"]).sum((1, 2))
    truth = points + Apart.odds[x["kind"]].sum(1)
    assert ((value - truth).abs() < 5 * error + 0.02).all()
    assert (error < 0.2).all()


class Together(nn.Module):
    """The exact posterior and velocity of a law in which the token says where the point is: x | z ~ N(m_z, s^2), z even."""

    means, s = torch.tensor([-1.5, 1.5], dtype=DOUBLE), 0.4

    def weights(self, x, t):
        """Log-density of x_t given each z, and the mean velocity there."""
        k = t.reshape(-1, 1)
        var = (1 - k) ** 2 + (k * self.s) ** 2
        off = x - k * self.means
        velocity = self.means + (k * self.s**2 - (1 - k)) / var * off
        return -0.5 * off**2 / var - 0.5 * var.log() - 0.5 * math.log(2 * math.pi), velocity

    def forward(self, x, t):
        log_p, velocity = self.weights(x["pos"], t)
        known = nn.functional.one_hot(x["kind"].clamp_max(1), 2).to(DOUBLE)
        p = torch.where(x["kind"].unsqueeze(-1) == 2, log_p.softmax(-1), known)
        return {"pos": (p * velocity).sum(-1, keepdim=True), "kind": log_p}


def test_the_bound_is_below_the_log_probability_and_near():
    flow = mf.Flow({"pos": mf.Euclidean(1), "kind": mf.Tokens(2, mask=True)}, Together())
    z = torch.tensor([0, 0, 0, 0, 1, 1])
    pos = torch.tensor([-2.6, -2.2, -1.5, -1.2, 1.5, 1.2], dtype=DOUBLE)
    truth = math.log(0.5) + torch.distributions.Normal(Together.means[z], 0.4).log_prob(pos)
    value, error = flow.log_prob_bound(
        {"pos": pos[:, None], "kind": z}, samples=30, steps=40, generator=gen(2), return_error=True
    )
    assert (value < truth + 5 * error + 0.05).all()
    assert (
        truth - value < 5 * error + 0.1
    ).all()  # of the sampler with 40 steps, whose law is not quite that of the flow
    # a law that pairs them the wrong way round is much less probable
    worse = flow.log_prob_bound({"pos": pos[:, None], "kind": 1 - z}, samples=4, steps=40, generator=gen(2))
    assert float((value - worse).mean()) > 2


def test_states_of_one_kind_give_their_own_verb():
    flow = mf.Flow(mf.Euclidean(1), mf.nn.TangentMLP(mf.Euclidean(1), width=8, depth=1)).double()
    x = torch.randn(3, 1, dtype=DOUBLE)
    assert torch.equal(flow.log_prob_bound(x, steps=20), flow.log_prob(x, steps=20))
