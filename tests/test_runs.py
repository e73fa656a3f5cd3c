"""Folders of runs: every end leaves a model, changed settings count and are on record, one training at a time."""

import contextlib
import io
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow import checkpoint, cli
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


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "plot_losses", lambda folder: None)


def facts_of(folder: Path) -> dict[str, Any]:
    return checkpoint.read_metadata(folder / "model.safetensors")["training"]


def of_step(flow: mf.Flow) -> float:
    """A score that falls with the training: the size of the weights, turned round."""
    return -float(sum(p.square().sum() for p in flow.parameters()))


# ---------------------------------------------------------------- the end of a run (A1)


ENDS: dict[str, dict[str, Any]] = {
    "not a multiple": {"max_steps": 10, "validate_every": 7},
    "never scored before": {"max_steps": 5, "validate_every": 1000},
    "one step": {"max_steps": 1, "validate_every": 3},
    "a multiple": {"max_steps": 9, "validate_every": 3},
    "every step": {"max_steps": 4, "validate_every": 1},
    "by the clock": {"max_steps": 10**6, "max_minutes": 0.01, "validate_every": 7},
    "clock before the first step": {"max_steps": 10**6, "max_minutes": 1e-9, "validate_every": 7},
    "few rows": {"max_steps": 10, "validate_every": 4, "log_every": 50, "checkpoint_every": 500},
    "patience": {"max_steps": 30, "validate_every": 3, "patience": 2},
    "accumulated": {"max_steps": 5, "validate_every": 3, "accumulate": 2},
    "accumulated by the clock": {"max_steps": 10**6, "max_minutes": 0.01, "validate_every": 7, "accumulate": 3},
    "with workers": {"max_steps": 5, "validate_every": 3, "workers": 1},
}


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("with_validation", [False, True])
def test_a_scored_run_ends_with_a_model_a_curve_and_a_resume_file(
    tmp_path: Path, kind: str, with_validation: bool
) -> None:
    scores: list[float] = []

    def score(flow: mf.Flow) -> float:
        assert not flow.training
        scores.append(of_step(flow) if kind != "patience" else float(len(scores)))
        return scores[-1]

    more = {"validation": [batch(900)]} if with_validation else {}
    c = config(**ENDS[kind])
    made = fit(sphere_flow(), batches, c, out=tmp_path, score=score, **more)
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)
    done = state["global_step"]
    assert done == (7 if kind == "patience" else c.max_steps) or c.max_minutes or kind == "patience"
    assert facts_of(tmp_path)["score"] == min(scores)
    losses = [int(row["step"]) for row in rows(tmp_path) if row["loss"]]
    assert losses and losses[-1] == done
    taken = [int(row["step"]) for row in rows(tmp_path) if row.get("val_score")]
    assert taken == sorted({*range(c.validate_every, done + 1, c.validate_every), done})
    kept = mf.load(tmp_path / "model.safetensors", into=sphere_flow())
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), made.parameters(), strict=True))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_patience_stops_after_that_many_scores_without_a_better_one(tmp_path: Path) -> None:
    given = iter([3.0, 2.0, 2.5, 2.1, 1.0, 1.5, 1.2, 1.1, 0.0])
    fit(sphere_flow(), batches, config(validate_every=2, patience=3), out=tmp_path, score=lambda _: next(given))
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 16
    assert facts_of(tmp_path)["score"] == 1.0 and facts_of(tmp_path)["step"] == 10


def test_a_run_whose_scores_are_no_numbers_keeps_its_last_weights(tmp_path: Path) -> None:
    fit(sphere_flow(), batches, config(validate_every=2), out=tmp_path, score=lambda _: math.nan)
    assert facts_of(tmp_path)["step"] == 20 and "score" not in facts_of(tmp_path)


