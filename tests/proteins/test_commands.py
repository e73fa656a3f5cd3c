"""The commands of the protein task: good paths to readable files, and one clear line for every bad input."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import manifoldflow as mf
from manifoldflow import cli
from manifoldflow.tasks.proteins import sample_command
from manifoldflow.tasks.proteins.backbones import read_backbones
from manifoldflow.tasks.proteins.data import Chain, write_dataset
from manifoldflow.tasks.proteins.flow import ProteinConfig, build
from manifoldflow.tasks.proteins.model import NetworkConfig
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.reflow import PairDataset, make_pairs
from manifoldflow.tasks.proteins.write import write_pdb
from testkit import peptide

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained small network in a checkpoint."""
    torch.manual_seed(0)
    network = NetworkConfig(width=16, depth=1, heads=2, points=2, hidden=16, pair_hidden=4)
    return str(mf.save(build(ProteinConfig(network=network)), tmp_path_factory.mktemp("tiny") / "tiny.safetensors"))


def helix(length: int, shift: float = 0.0) -> torch.Tensor:
    """Atoms along a screw with a CA every 3.8 A."""
    i = torch.arange(length * 4).float() / 4
    turn = i * 1.745
    return torch.stack([2.3 * turn.cos() + shift, 2.3 * turn.sin(), 1.5 * i], -1).reshape(length, 4, 3)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with good and bad structure files."""
    folder = tmp_path / "inputs"
    write_pdb(helix(30), None, folder / "good.pdb")
    write_pdb(helix(1), None, folder / "one.pdb")
    (folder / "empty.pdb").write_text("")
    (folder / "dna.pdb").write_text(
        "ATOM      1  P    DA A   1       0.000   0.000   0.000  1.00  0.00           P  \n"
    )
    odd = (folder / "good.pdb").read_text().replace(" CA  GLY A   5", " XX  GLY A   5")
    (folder / "odd.pdb").write_text(odd)
    return folder


def run(capsys: Captured, *words: Any) -> str:
    """What a command that must succeed prints."""
    code = cli.main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def fails(capsys: Captured, *words: Any) -> str:
    """The one line of a command that must fail because of its input."""
    code = cli.main([str(w) for w in words])
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert code == 2 and len(err) == 1 and err[0].startswith("error: "), (code, err)
    return err[0]


def sample(tiny: str, out: Path, *words: Any) -> list[Any]:
    return ["sample", "proteins", "--checkpoint", tiny, "--steps", 2, "--device", "cpu", "--out", out, *words]


# ---------------------------------------------------------------- sample


def test_sampled_files_have_the_lengths_asked_for_and_biotite_reads_them(
    tiny: str, tmp_path: Path, capsys: Captured
) -> None:
    from biotite.structure import get_residue_count
    from biotite.structure.io import load_structure

    text = run(capsys, *sample(tiny, tmp_path / "d", "--length", "[7,12]", "--num", 2, "--batch-size", 3))
    assert "wrote 4 backbones" in text and "sample_000.pdb ... sample_003.pdb" in text
    files = sorted((tmp_path / "d").iterdir())
    assert [p.name for p in files] == [f"sample_00{i}.pdb" for i in range(4)]
    for path, length in zip(files, [7, 7, 12, 12], strict=True):
        atoms = load_structure(path)
        assert get_residue_count(atoms) == length
        assert atoms.atom_name.tolist() == ["N", "CA", "C", "O"] * length
        bond = atoms.coord[0::4] - atoms.coord[1::4]
        assert abs((bond**2).sum(-1) ** 0.5 - 1.458).max() < 2e-3


def test_the_seed_decides_the_samples(tiny: str, tmp_path: Path, capsys: Captured) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run(capsys, *sample(tiny, tmp_path / name, "--length", 8, "--num", 3, "--seed", seed, "--relax", "false"))
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / n).iterdir())] for n in "abc")
    assert a == b
    assert not set(a) & set(c) and len(set(a)) == 3


def test_relaxed_samples_have_sound_bonds_and_others_the_flows_own(tmp_path: Path, capsys: Captured) -> None:
    worst = {}
    for name in ("true", "false"):
        words = ["--length", 30, "--num", 2, "--steps", 10, "--relax", name]
        run(capsys, *sample("proteins", tmp_path / name, *words))
        coords, _, _ = read_backbones(sorted((tmp_path / name).iterdir()))
        worst[name] = float(((coords[:, 1:, 1] - coords[:, :-1, 1]).norm(dim=-1) - 3.8).abs().max())
    assert worst["true"] < 0.1 and worst["false"] > 2 * worst["true"]


def test_trajectories_and_cif_are_written_on_request(tiny: str, tmp_path: Path, capsys: Captured) -> None:
    run(capsys, *sample(tiny, tmp_path, "--length", 6, "--num", 1, "--format", "cif", "--trajectory"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sample_000.cif", "sample_000_trajectory.pdb"]
    assert len(read_structure(tmp_path / "sample_000.cif")[0]) == 6
    assert len(read_structure(tmp_path / "sample_000_trajectory.pdb", model=3)[0]) == 6
    with pytest.raises(ValueError, match="has 3 models"):
        read_structure(tmp_path / "sample_000_trajectory.pdb", model=4)


def test_a_motif_is_found_again_in_every_sample(tiny: str, inputs: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["--length", 14, "--num", 2, "--motif", "3/A4-8", "--structure", inputs / "good.pdb"]
    run(capsys, *sample(tiny, tmp_path / "m", *words))
    truth = torch.as_tensor(read_structure(inputs / "good.pdb")[0].coords)[3:8, 1]
    coords, _, _ = read_backbones(sorted((tmp_path / "m").glob("*.pdb")))
    for made in coords[:, 3:8, 1]:
        assert (torch.cdist(made, made) - torch.cdist(truth, truth)).abs().max() < 5e-3


def test_a_scaffold_keeps_names_and_all_atoms_of_its_motif_and_says_where_it_is(
    tiny: str, inputs: Path, tmp_path: Path, capsys: Captured
) -> None:
    types = torch.arange(30) % 20
    write_pdb(torch.tensor(peptide.helix(30)).float(), None, inputs / "m.pdb", aatype=types, chain_id="K")
    folder = tmp_path / "m"
    words = ["--num", 6, "--motif", "2-9/K4-8/3/K20-22/0 4-6", "--structure", inputs / "m.pdb", "--batch-size", 4]
    text = run(capsys, *sample(tiny, folder, *words, "--trajectory"))
    assert "2-9 free, 5 of chain 'K' (4 to 8), 3 free, 3 of chain 'K' (20 to 22), new chain, 4-6 free" in text
    (source,) = read_structure(inputs / "m.pdb")
    lengths = set()
    for file in sorted(folder.glob("sample_00?.pdb")):
        about = json.loads(file.with_suffix(".json").read_text())
        first, second = read_structure(file)
        assert (first.chain_id, second.chain_id) == ("A", "B") and second.resnum[0] == 1
        assert about["length"] == len(first) + len(second)
        lengths.add(about["length"])
        rows = [first.resnum.tolist().index(number) for _, number in about["con_hal_pdb_idx"]]
        wanted = [3, 4, 5, 6, 7, 19, 20, 21]
        assert [number for _, number in about["con_ref_pdb_idx"]] == [row + 1 for row in wanted]
        assert first.aatype[rows].tolist() == source.aatype[wanted].tolist()
        free = [row for row in range(len(first)) if row not in rows]
        assert set(first.aatype[free].tolist()) == set(second.aatype.tolist()) == {5}  # G
        made, truth = (
            torch.as_tensor(c.coords[r]).double().reshape(-1, 3) for c, r in ((first, rows), (source, wanted))
        )
        assert (torch.cdist(made, made) - torch.cdist(truth, truth)).abs().max() < 5e-3  # O of them too
        assert len(read_structure(file.with_name(f"{file.stem}_trajectory.pdb"))) == 2
    assert len(lengths) > 2
    again = tmp_path / "again"
    run(capsys, *sample(tiny, again, *words))
    assert (again / "sample_003.pdb").read_bytes() == (folder / "sample_003.pdb").read_bytes()
    # A backbone without a motif of the same name must not stand beside the record of the old one.
    (folder / "sample_001.json").write_text('{"mine": 1}')
    run(capsys, *sample(tiny, folder, "--length", 6, "--num", 2))
    assert not (folder / "sample_000.json").exists() and (folder / "sample_001.json").exists()


def test_files_of_an_earlier_run_are_replaced_or_kept_but_never_in_silence(
    tiny: str, tmp_path: Path, capsys: Captured
) -> None:
    first = run(capsys, *sample(tiny, tmp_path, "--length", 6, "--num", 3))
    assert "replaced" not in first and "earlier run" not in first
    last = (tmp_path / "sample_002.pdb").read_bytes()
    second = run(capsys, *sample(tiny, tmp_path, "--length", 6, "--num", 2, "--seed", 9))
    assert "2 older files of the same names replaced" in second
    assert "also holds 1 structure file of an earlier run, which `evaluate` measures too" in second
    assert (tmp_path / "sample_002.pdb").read_bytes() == last


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--length", 0], ["--length must be at least 2, got 0"]),
        (["--length", 1], ["--length must be at least 2, got 1"]),
        (["--length", "[8,-3]"], ["--length must be at least 2, got -3"]),
        (["--length", "[]"], ["--length needs a number of residues"]),
        (["--num", 0], ["--num must be at least 1, got 0"]),
        (["--steps", 0], ["--steps must be at least 1, got 0"]),
        (["--batch-size", 0], ["--batch-size must be at least 1"]),
        (["--device", "abacus"], ["no device is called 'abacus'", "cpu, cuda or auto"]),
        (["--device", "cuda:99"], ["--device cuda:99", "no such GPU", "use cpu or auto"]),
        (["--motif", "A1-5"], ["--motif and --structure belong together"]),
        (["--structure", "{}/good.pdb"], ["--motif and --structure belong together"]),
        (["--motif", "A1-5", "--structure", "{}/gone.pdb"], ["gone.pdb: no such file"]),
        (["--motif", "A1-5", "--structure", "{}/empty.pdb"], ["empty.pdb: the file is empty"]),
        (["--motif", "A1-5", "--structure", "{}/dna.pdb"], ["dna.pdb: no protein residues"]),
        (["--motif", "A1-5", "--structure", "{}/one.pdb"], ["lacks residue 5 of chain A; it has 1"]),
        (["--motif", "A28-33", "--structure", "{}/good.pdb"], ["lacks residue 33 of chain A; it has 1 to 30"]),
        (["--motif", "A3-7", "--structure", "{}/odd.pdb"], ["lacks residue 5 of chain A, within A3-7"]),
        (["--motif", "B1-5", "--structure", "{}/good.pdb"], ["has no chain B; it has 'A'"]),
        (["--motif", "A5-1", "--structure", "{}/good.pdb"], ["the range A5-1 falls"]),
        (["--motif", "5//A1-3", "--structure", "{}/good.pdb"], ["cannot read ''"]),
        (["--motif", "20", "--structure", "{}/good.pdb"], ["holds no residues of the structure"]),
        (["--motif", "5-9/A1-6", "--length", "20", "--structure", "{}/good.pdb"], ["spans 11 to 15 residues"]),
        (
            ["--motif", "5/A1-6", "--length", "[20,10]", "--structure", "{}/good.pdb"],
            ["'5/A1-6' spans 11 residues, which does not fit a length of 10"],
        ),
        (["--out", "{}/good.pdb"], ["good.pdb: is a file, expected a folder"]),
        (
            ["--checkpoint", "protein"],
            [
                "no checkpoint 'protein'",
                "the embedded ones are ",
                "dna_ctcf_pu1, dna_promoters",
                "proteins, proteins_reflow",
            ],
        ),
        (["--checkpoint", "{}/good.pdb"], ["good.pdb: cannot be read as a checkpoint"]),
    ],
)
def test_a_sample_that_cannot_be_made_is_one_clear_line_and_no_file(
    tiny: str, inputs: Path, tmp_path: Path, capsys: Captured, words: list[Any], pieces: list[str]
) -> None:
    given = [str(w).format(inputs) for w in words]
    line = fails(capsys, *sample(tiny, tmp_path / "new", *given))
    assert all(piece in line for piece in pieces), line
    assert not (tmp_path / "new").exists()


def test_five_thousand_residues_on_a_small_machine_are_refused_before_they_are_tried(
    tiny: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_command, "free_memory", lambda device: 2 * 10**9)
    for checkpoint in (tiny, "proteins"):
        words = sample(checkpoint, tmp_path / "new", "--length", 5000, "--num", 1, "--any_length", "true")
        line = fails(capsys, *words)
        assert "1 chain(s) of 5000 residues need about" in line and "2.0 GB are free" in line
        longest = int(line.split("chains of about ")[1].split()[0])
        flow = mf.load(checkpoint)
        sample_command.check_memory(flow, int(0.98 * longest), 1, torch.device("cpu"))  # the advice holds
        with pytest.raises(ValueError):
            sample_command.check_memory(flow, int(1.05 * longest), 1, torch.device("cpu"))
    assert not (tmp_path / "new").exists()
    line = fails(capsys, *sample("proteins", tmp_path / "new", "--length", 900, "--num", 8, "--any_length", "true"))
    assert "8 chain(s) of 900 residues" in line and line.endswith("use a smaller --batch-size")


def test_lengths_that_were_not_trained_are_named_and_those_far_beyond_refused(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = fails(capsys, *sample("proteins", tmp_path / "new", "--length", "[100,300]", "--num", 1))
    assert "--length 300" in line and "50 to 128 residues" in line and "--any_length" in line
    assert not (tmp_path / "new").exists()
    for length, said in ((129, "at 129 expect"), (256, "at 256 expect"), (49, "at 49 nothing"), (128, ""), (50, "")):
        sample_command.check_length("proteins", [100, length])
        assert said in (err := capsys.readouterr().err) and bool(err) == bool(said)
    with pytest.raises(ValueError):
        sample_command.check_length("proteins", [257])
    sample_command.check_length("proteins", [257], any_length=True)


def test_free_memory_is_that_of_the_machine() -> None:
    free = sample_command.free_memory(torch.device("cpu"))
    assert free is None or 10**7 < free < 10**14


# ---------------------------------------------------------------- evaluate


def test_sampled_files_are_measured_into_a_table(tiny: str, tmp_path: Path, capsys: Captured) -> None:
    run(capsys, *sample(tiny, tmp_path / "d", "--length", "[9,12]", "--num", 2, "--trajectory"))
    text = run(capsys, "evaluate", "proteins", "--designs", tmp_path / "d", "--out", tmp_path / "t" / "m.csv")
    summary = json.loads((tmp_path / "t" / "m.json").read_text())
    assert summary["chains"] == 4 and summary["residues"] == 42 and 0 <= summary["pairwise_tm"] <= 1
    assert all(name in text for name in ("CA-CA within 3.80", "chains, CA below", "helices", "radius of gyration"))
    with open(tmp_path / "t" / "m.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == [f"sample_00{i}.pdb" for i in range(4)]
    # One column by hand.
    coords, mask, _ = read_backbones(sorted((tmp_path / "d").glob("sample_00?.pdb")))
    for row, xyz, real in zip(table, coords, mask, strict=True):
        ca = xyz[real][:, 1]
        rg = (ca - ca.mean(0)).square().sum(-1).mean().sqrt()
        assert float(row["rg"]) == pytest.approx(float(rg), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("gone.pdb", "gone.pdb: no such file or folder; make designs with `manifoldflow sample proteins --out"),
        ("empty.pdb", "empty.pdb: the file is empty"),
        ("dna.pdb", "dna.pdb: no protein residues with N, CA and C"),
        ("one.pdb", "one.pdb: the first chain has one residue only"),
        ("../hollow", "hollow: holds no structure files (.pdb"),
    ],
)
def test_designs_that_cannot_be_measured_are_one_clear_line(
    inputs: Path, capsys: Captured, name: str, piece: str
) -> None:
    (inputs.parent / "hollow").mkdir()
    assert piece in fails(capsys, "evaluate", "proteins", "--designs", inputs / name)


def test_a_residue_without_one_of_its_atoms_is_left_out_as_a_gap(inputs: Path, capsys: Captured) -> None:
    _, mask, index = read_backbones([inputs / "odd.pdb"])
    assert mask.sum() == 29 and int(index[0, -1]) > 28
    run(capsys, "evaluate", "proteins", "--designs", inputs / "odd.pdb")


def test_novelty_asks_for_a_data_set(inputs: Path, capsys: Captured) -> None:
    words = ["evaluate", "proteins", "--designs", inputs / "good.pdb", "--novelty"]
    assert "--novelty needs --data" in fails(capsys, *words)
    assert "no protein data set here" in fails(capsys, *words, "--data", inputs)


# ---------------------------------------------------------------- train and reflow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    def chain(i: int) -> Chain:
        n = 10 + i % 3
        rest = (torch.zeros(n, dtype=torch.int8).numpy(), torch.arange(n, dtype=torch.int32).numpy())
        void = torch.zeros(n)
        return Chain(
            f"c{i}",
            "A",
            helix(n, float(i)).numpy(),
            *rest,
            void.numpy().astype("U1"),
            void.bool().numpy(),
            void.numpy(),
        )

    return write_dataset([chain(i) for i in range(12)], tmp_path / "set", {f"c{i}": str(i) for i in range(12)})


def train(data: Any, out: Any, *words: Any) -> list[Any]:
    fast = "--training.progress false --training.accelerator cpu --training.max_steps 4 --training.log_every 1".split()
    size = "--model.network.width 16 --model.network.depth 1 --model.network.heads 2 --model.network.points 2".split()
    chosen = ["--min-length", 5, "--validation-share", 0.3, "--max-tokens", 40]
    return ["train", "proteins", "--data", data, "--out", out, *chosen, *fast, *size, *words]


def test_training_leaves_a_checkpoint_that_samples_and_continues(data: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "run"
    text = run(capsys, *train(data, out))
    assert f"manifoldflow sample proteins --checkpoint {out}/model.safetensors" in text
    assert {"last.ckpt", "metrics.csv", "loss.png", "model.safetensors"} <= {p.name for p in out.iterdir()}
    assert "already holds a run; continue it with resume=True (--resume)" in fails(capsys, *train(data, out))
    run(capsys, *train(data, out, "--training.max_steps", 6, "--resume"))
    with open(out / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["loss"]] == list("123456")
    run(capsys, *sample(str(out / "model.safetensors"), tmp_path / "d", "--length", 6, "--num", 1))


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--data", "{}/gone"], ["gone: no protein data set here"]),
        (["--min-length", 50], ["none of 8 chains has 50 to 128 residues"]),
        (["--validation-share", 0.01], ["--validation-share 0.01: no cluster fits"]),
        (["--validation-share", 2], ["--validation-share 2: fraction must lie in (0, 1)"]),
        (["--init", "nope"], ["no checkpoint 'nope'"]),
        (["--training.max_steps", 0], ["max_steps must be at least 1, got 0"]),
        (["--training.schedule", "linear"], ["schedule", "'constant', 'cosine', 'wsd'"]),
        (["--model.network.wdth", 3], ["--model.network.wdth", "did you mean '--model.network.width'"]),
    ],
)
def test_a_training_run_that_cannot_start_is_one_clear_line_and_no_folder(
    data: Path, tmp_path: Path, capsys: Captured, words: list[Any], pieces: list[str]
) -> None:
    line = fails(capsys, *train(data, tmp_path / "run", *(str(w).format(tmp_path) for w in words)))
    assert all(piece in line for piece in pieces), line
    assert not (tmp_path / "run").exists()


def reflow(tiny: str, out: Path, *words: Any) -> list[Any]:
    few = ["--num", 5, "--min-length", 5, "--max-length", 8, "--steps", 2, "--batch-size", 2]
    return ["reflow", "proteins", "--checkpoint", tiny, "--out", out, "--device", "cpu", *few, *words]


def test_pairs_that_pass_the_filter_are_kept_and_train_a_flow(
    tiny: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def every_second(coords: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(coords)) % 2 == 0

    monkeypatch.setattr("manifoldflow.tasks.proteins.reflow.passes", every_second)
    # Untrained samples are far from any chain; relaxing them is chaotic.
    monkeypatch.setattr("manifoldflow.tasks.proteins.reflow.relax", lambda x, mask: x)
    out = tmp_path / "pairs"
    text = run(capsys, *reflow(tiny, out, "--num", 6))
    assert "kept 3 of 6 pairs" in text and f"train proteins --data {out} --init {tiny}" in text
    pairs = PairDataset(out)
    assert len(pairs) == 3 and all(5 <= n <= 8 for n in pairs.lengths)
    # A pair is a source and where the flow carries exactly that source.
    flow, item = mf.load(tiny), pairs[0]
    x0 = {"trans": item["source_trans"][None], "rots": item["source_rots"][None]}
    x = flow.sample(x0=x0, mask=torch.ones(1, pairs.lengths[0], dtype=torch.bool), steps=2)
    assert (x["trans"][0] - item["trans"]).abs().max() < 1e-3
    assert f"{out} already holds pairs; choose another folder" in fails(capsys, *reflow(tiny, out))
    run(capsys, *train(out, tmp_path / "run", "--init", tiny))
    flow_after = mf.load(tmp_path / "run" / "model.safetensors")
    assert flow_after.config == flow.config
    assert any(not torch.equal(a, b) for a, b in zip(flow_after.parameters(), flow.parameters(), strict=True))


def test_one_pair_is_too_few_to_train_on(tiny: str, tmp_path: Path, capsys: Captured, monkeypatch: Any) -> None:
    monkeypatch.setattr("manifoldflow.tasks.proteins.reflow.passes", lambda coords, mask: mask.any(-1))
    run(capsys, *reflow(tiny, tmp_path / "pairs", "--num", 1))
    line = fails(capsys, *train(tmp_path / "pairs", tmp_path / "run"))
    assert "0 chains for training and 1 for validation, but each needs some" in line


def test_reflow_repeats_with_its_seed(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manifoldflow.tasks.proteins.reflow.passes", lambda coords, mask: mask.any(-1))
    flow = mf.load(tiny)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_pairs(flow, tmp_path / name, [5, 6], steps=2, seed=seed)
    a, b, c = (PairDataset(tmp_path / n)[0]["trans"] for n in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        ([], "none of 5 samples passed the quality filter"),
        (["--min-length", 9], "lengths must satisfy 2 <= min <= max, got 9 and 8"),
        (["--min-length", 0], "lengths must satisfy 2 <= min <= max, got 0 and 8"),
        (["--num", 0], "--num must be at least 1, got 0"),
        (["--steps", 0], "--steps must be at least 1, got 0"),
        (["--checkpoint", "gone.safetensors"], "no checkpoint 'gone.safetensors'"),
    ],
)
def test_pairs_that_cannot_be_made_are_one_clear_line(
    tiny: str, tmp_path: Path, capsys: Captured, words: list[Any], piece: str
) -> None:
    assert piece in fails(capsys, *reflow(tiny, tmp_path / "pairs", *words))
    assert not PairDataset.is_here(tmp_path / "pairs")
