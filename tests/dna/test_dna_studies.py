"""The commands behind the published tables run from end to end, at a tiny size, and print what the tables are made of."""

import json
from dataclasses import replace

import pytest
import torch

import manifoldflow as mf
from manifoldflow.tasks.dna import oracle_study, protocol, simplex_toy, token_checkerboard
from manifoldflow.tasks.dna.flow import DnaConfig, build
from manifoldflow.tasks.dna.planted import LAWS
from manifoldflow.tasks.dna.reading import write_fasta
from manifoldflow.tasks.dna.sets import load_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small set with its motif, and an untrained flow of it."""
    folder = tmp_path_factory.mktemp("studies")
    some = load_set("planted").rows(torch.arange(400))
    names = [f"s{i} label={some.classes[k]}" for i, k in enumerate(some.labels)]
    write_fasta(folder / "set.fa", some.tokens, names=names)
    tata = LAWS["tata"].plants[1].motif
    (folder / "tata.txt").write_text(
        ">tata\n" + "".join("\t".join(f"{v:.4f}" for v in row) + "\n" for row in tata.counts)
    )
    torch.manual_seed(0)
    mf.save(build(DnaConfig(length=80, classes="plain,tata", width=8, kernel=3)), folder / "run" / "model.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore:.*Frechet distance wants")
def test_the_table_of_models_and_rules(folder, capsys):
    words = ["--data", str(folder / "set.fa"), "--out", str(folder), "--models", "markov_motif", "masking"]
    words += ["--checkpoint", str(folder / "run"), "--num", "40", "--steps", "2", "--judge_steps", "10"]
    words += ["--motifs", str(folder / "tata.txt"), "--motif", "tata"]
    protocol.main(words)
    printed = capsys.readouterr().out
    rows = json.loads((folder / "table_set.json").read_text())
    assert list(rows) == ["markov_motif", "masking"] and "guided" not in rows["markov_motif"]
    rate = rows["markov_motif"]["plain"]["tata site, tata"]  # one site of the class's motif was written in
    assert abs(rate["samples"] - rate["real"]) < 0.25 and rate["samples 95 %"][0] > 0.1
    assert (
        rows["markov_motif"]["held-out NLL (nats per letter)"]
        < 1.4
        < rows["masking"]["held-out NLL (nats per letter)"] + 0.1
    )
    assert rows["masking"]["samples"] == [40, 20] and rows["masking"]["network evaluations"] == 2
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and "| real |" in table[0]
    assert any(line.startswith("| plain: told from real") and "(" in line for line in table)
    protocol.main([*words, "--show"])  # what is there is not made again
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == table
    with pytest.raises(ValueError, match="name some by --motifs"):
        protocol.main(
            [
                "--data",
                str(folder / "set.fa"),
                "--out",
                str(folder / "b"),
                "--models",
                "markov_motif",
                "--judge_steps",
                "5",
            ]
        )


@pytest.mark.filterwarnings("ignore:.*Frechet distance wants")
def test_a_model_of_the_table_is_trained_where_none_is_given(folder, monkeypatch):
    quick = replace(protocol.training(2), compile=False, precision="32-true")  # compiling takes minutes
    monkeypatch.setattr(protocol, "training", lambda steps: quick)
    words = [
        "--data",
        str(folder / "set.fa"),
        "--out",
        str(folder / "fresh"),
        "--models",
        "autoregressive",
        "--train_steps",
        "2",
    ]
    protocol.main([*words, "--num", "20", "--judge_steps", "5"])
    assert (folder / "fresh" / "set_autoregressive" / "model.safetensors").is_file()


def test_guidance_by_a_score(folder):
    words = [
        "--checkpoint",
        str(folder / "run"),
        "--data",
        str(folder / "set.fa"),
        "--label",
        "tata",
        "--motif",
        "tata",
    ]
    words += [
        "--motifs",
        str(folder / "tata.txt"),
        "--num",
        "6",
        "--steps",
        "3",
        "--scales",
        "1",
        "--particle_scales",
        "1",
    ]
    oracle_study.main([*words, "--particle_num", "2", "--count", "3", "--out", str(folder / "oracle.json")])
    rows = json.loads((folder / "oracle.json").read_text())
    assert list(rows) == ["real peaks", "real peaks above the mark", "no guidance", "gradient, 1.0", "3 particles, 1.0"]
    assert rows["gradient, 1.0"]["mean score"] > rows["no guidance"]["mean score"]


def test_the_simplex_toy(tmp_path, capsys):
    words = [
        "--categories",
        "4",
        "--steps",
        "3",
        "--batch",
        "8",
        "--samples",
        "50",
        "--out",
        str(tmp_path / "toy.json"),
    ]
    simplex_toy.main(words)
    rows = json.loads((tmp_path / "toy.json").read_text())
    assert len(rows) == len(simplex_toy.MODELS) and all(
        row["floor"] == 3 / 100 and row["kl"] >= 0 for row in rows.values()
    )
    assert capsys.readouterr().out.count("\n| 4 |") == len(simplex_toy.MODELS)


def test_the_token_checkerboard(tmp_path):
    words = [
        "--steps",
        "2",
        "--batch",
        "16",
        "--samples",
        "40",
        "--out",
        str(tmp_path / "a.json"),
        "--plot",
        str(tmp_path / "a.png"),
    ]
    token_checkerboard.main(words)
    rows = json.loads((tmp_path / "a.json").read_text())
    assert set(rows) == {"masking", "uniform"} and all(row["bound"] > row["entropy"] - 0.5 for row in rows.values())
    assert (tmp_path / "a.png").stat().st_size > 1000
