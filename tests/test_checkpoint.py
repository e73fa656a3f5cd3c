"""Checkpoints: the same outputs after a round trip, and one clear line for every way a file can be wrong."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import manifoldflow as mf
from manifoldflow import checkpoint
from manifoldflow.tasks.proteins.flow import ProteinConfig, build
from manifoldflow.tasks.proteins.model import NetworkConfig

SMALL = NetworkConfig(width=16, depth=1, heads=2, points=2, hidden=16, pair_hidden=4)


def sphere_flow(seed: int = 0, width: int = 8) -> mf.Flow:
    torch.manual_seed(seed)
    sphere = mf.Sphere(2)
    return mf.Flow(sphere, mf.nn.TangentMLP(sphere, width=width, depth=1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small protein flow in a file."""
    torch.manual_seed(0)
    return mf.save(build(ProteinConfig(network=SMALL)), tmp_path / "model.safetensors", {"steps": 7})


def altered(path: Path, **metadata: Any) -> Path:
    """The same weights with other metadata; None removes an entry."""
    with safe_open(str(path), framework="pt") as file:
        old = file.metadata()
    new = {k: v for k, v in (old | metadata).items() if v is not None}
    out = path.with_name("altered.safetensors")
    save_file(load_file(path), out, metadata=new)
    return out


def fails(path: Any, error: type[Exception] = ValueError, **kwargs: Any) -> str:
    """The message of a load that must fail: one line that begins by naming the file."""
    with pytest.raises(error) as caught:
        mf.load(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 500, message
    return message


def test_a_flow_of_a_task_comes_back_with_equal_outputs_and_configuration(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = ProteinConfig(network=SMALL, rotations="quaternion", noise_scale=7.0)
    flow = build(config).eval()
    path = mf.save(flow, tmp_path / "new" / "folder" / "m.safetensors", {"seed": 3})
    torch.manual_seed(99)
    again = mf.load(path)
    assert again.config == flow.config and not again.training
    assert again.source["trans"].scale == 7.0 and isinstance(again.spaces["rots"], mf.UnitQuaternion)
    draws = [f.sample(lengths=[9, 5], steps=3, generator=torch.Generator().manual_seed(0))[0] for f in (flow, again)]
    assert all(torch.equal(draws[0][key], draws[1][key]) for key in ("trans", "rots"))
    facts = checkpoint.read_metadata(path)
    assert facts["training"] == {"seed": 3} and facts["version"] == mf.__version__
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def test_weights_of_any_flow_can_be_read_into_one_of_the_same_shape(tmp_path: Path) -> None:
    flow, other = sphere_flow(0), sphere_flow(1)
    path = mf.save(flow, tmp_path / "s.safetensors")
    x, t = mf.Sphere(2).sample_uniform((5,)), torch.rand(5)
    assert not torch.equal(flow.predict(x, t), other.predict(x, t))
    assert mf.load(path, into=other) is other
    assert torch.equal(flow.predict(x, t), other.predict(x, t))
    assert "weights only; load them with manifoldflow.load(path, into=flow)" in fails(path)
    message = fails(path, into=sphere_flow(0, width=9))
    assert "do not fit the flow" in message and "size mismatch" in message and mf.__version__ in message


def test_an_unknown_path_or_name_lists_the_embedded_checkpoints(tmp_path: Path) -> None:
    assert "embedded ones are dna_ctcf_pu1, dna_promoters, proteins" in fails("protein", FileNotFoundError)
    assert "not a file" in fails(tmp_path / "gone.safetensors", FileNotFoundError)
    assert "not a file" in fails(tmp_path, FileNotFoundError)  # a folder


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_an_empty_or_truncated_file_is_one_clear_error(saved: Path, keep: float) -> None:
    content = saved.read_bytes()
    count = int(len(content) * keep) if 0 < keep < 1 else int(keep)
    saved.write_bytes(content[:count])
    message = fails(saved)
    assert "damaged" in message and "copy or train it again" in message


@pytest.mark.parametrize("kind", ["pickle", "text", "plain safetensors"])
def test_a_file_of_another_kind_is_one_clear_error(saved: Path, kind: str) -> None:
    if kind == "pickle":
        torch.save({"state_dict": {}}, saved)
    elif kind == "text":
        saved.write_text("step,loss\n" * 100)
    else:
        save_file({"a": torch.zeros(2)}, saved)
    message = fails(saved)
    assert ("not a manifoldflow checkpoint" if kind == "plain safetensors" else "cannot be read") in message


def test_an_unknown_configuration_key_is_one_clear_error(saved: Path) -> None:
    config = checkpoint.read_metadata(saved)["config"]
    assert "'wings'" in fails(altered(saved, config=json.dumps(config | {"wings": 2})))
    config["network"]["wdth"] = 3
    assert "'wdth'" in fails(altered(saved, config=json.dumps(config)))


def test_a_configuration_that_is_not_one_is_one_clear_error(saved: Path) -> None:
    assert "damaged" in fails(altered(saved, config='{"network": '))
    assert "damaged" in fails(altered(saved, config=None))
    assert "damaged" in fails(altered(saved, training=None))


def test_a_format_of_the_future_asks_for_a_newer_library(saved: Path) -> None:
    message = fails(altered(saved, format="manifoldflow-checkpoint-2", version="9.1.0"))
    assert "9.1.0" in message and mf.__version__ in message and "pip install -U manifoldflow" in message


def test_weights_of_another_version_that_do_not_fit_name_that_version(saved: Path) -> None:
    config = checkpoint.read_metadata(saved)["config"]
    config["network"]["width"] = 20
    message = fails(altered(saved, config=json.dumps(config), version="0.0.9"))
    assert "saved by version 0.0.9" in message and "do not fit the flow" in message


@pytest.mark.parametrize("builder", ["os:system", "subprocess:run", "manifoldflow.checkpoint:save", "tasksx.evil:f"])
def test_a_file_cannot_choose_code_outside_the_tasks(saved: Path, builder: str) -> None:
    message = fails(altered(saved, builder=builder))
    assert repr(builder) in message and "in no installed task (manifoldflow.tasks" in message


@pytest.mark.parametrize(
    "builder", ["tasks.dragons:build", "manifoldflow.tasks.proteins.flow:bild", "manifoldflow.tasks.proteins.flow"]
)
def test_a_task_or_builder_that_is_not_there_is_named(saved: Path, builder: str) -> None:
    assert f"cannot import its builder {builder!r}" in fails(altered(saved, builder=builder))


def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mf.save(sphere_flow(0), tmp_path / "s.safetensors")
    before = path.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    def denied(*args: Any) -> None:
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            mf.save(sphere_flow(1), path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", denied)
        with pytest.raises(OSError, match="Permission denied"):
            mf.save(sphere_flow(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_embedded_checkpoints_are_listed_and_load_by_name() -> None:
    assert "proteins" in checkpoint.known_checkpoints()
    assert all(checkpoint.data_path(f"checkpoints/{n}.safetensors").is_file() for n in checkpoint.known_checkpoints())
    flow = mf.load("proteins")
    assert not flow.training and set(flow.path) == {"trans", "rots"}
    by_path = mf.load(checkpoint.data_path("checkpoints/proteins.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), by_path.parameters(), strict=True))


def test_a_file_in_the_working_folder_wins_over_an_embedded_name(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(saved, tmp_path / "proteins")
    monkeypatch.chdir(tmp_path)
    assert checkpoint.read_metadata("proteins")["training"] == {"steps": 7}
