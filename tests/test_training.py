"""Training: runs that can be stopped anywhere and continued, on one process or several, with the same curve."""

import copy
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow import checkpoint, training
from manifoldflow.state import masked_mean
from manifoldflow.training import TrainConfig, fit, keeper
from testkit.runs import (
    SPHERE,
    batch,
    batches,
    config,
    curve,
    environment,
    interrupted_at,
    rows,
    script,
    sphere_flow,
    weights,
)

PLOT = training.plot_losses


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture takes longer than the run; one test asks for it."""
    monkeypatch.setattr(keeper, "plot_losses", lambda folder: None)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    fit(sphere_flow(), batches, config(), out=folder)
    return folder


# ---------------------------------------------------------------- stop and continue


@pytest.mark.parametrize("stop", [5, 8])
def test_a_continued_run_equals_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    schedule = dict(schedule="constant")  # the others depend on max_steps
    fit(sphere_flow(), batches, config(max_steps=20, **schedule), out=tmp_path / "one")
    fit(sphere_flow(), batches, config(max_steps=stop, **schedule), out=tmp_path / "two")
    flow = fit(sphere_flow(), batches, config(max_steps=20, **schedule), out=tmp_path / "two", resume=True)
    assert curve(tmp_path / "two") == curve(tmp_path / "one")
    assert [row["step"] for row in rows(tmp_path / "two")] == [str(n) for n in range(1, 21)]
    assert torch.equal(weights(tmp_path / "two"), weights(tmp_path / "one"))
    assert not flow.training


def test_continuing_between_two_rows_of_the_curve_does_not_change_them(tmp_path: Path) -> None:
    for name, stops in (("one", [20]), ("two", [7, 13, 20])):
        for stop in stops:
            c = config(max_steps=stop, log_every=5, schedule="constant")
            fit(sphere_flow(), batches, c, out=tmp_path / name, resume=True)
    assert curve(tmp_path / "two") == curve(tmp_path / "one")


def test_a_finite_loader_is_repeated_and_continued_in_mid_epoch(tmp_path: Path) -> None:
    loader = [batch(i) for i in range(7)]
    for name, stops in (("one", [20]), ("two", [10, 20])):
        for stop in stops:
            fit(sphere_flow(), loader, config(max_steps=stop, schedule="constant"), out=tmp_path / name, resume=True)
    assert curve(tmp_path / "two") == curve(tmp_path / "one")


def test_kill_9_in_mid_run_then_resume_gives_the_curve_of_an_uninterrupted_run(straight: Path, tmp_path: Path) -> None:
    body = (
        "import os\nfrom test_training import *\n"
        f"fit(sphere_flow(), interrupted_at(14, lambda: os.kill(os.getpid(), 9)), config(), out={str(tmp_path / 'run')!r})"
    )
    done = subprocess.run(script(tmp_path / "job.py", body), env=environment(), timeout=120)
    assert done.returncode == -signal.SIGKILL
    seen = [int(row["step"]) for row in rows(tmp_path / "run")]
    assert seen and 10 <= seen[-1] < 15  # rows beyond the checkpoint at 10 will be made again
    fit(sphere_flow(), batches, config(), out=tmp_path / "run", resume=True)
    assert curve(tmp_path / "run") == curve(straight)
    assert torch.equal(weights(tmp_path / "run"), weights(straight))


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, None), (signal.SIGTERM, 143)])
def test_a_signal_from_outside_says_how_to_continue_and_the_run_goes_on(
    tmp_path: Path, sent: signal.Signals, code: int | None
) -> None:
    body = (
        "from test_training import *\nimport time\n"
        "def slow(start):\n    for item in batches(start):\n        time.sleep(0.01)\n        yield item\n"
        f"fit(sphere_flow(), slow, config(max_steps=100_000), out={str(tmp_path / 'run')!r})\nprint('not here')"
    )
    # A child of a background job may inherit an ignored SIGINT.
    restore = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    job = subprocess.Popen(
        script(tmp_path / "job.py", body),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore,
    )
    limit = time.monotonic() + 100
    while not (tmp_path / "run" / "model.safetensors").exists() and time.monotonic() < limit and job.poll() is None:
        time.sleep(0.05)
    job.send_signal(sent)
    out, err = job.communicate(timeout=60)
    assert job.returncode != 0 and "not here" not in out
    assert code is None or job.returncode == code  # what a scheduler expects of a job that it ended
    assert "stopped at step" in out and f"continue with resume=True (--resume) in {tmp_path / 'run'}" in out, out + err
    stopped = int(out.split("stopped at step ")[1].split(";")[0])
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)
    assert state["global_step"] == stopped >= 5
    assert checkpoint.read_metadata(tmp_path / "run" / "model.safetensors")["training"]["step"] == stopped
    fit(sphere_flow(), batches, config(max_steps=stopped + 3), out=tmp_path / "run", resume=True)
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == list(range(1, stopped + 4))


@pytest.mark.parametrize("place", ["data", "forward", "optimiser", "average", "curve", "saving"])
def test_ctrl_c_at_any_place_of_a_step_keeps_the_curve(
    straight: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    calls = 0

    def press(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def pressing(function: Callable[..., Any], when: int) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == when:
                press()
            return function(*args, **kwargs)

        return wrapped

    targets: dict[str, tuple[Any, str, int]] = {
        "forward": (mf.Flow, "loss_of", 8),
        "optimiser": (torch.optim.AdamW, "step", 8),
        "average": (torch, "_foreach_lerp_", 8),
        "curve": (keeper.Keeper, "_log", 8),
        "saving": (os, "replace", 6),
    }
    source: Any = interrupted_at(8, press) if place == "data" else batches
    try:
        with monkeypatch.context() as patch:
            if place in targets:
                owner, name, when = targets[place]
                patch.setattr(owner, name, pressing(getattr(owner, name), when))
            with pytest.raises(KeyboardInterrupt):
                fit(sphere_flow(), source, config(), out=tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] >= 5
    fit(sphere_flow(), batches, config(), out=tmp_path, resume=True)
    assert curve(tmp_path) == curve(straight)
    assert torch.equal(weights(tmp_path), weights(straight))


# ---------------------------------------------------------------- damaged and existing runs


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_resume_file_falls_back_to_the_one_before(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        fit(sphere_flow(), interrupted_at(13, stop_by_error), config(), out=tmp_path)
    truncate(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged .*trying an older one"):
        fit(sphere_flow(), batches, config(), out=tmp_path, resume=True)
    assert curve(tmp_path) == curve(straight)


def stop_by_error() -> None:
    raise RuntimeError("power cut")


def test_two_damaged_resume_files_are_one_clear_error(tmp_path: Path) -> None:
    fit(sphere_flow(), batches, config(max_steps=10), out=tmp_path)
    truncate(tmp_path / "last.ckpt")
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError) as caught:
        fit(sphere_flow(), batches, config(), out=tmp_path, resume=True)
    message = str(caught.value)
    assert "no resume file can be read (last.ckpt, previous.ckpt); delete them to start again" in message
    assert message.startswith(str(tmp_path)) and "\n" not in message


def test_an_existing_run_is_not_overwritten_without_resume(tmp_path: Path) -> None:
    fit(sphere_flow(), batches, config(max_steps=10), out=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    for name in ("last.ckpt", "previous.ckpt"):
        with pytest.raises(FileExistsError, match=r"already holds a run; continue it with resume=True \(--resume\)"):
            fit(sphere_flow(), batches, config(), out=tmp_path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
        before.pop(name)
        (tmp_path / name).unlink()  # a crash between two renames leaves only the other


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    fit(sphere_flow(), batches, config(max_steps=2), out=tmp_path / "new", resume=True)
    assert len(rows(tmp_path / "new")) == 2


def test_nan_in_the_data_stops_the_run_and_keeps_the_checkpoint_before_it(straight: Path, tmp_path: Path) -> None:
    def poisoned(start: int) -> Iterator[dict[str, Tensor]]:
        for number, item in enumerate(batches(start), start):
            yield {"x": item["x"] * (math.nan if number == 11 else 1.0)}

    with pytest.raises(FloatingPointError) as caught:
        fit(sphere_flow(), poisoned, config(), out=tmp_path)
    assert "the loss is nan at step 12" in str(caught.value) and str(tmp_path / "last.ckpt") in str(caught.value)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 10
    assert torch.isfinite(weights(tmp_path)).all()
    fit(sphere_flow(), batches, config(), out=tmp_path, resume=True)
    assert curve(tmp_path) == curve(straight)


def test_nan_between_two_rows_of_the_curve_is_never_saved(tmp_path: Path) -> None:
    def poisoned(start: int) -> Iterator[dict[str, Tensor]]:
        for number, item in enumerate(batches(start), start):
            yield {"x": item["x"] * (math.nan if number == 11 else 1.0)}

    with pytest.raises(FloatingPointError, match=r"last\.ckpt"):
        fit(sphere_flow(), poisoned, config(log_every=100, checkpoint_every=5), out=tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 10
    assert torch.isfinite(weights(tmp_path)).all()


@pytest.mark.parametrize("failing", ["replace", "save"])
def test_a_full_disk_leaves_the_files_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    fit(sphere_flow(), batches, config(max_steps=10), out=tmp_path)
    before = {n: (tmp_path / n).read_bytes() for n in ("last.ckpt", "model.safetensors")}
    real_replace, real_save = os.replace, torch.save

    def replace(source: Any, target: Any) -> None:
        if Path(target).name in ("last.ckpt", "model.safetensors"):
            raise OSError(28, "No space left on device")
        real_replace(source, target)

    def save(state: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        Path(target).write_bytes(b"half") if isinstance(target, str | Path) else target.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace) if failing == "replace" else patch.setattr(torch, "save", save)
        with pytest.raises(OSError, match="No space left"):
            fit(sphere_flow(), batches, config(), out=tmp_path, resume=True)
    assert torch.save is real_save
    kept = "last.ckpt" if (tmp_path / "last.ckpt").exists() else "previous.ckpt"
    assert (tmp_path / kept).read_bytes() == before["last.ckpt"]
    assert (tmp_path / "model.safetensors").read_bytes() == before["model.safetensors"]
    fit(sphere_flow(), batches, config(), out=tmp_path, resume=True)
    assert [row["step"] for row in rows(tmp_path)] == [str(n) for n in range(1, 21)]


def test_an_empty_loader_or_a_batch_without_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training batches: the data set or loader is empty"):
        fit(sphere_flow(), [], config(), out=tmp_path / "a")
    with pytest.raises(ValueError, match="a batch needs the key 'x' with the data, it has y, mask"):
        fit(sphere_flow(), [{"y": torch.zeros(2, 4), "mask": None}], config(), out=tmp_path / "b")
    with pytest.raises(ValueError, match="no training batches: the function of the step gave none"):
        fit(sphere_flow(), lambda start: iter(()), config(), out=tmp_path / "c")
    with pytest.raises(ValueError, match="must give batches for ever, it ended before step 3"):
        fit(sphere_flow(), lambda start: iter([batch(0), batch(1)]), config(), out=tmp_path / "d")
    with pytest.raises(ValueError, match="no validation batches"):
        fit(sphere_flow(), batches, config(validate_every=2), out=tmp_path / "e", validation=iter(()))


# ---------------------------------------------------------------- what a run leaves, schedules, averages


def test_a_run_leaves_its_curve_a_picture_and_a_model(tmp_path: Path) -> None:
    from matplotlib.image import imread

    flow = fit(
        sphere_flow(), batches, config(validate_every=4), out=tmp_path, validation=[batch(1000), batch(1001)],
        facts={"data": "random"},
    )  # fmt: skip
    made = [row for row in rows(tmp_path) if row["loss"]]
    assert [int(row["step"]) for row in made] == list(range(1, 21))
    assert all(math.isfinite(float(row[k])) for row in made for k in ("minutes", "loss", "flow", "rate"))
    assert all(float(row["elements_per_s"]) > 0 for row in made)
    checks = [row for row in rows(tmp_path) if row["val_loss"]]
    assert [int(row["step"]) for row in checks] == [4, 8, 12, 16, 20]
    PLOT(tmp_path)
    picture = imread(tmp_path / "loss.png")
    assert picture.shape[:2] == (585, 1170) and (picture[..., :3].min(-1) < 0.5).mean() > 0.005  # lines were drawn
    facts = checkpoint.read_metadata(tmp_path / "model.safetensors")["training"]
    assert facts["data"] == "random" and facts["step"] == 20 and facts["train"]["learning_rate"] == 1e-3
    again = mf.load(tmp_path / "model.safetensors", into=sphere_flow())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), flow.parameters(), strict=True))
    generator = torch.Generator()
    parts = [
        float(flow.loss(batch(1000 + i)["x"], generator=generator.manual_seed(i))) for i in range(2)
    ]  # the last row of the curve, by hand
    assert float(checks[-1]["val_loss"]) == pytest.approx(sum(parts) / 2, rel=1e-6)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_validation_does_not_change_the_training(straight: Path, tmp_path: Path) -> None:
    fit(sphere_flow(), batches, config(validate_every=3), out=tmp_path, validation=[batch(1000)])
    assert torch.equal(weights(tmp_path), weights(straight))


def test_the_averaged_weights_are_those_computed_by_hand(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    flow = sphere_flow()

    real = torch.optim.AdamW.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = real(self, *args, **kwargs)
        seen.append(copy.deepcopy(flow.state_dict()))
        return result

    start = copy.deepcopy(flow.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        averaged = fit(flow, batches, config(max_steps=6, ema=0.3, learning_rate=0.1), out=tmp_path)
    by_hand = {k: v.double() for k, v in start.items()}
    for n, now in enumerate(seen):
        decay = min(0.3, (1 + n) / (10 + n))  # 0.1, 2/11, 0.25, then 0.3
        by_hand = {k: decay * v + (1 - decay) * now[k].double() for k, v in by_hand.items()}
    assert len(seen) == 6
    for key, value in averaged.state_dict().items():
        torch.testing.assert_close(value.double(), by_hand[key], atol=1e-6, rtol=1e-6)
        assert not torch.equal(value, seen[-1][key])


CLOSED_FORMS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "wsd": lambda done: min(1.0, (1 - done) / 0.25),
}


@pytest.mark.parametrize("schedule", CLOSED_FORMS)
def test_the_learning_rate_follows_its_closed_form(tmp_path: Path, schedule: Any) -> None:
    c = config(schedule=schedule, learning_rate=0.02, warmup_steps=4, max_steps=40, checkpoint_every=40)
    fit(sphere_flow(), batches, c, out=tmp_path)
    for row in rows(tmp_path):
        step = int(row["step"])
        expected = 0.02 * min(1.0, (step + 1) / 4) * CLOSED_FORMS[schedule](step / 40)
        assert float(row["rate"]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_time_limit_counts_all_continued_runs_and_ends_the_schedule(tmp_path: Path) -> None:
    c = config(max_minutes=0.02, max_steps=10**6, checkpoint_every=10**6)
    fit(sphere_flow(), batches, c, out=tmp_path)
    done = rows(tmp_path)
    assert float(done[-1]["rate"]) < 0.5e-3 and float(done[-1]["minutes"]) < 0.03
    fit(sphere_flow(), batches, c, out=tmp_path, resume=True)
    assert int(rows(tmp_path)[-1]["step"]) - int(done[-1]["step"]) < 0.2 * int(done[-1]["step"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"validate_every": -3}, "validate_every must be at least 1, got -3"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"schedule": "linear"}, "schedule must be 'constant', 'cosine' or 'wsd', got 'linear'"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"decay": 1.5}, r"decay must lie in \[0, 1\], got 1.5"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"max_minutes": -1.0}, "max_minutes must be at least 0, got -1"),
    ],
)
def test_a_bad_setting_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


# ---------------------------------------------------------------- several processes


class SetNet(nn.Module):
    """A net of sets with everything random that training knows: pinned elements, self-conditioning, dropped parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(7, 16), nn.SiLU(), nn.Linear(16, 6))
        self.again = nn.Linear(6, 6)

    def forward(self, x: Any, t: Tensor, *, mask: Tensor, cond: Any, previous: Any = None) -> Any:
        time_ = (t if t.ndim == 2 else t.unsqueeze(-1)).expand(mask.shape).unsqueeze(-1)
        out = self.net(torch.cat([x["trans"] + cond["shift"], x["dirs"], time_], -1))
        if previous is not None:
            out = out + self.again(torch.cat([previous["trans"], previous["dirs"]], -1))
        return {"trans": out[..., :3], "dirs": mf.Sphere(2).to_tangent(x["dirs"], out[..., 3:])}


