"""Tau-leaping of tokens: Poisson numbers of jumps at rates that are held fixed for a step."""

import itertools
import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.distributions import Categorical

DOUBLE = torch.float64
TAU = mf.Jumps(leap="tau")
CASES = {
    "masking": (mf.Tokens(4, mask=True), mf.Masking, None),
    "uniform": (mf.Tokens(4), mf.UniformJump, None),
    "uniform, 8 tokens": (mf.Tokens(8), mf.UniformJump, None),
    "unequal source": (mf.Tokens(3), mf.UniformJump, Categorical((0.6, 0.3, 0.1))),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class ExactPosterior(torch.nn.Module):
    """The clean tokens given x_t for a law of two tokens that is given as a table (K, K), looked up by the state."""

    def __init__(self, table, path):
        super().__init__()
        self.table, self.path = table, path

    def forward(self, x, t):
        space, k = self.path.space, float(self.path.schedule.k(t.flatten()[0].to(DOUBLE)))
        states = torch.tensor(list(itertools.product(range(space.size), repeat=2)))
        p0 = self.path.source.probabilities(dtype=DOUBLE)
        eye = torch.eye(space.categories, space.size, dtype=DOUBLE)
        seen = ((1 - k) * p0[states][..., None] + k * eye[:, states].movedim(0, -1)).clamp_min(1e-300)
        joint = seen[:, 0, :, None] * seen[:, 1, None, :] * self.table
        both = torch.stack([joint.sum(2), joint.sum(1)], 1).clamp_min(1e-300)
        return both.log()[x[:, 0] * space.size + x[:, 1]]


class Fixed(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x, t):
        return self.logits.expand(*x.shape, -1)


def exact_flow(case):
    space, kind, source = case
    table = (
        torch.rand(space.categories, space.categories, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) ** 3
    )
    table = table / table.sum()
    flow = mf.Flow(space, torch.nn.Identity(), path=kind(), source=source)
    flow.model = ExactPosterior(table, flow.path["x"])
    flow._takes = set()
    return flow, table


def marginal(flow, table, t):
    path = flow.path["x"]
    p0 = path.source.probabilities(dtype=DOUBLE)
    one = (1 - t) * p0 + t * torch.eye(path.space.categories, path.space.size, dtype=DOUBLE)
    return torch.einsum("ab,ax,by->xy", table, one, one)


def histogram(x, size):
    return torch.bincount(x[:, 0] * size + x[:, 1], minlength=size**2) / len(x)


def total_variation(p, q):
    return float(0.5 * (p - q).abs().sum())


@every_case
@pytest.mark.parametrize("corrector", [0.0, 1.0])
def test_the_first_order_of_a_leap_is_the_generator(case, corrector):
    """The whole law of one small step from every state, against 1 + h u with the rates of the path."""
    flow, _ = exact_flow(case)
    path, space = flow.path["x"], flow.path["x"].space
    n, h, t = 400_000, 0.01, 0.5
    logits = torch.linspace(0, 1.5, space.categories)
    for start in range(space.size):
        x = torch.full((n, 1), start)
        time = torch.tensor(t)
        moved = path.advance(
            logits.expand(n, 1, -1),
            x,
            time,
            time + h,
            how=mf.Jumps(leap="tau", corrector=corrector),
            generator=torch.Generator().manual_seed(start),
        ).x
        rates = path.rates(logits.softmax(-1).expand(1, -1), x[0], time[None], corrector=corrector)[0]
        found = torch.bincount(moved.flatten(), minlength=space.size) / n
        here = (torch.arange(space.size) == start).float()
        # 1 + h u up to the second order in h times the rate (2 to 4 per unit of time), and 5 standard errors
        assert (found - here - h * rates).abs().max() < 12 * h * h + 5 * (0.05 / n) ** 0.5


@pytest.mark.parametrize("h", [0.05, 0.2])
def test_the_number_of_jumps_in_a_step_is_poisson(h):
    """Uniform jumps of two tokens from token 0 to 1: exactly one jump has the probability m exp(-m)."""
    path, n, t = mf.UniformJump().bind(mf.Tokens(2)), 200_000, 0.6
    logits, time = torch.tensor([0.0, 1.0]), torch.tensor(t)
    x = torch.zeros(n, 1, dtype=torch.int64)
    moved = path.advance(
        logits.expand(n, 1, 2), x, time, time + h, how=TAU, generator=torch.Generator().manual_seed(0)
    ).x
    mean = -math.log(1 - h / (1 - t)) * float(logits.softmax(-1)[1])
    assert abs(moved.double().mean() - mean * math.exp(-mean)) < 5e-3
    exact = path.advance(logits.expand(n, 1, 2), x, time, time + h, generator=torch.Generator().manual_seed(0)).x
    assert exact.double().mean() > moved.double().mean()


@every_case
@pytest.mark.parametrize("corrector", [0.0, 1.0])
def test_samples_have_the_law(case, corrector):
    flow, table = exact_flow(case)
    space, n = flow.path["x"].space, 20_000
    generator = torch.Generator().manual_seed(0)
    made = flow.sample((n, 2), steps=150, method=mf.Jumps(leap="tau", corrector=corrector), generator=generator)
    space.check(made, with_mask=False)
    drawn = torch.multinomial(table.flatten(), n, replacement=True, generator=generator)
    floor = total_variation(torch.bincount(drawn, minlength=space.categories**2) / n, table.flatten())
    assert total_variation(histogram(made, space.categories), table.flatten()) < 2 * floor + 0.012
    half = flow.sample((n, 2), times=torch.linspace(0, 0.6, 81), method=TAU, generator=generator)
    assert total_variation(histogram(half, space.size), marginal(flow, table, 0.6).flatten()) < 2 * floor + 0.02


def test_a_step_to_the_end_draws_from_the_posterior():
    p = torch.tensor([0.5, 0.3, 0.2])
    for space, path in ((mf.Tokens(3, mask=True), mf.Masking()), (mf.Tokens(3), mf.UniformJump())):
        flow = mf.Flow(space, Fixed(p.log()), path=path)
        x = flow.sample((50_000, 1), steps=1, method=TAU, generator=torch.Generator().manual_seed(0))
        assert (torch.bincount(x.flatten(), minlength=3) / len(x) - p).abs().max() < 0.01


def test_padding_and_known_tokens_stay():
    flow = mf.Flow(mf.Tokens(4, mask=True), Fixed(torch.zeros(4)), pin=lambda mask, g: torch.zeros_like(mask))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    known = torch.tensor([[1, 2, 3, 0, 0, 0, 0]]).expand(2, 7)
    known_mask = torch.tensor([[True] * 3 + [False] * 4]).expand(2, 7)
    for how in (TAU, mf.Jumps(leap="tau", corrector=3.0)):
        x = flow.sample((2, 7), mask=mask, known=known, known_mask=known_mask, steps=8, method=how)
        assert (x[:, :3] == known[:, :3]).all() and (x[1, 4:] == 0).all() and (x < 4).all()


@pytest.mark.parametrize("how", [mf.Jumps(leap="tau", temperature=0.0), mf.Jumps(leap="tau", top_p=0.5)])
def test_temperature_and_top_p_keep_the_likeliest(how):
    flow = mf.Flow(mf.Tokens(5, mask=True), Fixed(torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0])))
    assert (flow.sample((50, 6), steps=9, method=how) == 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])