def test_the_best_score_and_the_patience_survive_a_stop(tmp_path: Path) -> None:
    """Weights that are worse than the best before the stop must not replace it, and the count goes on."""
    given = iter([5.0, 1.0, 2.0])
    c = dict(validate_every=2, schedule="constant", patience=4)
    fit(sphere_flow(), batches, config(max_steps=6, **c), out=tmp_path, score=lambda _: next(given))
    best = weights(tmp_path)
    later = iter([3.0, 1.5, 1.7, 1.6, 0.1])
    fit(sphere_flow(), batches, config(max_steps=30, **c), out=tmp_path, score=lambda _: next(later), resume=True)
    assert torch.equal(weights(tmp_path), best) and facts_of(tmp_path)["score"] == 1.0
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 12  # 1 bad score before, 3 after


def test_continuing_a_run_that_has_ended_leaves_it_whole(tmp_path: Path) -> None:
    c = config(max_steps=7, validate_every=3, log_every=5)
    one = fit(sphere_flow(), batches, c, out=tmp_path, score=of_step)
    before = curve(tmp_path)
    two = fit(sphere_flow(), batches, c, out=tmp_path, score=of_step, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert curve(tmp_path) == before


def test_ctrl_c_before_the_first_score_leaves_a_model(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            source = interrupted_at(6, lambda: os.kill(os.getpid(), signal.SIGINT))
            fit(sphere_flow(), source, config(validate_every=100), out=tmp_path, score=of_step)
    finally:
        signal.signal(signal.SIGINT, before)
    assert mf.load(tmp_path / "model.safetensors", into=sphere_flow()) is not None


def test_tied_weights_are_trained_saved_and_continued(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.emb = nn.Embedding(5, 16)
            self.out = nn.Linear(16, 5, bias=False)
            self.out.weight = self.emb.weight

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.out(self.emb(x))[..., :4]

    def flow() -> mf.Flow:
        return mf.Flow(mf.Tokens(4, mask=True), Net())

    data = [{"x": torch.randint(4, (8, 6), generator=torch.Generator().manual_seed(0))}]
    c = dict(schedule="constant")
    one = fit(flow(), data, config(max_steps=10, **c), out=tmp_path / "one")
    fit(flow(), data, config(max_steps=6, **c), out=tmp_path / "two")
    two = fit(flow(), data, config(max_steps=10, **c), out=tmp_path / "two", resume=True)
    assert two.model.out.weight is two.model.emb.weight
    assert torch.equal(one.model.emb.weight, two.model.emb.weight)
    assert torch.equal(
        mf.load(tmp_path / "two" / "model.safetensors", into=flow()).model.out.weight, two.model.out.weight
    )


# ---------------------------------------------------------------- changed settings (G6)


def used(folder: Path) -> dict[str, Any]:
    """The optimiser's settings in the resume file, groups side by side."""
    state = torch.load(folder / "last.ckpt", weights_only=False)
    return {
        k: [g[k] for g in state["optimizer_states"][0]["param_groups"]] for k in ("initial_lr", "weight_decay", "betas")
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-4),
        ("weight_decay", 0.3),
        ("betas", (0.5, 0.7)),
        ("warmup_steps", 40),
        ("schedule", "cosine"),
        ("decay", 0.9),
        ("gradient_clip", 1e-3),
        ("ema", 0.1),
        ("validate_every", 2),
        ("log_every", 2),
        ("checkpoint_every", 3),
        ("seed", 5),
        ("accumulate", 2),
        ("max_steps", 30),
    ],
)
def test_a_setting_that_changed_counts_from_the_step_a_run_is_continued_at(
    tmp_path: Path, name: str, value: Any
) -> None:
    """The continued part equals that of a run whose optimiser was told by hand; and it is on record."""
    check = [batch(900)]
    start = dict(max_steps=20, learning_rate=0.01)
    fit(sphere_flow(), batches, config(**start | {"max_steps": 8}), out=tmp_path, validation=check)
    c = config(**start | {name: value})
    fit(sphere_flow(), batches, c, out=tmp_path, validation=check, resume=True)
    info = facts_of(tmp_path)
    expected = list(value) if isinstance(value, tuple) else value
    assert info["train"][name] == expected
    (record,) = info["continued"]
    assert record["step"] == 8 and record["changed"][name][1] == expected
    numbers = used(tmp_path)
    assert numbers["initial_lr"] == [c.learning_rate] * 2 and numbers["weight_decay"] == [c.weight_decay, 0.0]
    assert numbers["betas"] == [c.betas] * 2
    after = [row for row in rows(tmp_path) if int(row["step"]) > 8 and row["loss"]]
    assert [int(row["step"]) for row in after] == [s for s in range(9, c.max_steps + 1) if s % c.log_every == 0]
    for row in after:
        assert float(row["rate"]) == pytest.approx(c.learning_rate * c.rate(int(row["step"]), 0.0), rel=1e-6, abs=1e-12)


def test_a_changed_learning_rate_moves_the_weights_as_it_says(tmp_path: Path) -> None:
    c = dict(schedule="constant", warmup_steps=0, weight_decay=0.0, ema=0.0)
    for name, rate in (("same", 1e-3), ("less", 1e-6)):
        fit(sphere_flow(), batches, config(max_steps=8, **c), out=tmp_path / name)
        before = weights(tmp_path / name)
        fit(sphere_flow(), batches, config(max_steps=9, learning_rate=rate, **c), out=tmp_path / name, resume=True)
        step = (weights(tmp_path / name) - before).abs().max()
        assert 0.1 * rate < step < 3 * rate, (name, step)


def test_a_run_that_goes_on_with_more_batches_a_step_takes_that_many_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def numbered(start: int) -> Iterator[dict[str, Tensor]]:
        for number, item in enumerate(batches(start), start):
            given.append(number)
            yield item

    used_for: list[int] = []
    real = mf.Flow.loss_of
    monkeypatch.setattr(mf.Flow, "loss_of", lambda self, draw: (used_for.append(0), real(self, draw))[1])
    fit(sphere_flow(), numbered, config(max_steps=7), out=tmp_path)
    assert len(used_for) == 7
    given.clear()
    fit(sphere_flow(), numbered, config(max_steps=9, accumulate=3), out=tmp_path, resume=True)
    assert len(used_for) == 7 + 6 and given[0] == 21
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 9


def test_what_changed_is_told_and_on_record_with_the_data_and_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stop, scale, data in ((5, 10.0, "a"), (7, 10.0, "a"), (9, 7.0, "b")):
        flow = sphere_flow()
        flow.config = {"noise_scale": scale, "width": 16}
        facts = {"command": f"train --max_steps {stop}", "data": data}
        fit(flow, batches, config(max_steps=stop), out=tmp_path, facts=facts, resume=True)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("continuing")]
    assert told[0] == "continuing at step 5 with max_steps 5 -> 7" and len(told) == 2
    assert "model.noise_scale 10.0 -> 7.0" in told[1] and "data 'a' -> 'b'" in told[1] and "command" not in told[1]
    record = facts_of(tmp_path)["continued"]
    assert [r["step"] for r in record] == [5, 7] and record[1]["changed"]["data"] == ["a", "b"]


