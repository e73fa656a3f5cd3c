"""Contigs as RFdiffusion's users write them, against chains made here; gemmi and Biopython say which residues a range has."""

import json
from collections import Counter
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from Bio.PDB import MMCIFParser, PDBParser

from manifoldflow.tasks.proteins.contig import Free, Kept, NewChain, parse_contig
from manifoldflow.tasks.proteins.geometry import atoms_from_frames, frames_from_atoms
from manifoldflow.tasks.proteins.motif import keep_atoms, load_motif, numbers_of, read_contig, stack
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.write import write_cif, write_pdb
from testkit.peptide import helix, pdb_lines

NAMES = ["ALA", "SER", "TRP", "GLY", "LEU", "LYS", "PRO", "HIS", "VAL", "TYR"]


def write(path: Path, *groups: list[str]) -> Path:
    path.write_text("\n".join(line for group in groups for line in group) + "\nEND\n")
    return path


@pytest.fixture
def antibody(tmp_path: Path) -> Path:
    """Chain H with 50, 51, 52, 52A, 52B, 53, 54, and a range of numbers that skips 55 to 59 without a gap."""
    numbers, icodes = [50, 51, 52, 52, 52, 53, 54, 60, 61, 62], ["", "", "", "A", "B", "", "", "", "", ""]
    return write(tmp_path / "ab.pdb", pdb_lines(helix(10), chain="H", residues=NAMES, numbers=numbers, icodes=icodes))


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """Chain A from -5 to 4; chain 1 from 1 to 10; chain B with residues 4 and 5 missing."""
    b = helix(10) + 60
    return write(
        tmp_path / "tag.pdb",
        pdb_lines(helix(10), residues=NAMES, numbers=range(-5, 5)),
        pdb_lines(helix(10) + 30, chain="1", residues=NAMES),
        pdb_lines(np.concatenate([b[:3], b[5:]]), chain="B", numbers=[1, 2, 3, 6, 7, 8, 9, 10]),
    )


def kept(file: Path, contig: str) -> list[str]:
    return [f"{r[0]}{r[1]}" for r in load_motif(file, contig).records[0]["con_ref_pdb_idx"]]


@pytest.mark.parametrize(
    ("contig", "residues"),
    [
        ("H50-54", "50 51 52 52A 52B 53 54"),
        ("H52A", "52A"),
        ("H52A-53", "52A 52B 53"),
        ("H51-52", "51 52"),
        ("H51-52A", "51 52 52A"),
        ("H54-61", "54 60 61"),  # the numbering skips; the chain does not
        ("H50-51/3/H52B-54", "50 51 52B 53 54"),
        ("H50-H52", "50 51 52"),
        ("H:50-52", "50 51 52"),
    ],
)
def test_a_range_takes_inserted_residues_as_gemmi_and_biopython_list_them(
    antibody: Path, contig: str, residues: str
) -> None:
    assert kept(antibody, contig) == [f"H{r}" for r in residues.split()]
    gemmi_names = [f"{r.seqid.num}{r.seqid.icode.strip()}" for r in gemmi.read_structure(str(antibody))[0]["H"]]
    bio_names = [f"{r.id[1]}{r.id[2].strip()}" for r in PDBParser(QUIET=True).get_structure("x", antibody)[0]["H"]]
    assert gemmi_names == bio_names == "50 51 52 52A 52B 53 54 60 61 62".split()
    if "/" not in contig:  # all that the file lists between the ends
        a, b = gemmi_names.index(residues.split()[0]), gemmi_names.index(residues.split()[-1])
        assert gemmi_names[a : b + 1] == residues.split()


@pytest.mark.parametrize(
    ("contig", "count", "first", "last"),
    [("A-3-2", 6, -3, 2), ("A-5--1", 5, -5, -1), ("A-5", 1, -5, -5), ("A0-4", 5, 0, 4), ("1:4-7", 4, 4, 7)],
)
def test_negative_numbers_and_chains_called_by_a_number(
    tagged: Path, contig: str, count: int, first: int, last: int
) -> None:
    motif = load_motif(tagged, contig)
    numbers = [r["source_number"] for r in motif.records[0]["motif"]]
    assert (len(numbers), numbers[0], numbers[-1]) == (count, first, last)


