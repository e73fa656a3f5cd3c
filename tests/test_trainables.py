"""What fit trains besides flows, how it feeds them, and what it refuses at the door."""

import itertools
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import manifoldflow as mf
from manifoldflow.training import Trainable, TrainConfig, fit, keeper
from manifoldflow.training.trainable import parameter_groups
from testkit.runs import SPHERE, batch, batches, config, curve, interrupted_at, rows, sphere_flow, weights


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "plot_losses", lambda folder: None)


class Regressor(nn.Module):
    """A line through points, with nothing random."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(2, 1)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return (self.line(inputs).squeeze(-1) - targets).square().mean()


def points(start: int = 0, size: int = 16) -> Iterator[dict[str, Tensor]]:
    for step in itertools.count(start):
        x = torch.randn(size, 2, generator=torch.Generator().manual_seed(step))
        yield {"inputs": x, "targets": x @ torch.tensor([2.0, -1.0]) + 0.5}


def test_a_module_whose_forward_is_the_loss_is_trained(tmp_path: Path) -> None:
    c = config(max_steps=300, learning_rate=0.05, schedule="constant", ema=0.5, weight_decay=0.0, log_every=50)
    made = fit(Regressor(), points, c, out=tmp_path, validation=[next(points(10**6))])
    assert torch.allclose(made.line.weight, torch.tensor([[2.0, -1.0]]), atol=0.02)
    assert float(rows(tmp_path)[-1]["loss"]) < 1e-3
    again = mf.load(tmp_path / "model.safetensors", into=Regressor())
    assert torch.equal(again.line.weight, made.line.weight)


class Classifier(nn.Module):
    """Two terms of a loss, by ``loss_of`` alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 2)

    def loss_of(self, x: Tensor, labels: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        fit_ = nn.functional.cross_entropy(self.net(x), labels)
        return {"fit": weight * fit_, "size": 0.01 * self.net.weight.square().sum()}


def test_a_module_with_loss_of_alone_is_trained_and_its_terms_are_in_the_curve(tmp_path: Path) -> None:
    def labelled(start: int) -> Iterator[dict[str, Tensor]]:
        for item in points(start):
            yield {"x": item["inputs"], "labels": (item["targets"] > 0).long()}

    fit(Classifier(), labelled, config(), out=tmp_path, validation=[next(labelled(99))], score=None)
    for row in rows(tmp_path):
        assert float(row["loss"]) == pytest.approx(float(row["fit"]) + float(row["size"]), rel=1e-6)


# ---------------------------------------------------------------- a GFlowNet in thirty lines

SIDE = 4
LEVELS = [3.0, 1.0, 2.0, 0.5]


class Trajectory(NamedTuple):
    actions: Tensor
    reward: Tensor


class Chain(nn.Module):
    """Two letters, one after the other; the reward of a word is a product of levels, so log Z is known: 2 log sum(levels)."""

    builder = config = None

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.policy = nn.Parameter(torch.zeros(2, SIDE))
        self.log_z = nn.Parameter(torch.zeros(()))
        self.scale = scale

    def draw(self, n: int, generator: torch.Generator | None = None) -> Trajectory:
        logits = self.policy.detach().log_softmax(-1).exp().expand(n, 2, SIDE)
        actions = torch.multinomial(logits.reshape(-1, SIDE), 1, generator=generator).view(n, 2)
        return Trajectory(actions, torch.tensor(LEVELS)[actions].log().sum(-1))

    def loss_of(self, drawn: Trajectory) -> dict[str, Tensor]:
        forward = self.policy.log_softmax(-1).expand(len(drawn.actions), 2, SIDE)
        log_p = forward.gather(-1, drawn.actions.unsqueeze(-1)).sum((-1, -2))
        return {"balance": (self.log_z + log_p - drawn.reward).square().mean()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.policy], "weight_decay": 0.0}, {"params": [self.log_z], "lr_scale": self.scale}]


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_gflownet_learns_log_z_when_its_rate_is_ten_times_the_policys(tmp_path: Path, scale: float) -> None:
    assert isinstance(Chain(1.0), Trainable)
    c = config(max_steps=150, learning_rate=0.01, schedule="constant", ema=0.5, log_every=50, warmup_steps=0)
    made = fit(Chain(scale), lambda step: itertools.repeat({"n": 64}), c, out=tmp_path, validation=[{"n": 8}])
    exact = 2 * math.log(sum(LEVELS))
    if scale == 10.0:
        assert float(made.log_z.detach()) == pytest.approx(exact, abs=0.05)
    else:  # 150 steps of 0.01 cannot get there
        assert float(made.log_z.detach()) < 1.6 < exact


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = parameter_groups(net, 0.1, 0.5)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert all(decay[id(p)] == (0.5 if n in ("0.weight", "2.weight") else 0.0) for n, p in net.named_parameters())
    assert {g["lr"] for g in groups} == {0.1}


