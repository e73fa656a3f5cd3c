"""Checkpoints: the same outputs after a round trip, and one clear line for every way a file can be wrong."""

import json
import math
import os
import resource
import shutil
import sys
import time
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import manifoldflow as mf
from manifoldflow import checkpoint, registry
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


@pytest.mark.parametrize("change, word", [("left out", "Missing key"), ("added", "Unexpected key")])
def test_a_weight_that_is_missing_or_left_over_is_an_error(tmp_path: Path, change: str, word: str) -> None:
    path = mf.save(sphere_flow(), tmp_path / "s.safetensors")
    weights = load_file(path)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    if change == "left out":
        weights.pop(max(weights))
    else:
        weights["model.another"] = torch.zeros(2)
    save_file(weights, path, metadata=metadata)
    message = fails(path, into=sphere_flow())
    assert "do not fit the flow" in message and word in message


@pytest.mark.parametrize("name", ["pt", "another-library-1", "manifoldflow", "MANIFOLDFLOW-CHECKPOINT-1", ""])
def test_a_file_of_another_format_is_refused_by_the_name_of_ours(saved: Path, name: str) -> None:
    assert "not a manifoldflow checkpoint" in fails(altered(saved, format=name))


def test_a_run_folder_and_the_short_name_of_an_embedded_model_are_loaded(tmp_path, monkeypatch):
    named = mf.load("proteins")
    mf.save(named, tmp_path / "run" / "model.safetensors")
    again = mf.load(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), again.parameters(), strict=True))
    assert checkpoint.read_metadata(str(tmp_path / "run"))["builder"] == named.builder
    assert mf.load("ctcf_pu1").config == mf.load("dna_ctcf_pu1").config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proteins").mkdir()  # a folder that is no run hides no embedded model
    assert mf.load("proteins").builder == named.builder
    assert "proteins2 is a folder without model.safetensors" in fails(_made(tmp_path / "proteins2"), FileNotFoundError)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_an_unknown_path_or_name_lists_the_embedded_checkpoints(tmp_path: Path) -> None:
    assert f"embedded ones are {', '.join(checkpoint.known_checkpoints())}" in fails("protein", FileNotFoundError)
    assert "not a file" in fails(tmp_path / "gone.safetensors", FileNotFoundError)
    assert "is a folder without" in fails(tmp_path, FileNotFoundError)  # a folder


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


HOSTILE_BUILDERS = (
    # anything outside the tasks, and names that only look like one of them
    *(
        "os:system",
        "subprocess:run",
        "builtins:exec",
        "builtins:eval",
        "shutil:rmtree",
        "pathlib:Path",
        "tasksx.evil:f",
    ),
    *("manifoldflow.checkpoint:save", "manifoldflow.checkpoint:load", "manifoldflow.cli:main", "manifoldflow:load"),
    *("manifoldflow.tasks:proteins", "manifoldflow.tasks.proteins", "manifoldflow.tasks.dragons:build", ":", "::", "."),
    # functions of a task that act, and the builder's own surroundings
    *("tasks.proteins.report:main", "tasks.proteins.commands:sample", "tasks.proteins.prepare:prepare"),
    *("manifoldflow.tasks.proteins.write:write_pdb", "manifoldflow.tasks.proteins:build", "tasks.proteins:sample"),
    *("tasks.dna.serving.commands:serve", "manifoldflow.tasks.dna.commands:train", "tasks.shared:write_json"),
    *("manifoldflow.tasks.densities.commands:sample", "manifoldflow.tasks.densities.make_embedded:main"),
    *("manifoldflow.tasks.proteins.flow:_as_config", "manifoldflow.tasks.proteins.flow:torch.load"),
    *("manifoldflow.tasks.proteins.flow:build.__globals__", "manifoldflow.tasks.proteins.flow:mf.save"),
    *(
        "manifoldflow.tasks.proteins.flow:bild",
        "manifoldflow.tasks.proteins.flow:build:build",
        "tasks.tasks.proteins.flow:build",
    ),
    *("manifoldflow.tasks.proteins..flow:build", "manifoldflow.tasks.proteins.flow :build", "a" * 10_000, "tasks.\n:x"),
)


