"""Laws of two tokens written out in full, and networks that know them exactly."""

import itertools

import torch

import manifoldflow as mf
from manifoldflow.distributions import Categorical

DOUBLE = torch.float64
CASES = {
    "masking": (mf.Tokens(4, mask=True), mf.Masking, None),
    "uniform": (mf.Tokens(4), mf.UniformJump, None),
    "uniform, 8 tokens": (mf.Tokens(8), mf.UniformJump, None),
    "unequal source": (mf.Tokens(3), mf.UniformJump, Categorical((0.6, 0.3, 0.1))),
}


class ExactPosterior(torch.nn.Module):
    """The clean tokens given x_t for a law of two tokens that is given as a table (K, K)."""

    def __init__(self, table, path):
        super().__init__()
        self.table, self.path = table, path

    def forward(self, x, t):
        space, k = self.path.space, self.path.schedule.k(t.to(DOUBLE))[:, None, None]
        p0 = self.path.source.probabilities(dtype=DOUBLE)
        eye = torch.eye(space.categories, space.size, dtype=DOUBLE)
        # likelihood of every clean token for either position, (B, 2, K)
        seen = ((1 - k) * p0[x][..., None] + k * eye[:, x].movedim(0, -1)).clamp_min(1e-300)
        joint = seen[:, 0, :, None] * seen[:, 1, None, :] * self.table
        both = torch.stack([joint.sum(2), joint.sum(1)], 1)
        return both.clamp_min(1e-300).log() - both.sum(-1, keepdim=True).clamp_min(1e-300).log()


class Fixed(torch.nn.Module):
    """The same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x, t):
        return self.logits.expand(*x.shape, -1)


def law(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(space.categories, space.categories, generator=generator, dtype=DOUBLE) ** 3
    return table / table.sum()


def exact_flow(case, schedule=None):
    space, kind, source = case
    table = law(space)
    flow = mf.Flow(space, torch.nn.Identity(), path=kind(schedule=schedule or mf.Linear()), source=source)
    flow.model = ExactPosterior(table, flow.path["x"])
    flow._takes = set()
    return flow, table


def marginal(flow, table, t):
    """p_t of both tokens, ``(size, size)``: a mixture for each, given the clean ones."""
    path = flow.path["x"]
    k = float(path.schedule.k(torch.tensor(t, dtype=DOUBLE)))
    p0 = path.source.probabilities(dtype=DOUBLE)
    one = (1 - k) * p0 + k * torch.eye(path.space.categories, path.space.size, dtype=DOUBLE)
    return torch.einsum("ab,ax,by->xy", table, one, one)


def all_states(space):
    return torch.tensor(list(itertools.product(range(space.size), repeat=2)))


def total_variation(p, q):
    return float(0.5 * (p - q).abs().sum())


class DirichletPosterior(torch.nn.Module):
    """Exact posterior of the corner for a law p of the corners: p_i x_i^(a - 1)."""

    def __init__(self, path, p):
        super().__init__()
        self.path, self.p = path, p

    def forward(self, x, t):
        alpha = self.path.alpha(t).reshape(-1, *[1] * (x.ndim - 1))
        return self.p.log().to(x.dtype) + (alpha - 1) * x.clamp_min(1e-30).log()
