"""Reading PDB, mmCIF and npz: the counts of the data card, hand-made awkward files, one clear error per bad file."""

import csv
import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifoldflow.tasks.proteins.conventions import residue_type
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS, Chain, read_npz, rebuild_oxygen
from testkit.shared import SHARED_DATA, needs_shared_data

DATA = SHARED_DATA / "proteins"
COUNTS = [
    ("1en2.pdb", {"A": 86}),
    ("1en2.cif", {"A": 86}),
    ("1a8o.pdb", {"A": 70}),
    ("1a8o.cif", {"A": 70}),
    ("1ejg.pdb", {"A": 46}),
    ("1orc.pdb", {"A": 64}),
    ("1mf6.pdb", {"A": 12}),
    ("1a4w.pdb", {"L": 26, "H": 249, "I": 9}),
    ("3jqh.cif", {"A": 23}),
    ("4zhl.cif", {"U": 247, "P": 10}),
    ("1ema.cif", {"A": 225}),
    ("1lvz.cif", {"A": 11}),
]


def atom(name: str, residue: str, number: int, xyz: tuple[float, float, float], **kw: Any) -> str:
    """One PDB atom line; defaults: chain A, no altloc, full occupancy."""
    record, chain, altloc = kw.get("record", "ATOM"), kw.get("chain", "A"), kw.get("altloc", " ")
    icode, occupancy = kw.get("icode", " "), kw.get("occupancy", 1.0)
    place = f"{residue:>3} {chain}{number:4d}{icode}"
    tail = f"{xyz[0]:8.3f}{xyz[1]:8.3f}{xyz[2]:8.3f}{occupancy:6.2f}{10.0:6.2f}          {name[0]:>2}"
    return f"{record:<6}    1  {name:<3}{altloc}{place}   {tail}"


def residue(kind: str, number: int, shift: float, atoms: str = "N CA C O", **kw: Any) -> list[str]:
    """A residue whose C is 1.3 A from the N of the one at shift + 3.8."""
    place = {"N": (0, 0, 0), "CA": (1.2, 0.8, 0), "C": (2.5, 0, 0), "O": (2.5, -1.2, 0), "OXT": (3.5, 0.5, 0)}
    return [atom(n, kind, number, (place[n][0] + shift, place[n][1], 0.0), **kw) for n in atoms.split()]


def write(path: Path, *groups: list[str]) -> Path:
    path.write_text("\n".join(line for group in groups for line in group) + "\nEND\n")
    return path


@needs_shared_data
@pytest.mark.parametrize("file, counts", COUNTS)
def test_raw_file_has_the_chains_and_residue_counts_of_the_data_card(file: str, counts: dict[str, int]) -> None:
    chains = read_structure(DATA / "raw" / file)
    assert {chain.chain_id: len(chain) for chain in chains} == counts
    for chain in chains:
        n, ca, c, o = chain.coords.transpose(1, 0, 2)
        for a, b, length in ((n, ca, 1.46), (ca, c, 1.525), (c, o, 1.23)):
            assert np.abs(np.linalg.norm(a - b, axis=-1) - length).max() < 0.2  # no atoms of two alternates mixed


@needs_shared_data
@pytest.mark.parametrize("entry", ["1en2", "1a8o"])
def test_pdb_and_mmcif_of_one_entry_agree(entry: str) -> None:
    (a,), (b,) = (read_structure(DATA / "raw" / f"{entry}.{kind}") for kind in ("pdb", "cif"))
    assert np.abs(a.coords - b.coords).max() < 1e-3
    assert a.sequence == b.sequence and (a.icode == b.icode).all() and (a.resnum == b.resnum).all()
    assert (a.break_after == b.break_after).all() and np.allclose(a.bfactor, b.bfactor, atol=0.01)


@needs_shared_data
@pytest.mark.parametrize("file", ["1a8o.pdb", "1a8o.cif", "1orc.pdb", "1ema.cif", "4zhl.cif"])
def test_raw_file_equals_the_independently_read_chain_of_the_data_set(file: str) -> None:
    chain = read_structure(DATA / "raw" / file)[0]
    truth = next(c for c in read_npz(DATA / "backbones.npz") if c.name == chain.name)
    assert np.abs(chain.coords - truth.coords).max() < 1e-3 and chain.sequence == truth.sequence
    assert (chain.resnum == truth.resnum).all() and (chain.icode == truth.icode).all()
    assert (chain.break_after == truth.break_after).all()


