"""The commands from a file to judged samples, on generated sequences with a planted word."""

import json
import re

import pytest
import torch

import manifoldflow as mf
from manifoldflow.cli import main
from manifoldflow.tasks.dna.alphabet import decode, encode, reverse_complement
from manifoldflow.tasks.dna.commands import evaluate, sample, train
from manifoldflow.tasks.dna.evaluation import compare_sets
from manifoldflow.tasks.dna.flow import DnaConfig
from manifoldflow.tasks.dna.reading import read_sequences, write_fasta
from manifoldflow.tasks.dna.sets import load_set
from manifoldflow.tasks.dna.splits import split
from manifoldflow.training import TrainConfig

WORDS = {"gc": "GGCGCC", "at": "TATAAT"}
SHORT = TrainConfig(
    max_steps=60, warmup_steps=5, learning_rate=5e-3, validate_every=30, checkpoint_every=30, ema=0.9, progress=False
)
SMALL = DnaConfig(width=16, kernel=5)


def planted(path, count=300, length=24):
    """Random letters with the word of the class in the middle."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, (count, length), generator=generator)
    names = []
    for row in range(count):
        kind = ("gc", "at")[row % 2]
        tokens[row, 9:15] = encode([WORDS[kind]])[0][0]
        names.append(f"s{row} label={kind}")
    return write_fasta(path, tokens, names=names)


@pytest.mark.parametrize("representation", ["masking", "dirichlet"])
def test_from_a_file_to_judged_samples(tmp_path, capsys, representation):
    data = planted(tmp_path / "set.fasta")
    run = tmp_path / "run"
    config = DnaConfig(representation=representation, width=16, kernel=5)
    train(str(data), out=str(run), model=config, training=SHORT, batch_size=64)
    assert (run / "metrics.csv").exists() and (run / "loss.png").exists()
    made = tmp_path / "made.fasta"
    sample(str(run), num=40, out=str(made), label="gc", guidance=1.5, steps=10, seed=3)
    drawn = read_sequences(made)
    assert len(drawn) == 40 and drawn.classes == ("gc",) and drawn.tokens.shape[1] == 24
    again = tmp_path / "again.fasta"
    sample(str(run), num=40, out=str(again), label="gc", guidance=1.5, steps=10, seed=3)
    assert made.read_text() == again.read_text()
    evaluate(str(made), str(data), classifier_steps=100, out=str(tmp_path / "scores.json"))
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["classifier right"]["real"] > 0.9
    assert 0 <= scores["6-mer Jensen-Shannon (nats)"]["samples"] <= 0.7
    assert "measure" in capsys.readouterr().out


@pytest.mark.slow
def test_real_sequences_in_any_order_are_near_themselves():
    """Files list class after class; the mark of the Frechet distance must not be the first class alone."""
    data = load_set("planted").rows(torch.arange(3000))
    order = data.labels.argsort(stable=True)
    data = data.rows(order)
    parts = split(data)
    found = compare_sets(data.rows(parts.val), data, parts, [], classifier_steps=60)
    test = data.rows(parts.test)
    one_class = compare_sets(test.rows((test.labels == 0).nonzero().squeeze(1)), data, parts, [], classifier_steps=60)
    assert found["Frechet distance"]["samples"] < 0.2 * one_class["Frechet distance"]["samples"]
    assert found["Frechet distance"]["real"] < 0.2 * one_class["Frechet distance"]["samples"]


def test_a_stopped_run_goes_on(tmp_path):
    data = planted(tmp_path / "set.fasta", 60)
    run = str(tmp_path / "run")
    half = TrainConfig(max_steps=10, warmup_steps=2, validate_every=10, checkpoint_every=10, progress=False)
    train(str(data), out=run, model=SMALL, training=half, batch_size=8)
    with pytest.raises(FileExistsError):
        train(str(data), out=run, model=SMALL, training=half, batch_size=8)
    more = TrainConfig(max_steps=20, warmup_steps=2, validate_every=10, checkpoint_every=10, progress=False)
    train(str(data), out=run, model=SMALL, training=more, batch_size=8, resume=True)
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].startswith("20,")


def test_splits_keep_strands_together():
    generator = torch.Generator().manual_seed(0)
    from manifoldflow.tasks.dna.sequences import SequenceSet

    tokens = torch.randint(4, (200, 12), generator=generator)
    tokens[100:150] = tokens[:50]
    tokens[150:] = reverse_complement(tokens[50:100])
    data = SequenceSet([str(i) for i in range(200)], tokens, torch.ones_like(tokens, dtype=torch.bool), None, (), 0)
    parts = split(data, 1)
    assert sorted(torch.cat(list(parts)).tolist()) == list(range(200))
    side = torch.empty(200, dtype=torch.int64)
    for number, part in enumerate(parts):
        side[part] = number
    assert (side[:50] == side[100:150]).all() and (side[50:100] == side[150:]).all()
    assert (split(data, 1).train == parts.train).all() and not torch.equal(split(data, 2).train, parts.train)
    assert abs(len(parts.train) / 200 - 0.8) < 0.06
    assert decode(data.rows(parts.val).tokens)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--label", "xx"], "no class 'xx'; its classes: at, gc"),
        (["--num", "0"], "at least 1"),
        (["--guidance", "2"], "give --label too"),
        (["--length", "99"], "between 1 and 24"),
    ],
)
def test_mistakes_are_named(tmp_path_factory, capsys, words, message):
    folder = tmp_path_factory.getbasetemp() / "one_run"
    if not folder.exists():
        data = planted(tmp_path_factory.getbasetemp() / "one.fasta", 40)
        tiny = TrainConfig(max_steps=2, warmup_steps=1, validate_every=2, checkpoint_every=2, progress=False)
        train(str(data), out=str(folder), model=SMALL, training=tiny, batch_size=8)
    assert main(["sample", "dna", "--checkpoint", str(folder), *words]) != 0
    assert message in capsys.readouterr().err


def test_files_that_are_no_data(tmp_path, capsys):
    assert main(["train", "dna", "--data", str(tmp_path / "none.fa")]) != 0
    assert "no file" in capsys.readouterr().err
    (tmp_path / "few.fa").write_text(">a\nACGT\n>b\nACGA\n")
    assert main(["train", "dna", "--data", str(tmp_path / "few.fa")]) != 0
    assert "too few to split" in capsys.readouterr().err


def test_the_profile_of_a_motif_is_drawn_for_every_class(tmp_path):
    from matplotlib.image import imread

    from manifoldflow.tasks.dna.commands import plot

    motifs = tmp_path / "box.pfm"
    motifs.write_text(">M1 box\n0 9 0 9 9 9\n0 0 0 0 0 0\n0 0 0 0 0 0\n9 0 9 0 0 0\n")
    made = load_set("planted").rows(torch.arange(0, 6000, 60))
    write_fasta(
        tmp_path / "made.fasta", made.tokens, names=[f"s{i} label={made.classes[k]}" for i, k in enumerate(made.labels)]
    )
    plot(
        str(tmp_path / "made.fasta"),
        "planted",
        str(motifs),
        "M1",
        out=str(tmp_path / "deep" / "picture.png"),
        p_value=1e-3,
    )
    picture = imread(tmp_path / "deep" / "picture.png")[..., :3]
    assert picture.std() > 0.05 and len(list((tmp_path / "deep").iterdir())) == 1


def test_classes_come_from_the_column_that_is_named(tmp_path, capsys):
    path = tmp_path / "tag.tsv"
    tokens = torch.randint(4, (40, 12), generator=torch.Generator().manual_seed(0))
    path.write_text("seq\tcell\n" + "".join(f"{s}\t{'KH'[i % 2]}\n" for i, s in enumerate(decode(tokens))))
    tiny = [
        "--training.max_steps",
        "2",
        "--training.validate_every",
        "2",
        "--model.width",
        "8",
        "--training.progress=false",
    ]
    run = str(tmp_path / "run")
    assert main(["train", "dna", "--data", str(path), "--out", run, "--label_column", "cell", *tiny]) == 0
    said = capsys.readouterr().out
    assert "classes H, K" in said and "classes from the column cell" in said
    # after two steps the baseline is better, and the run says so
    assert re.search(
        r"NLL of at most \d\.\d+ nats per letter; a Markov chain of order 5 has \d\.\d+; the chain is better", said
    )
    assert mf.load(run).config["classes"] == "H,K"
    made = str(tmp_path / "made.fa")
    assert (
        main(["sample", "dna", "--checkpoint", run, "--num", "3", "--steps", "2", "--label", "h", "--out", made]) == 0
    )
    assert read_sequences(made, label_column="label").classes == ("H",)


@pytest.mark.parametrize("name", [[], ["--checkpoint", "dna_ctcf_pu1"], ["--checkpoint", "ctcf_pu1"]])
def test_the_embedded_flow_has_one_name_with_its_task_or_without(tmp_path, name):
    made = str(tmp_path / "made.fa")
    assert main(["sample", "dna", *name, "--num", "2", "--steps", "2", "--label", "CTCF", "--out", made]) == 0
    assert read_sequences(made).classes == ("ctcf",) and read_sequences(made).tokens.shape == (2, 100)
    assert (tmp_path / "made.fa").read_text() == FIRST.setdefault("made", (tmp_path / "made.fa").read_text())


FIRST: dict[str, str] = {}
