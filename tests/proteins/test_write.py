"""Written files: read back by biotite, Bio.PDB, gemmi and our reader, columns of the format, nothing half written."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifoldflow.tasks.proteins.geometry import atoms_from_frames, frames_from_atoms
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS, THREE_LETTER, read_npz
from manifoldflow.tasks.proteins.write import write_cif, write_pdb, write_trajectory
from testkit.shared import SHARED_DATA, needs_shared_data

DATA = SHARED_DATA / "proteins"


def walk(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Atoms of chain-like walks ``(batch, length, 4, 3)`` whose neighbours are bonded."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.tensor([[0, 0, 0], [1.2, 0.8, 0], [2.5, 0, 0], [2.5, -1.2, 0]])
    noise = 0.05 * torch.randn(batch, length, 4, 3, generator=generator)
    return step + noise + 3.8 * torch.arange(length)[:, None, None] * torch.tensor([1.0, 0, 0]) - 40


def with_biotite(path: Path) -> tuple[np.ndarray, list[str], list[int], list[str]]:
    from biotite.structure.io import load_structure

    atoms = load_structure(str(path))
    ca = atoms[atoms.atom_name == "CA"]
    assert atoms.atom_name.tolist() == ["N", "CA", "C", "O"] * len(ca)
    assert atoms.element.tolist() == ["N", "C", "C", "O"] * len(ca)
    return atoms.coord.reshape(-1, 4, 3), ca.res_name.tolist(), ca.res_id.tolist(), sorted(set(ca.chain_id.tolist()))


def with_biopython(path: Path) -> tuple[np.ndarray, list[str], list[int], list[str]]:
    bio = pytest.importorskip("Bio.PDB")
    parser = bio.PDBParser(PERMISSIVE=False) if path.suffix == ".pdb" else bio.MMCIFParser(QUIET=True)
    (model,) = parser.get_structure("x", str(path))
    residues = list(model.get_residues())
    coords = np.array([[residue[name].coord for name in ("N", "CA", "C", "O")] for residue in residues])
    assert all(residue.id[0] == " " for residue in residues)
    names = [residue.get_resname() for residue in residues]
    return coords, names, [residue.id[1] for residue in residues], [chain.id for chain in model]


def with_gemmi(path: Path) -> tuple[np.ndarray, list[str], list[int], list[str]]:
    gemmi = pytest.importorskip("gemmi")
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    (model,) = structure
    residues = [residue for chain in model for residue in chain.get_polymer()]
    coords = np.array([[residue[n][0].pos.tolist() for n in ("N", "CA", "C", "O")] for residue in residues])
    return coords, [r.name for r in residues], [r.seqid.num for r in residues], [chain.name for chain in model]


def with_ours(path: Path) -> tuple[np.ndarray, list[str], list[int], list[str]]:
    chains = read_structure(path)
    coords = np.concatenate([chain.coords for chain in chains])
    names = [THREE_LETTER[i] for chain in chains for i in chain.aatype]
    return coords, names, [int(n) for c in chains for n in c.resnum], [chain.chain_id for chain in chains]


@pytest.mark.parametrize("reader", [with_biotite, with_biopython, with_gemmi, with_ours])
@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_other_libraries_read_back_coordinates_types_numbers_and_chain(reader, kind: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    x = walk(3, 30)
    mask = torch.arange(30) < torch.tensor([30, 20, 12])[:, None]
    aatype = torch.randint(0, 20, (3, 30), generator=torch.Generator().manual_seed(1))
    index = (torch.arange(30) + 33 * (torch.arange(30) > 9)).expand(3, -1)
    save = write_pdb if kind == "pdb" else write_cif
    paths = save(x, mask, tmp_path / "designs", residue_index=index, aatype=aatype, chain_id=["A", "B", "7"])
    assert [path.name for path in paths] == [f"sample_00{i}.{kind}" for i in range(3)]
    for i, path in enumerate(paths):
        length = int(mask[i].sum())
        coords, names, numbers, chains = reader(path)
        assert np.abs(coords - x[i, :length].numpy()).max() < 1e-3
        assert names == [THREE_LETTER[k] for k in aatype[i, :length]]
        assert numbers == (index[i, :length] + 1).tolist() and chains == ["AB7"[i]]


def test_default_residue_is_glycine_and_x_is_unk(tmp_path: Path) -> None:
    (path,) = write_pdb(walk(1, 3), None, tmp_path / "x.pdb")
    assert with_biotite(path)[1:3] == (["GLY"] * 3, [1, 2, 3])
    (path,) = write_pdb(walk(1, 3), None, tmp_path / "x.pdb", aatype=torch.tensor([20, 0, 20]), resnum=[-5, 0, 9999])
    assert with_biotite(path)[1:3] == (["UNK", "ALA", "UNK"], [-5, 0, 9999])
    assert read_structure(path)[0].sequence == "XAX"


def test_frames_are_written_as_their_atoms_with_bfactors(tmp_path: Path) -> None:
    x = frames_from_atoms(walk(2, 12))
    mask = torch.arange(12) < torch.tensor([[12], [9]])
    index = (torch.arange(12) + 33 * (torch.arange(12) > 5)).expand(2, -1)
    confidence = torch.linspace(0, 99, 12).expand(2, -1)
    paths = write_pdb(x, mask, tmp_path, residue_index=index, bfactor=confidence, names=["first", "second"])
    truth = atoms_from_frames(x, mask, index)
    assert [path.name for path in paths] == ["first.pdb", "second.pdb"]
    for i, path in enumerate(paths):
        (chain,) = read_structure(path)
        length = int(mask[i].sum())
        assert np.abs(chain.coords - truth[i, :length].numpy()).max() < 1e-3
        assert chain.bfactor == pytest.approx(confidence[i, :length].numpy(), abs=0.01)
    (path,) = write_pdb({k: v[0] for k, v in x.items()}, None, tmp_path / "one.pdb")  # no batch axis
    assert np.abs(with_ours(path)[0] - atoms_from_frames(x)[0].numpy()).max() < 1e-3


def test_columns_are_those_of_the_pdb_format(tmp_path: Path) -> None:
    x = walk(1, 2)
    x[0, 0, 1] = torch.tensor([-999.999, 9999.999, -0.0001])
    (path,) = write_pdb(x, None, tmp_path / "x.pdb", aatype=[[0, 17]], chain_id="Q", bfactor=[[12.5, 0]])
    lines = path.read_text().splitlines()
    assert {len(line) for line in lines} == {80} and [line[:6].strip() for line in lines] == ["ATOM"] * 8 + [
        "TER",
        "END",
    ]
    assert lines[1][:66] == "ATOM      2  CA  ALA Q   1    -999.9999999.999   0.000  1.00 12.50"
    assert lines[1][76:78] == " C" and lines[8][:26] == "TER       9      VAL Q   2"
    assert with_ours(path)[0][0, 1] == pytest.approx([-999.999, 9999.999, 0], abs=1e-3)


def test_what_a_pdb_file_cannot_hold_is_refused_before_any_file_and_mmcif_holds_it(tmp_path: Path) -> None:
    far, bad = walk(2, 5), walk(2, 5)
    far[1, 3] += 20_000
    bad[1, 3, 2, 0] = float("nan")
    out = tmp_path / "designs"
    long = walk(1, 25_000) * 0.01
    cases: list[tuple[str, torch.Tensor, dict[str, Any]]] = [
        ("sample_001: coordinates .* do not fit a PDB file", far, {}),
        ("sample_001: coordinates of 1 residues are not finite, first 4", bad, {}),
        ("100,000 atoms do not fit", long, {"resnum": torch.arange(25_000)[None] % 30_000}),
        ("residue numbers 1..10001 do not fit", walk(1, 10_001) * 0.01, {}),
        ("chain id 'AB' must be one character", walk(1, 5), {"chain_id": "AB"}),
        ("bfactor must be in", walk(1, 5), {"bfactor": torch.full((1, 5), 1000.0)}),
        ("residue numbers repeat", walk(1, 5), {"resnum": torch.zeros(1, 5, dtype=torch.long)}),
        (r"aatype must be in 0\.\.20", walk(1, 5), {"aatype": torch.full((1, 5), 21)}),
        (r"aatype has shape \(1, 4\), expected \(1, 5\)", walk(1, 5), {"aatype": torch.zeros(1, 4)}),
        ("no residues to write", walk(1, 5), {"mask": torch.zeros(1, 5, dtype=torch.bool)}),
        ("names must be unique", walk(2, 5), {"names": ["a", "a"]}),
        ("names has 1 entries for 2 samples", walk(2, 5), {"names": ["a"]}),
        ("plain file stems", walk(1, 5), {"names": ["../a"]}),
        (r"expected atoms of shape \(B, N, 4, 3\)", walk(1, 5)[:, :, :3], {}),
    ]
    for reason, x, options in cases:
        with pytest.raises(ValueError, match=reason):
            write_pdb(x, out=out, **options)
        assert not out.exists()
    paths = write_cif(far, None, out, chain_id="AB")
    assert np.abs(with_biotite(paths[1])[0] - far[1].numpy()).max() < 2e-3  # float32 at 20,000 A
    (path,) = write_cif(walk(1, 10_001), None, tmp_path / "long.cif")
    assert with_ours(path)[2] == list(range(1, 10_002))


def test_output_path_must_fit_the_number_of_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.pdb: is one file, but there are 2 samples"):
        write_pdb(walk(2, 4), None, tmp_path / "x.pdb")
    with pytest.raises(ValueError, match=r"x\.cif: expected a folder or a file ending in \.pdb"):
        write_pdb(walk(1, 4), None, tmp_path / "x.cif")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match="taken: is a file, expected a folder"):
        write_pdb(walk(1, 4), None, tmp_path / "taken")
    (tmp_path / "v1.2").mkdir()
    assert write_pdb(walk(1, 4), None, tmp_path / "v1.2")[0] == tmp_path / "v1.2" / "sample_000.pdb"


def test_a_crash_in_mid_write_leaves_the_old_file_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_pdb(walk(1, 4), None, tmp_path / "x.pdb")
    before = path.read_bytes()
    real = Path.write_bytes

    def half(self: Path, text: str, *args: object) -> int:
        real(self, text[: len(text) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    for save in (
        lambda x: write_pdb(x, None, tmp_path / "x.pdb"),
        lambda x: write_cif(x, None, tmp_path / "x.cif"),
        lambda x: write_trajectory(x, tmp_path / "t.pdb"),
    ):
        with pytest.raises(OSError, match="no space"):
            save(walk(1, 9))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.pdb"]


def test_trajectory_is_a_multi_model_file(tmp_path: Path) -> None:
    states = torch.cat([walk(1, 10, seed) for seed in range(6)])
    path = write_trajectory(states, tmp_path / "run" / "t.pdb", aatype=torch.arange(10), chain_id="C")
    for model in (1, 6):
        (chain,) = read_structure(path, model)
        assert np.abs(chain.coords - states[model - 1].numpy()).max() < 1e-3
        assert chain.chain_id == "C" and chain.sequence == AMINO_ACIDS[:10]
    from biotite.structure.io.pdb import PDBFile

    assert PDBFile.read(str(path)).get_structure().coord.reshape(6, 10, 4, 3) == pytest.approx(states.numpy(), abs=1e-3)
    frames = frames_from_atoms(states)
    path = write_trajectory(frames, tmp_path / "frames.pdb")
    truth = atoms_from_frames(frames)
    assert np.abs(read_structure(path, 3)[0].coords - truth[2].numpy()).max() < 1e-3
    with pytest.raises(ValueError, match=r"a trajectory is a \.pdb file"):
        write_trajectory(states, tmp_path / "t.xtc")
    with pytest.raises(ValueError, match="1 to 9999 models, got 10000"):
        write_trajectory(states[:1, :1].expand(10_000, 1, 4, 3), tmp_path / "t.pdb")


@needs_shared_data
@pytest.mark.parametrize("save, suffix", [(write_pdb, "pdb"), (write_cif, "cif")])
def test_real_chains_survive_the_round_trip(save, suffix: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for chain in [c for c in read_npz(DATA / "backbones.npz")[::60] if not (c.icode != "").any()]:
        (path,) = save(
            torch.from_numpy(chain.coords), None, tmp_path / f"x.{suffix}", resnum=chain.resnum, aatype=chain.aatype
        )
        (again,) = read_structure(path)
        assert np.abs(again.coords - chain.coords).max() < 1.01e-3 and again.sequence == chain.sequence
        assert (again.resnum == chain.resnum).all() and (again.break_after == chain.break_after).all()
