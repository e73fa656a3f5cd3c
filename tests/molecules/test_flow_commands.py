"""The commands of the flows of molecules: train, sample, and what they say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import manifoldflow as mf
from manifoldflow.tasks.molecules import sample, train

pytest.importorskip("rdkit")
from rdkit import Chem

from manifoldflow.tasks.molecules import distil, three_d_command
from manifoldflow.tasks.molecules.conformers import embed
from manifoldflow.tasks.molecules.graphs import GraphConfig, graphs_of
from manifoldflow.tasks.molecules.graphs import build as build_graphs
from manifoldflow.tasks.molecules.search import TRAINING
from manifoldflow.tasks.molecules.three_d import Made, ThreeDConfig, build, tensors_of

SMILES = ["CCO", "CC=O", "C1CC1", "CN", "C#N", "OCC", "CC(C)O", "CCN", "C=C", "CC#N"]


@pytest.fixture(scope="module")
def conformers():
    return embed(SMILES, seed=0)[0]


def test_a_flow_in_three_dimensions_is_trained_and_says_what_to_do_next(tmp_path, conformers, monkeypatch, capsys):
    monkeypatch.setattr(
        three_d_command, "ThreeDConfig", lambda: ThreeDConfig(width=8, pair_width=8, vectors=2, depth=1)
    )
    conformers.save(tmp_path / "a.npz")
    (tmp_path / "b.smi").write_text("".join(f"{s}\n" for s in SMILES[:3]))
    files = [str(tmp_path / "a.npz"), str(tmp_path / "b.smi")]
    train(out=str(tmp_path / "run"), family="3d", data=files, steps=2)
    told = capsys.readouterr().out
    assert f"manifoldflow sample molecules --checkpoint {tmp_path}/run" in told and "b.smi: " in told
    flow = mf.load(tmp_path / "run")
    assert flow.config["width"] == 8 and sum(flow.config["sizes"]) > 10
    with pytest.raises(ValueError, match="none of 2 molecules is whole"):
        sample(str(tmp_path / "run"), num=2, out=str(tmp_path / "x.sdf"), steps=1)


def test_training_begins_with_the_weights_of_a_checkpoint_and_takes_the_settings_that_were_asked_for(
    tmp_path, conformers, monkeypatch
):
    small = ThreeDConfig(width=8, pair_width=8, vectors=2, depth=1)
    monkeypatch.setattr(three_d_command, "ThreeDConfig", lambda: small)
    conformers.save(tmp_path / "a.npz")
    torch.manual_seed(3)
    first = build(small)
    mf.save(first, tmp_path / "first.safetensors")
    rest = {"family": "3d", "data": [str(tmp_path / "a.npz")], "steps": 1, "begin": str(tmp_path / "first.safetensors")}
    train(out=str(tmp_path / "run"), training=replace(TRAINING, learning_rate=1e-12, validate_every=1), **rest)
    made = mf.load(tmp_path / "run")
    assert all(torch.allclose(v, made.state_dict()[n]) for n, v in first.state_dict().items())
    monkeypatch.setattr(three_d_command, "ThreeDConfig", lambda: replace(small, width=16))
    with pytest.raises(ValueError, match="another size"):
        train(out=str(tmp_path / "other"), **rest)
    with pytest.raises(ValueError, match="was built by"):
        train(out=str(tmp_path / "graphs"), **(rest | {"family": "graphs", "data": [str(smiles_file(tmp_path))]}))
    with pytest.raises(ValueError, match="--begin is for --family"):
        train(out=str(tmp_path / "fragments"), begin="molecules_3d")


def test_a_flow_of_few_steps_learns_from_one_of_many(tmp_path, conformers, monkeypatch, capsys):
    data = tensors_of(conformers)
    flow = build(ThreeDConfig(width=8, pair_width=8, vectors=2, depth=1, **data.shares()))
    mf.save(flow, tmp_path / "many.safetensors")
    batch = data.batch(torch.arange(4))
    noise = flow.draw_source(tuple(batch["mask"].shape), mask=batch["mask"])
    monkeypatch.setattr(distil, "make_pairs", lambda *_, **__: distil.Pairs([(noise, batch["x"], batch["mask"])], 6))
    train(out=str(tmp_path / "few"), family="few", begin=str(tmp_path / "many.safetensors"), steps=2)
    told = capsys.readouterr().out
    assert "learning from 4 of 600 molecules" in told and f"--checkpoint {tmp_path}/few --steps 8 --out" in told
    assert mf.load(tmp_path / "few").config == mf.load(tmp_path / "many.safetensors").config
    with pytest.raises(ValueError, match="no --data"):
        train(out=str(tmp_path / "other"), family="few", steps=2)
    with pytest.raises(ValueError, match="is no flow of molecules in three dimensions"):
        train(out=str(tmp_path / "other"), family="few", begin="molecules_fragments", steps=2)


def test_few_steps_are_learned_at_the_times_that_the_sampler_visits():
    pairs = distil.Pairs([({"a": torch.zeros(3, 1)}, {"a": torch.ones(3, 1)}, torch.ones(3, 1, dtype=torch.bool))], 3)
    warp = mf.Late(0.1)
    seen = next(distil.pair_batches(pairs, 200, 4, 0, warp)(0))["t"].unique()
    assert torch.allclose(seen, warp.k(torch.arange(4.0) / 4), atol=1e-6)


def smiles_file(folder: Path) -> Path:
    """Twenty molecules and more, one of them too large."""
    path = folder / "many.smi"
    path.write_text("".join(f"{s}\n" for s in [*SMILES, *(f"{'C' * n}O" for n in range(1, 9)), *MORE]))
    return path


MORE = ["C1CCC1", "NCCN", "FCF", "OC=O"]


def test_molecules_are_written_as_they_were_made(tmp_path, conformers, monkeypatch, capsys):
    flow = build(ThreeDConfig(width=8, pair_width=8, vectors=2, depth=1, **tensors_of(conformers).shares()))
    mf.save(flow, tmp_path / "flow.safetensors")
    batch = tensors_of(conformers).batch(torch.arange(4))
    broken = {n: v.clone() for n, v in batch["x"].items()}
    broken["bond"][3] = 0  # the fourth falls apart
    monkeypatch.setattr(three_d_command, "sample_molecules", lambda *_, **__: Made(broken, batch["mask"]))
    sample(str(tmp_path / "flow.safetensors"), num=4, out=str(tmp_path / "made.sdf"))
    told = capsys.readouterr().out
    assert "wrote 3 of 4 molecules" in told and "made.png" in told and "made.html" in told
    read = list(Chem.SDMolSupplier(str(tmp_path / "made.sdf"), removeHs=False))
    assert [m.GetNumAtoms() for m in read] == batch["mask"].sum(-1)[:3].tolist()
    first = torch.tensor(read[0].GetConformer().GetPositions(), dtype=torch.float)
    assert (first - batch["x"]["pos"][0, : len(first)]).abs().max() < 1e-3
    sample(
        str(tmp_path / "flow.safetensors"), num=4, out=str(tmp_path / "again.sdf")
    )  # beside it, nothing is overwritten
    names = {f"{n}.{end}" for n in ("made", "again") for end in ("sdf", "png", "html")}
    assert {p.name for p in tmp_path.iterdir()} == names | {"flow.safetensors"}
    page = Path(tmp_path / "made.html").read_text()
    assert "As the model made them" in page and "3Dmol" in page and "http://" not in page.split("<body")[0]


def test_graphs_are_sampled_and_generic_ones_refused(tmp_path, monkeypatch, capsys):
    from manifoldflow.tasks.molecules import graph_command

    graphs, _ = graphs_of(SMILES)
    config = GraphConfig(width=8, edge_width=8, depth=1, **graphs.shares())
    mf.save(build_graphs(config), tmp_path / "g.safetensors")
    monkeypatch.setattr(graph_command, "sample_graphs", lambda *_, **__: graphs)
    sample(str(tmp_path / "g.safetensors"), num=len(graphs), out=str(tmp_path / "g.csv"))
    assert f"wrote {len(graphs)} of {len(graphs)} molecules" in capsys.readouterr().out
    assert (tmp_path / "g.csv").read_text().splitlines()[1].startswith("CCO,")
    mf.save(build_graphs(GraphConfig(kind="generic", width=8, edge_width=8, depth=1)), tmp_path / "h.safetensors")
    with pytest.raises(ValueError, match="generic graphs, not molecules"):
        sample(str(tmp_path / "h.safetensors"), num=3, out=str(tmp_path / "h.csv"))


def test_graphs_are_trained(tmp_path, capsys):
    (tmp_path / "a.smi").write_text(
        "".join(f"{s}\n" for s in [*SMILES, "CCCCCCCCCC", *(f"{'C' * n}O" for n in range(1, 9))])
    )
    with pytest.raises(ValueError, match="training needs at least 20"):
        train(out=str(tmp_path / "few"), family="graphs", data=[str(tmp_path / "a.smi")], steps=1)


def test_a_family_without_data_and_data_without_a_family_are_named(tmp_path):
    with pytest.raises(ValueError, match="say where they are with --data"):
        train(out=str(tmp_path / "a"), family="3d")
    with pytest.raises(ValueError, match="fragments learn from their reward"):
        train(out=str(tmp_path / "a"), data=["x.smi"])
    (tmp_path / "big.smi").write_text("CCCCCCCCCC\n")
    with pytest.raises(ValueError, match="no molecules to train on"):
        train(out=str(tmp_path / "b"), family="3d", data=[str(tmp_path / "big.smi")])