@pytest.mark.parametrize("config", ["own", [1, 2], "victim.txt"], ids=["own", "list", "string"])
def test_a_file_cannot_choose_code_that_no_task_declares_as_its_builder(
    saved: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved.parent
    monkeypatch.chdir(folder)
    before = dict(sys.modules)
    for builder in HOSTILE_BUILDERS:
        changed = {} if config == "own" else {"config": json.dumps(config)}
        path = altered(saved, builder=builder, **changed)
        message = fails(path)
        assert "BUILDERS" in message and repr(builder[:80]) in message
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "altered.safetensors"}
    # The task is imported, as its registration asks for; what the file named is not.
    assert not {n for n in set(sys.modules) - set(before) if n in ("manifoldflow.tasks.proteins.report", "shutil_evil")}


HOSTILE_CONFIGS: dict[str, Any] = {
    "null": None,
    "list": [1, 2, 3],
    "string": "victim.txt",
    "number": 7,
    "width": {"network": {"width": 10_000_000}},
    "some width": {"network": {"width": 70_000}},
    "depth": {"network": {"depth": 1_000_000}},
    "many layers of a small net": {"network": {"width": 4, "heads": 1, "depth": 900_000}},
    "negative width": {"network": {"width": -(10**12)}},
    "huge integer": {"network": {"width": 10**300}},
    "float width": {"network": {"width": 1e300}},
    "text width": {"network": {"width": "128"}},
    "list width": {"network": {"width": [16] * 100}},
    "null width": {"network": {"width": None}},
    "table width": {"network": {"width": {"a": 1}}},
    "network is a list": {"network": []},
    "network is text": {"network": "x"},
    "network is null": {"network": None},
    "network holds itself": {"network": {"network": {"network": {}}}},
    "rotations": {"rotations": "quaternions"},
    "rotations is a list": {"rotations": ["so3"]},
    "empty key": {"": 1},
    "dunder": {"__class__": "os.system"},
    "self": {"self": 1},
    "NaN": {"noise_scale": math.nan},
    "zero heads": {"network": {"heads": 0}},
}
CONFIG_TEXTS = {
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep tables": '{"network":' * 100_000 + "1" + "}" * 100_000,
    "number of 5,000 digits": '{"network": {"width": ' + "9" * 5000 + "}}",
    "infinity": '{"noise_scale": Infinity, "network": {"width": 1e999}}',
    "not JSON": "{'network': 1}",
    "empty": "",
}


@pytest.mark.parametrize("kind", [*HOSTILE_CONFIGS, *CONFIG_TEXTS])
def test_a_hostile_configuration_is_one_clear_error_at_once(saved: Path, kind: str) -> None:
    text = CONFIG_TEXTS.get(kind) if kind in CONFIG_TEXTS else json.dumps(HOSTILE_CONFIGS[kind])
    path = altered(saved, config=text)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    message = fails(path)
    assert time.process_time() - began < 3, kind
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, kind  # kilobytes
    assert "configuration" in message or "metadata is damaged" in message or "do not fit" in message, message


