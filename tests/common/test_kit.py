"""What tasks have in common: intervals, tables, runs that go on, checkpoints by name or folder, seeds."""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from scipy.stats import binomtest

import manifoldflow as mf
from manifoldflow.checkpoint import find_checkpoint
from manifoldflow.tasks.common.files import safe_name, write_csv
from manifoldflow.tasks.common.plots import new_figure, save_figure
from manifoldflow.tasks.common.runs import configured, load_model
from manifoldflow.tasks.common.seeds import generator_of, seeds_of
from manifoldflow.tasks.common.splits import chosen_rows, drawn_batches
from manifoldflow.tasks.common.tables import Kept, markdown, plural, share, show, span, spread, wilson
from manifoldflow.tasks.densities.flow import DensityConfig, build


@pytest.mark.parametrize(("count", "total"), [(0, 5), (6, 500), (2, 500), (250, 500), (48, 48), (1, 1), (123, 10_000)])
def test_intervals_of_shares_are_those_of_wilson(count, total):
    low, high = wilson(count, total)
    truth = binomtest(count, total).proportion_ci(0.95, "wilson")
    assert math.isclose(low, truth.low, abs_tol=1e-12) and math.isclose(high, truth.high, abs_tol=1e-12)


def test_a_share_is_never_shown_without_its_interval():
    assert share(6, 500) == "1.2 % (0.6-2.6; 6 of 500)"
    assert share(400, 1000) == "40 % (37-43; 400 of 1,000)"
    assert share(0, 8) == "0.0 % (0.0-32.4; 0 of 8)"
    assert share(0, 0) == "- (none counted)"


def test_words_of_tables(capsys):
    assert spread([1.0, 2.0]) == "1.500 ± 0.707" and spread([1.0], 1) == "1.0" and spread([]) == "-"
    assert plural(1, "backbone") == "1 backbone" and plural(1200, "backbone") == "1,200 backbones"
    assert span(["a.pdb"]) == "a.pdb" and span(["a.pdb", "b.pdb", "c.pdb"]) == "a.pdb ... c.pdb"
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    note = "a line that is longer than eighty letters stays one line, so that a search for its words finds it whole"
    show(["measure", "value (nats)"], [["nll", 1.23456], ["rows", 3]], title="a set", notes=[note])
    out = capsys.readouterr().out
    assert "1.235" in out and "value (nats)" in out and note in out


def test_a_protocol_goes_on_with_what_is_missing(tmp_path):
    file = tmp_path / "new" / "table.json"
    first, second = Kept(file), Kept(file)
    first.add("a", {"nll": 1.0})
    second.add("b", {"nll": 2.0})  # a process beside it loses nothing
    assert json.loads(file.read_text()) == {"a": {"nll": 1.0}, "b": {"nll": 2.0}}
    assert "a" in second and "c" not in first
    file.write_text("{")
    with pytest.raises(ValueError, match=r"table\.json: not a table"):
        first.rows()
    nowhere = Kept(None)
    nowhere.add("a", 1)
    assert nowhere.rows() == {"a": 1}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sphere"
    mf.save(build(DensityConfig("sphere:2", features="coordinates", width=8, depth=1)), folder / "model.safetensors")
    return folder


BUILDER = "manifoldflow.tasks.densities.flow:build"


@pytest.mark.parametrize("how", ["folder", "file", "text"])
def test_a_model_is_found_by_its_file_and_by_its_run_folder(how, run_folder):
    given = {"folder": run_folder, "file": run_folder / "model.safetensors", "text": f"{run_folder}/"}[how]
    flow, path = load_model(given, BUILDER, "density flow")
    assert path == run_folder / "model.safetensors" and flow.builder == BUILDER
    assert mf.load(given).config == flow.config


def test_an_embedded_model_is_found_by_its_name_also_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proteins").mkdir()
    assert find_checkpoint("proteins").name == "proteins.safetensors"


def test_one_message_says_why_a_checkpoint_is_none(run_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the embedded ones are .*proteins"):
        find_checkpoint("protein")
    with pytest.raises(FileNotFoundError, match=r"is a folder without model\.safetensors"):
        find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors is no sequence flow \(it was built by .*densities"):
        load_model(run_folder, "manifoldflow.tasks.dna.flow:build", "sequence flow")


def test_a_configuration_of_another_version_is_one_clear_error():
    @dataclass
    class Config:
        width: int = 3

    assert configured(Config, {"width": 5}, "toy").width == 5 == configured(Config, Config(5), "toy").width
    assert configured(Config, None, "toy") == Config()
    with pytest.raises(ValueError, match=r"^toy configuration: got an unexpected keyword argument 'depth'$"):
        configured(Config, {"depth": 1}, "toy")


def test_batches_depend_on_seed_and_step_alone():
    def first(seed, step):
        return next(drawn_batches(1000, 64, seed, lambda rows, g: {"x": rows, "u": torch.rand(2, generator=g)})(step))

    source = drawn_batches(1000, 64, 0, lambda rows, g: {"x": rows, "u": torch.rand(2, generator=g)})(0)
    straight = [next(source) for _ in range(3)]
    for step, batch in enumerate(straight):
        assert torch.equal(batch["x"], first(0, step)["x"]) and torch.equal(batch["u"], first(0, step)["u"])
    drawn = [first(seed, step)["x"] for seed in (0, 1, 2**62) for step in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert 0 <= int(straight[0]["x"].min()) and int(straight[0]["x"].max()) < 1000


def test_seeds_and_rows():
    assert seeds_of("0-2,7") == [0, 1, 2, 7]
    assert sorted(chosen_rows(5, 99).tolist()) == list(range(5)) and len(chosen_rows(50, 9)) == 9
    assert torch.equal(chosen_rows(50, 9, 3), chosen_rows(50, 9, 3))
    generator_of(2**62)  # any whole number is a seed


def test_tables_and_names_of_files(tmp_path):
    path = write_csv(tmp_path / "a" / "b.csv", ["x", "y"], [[1, "a,b"]])
    assert path.read_bytes() == b'x,y\r\n1,"a,b"\r\n'  # as spreadsheets write it
    assert safe_name("data/torsions:General.csv") == "torsions_General"


def test_pictures_are_written_whole_and_only_in_formats_that_exist(tmp_path):
    pytest.importorskip("matplotlib")
    figure = new_figure(2, 2)
    figure.add_subplot().plot([1, 2])
    assert save_figure(figure, tmp_path / "a.PNG", dpi=30).read_bytes()[:4] == b"\x89PNG"
    assert save_figure(figure, tmp_path / "a.svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match=r"a\.txt: the picture must end in one of \.png"):
        save_figure(figure, tmp_path / "a.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.PNG", "a.svg"]


@pytest.mark.parametrize("task", ["densities", "dna", "proteins"])
def test_a_task_is_imported_without_the_trainer_and_without_pictures(task):
    code = f"""
import sys, time
import manifoldflow.tasks.{task} as task
print(sorted(m for m in ("lightning", "matplotlib", "rich", "jsonargparse", "geoopt") if m in sys.modules))
print(time.process_time())
assert set(task.COMMANDS) >= {{"train", "sample"}}
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0] == "[]"
    assert float(out[1]) < 2.5 * 2  # seconds of CPU; half of them on a machine that does nothing else


def test_the_old_place_of_what_tasks_share_still_works():
    from manifoldflow.tasks import shared

    assert shared.find_shared and re.search("common", shared.__doc__ or "")