def test_weight_decay_of_a_run_leaves_biases_alone(tmp_path: Path) -> None:
    """With no gradient AdamW multiplies what decays by 1 - lr * decay in every step, and nothing else moves."""

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
            nn.init.constant_(self.net[0].bias, 0.7)

        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * self.net(x).sum()

    module = Still()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    c = config(max_steps=4, learning_rate=0.1, weight_decay=0.5, schedule="constant", warmup_steps=0)
    fit(module, [{"x": torch.ones(2, 2)}], c, out=tmp_path)
    for name, value in module.named_parameters():
        expected = before[name] * (0.95**4 if name == "net.0.weight" else 1.0)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["twice", "none", "foreign"])
def test_groups_that_do_not_hold_every_parameter_once_are_refused(kind: str) -> None:
    net = Chain(1.0)
    held = {"twice": [net.policy, net.log_z, net.log_z], "none": [net.policy], "foreign": [torch.zeros(2)]}[kind]
    net.parameter_groups = lambda: [{"params": held}]  # type: ignore[method-assign]
    message = {"twice": "in two groups", "none": "leave out log_z", "foreign": "no parameter of the module"}[kind]
    with pytest.raises(ValueError, match=message):
        parameter_groups(net, 0.1, 0.0)


@pytest.mark.parametrize(("made", "message"), [(torch.ones(3), r"scalar tensor, got shape \(3,\)"), (1.0, "got float")])
def test_a_loss_that_is_no_scalar_is_named(tmp_path: Path, made: Any, message: str) -> None:
    net = Regressor()
    net.forward = lambda inputs, targets: made  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=message):
        fit(net, points, config(), out=tmp_path)