@pytest.mark.parametrize("config", [{"stacks": 10**9}, {"length": 10**7}, {"width": 10**7}, {"alphabet": "A" * 10**6}])
def test_a_sequence_model_cannot_be_larger_than_its_file_either(tmp_path: Path, config: dict[str, Any]) -> None:
    from manifoldflow.tasks.dna.flow import DnaConfig
    from manifoldflow.tasks.dna.flow import build as build_dna

    path = mf.save(build_dna(DnaConfig(width=8, length=20)), tmp_path / "dna.safetensors")
    settings = checkpoint.read_metadata(path)["config"]
    began = time.process_time()
    fails(altered(path, config=json.dumps(settings | config)))
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "manifold", ["sphere:1000000000", "torus:999999999", "simplex:500000000", "euclidean:10000000000"]
)
def test_a_size_inside_a_text_is_bounded_too(tmp_path: Path, manifold: str) -> None:
    from manifoldflow.tasks.densities.flow import DensityConfig
    from manifoldflow.tasks.densities.flow import build as build_density

    path = mf.save(build_density(DensityConfig("sphere:2", "coordinates", width=8)), tmp_path / "d.safetensors")
    assert isinstance(mf.load(path), mf.Flow)
    settings = checkpoint.read_metadata(path)["config"]
    began = time.process_time()
    fails(altered(path, config=json.dumps(settings | {"manifold": manifold})))
    assert time.process_time() - began < 3


@pytest.mark.parametrize("facts", ["null", "[]", "3", "[" * 100_000])
def test_facts_that_are_no_table_are_one_clear_error(saved: Path, facts: str) -> None:
    assert "metadata is damaged" in fails(altered(saved, training=facts))
    assert "metadata is damaged" in fails(altered(saved, shared=facts))


@pytest.mark.parametrize("shared", ['{"a": []}', '{"a": null}', '{"a": {"b": 1}}'])
def test_names_of_shared_weights_that_are_none_are_one_clear_error(saved: Path, shared: str) -> None:
    assert "metadata is damaged" in fails(altered(saved, shared=shared))


def test_what_a_file_says_of_itself_cannot_fill_or_colour_the_terminal(saved: Path) -> None:
    loud = "9.1\n\x1b[31mall is well\x07" + "x" * 100_000
    config = checkpoint.read_metadata(saved)["config"]
    for changes in (
        {"version": loud, "config": json.dumps(config | {"wings\n\x1b[31m" + "y" * 10_000: 2})},
        {"version": loud, "format": "manifoldflow-checkpoint-2" + loud},
        {"builder": loud},
        {"version": loud, "config": json.dumps(loud)},
    ):
        message = fails(altered(saved, **changes))  # which is one line of less than 500 letters
        assert message.isprintable(), message


def test_a_weight_with_a_name_of_any_length_is_one_clear_error(saved: Path) -> None:
    with safe_open(str(saved), framework="pt") as file:
        facts = file.metadata()
    save_file({**load_file(saved), "w" * 10_000: torch.full((2,), math.nan)}, saved, metadata=facts)
    assert "holds NaN" in fails(saved)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    flow = build(ProteinConfig(network=SMALL))
    with torch.no_grad():
        next(flow.parameters()).view(-1)[0] = value
    path = mf.save(flow, tmp_path / "m.safetensors")
    assert "holds NaN or infinity" in fails(path)
    assert "holds NaN or infinity" in fails(path, into=build(ProteinConfig(network=SMALL)))


