"""States with one value a node, a graph and a pair of nodes: shapes, padding, times, pins, conditions and guidance."""

import math

import pytest
import torch
from torch import nn

import manifoldflow as mf
from manifoldflow.guidance import NoisyClassifier, Particles
from manifoldflow.reflow import make_pairs
from manifoldflow.state import map_cond

SPACES = {
    "pos": mf.Field(mf.Euclidean(3)),
    "cell": mf.Field(mf.Sphere(2), per="graph"),
    "bond": mf.Field(mf.Tokens(4, mask=True), per="pair"),
    "kind": mf.Tokens(5),
}


class Whole(nn.Module):
    """Looks at all of the state, through masked means, so that padding would show."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(0.3 * torch.randn(4, 4, generator=generator))
        self.out = nn.ParameterDict(
            {
                n: nn.Parameter(torch.randn(4, k, generator=generator))
                for n, k in (("pos", 3), ("cell", 3), ("bond", 4), ("kind", 5))
            }
        )

    def forward(self, x, t, *, mask=None):
        n = x["pos"].shape[1]
        m = torch.ones(x["pos"].shape[:2], dtype=torch.bool) if mask is None else mask
        w = m.float()
        clock = t["pos"] if isinstance(t, dict) else t
        clock = clock if clock.ndim == 1 else clock.amin(-1)
        pair = w[:, :, None] * w[:, None, :]
        seen = torch.stack(
            [
                (x["pos"].sin().sum(-1) * w).sum(1) / w.sum(1),
                x["cell"].sum(-1),
                (x["bond"] * pair).sum((1, 2)) / pair.sum((1, 2)) + (x["kind"] * w).sum(1) / w.sum(1),
                clock,
            ],
            -1,
        )
        h = torch.tanh(seen.to(self.mix.dtype) @ self.mix)
        made = {k: h @ v for k, v in self.out.items()}
        return {
            "pos": made["pos"][:, None] * torch.ones(1, n, 1) + 0.1 * x["pos"],
            "cell": made["cell"],
            "bond": made["bond"][:, None, None].expand(-1, n, n, -1),
            "kind": made["kind"][:, None].expand(-1, n, -1),
        }


def data(batch=3, n=5, generator=None):
    g = generator or torch.Generator().manual_seed(1)
    return {
        "pos": torch.randn(batch, n, 3, generator=g),
        "cell": mf.Sphere(2).sample_uniform((batch,), generator=g),
        "bond": torch.randint(4, (batch, n, n), generator=g),
        "kind": torch.randint(5, (batch, n), generator=g),
    }


def padded(x, n, junk):
    """The same sets with further columns that hold anything."""
    extra = n - x["pos"].shape[1]
    return {
        "pos": nn.functional.pad(x["pos"], (0, 0, 0, extra), value=junk),
        "cell": x["cell"],
        "bond": nn.functional.pad(x["bond"], (0, extra, 0, extra), value=3),
        "kind": nn.functional.pad(x["kind"], (0, extra), value=2),
    }


def test_shapes_follow_what_a_field_is_per():
    flow = mf.Flow(SPACES, Whole())
    x, _ = flow.sample(lengths=[5, 3], steps=3, generator=torch.Generator().manual_seed(0))
    assert {n: tuple(v.shape) for n, v in x.items()} == {
        "pos": (2, 5, 3),
        "cell": (2, 3),
        "bond": (2, 5, 5),
        "kind": (2, 5),
    }
    assert (x["pos"][1, 3:] == 0).all() and (x["kind"][1, 3:] == 0).all()
    assert (x["bond"][1, 3:] == 0).all() and (x["bond"][1, :, 3:] == 0).all()
    SPACES["bond"].space.check(x["bond"], with_mask=False)
    with pytest.raises(ValueError, match="pairs needs sets"):
        flow.sample(4)
    with pytest.raises(ValueError, match="per must be"):
        mf.Field(mf.Torus(2), per="loop")


@pytest.mark.parametrize("junk", [0.0, 7.0, float("nan")])
def test_nothing_depends_on_padding(junk):
    flow = mf.Flow(SPACES, Whole())
    x, n = data(), 8
    mask = torch.arange(n) < 5
    mask = mask.expand(3, n)
    x0 = flow.draw_source((3, 5), generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.2, 0.5, 0.9])
    # The same source points and times; the coins of the token paths are drawn for every element, so tokens start at the data.
    x0["bond"], x0["kind"] = x["bond"], x["kind"]
    one = flow.loss_parts(x, x0=x0, t=t)
    more = flow.loss_parts(padded(x, n, junk), x0=padded(x0, n, 0.0), t=t, mask=mask)
    assert all(abs(one[k] - more[k]) < 1e-5 for k in one)
    flow.loss(padded(x, n, junk), mask=mask).backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())


def test_the_bound_of_a_mixed_state_does_not_depend_on_padding():
    flow = mf.Flow(
        {"pos": SPACES["pos"], "cell": SPACES["cell"], "kind": SPACES["kind"], "bond": SPACES["bond"]}, Whole()
    )
    x, n = data(), 7
    mask = (torch.arange(n) < 5).expand(3, n)
    one = flow.log_prob_bound(x, samples=24, steps=6, generator=torch.Generator().manual_seed(0), return_error=True)
    more = flow.log_prob_bound(
        padded(x, n, 0.0),
        mask=mask,
        samples=64,
        steps=12,
        generator=torch.Generator().manual_seed(0),
        return_error=True,
    )
    assert ((one[0] - more[0]).abs() < 5 * (one[1] + more[1])).all()


def test_clocks_give_fields_times_of_their_own_and_known_fields_are_seen_clean():
    seen = []

    class Model(Whole):
        def forward(self, x, t, *, mask=None):
            seen.append({n: v.clone() for n, v in t.items()})
            return super().forward(x, t, mask=mask)

    clocks = {"pos": "structure", "cell": "structure", "kind": "chemistry", "bond": "chemistry"}
    flow = mf.Flow(SPACES, Model(), clocks=clocks)
    flow.loss(data())
    t = seen[-1]
    assert (
        torch.equal(t["pos"], t["cell"]) and torch.equal(t["kind"], t["bond"]) and not torch.equal(t["pos"], t["kind"])
    )
    kind = data()["kind"]
    made = flow.sample((3, 5), known={"kind": kind}, steps=4)
    assert torch.equal(made["kind"], kind)
    assert all((t["kind"] == 1).all() for t in seen[1:]) and [float(t["pos"].max()) for t in seen[1:]] == [
        0,
        0.25,
        0.5,
        0.75,
    ]
    with pytest.raises(ValueError, match="clocks must name"):
        mf.Flow(SPACES, Model(), clocks={"pos": "a"})


def test_pinned_nodes_pin_the_pairs_between_them():
    pinned = torch.tensor([[True, True, False, False, False]])

    class Model(Whole):
        def forward(self, x, t, *, mask=None):
            assert t.shape == (3, 5) and (t[:, :2] == 1).all() and (t[:, 2:] < 1).all()
            return super().forward(x, t, mask=mask)

    flow = mf.Flow(SPACES, Model(), pin=lambda mask, g: pinned.expand(mask.shape))
    x = data()
    draw = flow.draw(x)
    assert torch.equal(draw.xt["bond"][:, :2, :2], x["bond"][:, :2, :2])
    assert torch.equal(draw.xt["kind"][:, :2], x["kind"][:, :2])
    parts = flow.loss_of(draw)
    # what is pinned does not count: other tokens there change nothing
    other = {**x, "bond": x["bond"].clone()}
    other["bond"][:, :2, :2] = (x["bond"][:, :2, :2] + 1) % 4
    points = {**draw.points, "bond": draw.points["bond"]._replace(endpoint=other["bond"])}
    assert flow.loss_of(draw._replace(points=points))["bond"] == parts["bond"]


def test_known_nodes_grow_with_the_samples_in_every_field():
    flow = mf.Flow(SPACES, Whole(), pin=lambda mask, g: torch.zeros_like(mask))
    known = {n: v[:, :2] if n != "cell" else v for n, v in data().items()}
    known["bond"] = known["bond"][:, :, :2]
    made = flow.sample((3, 5), known=known, known_mask=torch.ones(3, 2, dtype=torch.bool), steps=3)
    for name in ("pos", "kind"):
        assert torch.equal(made[name][:, :2], known[name])
    assert torch.equal(made["bond"][:, :2, :2], known["bond"]) and torch.equal(made["cell"], known["cell"])


# ---------------------------------------------------------------- conditions


class Shift(nn.Module):
    def forward(self, x, t, *, cond=None):
        level = cond["level"] if isinstance(cond, dict) else cond
        shared = cond["shared"].sum() if isinstance(cond, dict) else 0.0
        return -x * (1 + level.reshape(-1, 1)) + shared


def test_conditions_are_per_sample_unless_marked_as_shared():
    flow = mf.Flow(mf.Euclidean(2), Shift()).double()
    x = torch.randn(6, 2, dtype=torch.float64)
    cond = {"level": torch.rand(6, dtype=torch.float64), "shared": mf.Shared(torch.rand(6, dtype=torch.float64))}
    whole = flow.log_prob(x, cond=cond, steps=8)
    assert torch.allclose(flow.log_prob(x, cond=cond, steps=8, chunk=2), whole, atol=1e-12)
    with pytest.raises(ValueError, match=r"mf\.Shared"):
        flow.log_prob(x, cond={**cond, "shared": torch.rand(3)}, steps=8, chunk=2)
    assert map_cond(lambda v: v[:1], {"a": torch.zeros(4), "b": 3, "c": torch.tensor(1.0)}, 4)["a"].shape == (1,)


# ---------------------------------------------------------------- methods per field


class Both(nn.Module):
    """x_1 of either field is at the corner given by the other's sign; here simply independent."""

    def forward(self, x, t, *, mask=None):
        return {"pos": -x["pos"], "kind": torch.zeros(*x["kind"].shape, 3)}


