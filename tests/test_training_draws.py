"""What a training step draws and counts: pins, hidden conditions, padding, centring, couplings and their random numbers."""

import math

import pytest
import torch

import manifoldflow as mf


class Says(torch.nn.Module):
    """A network that answers with a function of everything it is told, and keeps what that was."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.told = answer, []

    def forward(self, x, t, *, mask=None, cond=None, cond_mask=None, previous=None):
        told = {"x": x, "t": t, "mask": mask, "cond": cond, "cond_mask": cond_mask, "previous": previous}
        self.told.append(told)
        return self.answer(told)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def nothing(told):
    return torch.zeros_like(told["x"])


# ---------------------------------------------------------------- pinned elements


def first_two(mask, generator):
    """Pin the first two elements of every other sample."""
    pinned = torch.zeros_like(mask)
    pinned[::2, :2] = True
    return pinned


def test_pinned_elements_are_shown_clean_at_time_one_and_are_not_in_the_loss():
    x1, mask = torch.randn(6, 5, 3, generator=seeded()), torch.arange(5) < torch.tensor([5, 4, 3, 5, 4, 3]).unsqueeze(1)
    pinned, x0, t = first_two(mask, None), torch.randn(6, 5, 3, generator=seeded(1)), torch.full((6,), 0.25)

    def wrong_where_pinned(told):
        return torch.where(told["t"].unsqueeze(-1) == 1, 100.0, 0.0).expand_as(told["x"])

    model = Says(wrong_where_pinned)
    loss = mf.Flow(mf.Euclidean(3), model, pin=first_two).loss(x1, mask=mask, x0=x0, t=t)
    seen = model.told[0]
    assert torch.equal(seen["t"], torch.where(pinned, 1.0, 0.25))
    assert torch.equal(seen["x"][pinned], x1[pinned])
    torch.testing.assert_close(seen["x"][mask & ~pinned], (0.75 * x0 + 0.25 * x1)[mask & ~pinned])
    # An answer of 0 is off by the velocity x1 - x0; the mean is over the free real elements.
    torch.testing.assert_close(loss, (x1 - x0).square().sum(-1)[mask & ~pinned].mean())


def test_only_samples_without_a_pin_take_the_coupled_source():
    """A coupling may turn the source towards the data, where no element says how the data lie."""

    class Marked:
        def __call__(self, x0, x1, **_):
            return x0 + 1000.0, x1

    flow = mf.Flow(mf.Euclidean(3), Says(nothing), pin=first_two, coupling=Marked())
    noisy = flow.draw(torch.zeros(6, 5, 3), t=torch.zeros(6), generator=seeded()).xt
    assert noisy[0::2].abs().max() < 10
    assert noisy[1::2].min() > 990


def test_aligned_sources_lean_towards_the_data_only_where_nothing_is_pinned():
    space, x1 = mf.Centered(mf.Euclidean(3)), torch.randn(400, 8, 3, generator=seeded())
    flow = mf.Flow(space, Says(nothing), pin=first_two, coupling=mf.Align(points="x"))
    drawn = flow.draw(x1, t=torch.zeros(400), generator=seeded(1))
    lean = (drawn.xt * drawn.x1)[:, 2:].sum((1, 2)) / 6**0.5
    assert lean[1::2].mean() > 1.0
    # Independent of the data: mean 0 with a standard error of about sqrt(3 / 200).
    assert abs(float(lean[0::2].mean())) < 0.6


def test_a_coupling_is_told_all_there_is():
    told = {}

    class Records:
        def __call__(self, x0, x1, **given):
            told.update(given, x0=x0, x1=x1)
            return x0, x1

    space, generator = mf.Euclidean(3), seeded()
    mask, cond, x1 = torch.arange(5) < torch.tensor([[5], [2]]), torch.tensor([1.0, 2.0]), torch.ones(2, 5, 3)
    flow = mf.Flow(space, Says(nothing), coupling=Records())
    flow.draw(x1, mask=mask, cond=cond, generator=generator)
    assert told["spaces"] == space and told["generator"] is generator
    assert told["mask"] is mask and told["cond"] is cond
    assert torch.equal(told["x1"][mask], x1[mask]) and told["x0"].shape == x1.shape
    told.clear()
    flow.draw(x1, x0=torch.zeros(2, 5, 3), generator=generator)
    assert not told  # stored pairs stay as they are


def test_alignment_looks_at_real_points_only():
    x0, x1 = torch.randn(4, 7, 3, generator=seeded()), torch.randn(4, 7, 3, generator=seeded(1))
    mask = torch.arange(7) < torch.tensor([7, 5, 4, 6]).unsqueeze(1)
    dirty = torch.where(mask.unsqueeze(-1), x1, 1e3)
    turned, _ = mf.Align(points="x")(x0, x1 * mask.unsqueeze(-1), spaces=mf.Euclidean(3))
    again, _ = mf.Align(points="x")(x0, dirty, spaces=mf.Euclidean(3), mask=mask)
    assert (turned - x0).abs().max() > 0.5
    torch.testing.assert_close(again[mask], turned[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_drawn_has_the_precision_of_the_data(dtype):
    flow = mf.Flow(mf.Sphere(2), Says(nothing), path=mf.StochasticInterpolant(mf.BumpNoise(0.2)))
    drawn = flow.draw(mf.Sphere(2).sample_uniform((4,), dtype=dtype, generator=seeded()), generator=seeded())
    assert {v.dtype for v in tensors_of((drawn.xt, drawn.t, drawn.points["x"]))} == {dtype}
    # The source too: at t = 0 its digits show.
    flow = mf.Flow(mf.Euclidean(2), Says(nothing))
    x0 = flow.draw(torch.zeros(9, 2, dtype=dtype), t=torch.zeros(9, dtype=dtype), generator=seeded()).xt
    assert torch.equal(x0, x0.float().to(dtype)) == (dtype == torch.float32)


@pytest.mark.parametrize("predicts", ["velocity", "endpoint"])
def test_padding_is_at_rest_in_all_that_the_model_is_shown(predicts):
    """At the origin, whatever the data hold there; of its last prediction at the origin or, where that is a tangent, zero."""
    space = mf.Sphere(2)
    x1, mask = space.sample_uniform((3, 4), generator=seeded()), torch.arange(4) < torch.tensor([[4], [2], [1]])
    model = Says(lambda told: told["x"].flip(-1))
    mf.Flow(space, model, predicts=predicts, self_condition=1.0).loss(x1, mask=mask, generator=seeded())
    first, second = model.told
    assert torch.equal(first["x"][~mask], space.origin().expand(5, 3)) and not torch.equal(first["x"][mask], x1[mask])
    rest = space.origin() if predicts == "endpoint" else torch.zeros(3)
    assert torch.equal(second["previous"][~mask], rest.expand(5, 3))
    torch.testing.assert_close(second["previous"][mask], first["x"].flip(-1)[mask])


@pytest.mark.parametrize("space", [mf.Tokens(5, mask=True), mf.Tokens(5)], ids=["masking", "uniform"])
def test_the_bound_shows_the_model_no_noise_at_padding(space):
    model = Says(lambda told: torch.zeros(*told["x"].shape, 5))
    x, mask = torch.full((3, 4), 2), torch.arange(4) < torch.tensor([[4], [2], [1]])
    mf.Flow(space, model).elbo(x, mask=mask, samples=4, generator=seeded())
    # What was given, or the origin: neither is odd.
    assert all((told["x"][~mask] % 2 == 0).all() and torch.equal(told["mask"], mask) for told in model.told)


def test_a_pinned_part_sets_the_centre_and_padding_never_does():
    space, x1 = mf.Centered(mf.Euclidean(3)), torch.randn(4, 6, 3, generator=seeded()) + 5.0
    mask = torch.arange(6) < torch.tensor([6, 4, 5, 3]).unsqueeze(1)
    dirty = torch.where(mask.unsqueeze(-1), x1, 1e4)
    plain = mf.Flow(space, Says(nothing)).draw(dirty, mask=mask, generator=seeded())
    weight = mask.unsqueeze(-1).float()
    mean = (x1 * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    torch.testing.assert_close(plain.x1[mask], (x1 - mean)[mask], atol=1e-5, rtol=0)
    assert (plain.xt * weight).sum(1).abs().max() < 1e-4
    held = mf.Flow(space, Says(nothing), pin=first_two).draw(dirty, mask=mask, generator=seeded())
    torch.testing.assert_close(held.x1[0::2, :2].sum(1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(held.x1[1::2][mask[1::2]], (x1 - mean)[1::2][mask[1::2]], atol=1e-5, rtol=0)


# ---------------------------------------------------------------- conditions and self-conditioning


def repeats_itself(told):
    """The condition where it is shown, plus the last prediction."""
    shown = told["cond"] if told["cond_mask"] is None else told["cond"] * told["cond_mask"].float()
    answer = shown.reshape(-1, 1).expand_as(told["x"])
    return answer if told["previous"] is None else answer + told["previous"]


def test_a_hidden_condition_is_hidden_from_the_first_pass_of_self_conditioning_too():
    x1, x0, t = torch.randn(8, 2, generator=seeded()), torch.zeros(8, 2), torch.full((8,), 0.5)
    losses = []
    for value in (0.0, 50.0):
        model = Says(repeats_itself)
        flow = mf.Flow(mf.Euclidean(2), model, self_condition=1.0, cond_dropout=1.0)
        losses.append(flow.loss(x1, x0=x0, t=t, cond=torch.full((8,), value), generator=seeded()))
        assert len(model.told) == 2
        for told in model.told:
            assert told["cond_mask"] is not None and not told["cond_mask"].any()
    assert torch.equal(losses[0], losses[1])


def test_both_passes_of_self_conditioning_are_told_the_same_and_the_first_has_no_gradient():
    model = Says(repeats_itself)
    model.weight = torch.nn.Parameter(torch.ones(()))
    model.answer = lambda told: model.weight * repeats_itself(told)
    flow = mf.Flow(mf.Euclidean(2), model, self_condition=1.0, cond_dropout=0.5)
    mask = torch.arange(3) < torch.tensor([3, 2, 3, 1]).unsqueeze(1)
    model.answer = lambda told: model.weight * torch.ones_like(told["x"])
    flow.loss(torch.zeros(4, 3, 2), mask=mask, cond=torch.ones(4), generator=seeded()).backward()
    first, second = model.told
    for key in ("x", "t", "mask", "cond", "cond_mask"):
        assert torch.equal(first[key], second[key]), key
    assert first["previous"] is None
    assert not second["previous"].requires_grad
    assert (second["previous"][mask] == 1).all() and (second["previous"][~mask] == 0).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_batches_that_see_their_own_prediction_is_as_set(share):
    flow = mf.Flow(mf.Euclidean(2), Says(nothing), self_condition=share)
    generator = seeded()
    seen = [bool(flow.draw(torch.zeros(1, 2), generator=generator).show_previous) for _ in range(800)]
    assert abs(sum(seen) / 800 - share) < 4 * math.sqrt(share * (1 - share) / 800) + 1e-9


def test_the_share_of_hidden_conditions_is_as_set():
    flow = mf.Flow(mf.Euclidean(2), Says(nothing), cond_dropout=0.3)
    seen = flow.draw(torch.zeros(20_000, 2), cond=torch.ones(20_000), generator=seeded()).cond_mask
    assert abs(float(seen.float().mean()) - 0.7) < 0.02


# ---------------------------------------------------------------- random numbers


def random_pin(mask, generator):
    return mask & (torch.rand(mask.shape, generator=generator) < 0.3)


FLOWS = {
    "points": lambda: mf.Flow(
        {"a": mf.Centered(mf.Euclidean(3)), "b": mf.SO3(), "c": mf.Sphere(2)},
        Says(lambda told: told["x"]),
        self_condition=0.5,
        cond_dropout=0.5,
        pin=random_pin,
        coupling=mf.MinibatchOT(names=["a"], align=mf.Align(points="a", frames=["b"])),
        path={"c": mf.StochasticInterpolant(mf.BumpNoise(0.2))},
    ),
    "tokens": lambda: mf.Flow(
        {"a": mf.Tokens(4, mask=True), "b": mf.Tokens(3), "c": mf.Tokens(6), "d": mf.Simplex(4), "e": mf.Counts(5)},
        Says(lambda told: told["x"]),
        self_condition=0.5,
        cond_dropout=0.5,
        pin=random_pin,
        path={"c": mf.MetricJump(), "d": mf.DirichletPath(), "e": mf.BirthDeath()},
    ),
    "bridge": lambda: mf.Flow(
        {"a": mf.Simplex(4), "b": mf.Simplex(3)},
        Says(lambda told: told["x"]),
        cond_dropout=0.5,
        path={"a": mf.SphericalBridge(), "b": mf.Geodesic(predicts="logits")},
    ),
}


def data_of(flow, seed=0):
    out = {}
    for name, space in flow.spaces.items():
        path, generator = flow.path[name], seeded(seed)
        if isinstance(space, mf.Tokens):
            out[name] = torch.randint(space.categories, (16, 4), generator=generator)
        elif path.predicts == "logits":
            out[name] = torch.eye(space.event_shape[0])[torch.randint(3, (16, 4), generator=generator)]
        else:
            source = mf.Normal() if name == "a" else mf.Uniform()
            out[name] = source.bind(space).sample((16, 4), generator=generator)
    return out


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [v for part in value.values() for v in tensors_of(part)]
    return [v for part in value for v in tensors_of(part)] if isinstance(value, tuple | list) else []


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_every_draw_of_a_training_step_comes_from_the_generator(make):
    flow = make()
    batch = {"cond": torch.ones(16), "mask": torch.arange(4) < torch.randint(1, 5, (16, 1), generator=seeded(3))}
    x1 = data_of(flow)
    before = torch.get_rng_state()
    first, again, other = (tensors_of(tuple(flow.draw(x1, **batch, generator=seeded(s)))) for s in (7, 7, 8))
    assert torch.equal(before, torch.get_rng_state())
    assert len(first) == len(again) and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_padding_of_the_data_reaches_nothing_that_is_drawn_for_real_elements(make):
    """With padding of other values, the times, the sources and the noisy states of the real elements are the same."""
    flow = make()
    mask = torch.arange(4) < torch.tensor([4, 3, 2, 1] * 4).unsqueeze(1)
    x1, filler = data_of(flow), data_of(flow, seed=9)
    changed = {n: torch.where(mask.reshape(16, 4, *[1] * (v.ndim - 2)), v, filler[n]) for n, v in x1.items()}
    kwargs = {"cond": torch.ones(16), "mask": mask}
    one, two = (flow.draw(x, **kwargs, generator=seeded(7)) for x in (x1, changed))
    for name, space in flow.spaces.items():
        if isinstance(space, mf.Counts):
            continue  # how many random numbers a binomial takes depends on the count, so later ones differ
        a, b = one.xt[name][mask], two.xt[name][mask]
        assert torch.allclose(a.double(), b.double(), atol=1e-5), name
    assert torch.equal(one.t, two.t)


def test_times_follow_the_range_and_the_warp():
    """t = low + (high - low) k(u) of uniform u."""
    warp = mf.Polynomial(3.0)
    flow = mf.Flow(mf.Euclidean(2), Says(nothing), time_range=(0.2, 0.7), time_warp=warp)
    t = flow.draw(torch.zeros(20_000, 2), generator=seeded()).t
    assert t.min() >= 0.2 and t.max() <= 0.7
    even = ((t - 0.2) / 0.5) ** (1 / 3)
    assert (even.sort().values - torch.linspace(0, 1, 20_000)).abs().max() < 0.015


def test_times_of_nodes_reach_graphs_and_pairs_as_the_earliest_of_theirs():
    """From 0 to 1 along a line the noisy state is its own time."""
    line = mf.Euclidean(1)
    spaces = {"node": line, "graph": mf.Field(line, per="graph"), "pair": mf.Field(line, per="pair")}
    flow = mf.Flow(spaces, Says(lambda told: told["x"]))
    x1 = {"node": torch.ones(2, 3, 1), "graph": torch.ones(2, 1), "pair": torch.ones(2, 3, 3, 1)}
    t = torch.tensor([[0.2, 0.9, 0.5], [0.7, 0.6, 1.0]])
    xt = flow.draw(x1, x0={n: torch.zeros_like(v) for n, v in x1.items()}, t=t, generator=seeded()).xt
    torch.testing.assert_close(xt["node"].squeeze(-1), t)
    torch.testing.assert_close(xt["graph"].squeeze(-1), torch.tensor([0.2, 0.6]))
    pairs = torch.tensor([[[min(a, b) for b in row] for a in row] for row in t.tolist()])
    torch.testing.assert_close(xt["pair"].squeeze(-1), pairs)


def test_a_pin_in_one_field_keeps_the_source_of_all_fields_of_that_sample():
    """The coupling turns all fields together, so one pinned part fixes the frame of them all."""

    class Marked:
        def __call__(self, x0, x1, **_):
            return {n: v + 1000.0 for n, v in x0.items()}, x1

    flow = mf.Flow(
        {"a": mf.Euclidean(2), "b": mf.Euclidean(2)},
        Says(lambda told: told["x"]),
        coupling=Marked(),
        pin=lambda mask, generator: {"a": first_two(mask, generator), "b": mask & False},
    )
    x1 = {n: torch.zeros(4, 3, 2) for n in "ab"}
    xt = flow.draw(x1, t=torch.zeros(4), generator=seeded()).xt
    for n in "ab":
        assert xt[n][0::2].abs().max() < 10 and xt[n][1::2].min() > 990


# ---------------------------------------------------------------- what is counted


def test_a_sample_counts_in_proportion_to_its_real_elements():
    """The loss is the mean of |x1 - x0|^2 over real elements, weighted by field."""
    mask = torch.arange(4) < torch.tensor([4, 1]).unsqueeze(1)
    x1 = {"a": torch.randn(2, 4, 3, generator=seeded(0)), "b": torch.randn(2, 4, 2, generator=seeded(1))}
    x0 = {"a": torch.randn(2, 4, 3, generator=seeded(2)), "b": torch.randn(2, 4, 2, generator=seeded(3))}
    model = Says(lambda told: {n: torch.zeros_like(v) for n, v in told["x"].items()})
    flow = mf.Flow({"a": mf.Euclidean(3), "b": mf.Euclidean(2)}, model, weights={"b": 3.0})
    parts = flow.loss_parts(x1, x0=x0, mask=mask, generator=seeded())
    for name, weight in (("a", 1.0), ("b", 3.0)):
        expected = weight * (x1[name] - x0[name]).square().sum(-1)[mask].mean()
        torch.testing.assert_close(parts[name], expected)
    torch.testing.assert_close(
        flow.loss(x1, x0=x0, mask=mask, generator=seeded()), torch.stack(list(parts.values())).sum()
    )


def test_the_bound_of_a_padded_sequence_is_that_of_its_real_tokens():
    """Independent masked tokens of a known law: the bound with the exact posterior is sum_i log p(x_i) over the real ones."""
    p = torch.tensor([0.6, 0.3, 0.1])
    flow = mf.Flow(mf.Tokens(3, mask=True), Says(lambda told: p.log().expand(*told["x"].shape, 3)))
    x = torch.tensor([[0, 1, 2, 0, 0, 0], [2, 2, 1, 1, 0, 2]])
    mask = torch.arange(6) < torch.tensor([[3], [5]])
    repeated, masks = x.repeat_interleave(200, 0), mask.repeat_interleave(200, 0)
    value = flow.elbo(repeated, mask=masks, samples=32, generator=seeded()).reshape(2, 200).double()
    truth = (p.log()[x] * mask).sum(1)
    error = value.std(1) / 200**0.5
    assert ((value.mean(1) - truth).abs() < 4 * error + 0.02).all()


@pytest.mark.parametrize("space", [mf.Tokens(3, mask=True), mf.Tokens(3)], ids=["masking", "uniform"])
def test_the_bound_does_not_depend_on_padding(space):
    flow = mf.Flow(space, Says(lambda told: told["x"].unsqueeze(-1) * torch.tensor([0.5, 0.0, -0.5])))
    x, other = (torch.randint(3, (20, 6), generator=seeded(s)) for s in (0, 1))
    mask = torch.arange(6) < torch.randint(1, 7, (20, 1), generator=seeded(2))
    a, b = (flow.elbo(v, mask=mask, samples=3, generator=seeded()) for v in (x, torch.where(mask, x, other)))
    assert torch.equal(a, b)