def test_a_rate_shift_multiplies_the_jumps(dtype):
    path, n = mf.Masking().bind(mf.Tokens(3, mask=True)), 200_000
    x, shift = torch.full((n, 1), 3), torch.tensor([0.0, math.log(4.0), 0.0])
    t, s = torch.tensor(0.2), torch.tensor(0.21)
    g = torch.Generator().manual_seed(0)
    logits = torch.zeros(n, 1, 3, dtype=dtype)
    plain = path.advance(logits, x, t, s, how=TAU, generator=g).x
    more = path.advance(logits, x, t, s, how=TAU, generator=g, shift=shift.expand(n, 1, 3)).x
    ratio = (more == 1).float().mean() / (plain == 1).float().mean()
    assert abs(ratio - 4) < 0.5 and abs((more == 0).float().mean() / (plain == 0).float().mean() - 1) < 0.15


@pytest.mark.parametrize(
    "make, words",
    [(lambda: mf.Jumps(leap="x"), "leap"), (lambda: mf.Jumps(leap="tau", order="confidence"), "confidence")],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_large_vocabulary_is_not_copied():
    """By the peak of what one step allocates: a small part of the logits, where a copy would be all of them."""
    path, k = mf.UniformJump().bind(mf.Tokens(32_768)), 32_768
    logits = torch.zeros(8, 250, k)
    x, t = torch.randint(k, (8, 250)), torch.tensor(0.3)

    def peak():
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            path.advance(logits, x, t, t + 0.02, how=TAU)
        held = most = 0
        events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most

    assert 0 < peak() < 0.5 * logits.numel() * 4


@pytest.mark.parametrize("distance", ["ordinal", "cyclic"])
def test_leaps_of_levels_add_up_to_their_law(distance):
    """One level by itself; as steps shrink tau-leaping is exact, and a large step moves by several jumps."""
    k, n = 6, 20_000
    p = torch.tensor([0.05, 0.3, 0.0, 0.05, 0.2, 0.4], dtype=DOUBLE)
    flow = mf.Flow(
        mf.Tokens(k), Fixed(p.clamp_min(1e-30).log()), path=mf.MetricJump(distance=distance, own_evidence=True)
    )
    path, generator = flow.path["x"], torch.Generator().manual_seed(0)
    x = flow.sample((n, 1), steps=60, method=TAU, generator=generator)
    assert total_variation(torch.bincount(x.flatten(), minlength=k) / n, p) < 0.03
    half = flow.sample((n, 1), times=torch.linspace(0, 0.5, 81), method=TAU, generator=generator)
    d = path.distances(torch.arange(k), DOUBLE)
    truth = p @ torch.softmax(-path.beta(torch.tensor(0.5, dtype=DOUBLE)) * d, -1)
    assert total_variation(torch.bincount(half.flatten(), minlength=k) / n, truth) < 0.03


def test_a_leap_of_levels_draws_poisson_numbers_of_jumps():
    path, n = mf.MetricJump().bind(mf.Tokens(50)), 50_000
    mean = torch.zeros(n, 50)
    mean[:, 12], mean[:, 9] = 2.0, 0.5
    moved = path._leapt(mean, torch.full((n,), 10), torch.Generator().manual_seed(0)).double()
    assert abs(moved.mean() - 13.5) < 0.06 and abs(moved.var() - 8.5) < 0.25  # 10 + 2 N(2) - N(0.5), but for the ends
    with pytest.raises(ValueError, match="ordinal"):
        odd = mf.MetricJump(distance=lambda a, b: (a != b).float()).bind(mf.Tokens(3))
        odd.advance(torch.zeros(1, 3), torch.zeros(1).long(), torch.tensor(0.1), torch.tensor(0.2), how=TAU)