@pytest.mark.parametrize(
    "method",
    ["euler", mf.SDE({"pos": 1.0}), mf.SDE(1.0), {"pos": mf.SDE(), "kind": mf.Jumps()}, {"pos": "midpoint"}],
    ids=str,
)
def test_guidance_acts_the_same_under_every_method(method):
    """REVIEW B1: the share of the wanted class was 0.87 by euler and 0.29, unguided, as soon as positions had noise."""
    flow = mf.Flow({"pos": mf.Euclidean(1), "kind": mf.Tokens(3, mask=True)}, Both())
    weight = torch.tensor([0.0, 0.0, 3.0, 0.0])
    guided = NoisyClassifier(flow, lambda x, t: weight[x].sum(-1), field="kind")
    made = guided.sample((1500, 2), steps=30, method=method, generator=torch.Generator().manual_seed(0))
    share = float((made["kind"] == 2).float().mean())
    wanted = 3.0 and float(torch.tensor(3.0).exp() / (2 + torch.tensor(3.0).exp()))
    assert abs(share - wanted) < 0.03


@pytest.mark.parametrize("method", ["euler", mf.SDE({"pos": 1.0}), {"pos": "heun"}], ids=str)
def test_padding_tokens_stay_under_every_method(method):
    flow = mf.Flow({"pos": mf.Euclidean(1), "kind": mf.Tokens(3, mask=True)}, Both())
    made, mask = flow.sample(lengths=[4, 2], steps=6, method=method)
    assert (made["kind"][~mask] == 0).all() and (made["pos"][~mask] == 0).all()
    assert (made["kind"][mask] < 3).all()


