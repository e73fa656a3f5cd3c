"""The commands on molecules, as people call them."""

import json
from pathlib import Path

import pytest

from manifoldflow import cli
from manifoldflow.tasks.molecules.reading import read_molecules

QUICK = ["--training.progress", "false", "--model.width", "16", "--model.depth", "1", "--batch_size", "8"]


def run(capsys: pytest.CaptureFixture, *words: str) -> str:
    code = cli.main(list(words))
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def fails(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert cli.main(list(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_optimise_learns_within_its_budget_and_sample_draws_from_what_it_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "run"
    told = run(capsys, "optimise", "molecules", "--calls", "60", "--out", str(out), *QUICK)
    assert f"picture: {out / 'molecules.png'}; page: {out / 'report.html'}" in told.splitlines()[-1]
    lines = (out / "calls.jsonl").read_text().splitlines()
    assert len(lines) == 60 == len({json.loads(line)["key"] for line in lines})
    assert len(read_molecules(out / "molecules.csv")) == 60
    assert (out / "molecules.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert page.count("<svg") > 30 and "default-src &#39;none&#39;" in page and "http-equiv" in page
    summary = json.loads((out / "summary.json").read_text())
    assert summary["calls"] == 60 and 0 < summary["top_100"] <= summary["best"] <= 1

    assert "holds a run already" in fails(capsys, "optimise", "molecules", "--calls", "60", "--out", str(out), *QUICK)
    told = run(capsys, "optimise", "molecules", "--calls", "80", "--out", str(out), "--resume", *QUICK)
    assert "60 calls of an earlier run are known and cost nothing" in told
    again = (out / "calls.jsonl").read_text().splitlines()
    assert again[:60] == lines and len(again) == 80

    file = tmp_path / "made.smi"
    told = run(capsys, "sample", "molecules", "--checkpoint", str(out), "--num", "8", "--out", str(file), "--seed", "3")
    first = file.read_text()
    assert len(first.splitlines()) == 8 and "picture: " in told
    run(capsys, "sample", "molecules", "--checkpoint", str(out), "--num", "8", "--out", str(file), "--seed", "3")
    assert file.read_text() == first
    reference = tmp_path / "real.smi"
    reference.write_text("CCO\nCCN\nc1ccccc1\n")
    told = run(capsys, "evaluate", "molecules", "--checkpoint", str(out), "--num", "12", "--reference", str(reference),
               "--distance", "false", "--out", str(tmp_path / "scores.json"))  # fmt: skip
    assert "rank correlation of log P and log R" in " ".join(told.split())
    assert json.loads((tmp_path / "scores.json").read_text())["count"] == 12


@pytest.mark.parametrize("method", ["genetic", "local", "random"])
def test_searches_without_learning_go_on_where_they_were_stopped(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ("optimise", "molecules", "--method", method, "--reward", "sa", "--seed", "5")
    run(capsys, *words, "--calls", "150", "--out", str(whole))
    run(capsys, *words, "--calls", "90", "--out", str(parts))
    run(capsys, *words, "--calls", "150", "--out", str(parts), "--resume")
    assert answers(parts) == answers(whole) and len(answers(whole)) == 150


def answers(folder: Path) -> list[tuple[str, float]]:
    lines = map(json.loads, (folder / "calls.jsonl").read_text().splitlines())
    return [(line["key"], line["reward"]) for line in lines]


def test_a_front_of_two_objectives_and_a_scaffold(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "front"
    told = run(capsys, "optimise", "molecules", "--reward", "qed,tpsa[60,90]", "--calls", "40", "--start", "*c1ccc(*)cn1",
               "--out", str(out), *QUICK)  # fmt: skip
    assert "molecules on the front of Pareto" in told and "area below the front" in told
    found = read_molecules(out / "molecules.csv")
    assert len(found) == 40 and all("qed" in r.properties and "tpsa[60,90]" in r.properties for r in found.records)
    assert all(r.mol.HasSubstructMatch(pyridine()) for r in found.records)


def pyridine() -> object:
    from rdkit import Chem

    return Chem.MolFromSmarts("c1ccccn1")


def test_a_reward_that_fails_says_so_and_what_was_asked_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.py").write_text(
        "seen = []\ndef score(smiles):\n    seen.extend(smiles)\n"
        "    return [0.5 if len(seen) < 130 else float('nan') for _ in smiles]\n"
    )
    words = ("optimise", "molecules", "--method", "random", "--calls", "200", "--reward", f"{tmp_path}/mine.py:score")
    out = tmp_path / "bad"
    assert "is nan" in fails(capsys, *words, "--out", str(out))
    assert 60 < len(read_molecules(out / "molecules.csv")) < 200  # written although the search failed
    told = run(capsys, *words, "--out", str(tmp_path / "lenient"), "--bad", "floor")
    assert "counted as the least" in told


@pytest.mark.parametrize("method", ["gflownet", "genetic"])
def test_molecules_are_built_of_atoms_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture, method: str
) -> None:
    out = tmp_path / "run"
    words = ("--environment", "atoms", "--model.max_atoms", "6", "--model.atoms", "C S", "--method", method)
    run(capsys, "optimise", "molecules", *words, "--reward", "qed", "--calls", "40", "--out", str(out), *QUICK)
    found = read_molecules(out / "molecules.csv")
    assert len(found) == 40 and all(r.mol.GetNumAtoms() <= 6 for r in found.records)
    assert {a.GetSymbol() for r in found.records for a in r.mol.GetAtoms()} == {"C", "S"}
    if method == "gflownet":
        told = run(
            capsys, "sample", "molecules", "--checkpoint", str(out), "--num", "4", "--out", str(tmp_path / "m.smi")
        )
        assert f"picture: {tmp_path / 'm.png'}; page: {tmp_path / 'm.html'}" in told
        assert "Molecules of atoms" in (tmp_path / "m.html").read_text()
        told = run(capsys, "evaluate", "molecules", "--checkpoint", str(out), "--num", "20", "--distance", "false",
                   "--reference", str(tmp_path / "m.smi"))  # fmt: skip
        assert "rank correlation of log P and log R" in told
        assert "policy of fragments only" in fails(
            capsys,
            "optimise",
            "molecules",
            "--environment",
            "atoms",
            "--reward",
            "qed,sa",
            "--out",
            str(tmp_path / "f"),
        )


def test_files_are_cleaned_drawn_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "raw.smi").write_text("CC(=O)[O-].[Na+] acetate\nC1CC\nOCC ethanol\nCCO again\n*C\n")
    clean = tmp_path / "clean.csv"
    told = run(capsys, "prepare", "molecules", "--data", str(tmp_path / "raw.smi"), "--out", str(clean), "--rules.salts", "strip",
               "--rules.charges", "neutralise")  # fmt: skip
    assert "line 2: left out" in told and "line 5: left out" in told and "wrote 2 molecules" in told
    assert read_molecules(clean).smiles == ["CC(=O)O", "CCO"]
    told = run(capsys, "plot", "molecules", "--samples", str(clean), "--out", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    run(capsys, "plot", "molecules", "--samples", str(clean), "--out", str(tmp_path / "a.html"))
    assert "In three dimensions" in (tmp_path / "a.html").read_text()
    told = run(capsys, "evaluate", "molecules", "--samples", str(tmp_path / "raw.smi"), "--distance", "false",
               "--reference", str(clean))  # fmt: skip
    assert "60.0 %" in told  # 3 of 5 are valid
    assert "give either --samples FILE or --checkpoint" in fails(capsys, "evaluate", "molecules")
    assert "ends in .png or .html" in fails(capsys, "plot", "molecules", "--samples", str(clean), "--out", "a.xyz")
    assert "no column or property 'x'" in fails(capsys, "plot", "molecules", "--samples", str(clean), "--label", "x")
    assert "holds a forbidden" in fails(capsys, "optimise", "molecules", "--start", "*c1ccccc1Br", "--forbidden", "Br", "--out",
                                        str(tmp_path / "f"))  # fmt: skip


def test_a_checkpoint_names_no_function_that_is_run(tmp_path, capsys):
    import manifoldflow as mf
    from manifoldflow.tasks.molecules.design import FragmentConfig, build

    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef score(smiles):\n    return [0.5] * len(smiles)\n"
    )
    reward = f"{tmp_path / 'evil.py'}:score"
    model = build(FragmentConfig(reward=reward, width=8, depth=1, max_fragments=2))
    file = mf.save(model, tmp_path / "a.safetensors")
    capsys.readouterr()
    words = ["sample", "molecules", "--checkpoint", str(tmp_path / "a.safetensors"), "--num", "2"]
    words += ["--out", str(tmp_path / "made.csv")]
    assert cli.main(words) == 2 and not (tmp_path / "ran").exists()
    assert f"was trained on a reward of yours ({reward}); name it with --reward" in capsys.readouterr().err
    loaded = mf.load(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="name it with --reward"):
        loaded.env.reward(["CCO"])
    assert not (tmp_path / "ran").exists(), file
    assert cli.main([*words, "--reward", reward]) == 0 and (tmp_path / "ran").exists()
    assert cli.main([*words, "--reward", "qed"]) == 0