@needs_shared_data
def test_awkward_residues_of_the_raw_files() -> None:
    light, heavy, inhibitor = read_structure(DATA / "raw" / "1a4w.pdb")
    assert inhibitor.sequence == "DFEEIPEEY"  # the last is sulfotyrosine
    assert light.icode[:2].tolist() == ["A", ""] and light.resnum[:2].tolist() == [1, 1]  # 1A comes before 1
    assert heavy.resnum[-1] == 350 and heavy.sequence[-1] == "X"  # D-arginine of the inhibitor
    assert read_structure(DATA / "raw" / "1a8o.cif")[0].sequence.count("M") == 4  # all selenomethionine
    gfp = read_structure(DATA / "raw" / "1ema.cif")[0]
    at = int(np.flatnonzero(gfp.break_after)[0])
    assert gfp.resnum[at] == 64 and gfp.resnum[at + 1] == 68  # the chromophore replaces 65 to 67
    wheat = read_structure(DATA / "raw" / "1en2.pdb")[0]
    types = dict(zip(wheat.resnum.tolist(), wheat.sequence, strict=True))
    # Point heterogeneity by occupancy: SER .33/GLY .67, GLY .44/ALA .56, ARG .22 twice/TRP .56, PCA's parent.
    assert (types[10], types[14], types[16], types[1]) == ("G", "A", "W", "E")


@needs_shared_data
def test_models_are_read_one_by_one() -> None:
    with np.load(DATA.parent / "ensembles" / "nmr_ensembles.npz") as ensembles:
        for file, models in (("1mf6.pdb", 15), ("1lvz.cif", 20)):
            truth = ensembles[f"{file[:4]}_coords"]
            assert len(truth) == models
            for model in (1, 2, models):
                assert np.abs(read_structure(DATA / "raw" / file, model)[0].coords - truth[model - 1]).max() < 1e-3
            with pytest.raises(ValueError, match=rf"has {models} models, model {models + 1} was asked"):
                read_structure(DATA / "raw" / file, model=models + 1)