def test_methods_that_do_not_fit_are_named():
    flow = mf.Flow({"pos": mf.Euclidean(1), "kind": mf.Tokens(3, mask=True)}, Both())
    for method, words in (
        ("midpoint", "field 'kind' jumps"),
        ({"pos": mf.Jumps()}, "fields of tokens"),
        ({"kind": mf.SDE()}, "tokens jump"),
        ({"place": "euler"}, "unknown fields"),
        (mf.SDE({"place": 1.0}), "unknown fields"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            flow.sample((2, 3), steps=2, method=method)
    with pytest.raises(ValueError, match="this flow has none"):
        mf.Flow(mf.Tokens(3, mask=True), Both()).sample((2, 3), method=mf.SDE())
    assert hash(mf.SDE({"pos": 1.0})) == hash(mf.SDE({"pos": 1.0}))


# ---------------------------------------------------------------- precision and learned sources


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "space", [mf.Sphere(2), mf.Torus(2), mf.SO3(), mf.Simplex(3), mf.Tokens(4, mask=True), mf.Euclidean(2)], ids=str
)
def test_samples_have_the_precision_of_the_weights(space, dtype):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x, t):
            assert t.dtype == dtype
            return self.w * (
                torch.zeros(*x.shape, 4, dtype=dtype) if space.is_discrete else torch.zeros_like(space.log(x, x))
            )

    flow = mf.Flow(space, Model()).to(dtype)
    made = flow.sample((4, 2), steps=3)
    assert made.dtype == (torch.int64 if space.is_discrete else dtype)