def test_a_builder_named_by_version_0_1_is_that_of_today(saved: Path) -> None:
    path = altered(saved, builder="tasks.proteins.flow:build")
    assert mf.load(path).builder == "manifoldflow.tasks.proteins.flow:build"


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A task of another package, ``elsewhere.task``, whose models are built by ``elsewhere.models:make``."""
    task, models = types.ModuleType("elsewhere.task"), types.ModuleType("elsewhere.models")
    package = types.ModuleType("elsewhere")
    package.__path__ = []  # type: ignore[attr-defined]
    models.make = lambda config: nn.Linear(config["size"], 2)  # type: ignore[attr-defined]
    task.COMMANDS, task.BUILDERS = {}, ("elsewhere.models:make",)  # type: ignore[attr-defined]
    for module in (package, task, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = EntryPoint("elsewhere", "elsewhere.task", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    return task


def test_a_task_of_another_package_declares_its_builders_and_any_module_can_be_saved(
    foreign: types.ModuleType, tmp_path: Path
) -> None:
    net = nn.Linear(3, 2)
    net.builder, net.config = "elsewhere.models:make", {"size": 3}  # type: ignore[assignment]
    path = mf.save(net, tmp_path / "net.safetensors")
    assert torch.equal(mf.load(path).weight, net.weight)
    foreign.BUILDERS = "elsewhere.models:make"  # type: ignore[attr-defined] - one name without a tuple around it
    assert torch.equal(mf.load(path).weight, net.weight)
    del foreign.BUILDERS
    assert "no registered task declares it" in fails(path)
    foreign.BUILDERS = ("elsewhere.models:made",)  # type: ignore[attr-defined]
    assert "cannot import its builder" in fails(altered(path, builder="elsewhere.models:made"))


@pytest.mark.parametrize("config", [None, "victim.txt", ["victim.txt"], 7, True])
def test_only_a_table_of_settings_reaches_a_builder(foreign: types.ModuleType, tmp_path: Path, config: Any) -> None:
    net, called = nn.Linear(3, 2), []
    net.builder, net.config = "elsewhere.models:make", config  # type: ignore[assignment]
    path = mf.save(net, tmp_path / "net.safetensors")
    sys.modules["elsewhere.models"].make = called.append  # type: ignore[attr-defined]
    assert "expected a table of settings" in fails(path) and not called


@pytest.mark.parametrize("made", [None, "text", 7, [1]])
def test_a_builder_that_makes_no_module_is_named(foreign: types.ModuleType, tmp_path: Path, made: Any) -> None:
    net = nn.Linear(3, 2)
    net.builder, net.config = "elsewhere.models:make", {}  # type: ignore[assignment]
    path = mf.save(net, tmp_path / "net.safetensors")
    sys.modules["elsewhere.models"].make = lambda config: made  # type: ignore[attr-defined]
    assert "which is no module" in fails(path)


def test_weights_must_fit_name_by_name(tmp_path: Path) -> None:
    """None may be missing or left over: a file of another network would fill this one in part."""
    flow = sphere_flow()
    path = mf.save(flow, tmp_path / "s.safetensors")
    kept = load_file(path)
    with safe_open(str(path), framework="pt") as file:
        facts = file.metadata()
    less, more = dict(kept), dict(kept)
    name = next(iter(less))
    less.pop(name)
    more["model.extra"] = torch.zeros(2)
    for weights, word in ((less, name), (more, "model.extra")):
        save_file(weights, path, metadata=facts)
        assert word in fails(path, into=sphere_flow())


@pytest.mark.parametrize("written", ["another-format-1", "manifoldflow", "manifoldflow-checkpoint-", "", None])
def test_a_foreign_format_is_refused(saved: Path, written: str | None) -> None:
    path = altered(saved, format=written)
    fails(path)
    with pytest.raises(ValueError):
        checkpoint.read_metadata(path)


class Tied(nn.Module):
    """A net whose last layer is the transpose of its first, and that keeps a view of a weight as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 6)
        self.out = nn.Linear(6, 5, bias=False)
        self.out.weight = self.emb.weight
        table = torch.arange(12.0)
        self.register_buffer("table", table)
        self.register_buffer("part", table[2:7])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.out(self.emb(x))[..., :4]


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    flow, other = mf.Flow(mf.Tokens(4, mask=True), Tied()), mf.Flow(mf.Tokens(4, mask=True), Tied())
    path = mf.save(flow, tmp_path / "tied.safetensors")
    assert [n for n in load_file(path) if n.endswith("weight")] in (["model.emb.weight"], ["model.out.weight"])
    mf.load(path, into=other)
    assert other.model.out.weight is other.model.emb.weight
    assert all(torch.equal(a, b) for a, b in zip(flow.state_dict().values(), other.state_dict().values(), strict=True))


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


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_saving_to_a_device_leaves_it_a_device(device: str) -> None:
    if not Path(device).is_char_device():
        pytest.skip(f"{device} is no device here")
    if device == "/dev/full":
        with pytest.raises(OSError, match="No space left"):
            mf.save(sphere_flow(), device)
    else:
        mf.save(sphere_flow(), device)
    assert Path(device).is_char_device()
