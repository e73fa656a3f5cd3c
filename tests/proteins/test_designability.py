"""The logic of designability with stand-ins for the two networks, and the adapters' output formats and messages."""

import math
import sys
import textwrap

import pytest
import torch

from manifoldflow.tasks.proteins.designability import (
    ESMFold,
    MissingTool,
    ProteinMPNN,
    backbone_pdb,
    designability,
    designed_sequences,
)

LENGTHS = [40, 25, 31]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    walk = torch.randn(3, max(LENGTHS), 1, 3, generator=generator).cumsum(1) * 2.2
    coords = walk + torch.randn(3, max(LENGTHS), 4, 3, generator=generator) * 0.5
    return torch.where(mask[..., None, None], coords, 999.0), mask  # padding that would show in any result


class StandIn:
    """Designer and folder in one: a sequence encodes (chain, number) so that the folder can look the answer up."""

    def __init__(self, fold):
        self.fold, self.calls = fold, 0

    def designer(self, coords, mask, n):
        self.truth = [chain[real] for chain, real in zip(coords, mask, strict=True)]
        return [["ACDEFGHI"[k] * len(t) for k in range(n)] for t in self.truth]

    def folder(self, sequences):
        truth = self.truth[self.calls]
        self.calls += 1
        return [self.fold(truth, "ACDEFGHI".index(s[0])) for s in sequences]


def rotated(x):
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5))).Q
    return x @ (rotation * torch.linalg.det(rotation)).mT + torch.tensor([30.0, -5.0, 12.0])


def test_a_rotated_truth_has_scrmsd_zero_and_sctm_one(batch):
    result = run(batch, lambda truth, k: rotated(truth))
    assert result.sc_rmsd.max() < 1e-3
    assert (result.sc_tm - 1).abs().max() < 1e-4
    assert result.fraction == 1.0
    assert result.failed.tolist() == [0, 0, 0]


def test_scrmsd_is_the_smallest_and_equals_the_value_of_scipy(batch):
    from scipy.spatial.transform import Rotation

    noise = torch.randn(8, max(LENGTHS), 4, 3, generator=torch.Generator().manual_seed(1))
    scale = [3.0, 2.5, 1.2, 4.0]
    result = run(batch, lambda truth, k: rotated(truth + scale[k] * noise[k, : len(truth)]), n_sequences=4)
    for b, length in enumerate(LENGTHS):
        x = batch[0][b, :length, 1].double()
        expected = []
        for k in range(4):
            y = x + scale[k] * noise[k, :length, 1].double()
            _, root_sum = Rotation.align_vectors((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy())
            expected.append(root_sum / math.sqrt(length))
        assert result.sc_rmsd[b].item() == pytest.approx(min(expected), abs=1e-3)
        assert result.sequences[b] == "ACDE"[expected.index(min(expected))] * length


def test_the_threshold_decides_what_is_designable(batch):
    noise = torch.randn(max(LENGTHS), 4, 3, generator=torch.Generator().manual_seed(2))
    value = run(batch, lambda truth, k: truth + noise[: len(truth)]).sc_rmsd
    middle = float(value.median())
    result = run(batch, lambda truth, k: truth + noise[: len(truth)], threshold=middle + 1e-4)
    assert result.designable.tolist() == (value <= middle).tolist()
    assert result.fraction == pytest.approx(2 / 3)


def test_failed_folds_are_counted_and_never_designable(batch):
    def fold(truth, k):
        if len(truth) == 25 or k == 1:
            return None
        return truth * math.nan if k == 2 else truth[:, 1]  # CA atoms alone are enough

    result = run(batch, fold)
    assert result.failed.tolist() == [2, 8, 2]
    assert result.designable.tolist() == [True, False, True]
    assert result.sc_rmsd[1].isnan() and result.sequences[1] is None
    assert result.fraction == pytest.approx(2 / 3)
    assert result.summary()["chains_without_fold"] == 1
    assert result.summary()["failed_folds"] == 12


def test_a_folder_that_raises_is_reported_and_the_others_go_on(batch):
    def fold(truth, k):
        if len(truth) == 40:
            raise RuntimeError("out of memory")
        return truth

    result = run(batch, fold)
    assert result.failed.tolist() == [8, 0, 0]
    assert result.errors == ["chain 0: out of memory"]
    assert result.fraction == pytest.approx(2 / 3)


def test_a_missing_tool_is_not_counted_as_a_failed_fold(batch):
    def fold(truth, k):
        raise MissingTool("install it")

    with pytest.raises(MissingTool, match="install it"):
        run(batch, fold)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_sequences": 0}, "n_sequences must be at least 1, got 0"),
        ({"designer": lambda coords, mask, n: [["A"]]}, "for 1 chains, expected 3"),
        (
            {"designer": lambda coords, mask, n: [["A" * 40], ["A"], ["A"]]},
            "chain 1: the designer returned 1 letters for 25",
        ),
        ({"folder": lambda sequences: []}, "chain 0: the folder returned 0 structures for 8"),
        ({"folder": lambda sequences: [torch.zeros(7, 3)] * 8}, "chain 0: the folder returned 7 residues for 40"),
    ],
)
def test_output_that_does_not_fit_is_one_clear_error(batch, change, message):
    stand_in = StandIn(lambda truth, k: truth)
    arguments = {"designer": stand_in.designer, "folder": stand_in.folder} | change
    with pytest.raises(ValueError, match=message):
        designability(*batch, **arguments)