def pin(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    return mask & (torch.rand(mask.shape, generator=generator) < 0.3)


def auxiliary(pred: Any, x1: Any, points: Any, mask: Tensor, cond: Any) -> dict[str, Tensor]:
    return {"size": 0.1 * masked_mean(pred["trans"].square().sum(-1), mask & (x1["trans"][..., 0] > 0))}


def set_flow() -> mf.Flow:
    torch.manual_seed(0)
    return mf.Flow(
        {"trans": mf.Centered(mf.Euclidean(3)), "dirs": mf.Sphere(2)},
        SetNet(),
        coupling=mf.MinibatchOT(names=["trans"]),
        auxiliary=auxiliary,
        self_condition=0.5,
        pin=pin,
    )


def set_batches(start: int) -> Iterator[dict[str, Any]]:
    """Seven sets of 1 to 9 elements: neither samples nor elements divide evenly between two processes."""
    step = start
    while True:
        g = torch.Generator().manual_seed(step)
        mask = torch.arange(9) < torch.randint(1, 10, (7, 1), generator=g)
        x = {
            "trans": torch.randn(7, 9, 3, generator=g),
            "dirs": nn.functional.normalize(torch.randn(7, 9, 3, generator=g) + 1.0, dim=-1),
        }
        yield {"x": x, "mask": mask, "cond": {"shift": torch.randint(0, 2, (7, 1, 1), generator=g).float()}}
        step += 1


class Fork(nn.Module):
    """A net of which every process uses another half."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList(mf.nn.TangentMLP(SPHERE, width=8, depth=1) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.halves[int(os.environ.get("LOCAL_RANK", "0"))](x, t)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three runs on two gloo processes, started by one script as Lightning needs it."""
    folder = tmp_path_factory.mktemp("two")
    body = f"""
from test_training import *
out = Path({str(folder)!r})
several = dict(devices=2, strategy="ddp", learning_rate=0.01)
fit(set_flow(), set_batches, config(max_steps=12, log_every=2, validate_every=6, **several), out=out / "sets",
    validation=[next(set_batches(900))])
torch.manual_seed(0)
fit(mf.Flow(SPHERE, Fork()), batches, config(max_steps=6, **several), out=out / "fork")
fit(set_flow(), set_batches, config(max_steps=7, log_every=2, schedule="constant", **several), out=out / "resumed")
fit(set_flow(), set_batches, config(max_steps=12, log_every=2, schedule="constant", **several), out=out / "resumed",
    resume=True)
"""
    done = subprocess.run(
        script(folder / "job.py", body), env=environment(), timeout=150, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_two_processes_give_the_curve_and_weights_of_one(two_processes: Path, tmp_path: Path) -> None:
    c = config(max_steps=12, log_every=2, validate_every=6, learning_rate=0.01)
    fit(set_flow(), set_batches, c, out=tmp_path, validation=[next(set_batches(900))])
    one, two = rows(tmp_path), rows(two_processes / "sets")
    assert [row["step"] for row in one] == [row["step"] for row in two] and len(one) == 8
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "trans", "dirs", "size", "rate", "val_loss", "val_size"):
            assert bool(a[key]) == bool(b[key])
            if a[key]:
                assert float(b[key]) == pytest.approx(float(a[key]), rel=1e-4, abs=1e-6), (a["step"], key)
    torch.testing.assert_close(weights(two_processes / "sets"), weights(tmp_path), atol=1e-4, rtol=1e-4)
    info = checkpoint.read_metadata(two_processes / "sets" / "model.safetensors")["training"]
    assert info["hardware"].startswith("2 process")


@pytest.mark.slow
def test_a_resumed_run_on_two_processes_gives_the_curve_of_one(two_processes: Path, tmp_path: Path) -> None:
    fit(
        set_flow(),
        set_batches,
        config(max_steps=12, log_every=2, schedule="constant", learning_rate=0.01),
        out=tmp_path,
    )
    for a, b in zip(rows(tmp_path), rows(two_processes / "resumed"), strict=True):
        assert a["step"] == b["step"] and float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)