@needs_shared_data
def test_gzip_gives_the_same_chains_and_a_truncated_one_a_clear_error(tmp_path: Path) -> None:
    for file in ("1orc.pdb", "1lvz.cif"):
        packed = gzip.compress((DATA / "raw" / file).read_bytes())
        (tmp_path / f"{file}.gz").write_bytes(packed)
        (plain,), (unpacked,) = read_structure(DATA / "raw" / file), read_structure(tmp_path / f"{file}.gz")
        assert plain.name == unpacked.name and (plain.coords == unpacked.coords).all()
        (tmp_path / f"{file}.gz").write_bytes(packed[: len(packed) // 2])
        with pytest.raises(ValueError, match="damaged or cut short"):
            read_structure(tmp_path / f"{file}.gz")


def test_highest_occupancy_wins_as_a_whole_residue_and_first_wins_a_tie(tmp_path: Path) -> None:
    low: dict[str, Any]
    high: dict[str, Any]
    low, high = {"altloc": "A", "occupancy": 0.4}, {"altloc": "B", "occupancy": 0.6}
    pairs = zip(residue("ALA", 2, 3.8, **low), residue("ALA", 2, 3.9, **high), strict=True)
    interleaved = [line for pair in pairs for line in pair]
    tie = residue("SER", 3, 7.6, altloc="A", occupancy=0.5) + residue("THR", 3, 7.7, altloc="B", occupancy=0.5)
    half = residue("GLY", 4, 11.4, "N CA C", altloc="A", occupancy=0.9) + residue("GLY", 4, 11.5, **high)
    (chain,) = read_structure(write(tmp_path / "x.pdb", residue("ALA", 1, 0), interleaved, tie, half))
    assert chain.sequence == "AASG"
    assert chain.coords[:, 0, 0] == pytest.approx([0, 3.9, 7.6, 11.5], abs=1e-3)


def test_insertion_codes_missing_atoms_breaks_and_chains(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.pdb",
        residue("ALA", 5, 0),
        residue("GLY", 5, 3.8, icode="A"),
        residue("VAL", 6, 7.6, "N CA O"),  # no C: left out
        residue("LEU", 7, 11.4),
        residue("TRP", 1, 15.2, chain="b"),  # within a bond's reach, but another chain
    )
    first, second = read_structure(file)
    assert (first.sequence, second.sequence) == ("AGL", "W") and (first.name, second.name) == ("x_A", "x_b")
    assert first.icode.tolist() == ["", "A", ""] and first.resnum.tolist() == [5, 5, 7]
    assert first.break_after.tolist() == [False, True, False] and len(second) == 1
    assert [c.chain_id for c in read_structure(file, chains=["b"])] == ["b"]
    with pytest.raises(ValueError, match="no protein chain 'Z'; the file has 'A', 'b'"):
        read_structure(file, chains=["Z"])


def test_hetero_atoms_stay_out_unless_they_are_residues_of_the_chain(tmp_path: Path) -> None:
    het = {"record": "HETATM"}
    file = write(
        tmp_path / "x.pdb",
        residue("MSE", 1, 0, **het),
        residue("ALA", 2, 3.8),
        residue("DAL", 3, 7.6, **het),
        residue("GLU", 401, 50, "N CA C O OXT", **het),  # a free amino acid
        [atom("CA", "CA", 402, (60.0, 0.0, 0.0), **het), atom("O", "HOH", 403, (70.0, 0.0, 0.0), **het)],
        residue("LIG", 404, 80, **het),  # a ligand with unlucky atom names
    )
    assert read_structure(file)[0].sequence == "MAX"


def test_modified_residues_map_to_parents() -> None:
    parents = {
        "MSE": "M",
        "PCA": "E",
        "SEP": "S",
        "TPO": "T",
        "PTR": "Y",
        "TYS": "Y",
        "CSO": "C",
        "MLY": "K",
        "HYP": "P",
    }
    parents |= {"SEC": "C", "PYL": "K", "LLP": "K", "KCX": "K", "CGU": "E", "CME": "C"}
    unknown = dict.fromkeys(("DAL", "CRO", "UNK", "ASX", "ACE", "DA", "U", "??"), "X")
    assert {name: AMINO_ACIDS[residue_type(name)] for name in parents | unknown} == parents | unknown


def test_blank_occupancy_and_b_factor_are_read_as_older_programs_meant_them(tmp_path: Path) -> None:
    file = write(tmp_path / "old.ent", [line[:54] for line in residue("ALA", 1, 0) + residue("GLY", 2, 3.8)])
    (chain,) = read_structure(file)
    assert chain.sequence == "AG" and chain.bfactor.tolist() == [0, 0]


def test_mmcif_without_optional_columns_is_read(tmp_path: Path) -> None:
    fields = (
        "group_PDB type_symbol label_atom_id label_comp_id label_asym_id label_seq_id Cartn_x Cartn_y Cartn_z".split()
    )
    rows = [
        f"ATOM {n[0]} {n} ALA A {i} {3.8 * i + k} {k % 2} 0" for i in (1, 2) for k, n in enumerate("N CA C O".split())
    ]
    header = "\n".join(f"_atom_site.{f}" for f in fields)
    (tmp_path / "x.cif").write_text(f"data_x\nloop_\n{header}\n" + "\n".join(rows) + "\n")
    assert read_structure(tmp_path / "x.cif")[0].sequence == "AA"


def test_bad_input_gives_one_clear_error(tmp_path: Path) -> None:
    dna = [atom(n, "DA", 1, (i, 0.0, 0.0)) for i, n in enumerate("P C1' N1 C2 O3'".split())]
    write(tmp_path / "dna.pdb", dna)
    write(tmp_path / "twice.pdb", residue("ALA", 1, 0), residue("ALA", 1, 20))
    for name, text in {"empty.pdb": "", "blank.cif": "\n\n", "noatoms.pdb": "HEADER    X\nEND\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "cut.pdb").write_text(atom("N", "ALA", 1, (0, 0, 0))[:40] + "\n")
    (tmp_path / "bad.cif").write_text("data_x\nloop_\n_atom_site.id\n_atom_site.type_symbol\n1\n")
    (tmp_path / "prose.cif").write_text("this is not a structure\n")
    (tmp_path / "cut.pdb.gz").write_bytes(gzip.compress(b"ATOM" * 100)[:-12])
    (tmp_path / "a.xyz").write_text("1")
    cases = {
        "dna.pdb": "no protein residues with N, CA and C",
        "noatoms.pdb": "no protein residues with N, CA and C",
        "twice.pdb": "residue ALA 1 of chain 'A' is listed twice",
        "empty.pdb": "the file is empty",
        "blank.cif": "the file is empty",
        "cut.pdb": "not a readable pdb file",
        "bad.cif": "not a readable cif file",
        "prose.cif": "cif",
        "cut.pdb.gz": "gzip data are damaged or cut short",
        "a.xyz": "unknown file type '.xyz'",
    }
    for name, reason in cases.items():
        with pytest.raises(ValueError, match=reason) as caught:
            read_structure(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    for reader in (read_structure, read_npz):
        with pytest.raises(FileNotFoundError, match=r"gone\.pdb: no such file"):
            reader(tmp_path / "gone.pdb")


@needs_shared_data
def test_npz_layouts_agree_with_their_table() -> None:
    with open(DATA / "chains.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    chains = read_npz(DATA / "backbones.npz") + read_npz(DATA / "backbones_short_no_o.npz")
    assert len(chains) == len(rows) == 1751 and sum(map(len, chains)) == 102_116 + 81_075
    for chain in chains:
        row = rows[chain.name]
        assert (len(chain), chain.break_after.sum()) == (int(row["length"]), int(row["n_breaks"]))
        assert chain.chain_id == row["chain"] and chain.coords.shape == (len(chain), 4, 3)
    letters = Counter("".join(chain.sequence for chain in chains))
    assert set(letters) <= set(AMINO_ACIDS) and letters["X"] < 0.001 * sum(letters.values())


@needs_shared_data
def test_rebuilt_oxygens_lie_at_the_true_ones() -> None:
    chains = read_npz(DATA / "backbones.npz")
    end = np.concatenate([chain.break_after for chain in chains])
    end[np.cumsum([len(chain) for chain in chains]) - 1] = True
    coords = np.concatenate([chain.coords for chain in chains])
    error = np.linalg.norm(rebuild_oxygen(coords[:, :3], end)[:, 3] - coords[:, 3], axis=-1)
    assert np.median(error[~end]) < 0.03 and np.percentile(error[~end], 99) < 0.25
    assert np.median(error[end]) < 2.0  # psi unknown: on the right cone, at worst 2 * 1.231 * sin(60 degrees) away


def test_rebuilt_oxygen_has_ideal_geometry_whatever_follows() -> None:
    rng = np.random.default_rng(0)
    nac = rng.normal(size=(50, 3, 3)) * 2
    coords = rebuild_oxygen(nac, np.arange(50) % 7 == 3).astype(float)
    _, ca, c, o = coords.transpose(1, 0, 2)
    to_ca, to_o = ca - c, o - c
    cosine = (to_ca * to_o).sum(-1) / np.linalg.norm(to_ca, axis=-1) / np.linalg.norm(to_o, axis=-1)
    assert np.linalg.norm(to_o, axis=-1) == pytest.approx(1.231, abs=1e-4)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(120.4, abs=0.05)


def test_bad_npz_names_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good: dict[str, Any] = {
        "name": ["a_A"],
        "offset": [0, 2],
        "coords": np.zeros((2, 4, 3)),
        "aatype": ["A", "G"],
        "break_after": [0, 0],
    }
    np.savez(tmp_path / "good.npz", **good)
    assert isinstance(read_npz(tmp_path / "good.npz")[0], Chain)
    for change, reason in (
        ({"offset": [0, 3]}, "offset does not cut 2 residues into 1 chains"),
        ({"coords": np.zeros((2, 5, 3))}, r"coords has shape \(2, 5, 3\)"),
        ({"aatype": ["A"]}, r"aatype has shape \(1,\), expected \(2,\)"),
    ):
        np.savez(tmp_path / "bad.npz", **(good | change))
        with pytest.raises(ValueError, match=reason):
            read_npz(tmp_path / "bad.npz")
    np.savez_compressed(tmp_path / "bomb.npz", **(good | {"coords": np.zeros((10**6, 4, 3))}))
    monkeypatch.setattr("manifoldflow.tasks.proteins.structure.LIMIT", 10**7)
    with pytest.raises(ValueError, match=r"bomb\.npz: not a readable npz file \(unpacks to 96 MB, more than 10"):
        read_npz(tmp_path / "bomb.npz")
    np.savez(tmp_path / "bad.npz", name=["a"])
    with pytest.raises(ValueError, match="array 'aatype' is missing"):
        read_npz(tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable npz file"):
        read_npz(tmp_path / "bad.npz")