def test_missing_proteinmpnn_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("PROTEINMPNN_DIR", raising=False)
    with pytest.raises(MissingTool, match=r"PROTEINMPNN_DIR is not set.*git clone"):
        ProteinMPNN()
    with pytest.raises(MissingTool, match=r"no protein_mpnn_run\.py in"):
        ProteinMPNN(tmp_path)


def test_missing_transformers_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingTool, match="pip install transformers"):
        ESMFold()


FAKE_MPNN = """
    import argparse, pathlib, sys
    p = argparse.ArgumentParser()
    for name in ("pdb_path", "pdb_path_chains", "out_folder", "sampling_temp"):
        p.add_argument("--" + name, required=True)
    for name in ("num_seq_per_target", "seed", "batch_size"):
        p.add_argument("--" + name, type=int, required=True)
    a = p.parse_args()
    pdb = pathlib.Path(a.pdb_path)
    length = sum(line[12:16] == " CA " for line in pdb.read_text().splitlines())
    if length == 31:
        sys.exit("chain too strange")
    out = pathlib.Path(a.out_folder) / "seqs"
    out.mkdir()
    text = ">" + pdb.stem + ", score=1.5\\n" + "G" * length + "\\n"
    for i in range(a.num_seq_per_target):
        text += f">T={a.sampling_temp}, sample={i + 1}, score=0.9\\n" + "KLMN"[i] * length + "\\n"
    (out / (pdb.stem + ".fa")).write_text(text)
"""


def test_proteinmpnn_is_called_by_its_command_line_and_its_fasta_read(batch, monkeypatch, tmp_path):
    (tmp_path / "protein_mpnn_run.py").write_text(textwrap.dedent(FAKE_MPNN))
    monkeypatch.setenv("PROTEINMPNN_DIR", str(tmp_path))
    coords, mask = batch
    designs = ProteinMPNN()(coords[:2], mask[:2], 3)
    assert designs == [[letter * length for letter in "KLM"] for length in (40, 25)]
    with pytest.raises(RuntimeError, match="exit code 1: chain too strange"):
        ProteinMPNN()(coords[2:], mask[2:], 3)


def test_designs_are_all_records_but_the_input():
    fasta = ">x, score=1\nGGGG\n>T=0.1, sample=1\nAC\nDE\n>T=0.1, sample=2\nKLMN\n"
    assert designed_sequences(fasta) == ["ACDE", "KLMN"]


def test_the_written_pdb_is_read_back_by_biotite(batch, tmp_path):
    pdb = pytest.importorskip("biotite.structure.io.pdb")
    chain = batch[0][1, :25]
    (tmp_path / "x.pdb").write_text(backbone_pdb(chain))
    atoms = pdb.PDBFile.read(str(tmp_path / "x.pdb")).get_structure(model=1)
    assert atoms.atom_name.tolist() == ["N", "CA", "C", "O"] * 25
    assert atoms.element.tolist() == ["N", "C", "C", "O"] * 25
    assert atoms.res_id.tolist() == [i + 1 for i in range(25) for _ in range(4)]
    assert abs(torch.tensor(atoms.coord) - chain.reshape(-1, 3)).max() < 6e-4


def run(batch, fold, **options):
    stand_in = StandIn(fold)
    return designability(*batch, stand_in.designer, stand_in.folder, **options)