@pytest.mark.parametrize(
    ("contig", "reason"),
    [
        ("14-20/10", "14-20 are free residues; residues of chain '1' are written 1:4-20"),
        ("5-5/13-10", "the range 13-10 of free residues falls"),
        ("A1-3/13-10", "the range 13-10 of free residues falls"),
        ("10/12", "holds no residues of the structure"),
        ("", "holds no residues of the structure"),
        ("C1-3", "has no chain C; it has 'A', '1', 'B'"),
        ("A3-9", r"lacks residue 9 of chain A; it has -5 to 4"),
        ("B2-7", "lacks residues 4 to 5 of chain B, within B2-7; it has 1 to 3, 6 to 10"),
        ("A3-1", "the range A3-1 falls"),
        ("A1-3/5/A3-4", "residue A3 is named twice"),
        ("A1-3/x", "cannot read 'x'"),
        ("5//A1-3", "cannot read ''"),
        ("A", "cannot read 'A'"),
        ("A1-", "cannot read 'A1-'"),
        ("A1-2-3", "cannot read 'A1-2-3'"),
        ("A1-3/99999", "100,002 residues are more than 10,000"),
    ],
)
def test_what_cannot_be_read_says_why(tagged: Path, contig: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        load_motif(tagged, contig)
    assert "\n" not in str(caught.value)


def test_a_missing_insertion_code_names_the_ones_there_are(tmp_path: Path) -> None:
    file = write(tmp_path / "x.pdb", pdb_lines(helix(3), numbers=[7, 7, 8], icodes=["A", "B", ""]))
    with pytest.raises(ValueError, match=r"lacks residue 7 of chain A; it has 7A, 7B"):
        load_motif(file, "A7-8")


def test_a_broken_chain_inside_a_range_is_refused_although_its_numbers_go_on(tmp_path: Path) -> None:
    coords = helix(8)
    coords[4:] += 6
    file = write(tmp_path / "x.pdb", pdb_lines(coords))
    with pytest.raises(ValueError, match=r"broken within A2-7: .* A from C of 4 to N of 5"):
        load_motif(file, "A2-7")
    assert load_motif(file, "A2-4/3/A5-7").mask.sum() == 6


def test_chains_of_several_letters_and_names_that_begin_alike(tmp_path: Path) -> None:
    coords = torch.tensor(helix(10)).float()
    (file,) = write_cif(coords, None, tmp_path / "x.cif", chain_id="AA")
    assert MMCIFParser(QUIET=True).get_structure("x", file)[0].child_list[0].id == "AA"
    assert kept(file, "AA3-10") == [f"AA{n}" for n in range(3, 11)]
    chains = [read_structure(file)[0] for _ in range(3)]
    for chain, name in zip(chains, ("A", "A1", "A1B"), strict=True):
        chain.chain_id = name
    parts = parse_contig("A13-5", chains).parts  # of A there is no 13; of A1 there are 3 to 5
    assert isinstance(parts[0], Kept) and parts[0].chain is chains[1] and len(parts[0]) == 3
    chains[0].resnum = chains[0].resnum + 10  # now A has 11 to 20
    with pytest.raises(ValueError, match="A12 fits more than one chain; write A:12 or A1:2"):
        parse_contig("A12", chains)
    explicit = parse_contig("A1:2", chains).parts[0]
    assert isinstance(explicit, Kept) and explicit.chain is chains[1]


@pytest.mark.parametrize(
    "text",
    [
        "5-15/A1-3/0 20-20",
        "5-15/A1-3 20-20",
        "[5-15/A1-3/0 20-20]",
        "['5-15/A1-3/0 20-20']",
        "contigmap.contigs=[5-15/A1-3/0 20-20]",
        "5-15,A1-3,/0,20-20",
        " 5-15 / A1-3/0 20",
    ],
)
def test_free_ranges_and_chain_breaks_as_they_are_written(tagged: Path, text: str) -> None:
    contig = read_contig(tagged, text)
    assert [type(p) for p in contig.parts] == [Free, Kept, NewChain, Free]
    assert (contig.shortest, contig.longest, contig.is_fixed) == (28, 38, False)
    motif = load_motif(tagged, text, seed=3)
    first = motif.lengths[0] - 20
    assert motif.chain[0].tolist() == [0] * first + [1] * 20
    assert motif.residue_index[0].diff().tolist() == [1] * (first - 1) + [34] + [1] * 19
    assert motif.mask[0].nonzero().flatten().tolist() == list(range(first - 3, first))
    assert motif.records[0]["sampled_contig"] == f"{first - 3}/A1-3/0 20"
    assert numbers_of(motif.chain)[0].tolist() == [*range(1, first + 1), *range(1, 21)]


def test_no_free_residues_between_two_parts_is_not_a_chain_break(tagged: Path) -> None:
    contig = read_contig(tagged, "A1-2/0/A3-4")
    assert [type(p) for p in contig.parts] == [Kept, Kept] and contig.is_fixed


def test_free_lengths_are_drawn_with_the_seed_and_uniformly(tagged: Path) -> None:
    contig = read_contig(tagged, "5-8/A1-3/2-4")
    first = [str(contig.draw(seed=s)[0]) for s in range(400)]
    assert first == [str(contig.draw(seed=s)[0]) for s in range(400)]
    assert set(first) == set("5678") and min(Counter(first).values()) > 70
    # Of a given total: all ways are equally likely. 13 = 3 + 10: (6, 4), (7, 3), (8, 2).
    ways = Counter("/".join(map(str, contig.draw(13, seed=s))) for s in range(600))
    assert set(ways) == {"6/A1-3/4", "7/A1-3/3", "8/A1-3/2"} and min(ways.values()) > 160
    three = read_contig(tagged, "1-3/A1/1-3/A3/1-3")
    ways = Counter("/".join(map(str, three.draw(8, seed=s))) for s in range(1400))
    assert len(ways) == 7 and min(ways.values()) > 170 and max(ways.values()) < 230
    for length in (9, 16):
        with pytest.raises(ValueError, match=f"spans 10 to 15 residues, which does not fit a length of {length}"):
            contig.draw(length)


def test_a_fixed_contig_goes_on_to_the_length(tagged: Path) -> None:
    contig = read_contig(tagged, "5/A1-3")
    assert contig.is_fixed and [str(p) for p in contig.draw(20)] == ["5", "A1-3", "12"]
    assert load_motif(tagged, "5/A1-3").mask.shape == (1, 8)  # as ever: what follows is up to the sampler
    assert "then free ones up to the length" in contig.describe() and "3 of chain 'A' (1 to 3)" in contig.describe()
    x, mask = load_motif(tagged, "5/A1-3")  # what once were two
    assert x["trans"].shape == (1, 8, 3) and mask.sum() == 3


def test_the_motif_keeps_its_names_atoms_and_place(tagged: Path) -> None:
    motif = load_motif(tagged, "2/A-3-0/1/A2-3")
    (chain, *_) = read_structure(tagged)
    rows = [2, 3, 4, 5, 7, 8]
    assert motif.aatype[motif.mask].tolist() == chain.aatype[rows].tolist()
    assert [r["name"] for r in motif.records[0]["motif"]] == [NAMES[r] for r in rows]
    true = torch.as_tensor(chain.coords[rows])
    # Centred on the CA atoms, not on all atoms.
    assert (motif.coords[motif.mask] - (true - true[:, 1].mean(0))).abs().max() < 1e-4
    assert motif.coords[motif.mask][:, 1].mean(0).abs().max() < 1e-4
    assert motif.coords[motif.mask].mean((0, 1)).abs().max() > 0.05
    assert (motif.coords[~motif.mask] == 0).all()


def test_kept_atoms_are_the_structures_o_too_wherever_the_frames_went(tagged: Path) -> None:
    motif = load_motif(tagged, "2/A-3-0/1/A2-3/4")
    distorted = motif.coords.clone()
    distorted[motif.mask, 3] += 0.3  # an O off the ideal peptide plane
    motif = load_motif(tagged, "2/A-3-0/1/A2-3/4").__class__(**{**vars(motif), "coords": distorted})
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turn = turn * torch.sign(torch.linalg.det(turn))
    x = {"trans": motif.x["trans"] @ turn.T + 5, "rots": turn @ motif.x["rots"]}
    x = {
        "trans": torch.cat([x["trans"], torch.ones(1, 3, 3)], 1),
        "rots": torch.cat([x["rots"], torch.eye(3).expand(1, 3, 3, 3)], 1),
    }
    atoms = atoms_from_frames(x)
    placed = keep_atoms(atoms, x, motif)
    n = motif.mask.shape[1]
    assert (placed[:, :n][motif.mask] - (distorted[motif.mask] @ turn.T + 5)).abs().max() < 1e-4
    assert (placed[:, n:] == atoms[:, n:]).all() and (placed[:, :n][~motif.mask] == atoms[:, :n][~motif.mask]).all()


def test_a_batch_of_layouts_holds_each(tagged: Path) -> None:
    one = [load_motif(tagged, "1-9/A1-3/0 1-9", seed=s) for s in range(4)]
    batch = stack(one)
    assert len(set(batch.lengths)) > 1 and batch.mask.shape == (4, max(batch.lengths))
    for i, (motif, n) in enumerate(zip(one, batch.lengths, strict=True)):
        for name in ("mask", "coords", "aatype", "residue_index", "chain"):
            assert torch.equal(getattr(batch, name)[i, :n], getattr(motif, name)[0]), name
        assert not batch.mask[i, n:].any() and batch.records[i] == motif.records[0]


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_insertion_codes_and_chains_are_written_as_other_libraries_read_them(tmp_path: Path, kind: str) -> None:
    coords = torch.tensor(np.concatenate([helix(5), helix(4) + 40])).float()
    resnum, icode = [-1, 52, 52, 52, 53, 1, 2, 3, 4], ["", "", "A", "B", "", "", "", "", ""]
    save = write_pdb if kind == "pdb" else write_cif
    (file,) = save(
        coords, None, tmp_path / f"x.{kind}", resnum=resnum, icode=icode, chain=[0] * 5 + [1] * 4, aatype=[*range(9)]
    )
    expected = [("A", n, i) for n, i in zip(resnum[:5], icode[:5], strict=True)] + [("B", n, "") for n in range(1, 5)]
    ours = [(c.chain_id, int(n), str(i)) for c in read_structure(file) for n, i in zip(c.resnum, c.icode, strict=True)]
    model = gemmi.read_structure(str(file))[0]
    theirs = [(c.name, r.seqid.num, r.seqid.icode.strip()) for c in model for r in c]
    parser = PDBParser(PERMISSIVE=False) if kind == "pdb" else MMCIFParser(QUIET=True)
    bio = [(r.parent.id, r.id[1], r.id[2].strip()) for r in parser.get_structure("x", file).get_residues()]
    assert ours == theirs == bio == expected
    assert np.abs(np.concatenate([c.coords for c in read_structure(file)]) - coords.numpy()).max() < 1e-3
    with pytest.raises(ValueError, match="residue numbers repeat"):
        save(coords, None, tmp_path / f"y.{kind}", resnum=resnum, chain=[0] * 5 + [1] * 4)
    with pytest.raises(ValueError, match="must stand together"):
        save(coords, None, tmp_path / f"y.{kind}", chain=[0, 1, 0, 1, 0, 1, 0, 1, 0])


def test_records_are_json(tagged: Path) -> None:
    about = load_motif(tagged, "2/A-3-0/0 5-7").records[0]
    assert json.loads(json.dumps(about)) == about
    assert about["con_hal_pdb_idx"][0] == ["A", 3] and about["con_ref_pdb_idx"][0] == ["A", -3]


def test_frames_of_the_motif_are_its_atoms() -> None:
    coords = torch.tensor(helix(6))[None]
    assert (atoms_from_frames(frames_from_atoms(coords)) - coords)[:, :-1].abs().max() < 0.03  # O: on the bisector