# ---------------------------------------------------------------- the keys of batches


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "condition",
            r"the key 'condition' \(did you mean 'cond'\?\), which Flow.draw does not take; it takes x, mask, cond",
        ),
        ("Mask", r"did you mean 'mask'"),
        ("X", r"'X'"),
        ("names", r"'names', which Flow.draw does not take"),
        ("generator", r"'generator', which"),
    ],
)
def test_an_unknown_key_of_a_batch_is_refused(tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(sphere_flow(), [{**batch(0), key: torch.zeros(8)}], config(), out=tmp_path)


def test_an_unknown_key_of_a_validation_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'cond'"):
        fit(sphere_flow(), batches, config(validate_every=2), out=tmp_path, validation=[{**batch(0), "cnd": None}])


@pytest.mark.parametrize("item", [torch.zeros(3, 4), (torch.zeros(3, 4),), [torch.zeros(3, 4)], None, 3])
def test_a_batch_that_is_no_dict_says_so(tmp_path: Path, item: Any) -> None:
    with pytest.raises(TypeError, match=r"a batch must be a dict such as \{'x': data\}"):
        fit(sphere_flow(), [item], config(), out=tmp_path)


def test_times_of_a_batch_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = mf.Flow.loss_of

    def loss_of(self: mf.Flow, draw: Any) -> Any:
        seen.append(draw.t)
        return real(self, draw)

    monkeypatch.setattr(mf.Flow, "loss_of", loss_of)
    t = torch.linspace(0.1, 0.8, 8)
    fit(sphere_flow(), [{**batch(0), "t": t}], config(max_steps=3), out=tmp_path)
    assert len(seen) == 3 and all(torch.equal(s, t) for s in seen)


def test_every_step_has_noise_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = mf.Flow.loss_of
    monkeypatch.setattr(mf.Flow, "loss_of", lambda self, draw: (seen.append(draw.t), real(self, draw))[1])
    fit(sphere_flow(), [batch(0)], config(max_steps=6, accumulate=2), out=tmp_path)
    assert len(seen) == 12 and len({tuple(t.tolist()) for t in seen}) == 12


# ---------------------------------------------------------------- several batches a step


@pytest.mark.parametrize("many", [2, 3])
def test_gradients_of_several_batches_make_the_step_of_one_large_batch(tmp_path: Path, many: int) -> None:
    def parts(start: int) -> Iterator[dict[str, Tensor]]:
        step, part = divmod(start, many)
        while True:
            whole = next(points(step, 4 * many))
            yield {k: v[4 * part : 4 * part + 4] for k, v in whole.items()}
            step, part = (step, part + 1) if part + 1 < many else (step + 1, 0)

    c = dict(max_steps=12, learning_rate=0.05, log_every=3, validate_every=6)
    check = [next(points(500))]
    one = fit(Regressor(), lambda s: points(s, 4 * many), config(**c), out=tmp_path / "one", validation=check)
    two = fit(Regressor(), parts, config(**c, accumulate=many), out=tmp_path / "many", validation=check)
    torch.testing.assert_close(two.line.weight, one.line.weight, rtol=1e-5, atol=1e-6)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        assert a["step"] == b["step"] and bool(a["val_loss"]) == bool(b["val_loss"])
        for key in ("loss", "val_loss", "rate"):
            assert not a[key] or float(b[key]) == pytest.approx(float(a[key]), rel=1e-4)


@pytest.mark.parametrize("stop", [10, 14, 15, 16, 17])
def test_ctrl_c_between_the_batches_of_a_step_changes_nothing(tmp_path: Path, stop: int) -> None:
    import os

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    c = config(max_steps=10, accumulate=3, schedule="constant")
    fit(sphere_flow(), batches, c, out=tmp_path / "one")
    try:
        with pytest.raises(KeyboardInterrupt):
            source = interrupted_at(stop, lambda: os.kill(os.getpid(), signal.SIGINT))
            fit(sphere_flow(), source, c, out=tmp_path / "two")
    finally:
        signal.signal(signal.SIGINT, before)
    fit(sphere_flow(), batches, c, out=tmp_path / "two", resume=True)
    assert curve(tmp_path / "two") == curve(tmp_path / "one")
    assert torch.equal(weights(tmp_path / "two"), weights(tmp_path / "one"))


# ---------------------------------------------------------------- workers


def noisy(start: int) -> Iterator[dict[str, Tensor]]:
    """Batches that draw from torch's own generator, as augmentations do."""
    for step in itertools.count(start):
        yield {"x": SPHERE.project(batch(step)["x"] + 0.1 * torch.randn(8, 4))}


@pytest.mark.filterwarnings("ignore:.*worker processes in total")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_make_the_batches_that_the_run_itself_would_make(tmp_path: Path, workers: int) -> None:
    c = dict(schedule="constant", checkpoint_every=4)
    fit(sphere_flow(), noisy, config(max_steps=12, **c), out=tmp_path / "none")
    fit(sphere_flow(), noisy, config(max_steps=7, **c, workers=workers), out=tmp_path / "some")
    fit(sphere_flow(), noisy, config(max_steps=12, **c, workers=workers), out=tmp_path / "some", resume=True)
    assert curve(tmp_path / "some") == curve(tmp_path / "none")


def test_an_error_in_a_worker_is_the_error_itself(tmp_path: Path) -> None:
    def broken(start: int) -> Iterator[dict[str, Tensor]]:
        yield from itertools.islice(batches(start), 2)
        raise ValueError("chains.csv, line 17: length is 'abc'")

    with pytest.raises(ValueError, match=r"^chains\.csv, line 17: length is 'abc'$"):
        fit(sphere_flow(), broken, config(workers=1), out=tmp_path)


def test_workers_need_a_function_of_the_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a DataLoader has num_workers"):
        fit(sphere_flow(), [batch(0)], config(workers=2), out=tmp_path)


def test_a_loader_with_workers_of_its_own_is_repeated(tmp_path: Path) -> None:
    data = [batch(i)["x"][0] for i in range(12)]
    for name, count in (("a", 0), ("b", 2)):
        loader = DataLoader(data, batch_size=4, num_workers=count, collate_fn=lambda items: {"x": torch.stack(items)})
        fit(sphere_flow(), loader, config(max_steps=7), out=tmp_path / name)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


# ---------------------------------------------------------------- the door

TORUS = mf.Torus(2)


def flow_on(space: Any) -> mf.Flow:
    return mf.Flow(space, mf.nn.TangentMLP(space, width=8, depth=1))


def masked(x: Tensor, **more: Any) -> dict[str, Any]:
    return {"x": x, "mask": torch.tensor([[True, True, False]] * 4), **more}


class Sets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor, *, mask: Any = None) -> Tensor:
        return mf.Sphere(2).to_tangent(x, self.net(x))


def unit(*shape: int) -> Tensor:
    return mf.Sphere(2).sample_uniform(shape, generator=torch.Generator().manual_seed(0))