class Learned(nn.Module):
    """A Gaussian whose centre is trained with the model."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(2))

    def sample(self, shape, *, mask=None, generator=None, dtype=None, device=None):
        return self.centre + torch.randn(*shape, 2, generator=generator, dtype=dtype, device=device)

    def log_prob(self, x, *, mask=None):
        return torch.distributions.Normal(self.centre, 1.0).log_prob(x).sum(-1)


def test_a_learned_source_is_trained_saved_and_copied(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            return self.w * x

    flow = mf.Flow(mf.Euclidean(2), Model(), source=Learned())
    assert {"model.w", "learned.source_x.centre"} == {n for n, _ in flow.named_parameters()}
    assert sum(len(list(g["params"])) for g in flow.parameter_groups()) == 2
    flow.loss(torch.full((64, 2), 3.0)).backward()
    assert flow.source["x"].centre.grad.abs().sum() > 0
    with torch.no_grad():
        flow.source["x"].centre.fill_(5.0)
    mf.save(flow, tmp_path / "a.safetensors")
    other = mf.load(tmp_path / "a.safetensors", into=mf.Flow(mf.Euclidean(2), Model(), source=Learned()))
    assert other.source["x"].centre.mean() == 5 and abs(float(other.sample(500, steps=1).mean()) - 5) < 0.2


# ---------------------------------------------------------------- particles and pairs


def test_particles_take_lengths_trajectories_and_make_pairs():
    flow = mf.Flow({"pos": mf.Euclidean(1), "kind": mf.Tokens(3, mask=True)}, Both())
    guided = Particles(flow, lambda x: (x["kind"] == 1).float().sum(-1), 2.0, count=4)
    made, mask = guided.sample(lengths=[3, 2], steps=4)
    assert made["kind"].shape == (2, 3) and mask.shape == (2, 3) and (made["kind"][1, 2] == 0).all()
    path = guided.sample((2, 3), steps=4, trajectory=True)
    assert path["kind"].shape == (5, 2, 3)
    # ancestors: a token that is known stays what it is on the way to the sample
    known = path["kind"] < 3
    assert ((path["kind"][1:] == path["kind"][:-1]) | ~known[:-1]).all()
    assert (path["pos"][0] != path["pos"][-1]).any()
    line = mf.Flow(mf.Euclidean(1), ToTwo())
    pairs = make_pairs(Particles(line, lambda x: -(x - 1).square().sum(-1), 1.0, count=3), 5, steps=3)
    moved = line.sample(x0=pairs.x0, steps=3)
    assert torch.allclose(moved, pairs.x1)  # the source point of every pair is that of its own trajectory


class ToTwo(nn.Module):
    def forward(self, x, t):
        return 2 - x


def test_grids_are_checked_at_the_door():
    flow = mf.Flow(mf.Euclidean(1), ToTwo())
    for times in ([0, float("nan")], [0.0, 0.5, 0.5, 1.0], [0.0, 0.7, 0.3]):
        with pytest.raises(ValueError, match="all rise or all fall"):
            flow.sample(2, times=times)
    assert flow.sample(2, times=[1.0, 0.5, 0.0]).isfinite().all()


def test_an_empty_batch_and_unknown_fields_are_refused():
    flow = mf.Flow(mf.Euclidean(1), ToTwo())
    with pytest.raises(ValueError, match="no samples"):
        flow.loss(torch.zeros(0, 1))
    two = mf.Flow({"a": mf.Euclidean(1), "b": mf.Euclidean(1)}, ToTwo())
    with pytest.raises(ValueError, match="lack the fields"):
        two.loss({"a": torch.zeros(2, 1)})
    with pytest.raises(ValueError, match="field 'c' that the flow lacks"):
        two.loss({"a": torch.zeros(2, 1), "b": torch.zeros(2, 1), "c": torch.zeros(2, 1)})


def test_the_loss_looks_at_its_data_on_request():
    flow = mf.Flow(mf.Sphere(2), mf.nn.TangentMLP(mf.Sphere(2), width=4, depth=1))
    off = torch.full((3, 3), 2.0)
    assert flow.loss(off).isfinite()
    with pytest.raises(ValueError, match="off the manifold"):
        flow.loss(off, check=True)
    assert flow.loss(mf.Sphere(2).project(off), check=True).isfinite()


def test_every_representative_of_an_angle_has_the_same_density():
    space = mf.Torus(2, period=2 * math.pi)
    flow = mf.Flow(space, mf.nn.TangentMLP(space, width=8, depth=1)).double()
    x = torch.tensor([[-1.0, 0.5]], dtype=torch.float64)
    assert (flow.log_prob(x, steps=8) - flow.log_prob(x + 2 * math.pi, steps=8)).abs() < 1e-9
    with pytest.raises(ValueError, match="NaN"):
        flow.log_prob(x * torch.nan)


def test_densities_and_bounds_do_not_see_what_padding_holds():
    """A network that ignores the mask is scored with the padding that it was trained with."""

    class Sees(nn.Module):
        def forward(self, x, t):
            first = x.flatten(1).double().sum(-1)
            return first.reshape(-1, 1, 1) * torch.ones(*x.shape[:2], 3, dtype=torch.float64) * 0.1

    mask = torch.tensor([[True, True, False]])
    tokens = mf.Flow(mf.Tokens(3, mask=True), Sees())
    points = mf.Flow(mf.Euclidean(3), Sees()).double()
    for flow, x, other in (
        (tokens, torch.tensor([[1, 2, 0]]), torch.tensor([[1, 2, 2]])),
        (points, torch.ones(1, 3, 3).double() * mask[..., None], torch.ones(1, 3, 3).double()),
    ):
        value = [
            flow.elbo(v, mask=mask, samples=4, generator=torch.Generator().manual_seed(0))
            if flow is tokens
            else flow.log_prob(v, mask=mask, steps=4)
            for v in (x, other)
        ]
        assert torch.equal(value[0], value[1])