@pytest.mark.slow
def test_processes_that_use_different_parameters_do_not_wait_for_each_other(two_processes: Path) -> None:
    assert [int(row["step"]) for row in rows(two_processes / "fork")] == [1, 2, 3, 4, 5, 6]
    after = load_file(two_processes / "fork" / "model.safetensors")
    torch.manual_seed(0)
    before = mf.Flow(SPHERE, Fork()).state_dict()
    assert all(
        not torch.equal(after[key], before[key]) for key in before if key.endswith("weight")
    )  # both halves learnt


def test_a_compiled_network_trains_like_the_eager_one_and_is_saved_under_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = fit(sphere_flow(), batches, config(max_steps=3), out=tmp_path / "eager")
    # The tracing backend needs no C++ compiler, which machines that run the tests may lack.
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: real(self, backend="eager"))
    flow = sphere_flow()
    made = fit(flow, batches, config(max_steps=3, compile=True), out=tmp_path / "compiled")
    assert flow.model._compiled_call_impl is not None
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert (
        load_file(tmp_path / "compiled/model.safetensors").keys()
        == load_file(tmp_path / "eager/model.safetensors").keys()
    )


def test_a_trained_flow_can_be_trained_on(tmp_path: Path) -> None:
    given = sphere_flow()
    frozen = next(iter(given.parameters()))
    frozen.requires_grad_(False)
    flow = fit(given, batches, config(max_steps=2), out=tmp_path / "one")
    assert [p.requires_grad for p in flow.parameters()] == [p is not frozen for p in given.parameters()]
    before = [p.clone() for p in flow.parameters()]
    after = list(fit(flow, batches, config(max_steps=2), out=tmp_path / "two").parameters())
    assert torch.equal(before[0], after[0]) and not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