def test_a_run_that_goes_on_unchanged_has_no_changes_on_record(tmp_path: Path) -> None:
    for stop in (5, 5):
        fit(sphere_flow(), batches, config(max_steps=stop), out=tmp_path, resume=True)
    fit(sphere_flow(), batches, config(max_steps=9), out=tmp_path, resume=True)
    assert [list(r["changed"]) for r in facts_of(tmp_path)["continued"]] == [["max_steps"]]


@pytest.mark.parametrize("width", [8, 32])
def test_a_run_of_another_model_is_refused_by_name(tmp_path: Path, width: int) -> None:
    fit(sphere_flow(), batches, config(max_steps=5), out=tmp_path)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = mf.Flow(SPHERE, mf.nn.TangentMLP(SPHERE, width=width, depth=2))
    with pytest.raises(
        ValueError, match=r"holds the run of another model: model\.\S+ has the shape \(16, .*there and"
    ) as error:
        fit(other, batches, config(), out=tmp_path, resume=True)
    assert "\n" not in str(error.value) and "TrainingModule" not in str(error.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_a_run_of_version_0_1_goes_on(tmp_path: Path) -> None:
    """Its resume files name the averaged weights otherwise, and have neither settings nor a record of changes."""
    c = dict(schedule="constant", log_every=5, validate_every=3)
    given = [4.0, 1.0, 2.0, 3.0, 5.0]
    scores = iter(given)
    fit(sphere_flow(), batches, config(max_steps=12, **c), out=tmp_path / "one", score=lambda _: next(scores))
    again = iter(given)
    fit(sphere_flow(), batches, config(max_steps=7, **c), out=tmp_path / "two", score=lambda _: next(again))
    path = tmp_path / "two" / "last.ckpt"
    state = torch.load(path, weights_only=False)
    weights_ = {k: v for k, v in state["state_dict"].items() if k != "average.n_averaged"}
    state["state_dict"] = {k.replace("average.module.", "averaged."): v for k, v in weights_.items()}
    assert state["callbacks"]["_Keeper"]["best"] == 1.0 and state["callbacks"]["_Keeper"]["count"] == 2
    del state["config"], state["changed"]
    torch.save(state, path)
    later = iter([2.0, 3.0])
    fit(
        sphere_flow(),
        batches,
        config(max_steps=12, **c),
        out=tmp_path / "two",
        score=lambda _: next(later),
        resume=True,
    )
    assert [r for r in curve(tmp_path / "two") if len(r) > 1] == [r for r in curve(tmp_path / "one") if len(r) > 1]
    assert torch.equal(weights(tmp_path / "two"), weights(tmp_path / "one"))


# ---------------------------------------------------------------- one training at a time (G7)


def test_a_second_training_into_the_same_folder_is_refused_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    body = (
        "from testkit.runs import *\nimport time\nfrom manifoldflow.training import fit\n"
        "def slow(start):\n    for item in batches(start):\n        time.sleep(0.02)\n        yield item\n"
        f"fit(sphere_flow(), slow, config(max_steps=100_000), out={str(folder)!r})\n"
    )
    job = subprocess.Popen(script(tmp_path / "job.py", body), env=environment(), stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 100
    while not (folder / "last.ckpt").exists() and time.monotonic() < limit and job.poll() is None:
        time.sleep(0.05)
    for resume in (False, True):
        with pytest.raises(RuntimeError, match="another training is writing into this folder"):
            fit(sphere_flow(), batches, config(), out=folder, resume=resume)
    job.kill()
    job.communicate(timeout=60)
    done = torch.load(folder / "last.ckpt", weights_only=False)["global_step"]
    fit(sphere_flow(), batches, config(max_steps=done + 2), out=folder, resume=True)
    assert [int(row["step"]) for row in rows(folder)] == list(range(1, done + 3))


def test_the_lock_goes_with_a_run_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        fit(sphere_flow(), [], config(), out=tmp_path)
    fit(sphere_flow(), batches, config(max_steps=2), out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "model.safetensors", "metrics.csv"}


# ---------------------------------------------------------------- errors that people cause (G11)


def fails_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Any) -> str:
    """The one line that the command line prints of an error that ``run`` raises, with exit code 2."""
    monkeypatch.setattr(cli, "_dispatch", lambda words: run())
    assert cli.main(["train"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: "), err
    return err


def test_a_diverging_run_is_no_fault_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def poisoned(start: int) -> Iterator[dict[str, Tensor]]:
        for number, item in enumerate(batches(start), start):
            yield {"x": item["x"] * (math.nan if number == 3 else 1.0)}

    line = fails_with_2(monkeypatch, capsys, lambda: fit(sphere_flow(), poisoned, config(), out=tmp_path))
    assert "the loss is nan at step 4" in line and "Lower learning_rate" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"accelerator": "tpu"},
        {"accelerator": "quantum"},
        {"devices": 0},
        {"devices": "many"},
        {"precision": "7-bit"},
        {"strategy": "ddq"},
        *([{"accelerator": "cuda"}] if not torch.cuda.is_available() else []),
    ],
)
def test_a_device_that_is_not_there_is_no_fault_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    line = fails_with_2(monkeypatch, capsys, lambda: fit(sphere_flow(), batches, config(**changes), out=tmp_path))
    (name, value), *_ = changes.items()
    assert f"{name}={value!r}" in line