def spoiled(where: tuple[int, ...], value: float) -> Tensor:
    x = unit(4, 3)
    x[where] = value
    return x


BAD: dict[str, tuple[Callable[[], mf.Flow], Any, type[Exception], str]] = {
    "off the sphere": (lambda: flow_on(mf.Sphere(2)), {"x": 5 * unit(8)}, ValueError, "4 off the manifold"),
    "not normalised": (lambda: flow_on(mf.Sphere(2)), {"x": 1.1 * unit(8)}, ValueError, "off the manifold"),
    "integers": (lambda: flow_on(TORUS), {"x": torch.zeros(4, 2).long()}, TypeError, "floating point"),
    "empty": (lambda: flow_on(TORUS), {"x": torch.zeros(0, 2)}, ValueError, "training batch 1 is empty"),
    "NaN": (
        lambda: flow_on(TORUS),
        {"x": torch.tensor([[0.1, 0.2], [0.3, math.nan]])},
        ValueError,
        "sample 1 holds NaN",
    ),
    "wrong shape": (lambda: flow_on(mf.Sphere(2)), {"x": torch.ones(4, 2)}, ValueError, r"got \(4, 2\)"),
    "a list": (lambda: flow_on(TORUS), {"x": [0.1, 0.2]}, TypeError, "expected a tensor, got list"),
    "mask of numbers": (
        lambda: mf.Flow(mf.Sphere(2), Sets()),
        {"x": unit(4, 3), "mask": torch.ones(4, 3)},
        TypeError,
        "bool",
    ),
    "mask of nothing": (
        lambda: mf.Flow(mf.Sphere(2), Sets()),
        {"x": unit(4, 3), "mask": torch.zeros(4, 3, dtype=torch.bool)},
        ValueError,
        "leaves no element",
    ),
    "mask of another shape": (
        lambda: mf.Flow(mf.Sphere(2), Sets()),
        {"x": unit(4, 3), "mask": torch.ones(4, 2, dtype=torch.bool)},
        ValueError,
        "the mask has shape",
    ),
    "NaN that counts": (
        lambda: mf.Flow(mf.Sphere(2), Sets()),
        masked(spoiled((2, 1), math.nan)),
        ValueError,
        "sample 2",
    ),
    "tokens beyond the last": (
        lambda: mf.Flow(mf.Tokens(4, mask=True), nn.Embedding(5, 4)),
        {"x": torch.tensor([[0, 3], [4, 1]])},
        ValueError,
        "token 4",
    ),
    "tokens of floats": (
        lambda: mf.Flow(mf.Tokens(4, mask=True), nn.Embedding(5, 4)),
        {"x": torch.ones(2, 2)},
        TypeError,
        "whole",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_data_that_the_flow_cannot_be_of_are_refused_at_the_door(tmp_path: Path, kind: str) -> None:
    make, item, error, message = BAD[kind]
    with pytest.raises(error, match=message) as caught:
        fit(make(), [item], config(), out=tmp_path)
    assert "training batch 1" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "last.ckpt").exists()


def test_data_are_looked_at_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manifoldflow.training import batches as module

    monkeypatch.setattr(module, "LOOK_EVERY", 5)

    def later(start: int) -> Iterator[dict[str, Tensor]]:
        for number, item in enumerate(batches(start), start):
            yield {"x": item["x"] * (1.0 if number < 8 else 3.0)}

    with pytest.raises(ValueError, match=r"training batch 11: .* off the manifold"):
        fit(sphere_flow(), later, config(), out=tmp_path)


def test_angles_in_another_unit_than_the_period_are_warned_of(tmp_path: Path) -> None:
    radians = {"x": 2 + 0.3 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0))}
    with pytest.warns(UserWarning, match=r"more than one period of 1; angles in radians need period=2\*pi"):
        fit(flow_on(TORUS), [radians], config(max_steps=1), out=tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name, low in (("b", 0.0), ("c", -0.5)):  # both are names of the same points
            fit(flow_on(TORUS), [{"x": low + torch.rand(8, 2)}], config(max_steps=1), out=tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_what_padding_holds_does_not_matter(tmp_path: Path, value: float) -> None:
    torch.manual_seed(0)
    clean = mf.Flow(mf.Sphere(2), Sets())
    torch.manual_seed(0)
    other = mf.Flow(mf.Sphere(2), Sets())
    fit(clean, [masked(unit(4, 3))], config(max_steps=4), out=tmp_path / "clean")
    x = unit(4, 3)
    x[:, 2] = value
    fit(other, [masked(x)], config(max_steps=4), out=tmp_path / "other")
    assert curve(tmp_path / "other") == curve(tmp_path / "clean")


def test_data_of_a_module_without_spaces_are_its_own_affair(tmp_path: Path) -> None:
    item = next(points())
    item["inputs"][0, 0] = math.nan
    with pytest.raises(FloatingPointError):
        fit(Regressor(), [item], config(), out=tmp_path)


def test_the_frozen_part_of_a_module_stays(tmp_path: Path) -> None:
    net = Regressor()
    net.line.bias.requires_grad_(False)
    before = net.line.bias.clone()
    made = fit(net, points, TrainConfig(max_steps=3, progress=False, accelerator="cpu"), out=tmp_path)
    assert torch.equal(made.line.bias, before)


class Counting(nn.Module):
    """A net with a buffer that training changes, as batch norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mf.nn.TangentMLP(SPHERE, width=8, depth=1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.net(x, t)


def test_buffers_of_the_averaged_weights_are_those_of_now_not_averages(tmp_path: Path) -> None:
    flow = mf.Flow(SPHERE, Counting())
    made = fit(flow, batches, config(max_steps=7), out=tmp_path)
    assert float(made.model.seen) == float(flow.model.seen) == 7.0


# ---------------------------------------------------------------- runs without a folder


def test_a_run_without_a_folder_is_the_same_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = fit(sphere_flow(), batches, config(), out=tmp_path / "run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    seen: list[dict[str, Any]] = []
    bare = fit(sphere_flow(), batches, config(), out=None, callback=seen.append)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), bare.parameters(), strict=True))
    assert [row["step"] for row in seen] == list(range(1, 21))
    assert [row["loss"] for row in seen] == [float(row["loss"]) for row in rows(tmp_path / "run")]
    assert not list((tmp_path / "here").iterdir())
    with pytest.raises(ValueError, match=r"resume needs out="):
        fit(sphere_flow(), batches, config(), out=None, resume=True)


def test_a_run_without_a_folder_ends_with_its_best_weights(tmp_path: Path) -> None:
    def scores() -> Callable[[mf.Flow], float]:
        given = iter([3.0, 1.0, 2.0, 2.0])
        return lambda flow: next(given)

    c = config(validate_every=5)
    kept = fit(sphere_flow(), batches, c, out=tmp_path, score=scores())
    bare = fit(sphere_flow(), batches, c, out=None, score=scores())
    last = fit(sphere_flow(), batches, c, out=None)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), bare.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(last.parameters(), bare.parameters(), strict=True))


def test_a_flow_in_evaluation_mode_is_trained_with_its_dropout(tmp_path: Path) -> None:
    """``mf.load`` gives it so; a part that somebody put in evaluation mode stays in it."""
    modes: list[tuple[bool, bool]] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.norm, self.line = nn.Dropout(), nn.LayerNorm(2), nn.Linear(2, 1)

        def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
            modes.append((self.drop.training, self.norm.training))
            return (self.line(self.norm(self.drop(inputs))).squeeze(-1) - targets).square().mean()

    fit(Net().eval(), points, config(max_steps=1), out=None)
    half = Net()
    half.norm.eval()
    fit(half, points, config(max_steps=1), out=None)
    assert modes == [(True, True), (True, False)]


class Conditional(nn.Module):
    """A network that adds a condition which all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mf.nn.TangentMLP(SPHERE, width=8, depth=1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return SPHERE.to_tangent(x, self.net(x, t) + cond)


@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-mixed"])
def test_conditions_that_all_samples_share_train_in_any_precision(precision: str) -> None:
    torch.manual_seed(0)
    item = {**batch(0), "cond": mf.Shared(torch.tensor([0.1, 0.2, 0.3, 0.4]))}
    flow = mf.Flow(SPHERE, Conditional())
    c = config(max_steps=3, precision=precision, validate_every=2)
    made = fit(flow, [item], c, out=None, validation=[item])
    assert {p.dtype for p in made.parameters()} == {torch.float64 if precision == "64-true" else torch.float32}
    assert item["cond"].value.dtype == item["x"].dtype == torch.float32


def test_the_size_of_a_batch_that_the_model_draws_itself_is_counted():
    from manifoldflow.training.trainable import size_of

    assert size_of({"size": 128}) == 128 and size_of({"size": 9, "cond": torch.zeros(5, 2)}) == 5 and size_of({}) == 0