@pytest.mark.parametrize("seed", [2**62, -(2**62), 2**41])
def test_a_seed_that_is_too_large_is_refused_by_name(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed must lie within 2\^40 of zero"):
        TrainConfig(seed=seed)


@pytest.mark.parametrize("seed", [2**40, -(2**40), -1, 2**33])
def test_any_other_seed_trains(tmp_path: Path, seed: int) -> None:
    fit(sphere_flow(), batches, config(max_steps=2, seed=seed), out=tmp_path)


def test_a_full_disk_names_the_file_keeps_the_old_ones_and_leaves_no_litter(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(sphere_flow(), batches, config(max_steps=5), out=folder)
    before = {n: (folder / n).read_bytes() for n in ("last.ckpt", "model.safetensors")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # bytes of a file: writing more fails as on a full disk
    try:
        with pytest.raises(OSError) as error:
            fit(sphere_flow(), batches, config(), out=folder, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(folder / "last.ckpt") in str(error.value) and ".new" not in str(error.value)
    assert {n: (folder / n).read_bytes() for n in before} == before
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]
    fit(sphere_flow(), batches, config(), out=folder, resume=True)
    assert [int(row["step"]) for row in rows(folder)] == list(range(1, 21))


@pytest.mark.parametrize("kind", ["file", "device", "pipe"])
def test_a_run_into_what_is_no_folder_says_so(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "device":
        out = Path("/dev/null")
    elif kind == "pipe":
        os.mkfifo(out)
    else:
        out.write_text("notes")
    with pytest.raises(NotADirectoryError, match="expected the folder of a run"):
        fit(sphere_flow(), batches, config(), out=out)
    assert out.exists() and not out.is_dir()


# ---------------------------------------------------------------- the console (E8)


def on_terminal(folder: Path, body: str) -> str:
    """What a program shows on a terminal of 100 columns, as bytes came."""
    import pty

    main, child = pty.openpty()
    env = environment() | {"TERM": "xterm-256color", "COLUMNS": "100"}
    job = subprocess.Popen(
        script(folder / "job.py", body), env=env, stdout=child, stderr=child, stdin=child, close_fds=True
    )
    os.close(child)
    seen = io.BytesIO()
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while part := os.read(main, 65536):
            seen.write(part)
    job.wait(timeout=60)
    os.close(main)
    return seen.getvalue().decode(errors="replace")


SHOWN = """
import warnings
from testkit.runs import *
import time
from manifoldflow.training import fit
def slow(start):
    for item in batches(start):
        time.sleep(0.01)
        yield item
fit(sphere_flow(), slow, config(progress=True, max_steps=10**6, max_minutes=0.05, validate_every=50, log_every=20), out=OUT,
    validation=[batch(900)], score=lambda flow: 1.5)
"""


def test_the_console_of_a_run_is_one_bar_with_the_time_left_and_nothing_else(tmp_path: Path) -> None:
    text = on_terminal(tmp_path, f"OUT = {str(tmp_path / 'run')!r}\n" + SHOWN)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    frames = [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert frames and all(frame.startswith("training") for frame in frames), frames
    lefts = [m[1] for frame in frames for m in [re.search(r"(\d:\d\d) left", frame)] if m]
    assert lefts and lefts == sorted(lefts, reverse=True) and lefts[0] in ("0:02", "0:03"), frames
    assert re.search(r"0:0[3-9] in all", frames[-1]) and "score 1.5" in frames[-1] and re.search(r"loss \d", frames[-1])
    assert all(len(frame) <= 100 for frame in frames)


def test_a_log_gets_lines_not_a_bar(tmp_path: Path) -> None:
    body = f"OUT = {str(tmp_path / 'run')!r}\n" + SHOWN
    done = subprocess.run(
        script(tmp_path / "job.py", body), env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and re.fullmatch(r"training: 100 %, [\d,]+ steps, 0:0[3-9] in all, .*\n", done.stderr), (
        done.stderr
    )


@pytest.mark.parametrize(
    ("step", "minutes", "done", "left"),
    [(0, 0.0, 0.0, 180.0), (100, 1.5, 0.5, 90.0), (900, 1.0, 0.9, 60 / 900 * 100), (100, 4.0, 1.0, 0.0)],
)
def test_the_time_left_is_that_of_the_limit_which_comes_first(
    step: int, minutes: float, done: float, left: float
) -> None:
    from manifoldflow.training.console import Bar

    bar = Bar(None, TrainConfig(max_steps=1000, max_minutes=3.0))  # type: ignore[arg-type]
    share, seconds = bar.state(step, minutes, 60 * minutes)
    assert share == pytest.approx(done) and seconds == pytest.approx(left)


def test_a_run_without_a_time_limit_has_the_time_of_the_steps_left() -> None:
    from manifoldflow.training.console import Bar, clock

    bar = Bar(None, TrainConfig(max_steps=1000))  # type: ignore[arg-type]
    assert bar.state(0, 0.0, 0.0) == (0.0, None)
    bar.first_step = 500  # a continued run: its speed is that of now
    assert bar.state(600, 99.0, 50.0) == (pytest.approx(0.6), pytest.approx(200.0))
    assert [clock(s) for s in (None, 5, 150, 3909)] == ["?", "0:05", "2:30", "1:05:09"]


def test_loggers_and_warnings_are_as_before_after_a_run(tmp_path: Path) -> None:
    import logging
    import warnings

    before = [logging.getLogger(n).level for n in ("lightning.pytorch", "lightning.fabric")], list(warnings.filters)
    fit(sphere_flow(), batches, config(max_steps=1), out=tmp_path)
    assert (
        [logging.getLogger(n).level for n in ("lightning.pytorch", "lightning.fabric")],
        list(warnings.filters),
    ) == before


def test_a_warning_of_the_users_own_data_is_shown(tmp_path: Path) -> None:
    import warnings

    def telling(start: int) -> Iterator[dict[str, Tensor]]:
        warnings.warn("three chains have no sequence", UserWarning, stacklevel=1)
        yield from batches(start)

    with pytest.warns(UserWarning, match="three chains have no sequence"):
        fit(sphere_flow(), telling, config(max_steps=1), out=tmp_path)


# ---------------------------------------------------------------- the picture, the imports


def test_a_curve_of_one_point_is_visible(tmp_path: Path) -> None:
    from matplotlib.image import imread

    from manifoldflow.training.curves import plot_losses

    shares = []
    for text in ("step,minutes,loss\n", "step,minutes,loss\n50,0.1,1.25\n"):
        (tmp_path / "metrics.csv").write_text(text)
        plot_losses(tmp_path)
        blue = imread(tmp_path / "loss.png")[..., :3] - torch.tensor([0.12, 0.47, 0.71]).numpy()
        shares.append(int((abs(blue).max(-1) < 0.1)[:, :900].sum()))
    assert shares[0] == 0 and shares[1] > 20


def test_naming_a_training_does_not_import_lightning() -> None:
    code = "import sys, manifoldflow.training as t; t.TrainConfig(); sys.exit('lightning' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env=environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
        ).returncode
        == 0
    )


def test_the_old_name_of_the_curves_works_and_says_the_new_one() -> None:
    sys.modules.pop("manifoldflow.curves", None)
    with pytest.warns(FutureWarning, match=r"is now manifoldflow\.training\.curves"):
        from manifoldflow.curves import plot_losses
    assert callable(plot_losses)


def test_a_model_file_of_a_run_holds_json_only(tmp_path: Path) -> None:
    fit(sphere_flow(), batches, config(max_steps=2, betas=(0.8, 0.9)), out=tmp_path)
    assert json.loads(json.dumps(facts_of(tmp_path)))["train"]["betas"] == [0.8, 0.9]
    assert load_file(tmp_path / "model.safetensors")
