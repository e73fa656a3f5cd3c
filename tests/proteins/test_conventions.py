"""What MD, modelling and design programs write: every name and layout once, and gemmi or Biopython as the truth."""

import gzip
import itertools
import warnings
from pathlib import Path

import gemmi
import numpy as np
import pytest
from Bio.PDB import PDBParser

from manifoldflow.tasks.proteins.conventions import RESIDUES, residue_type
from manifoldflow.tasks.proteins.reading import count_models, read_models, read_structure
from manifoldflow.tasks.proteins.records import residue_number
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS
from testkit.peptide import atom_line, helix, pdb_lines

HELIX = helix(6)
FAR = helix(6) + np.array([0.0, 30.0, 0.0])


def write(path: Path, *groups: list[str]) -> Path:
    path.write_text("\n".join(line for group in groups for line in group) + "\nEND\n")
    return path


def sizes(path: Path) -> list[tuple[str, int]]:
    return [(chain.chain_id, len(chain)) for chain in read_structure(path)]


@pytest.mark.parametrize(
    "name, letter",
    [(name, letter) for table in RESIDUES.values() for names, letter in table.items() for name in names.split()]
    + [("NALA", "A"), ("CALA", "A"), ("NHIE", "H"), ("CHIP", "H"), ("NCYX", "C"), ("CLYN", "K"), ("NGLY", "G")]
    + [("MSE", "M"), ("SEP", "S"), ("TPO", "T"), ("PTR", "Y"), ("CSO", "C"), ("MLY", "K"), ("HYP", "P"), ("NLE", "L")],
)
def test_residue_names_of_programs_keep_their_chain_and_get_their_letter(
    tmp_path: Path, name: str, letter: str
) -> None:
    file = write(tmp_path / "x.pdb", pdb_lines(HELIX, residues=["ALA", "GLY", name.upper(), "SER", "ALA", "ALA"]))
    (chain,) = read_structure(file)
    assert chain.sequence == f"AG{letter}SAA" and not chain.break_after.any() and chain.chain_id == "A"
    assert np.abs(chain.coords - HELIX).max() < 1e-3


def test_one_name_means_two_things_by_its_record(tmp_path: Path) -> None:
    letters = {hetero: [AMINO_ACIDS[residue_type(name, hetero)] for name in ("HSE", "GLH")] for hetero in (False, True)}
    assert letters == {False: ["H", "E"], True: ["S", "Q"]}  # CHARMM, Amber; homoserine and a glutamine in the PDB
    (chain,) = read_structure(write(tmp_path / "x.pdb", pdb_lines(HELIX, residues="HSE", record="HETATM")))
    assert chain.sequence == "SSSSSS"
    assert (
        AMINO_ACIDS[residue_type("DAL")] == AMINO_ACIDS[residue_type("DALA")] == AMINO_ACIDS[residue_type("LIG")] == "X"
    )


@pytest.mark.parametrize("first, second", [("OT1", "OT2"), ("OC1", "OC2"), ("O1", "O2"), ("O'", "O''"), ("O", "OXT")])
def test_the_last_residue_keeps_the_oxygen_that_its_program_names_otherwise(
    tmp_path: Path, first: str, second: str
) -> None:
    lines = pdb_lines(HELIX)
    lines[-1] = atom_line(first, "ALA", "A", 6, HELIX[-1, 3])
    lines.append(atom_line(second, "ALA", "A", 6, HELIX[-1, 2] + 1.2))
    (chain,) = read_structure(write(tmp_path / "x.pdb", lines))
    assert len(chain) == 6 and chain.missing == 0 and np.abs(chain.coords - HELIX).max() < 1e-3


def test_hydrogens_caps_and_ions_are_not_looked_at(tmp_path: Path) -> None:
    caps = [
        atom_line("CH3", "ACE", "A", 0, (-3, 0, 0)),
        atom_line("C", "ACE", "A", 0, (-1.3, 0, 0)),
        atom_line("O", "ACE", "A", 0, (-1.3, 1.2, 0)),
        *pdb_lines(HELIX),
        atom_line("HN", "ALA", "A", 6, (90, 0, 0)),
        atom_line("N", "NME", "A", 7, (9, 9, 9)),
        atom_line("CA", "CA", "A", 8, (40, 0, 0)),
    ]
    assert sizes(write(tmp_path / "x.pdb", caps)) == [("A", 6)]


@pytest.mark.parametrize("number", ["1000", "2710", "270f", "****", "-1", "A000", "1", ""])
def test_waters_may_carry_any_number(tmp_path: Path, number: str) -> None:
    waters = [atom_line("O", "HOH", "A", number, (50, 0, 0)), atom_line("OW", "SOL", "A", number, (50, 5, 0))] * 3
    lipid = [atom_line(n, "POPC", "A", number, (60 + i, 0, 0)) for i, n in enumerate("N C O O2 C1".split())] * 2
    file = write(tmp_path / "x.pdb", pdb_lines(HELIX), ["TER"], waters, lipid)
    assert sizes(file) == [("A", 6)]


def test_ligands_with_unlucky_names_may_repeat_as_they_like(tmp_path: Path) -> None:
    ligand = pdb_lines(helix(1) + 40, residues="LIG", record="HETATM", numbers=[900])
    for between in ([], ["TER"]):
        file = write(tmp_path / "x.pdb", pdb_lines(HELIX), between, ligand, ligand, between, ligand)
        assert sizes(file) == [("A", 6)]
    acid = [atom_line(n, "ACA", "A", 901, (50, 0, 0)) for n in ("C", "O")] * 2  # an amino acid by name, not by atoms
    assert sizes(write(tmp_path / "x.pdb", pdb_lines(HELIX), acid)) == [("A", 6)]


def test_a_protein_residue_with_an_unreadable_number_names_its_line(tmp_path: Path) -> None:
    lines = pdb_lines(HELIX)
    lines[9] = lines[9][:22] + "****" + lines[9][26:]
    with pytest.raises(ValueError, match=r"x\.pdb: not a readable pdb file \(line 10: residue number '\*\*\*\*'"):
        read_structure(write(tmp_path / "x.pdb", lines))


@pytest.mark.parametrize("blank", [" ", "P"])
def test_chains_are_told_apart_by_segment(tmp_path: Path, blank: str) -> None:
    file = write(
        tmp_path / "x.pdb",
        pdb_lines(HELIX, chain=blank, segment="PROA"),
        ["TER"],
        pdb_lines(FAR, chain=blank, segment="PROB"),
        [atom_line("O", "TIP3", blank, 1, (50, 0, 0), segment="WAT1")] * 2,
    )
    assert sizes(file) == [("PROA", 6), ("PROB", 6)]
    truth = gemmi.read_structure(str(file))
    segments = [r.segment for r in truth[0][0] if r.name == "ALA"]
    assert [(s, len(list(g))) for s, g in itertools.groupby(segments)] == sizes(file)


@pytest.mark.parametrize("first", [1, 7])
def test_chains_without_an_id_are_told_apart_by_ter(tmp_path: Path, first: int) -> None:
    second = pdb_lines(FAR, chain=" ", numbers=range(first, first + 6))  # Amber counts on, others start again
    file = write(tmp_path / "x.pdb", pdb_lines(HELIX, chain=" "), ["TER"], second, ["TER"])
    assert sizes(file) == [("A", 6), ("B", 6)]
    truth = gemmi.read_pdb(str(file), split_chain_on_ter=True)
    assert [len(chain) for chain in truth[0]] == [6, 6]


def test_one_id_for_two_chains_is_told_apart_where_its_residues_repeat(tmp_path: Path) -> None:
    other = pdb_lines(FAR + 40, chain="B")
    for number, marks in enumerate((["TER"], [])):  # without TER, numbers that start again say it
        file = write(tmp_path / f"{number}.pdb", pdb_lines(HELIX), marks, pdb_lines(FAR), other)
        assert sizes(file) == [("A", 6), ("C", 6), ("B", 6)] or sizes(file) == [("A", 6), ("B", 6), ("C", 6)]
        assert np.abs(read_structure(file)[1].coords - FAR).max() < 1e-3
    offset = write(tmp_path / "o.pdb", pdb_lines(HELIX, numbers=range(3, 9)), pdb_lines(FAR, numbers=range(1, 7)))
    assert [size for _, size in sizes(offset)] == [6, 6]


def test_chain_ids_that_begin_again_are_other_chains(tmp_path: Path) -> None:
    for length in (1, 4):  # of one residue there are no numbers that fall
        x = helix(length)
        parts = [pdb_lines(x + 30 * k, chain=c, numbers=range(5, 5 + length)) for k, c in enumerate("ABAB")]
        found = read_structure(write(tmp_path / "x.pdb", *parts))
        assert sorted(c.chain_id for c in found) == ["A", "B", "C", "D"] and [len(c) for c in found] == [length] * 4


def test_ter_at_a_gap_does_not_end_a_chain_that_has_an_id(tmp_path: Path) -> None:
    file = write(tmp_path / "x.pdb", pdb_lines(HELIX), ["TER"], pdb_lines(FAR, numbers=range(20, 26)))
    (chain,) = read_structure(file)
    assert len(chain) == 12 and np.flatnonzero(chain.break_after).tolist() == [5]


def test_segments_of_one_bonded_chain_stay_one(tmp_path: Path) -> None:
    lines = pdb_lines(HELIX[:3], segment="1ABC") + pdb_lines(HELIX[3:], segment="2ABC", numbers=[4, 5, 6])
    assert sizes(write(tmp_path / "x.pdb", lines)) == [("A", 6)]


def test_two_letter_chains_and_four_letter_residues_share_a_column(tmp_path: Path) -> None:
    wide = write(tmp_path / "wide.pdb", pdb_lines(HELIX, chain="AA"), ["TER"], pdb_lines(FAR, chain="AB"))
    assert sizes(wide) == [("AA", 6), ("AB", 6)]
    assert [(c.name, len(c)) for c in gemmi.read_structure(str(wide))[0]] == sizes(wide)
    names = ["NALA", "HISD", "LYSH", "CYS2", "ASPP", "CALA"]
    narrow = write(tmp_path / "narrow.pdb", pdb_lines(HELIX, residues=names))
    assert sizes(narrow) == [("A", 6)] and read_structure(narrow)[0].sequence == "AHKCDA"
    nobody = write(tmp_path / "x.pdb", pdb_lines(HELIX, residues=["ALA", "CYSX", "ALA", "GLYP", "Gly", "ala"]))
    assert sizes(nobody) == [("A", 6)] and read_structure(nobody)[0].sequence == "AXAXGA"
    mixed = write(tmp_path / "m.pdb", pdb_lines(HELIX, chain="Z"), pdb_lines(FAR, chain="AA", residues="GLY"))
    assert sizes(mixed) == [("Z", 6), ("AA", 6)]


def test_long_numbers_hybrid_36_and_long_serials(tmp_path: Path) -> None:
    hybrid = write(tmp_path / "hybrid.pdb", pdb_lines(HELIX, numbers=["9998", "9999", "A000", "A001", "A002", "A003"]))
    truth = [residue.seqid.num for residue in gemmi.read_structure(str(hybrid))[0][0]]
    assert read_structure(hybrid)[0].resnum.tolist() == truth == [*range(9998, 10004)]
    assert [residue_number(t) for t in ("ZZZZ", "a000", "zzzz")] == [1223055, 1223056, 2436111]
    five = pdb_lines(HELIX, numbers=[1000] * 6, icodes=list("012345"))
    assert read_structure(write(tmp_path / "five.pdb", five))[0].resnum.tolist() == [*range(10000, 10006)]
    shifted = [line[:6] + "100000" + line[11:] for line in pdb_lines(HELIX)]
    assert np.abs(read_structure(write(tmp_path / "long.pdb", shifted))[0].coords - HELIX).max() < 1e-3


def test_negative_numbers_and_insertion_codes_equal_biopython(tmp_path: Path) -> None:
    numbers, icodes = [-3, -2, 52, 52, 52, 53], ["", "", "", "A", "B", ""]
    file = write(tmp_path / "x.pdb", pdb_lines(HELIX, numbers=numbers, icodes=icodes))
    (chain,) = read_structure(file)
    truth = [residue.id[1:] for residue in PDBParser(QUIET=True).get_structure("x", file)[0]["A"]]
    assert list(zip(chain.resnum.tolist(), chain.icode.tolist(), strict=True)) == [(n, i.strip()) for n, i in truth]


def test_a_chain_without_oxygen_gets_it_in_the_peptide_plane_and_says_so(tmp_path: Path) -> None:
    (chain,) = read_structure(write(tmp_path / "x.pdb", pdb_lines(HELIX, atoms=("N", "CA", "C"))))
    assert len(chain) == 6 and chain.missing == 6
    assert np.linalg.norm(chain.coords[:-1, 3] - HELIX[:-1, 3], axis=-1).max() < 0.02
    assert np.linalg.norm(chain.coords[-1, 3] - chain.coords[-1, 2]) == pytest.approx(1.231, abs=1e-3)


def test_missing_atoms_are_counted_and_a_trace_of_ca_is_refused(tmp_path: Path) -> None:
    lines = pdb_lines(HELIX)
    (chain,) = read_structure(write(tmp_path / "x.pdb", lines[:8] + lines[9:15] + lines[16:]))  # a CA... and an O
    assert len(chain) == 5 and chain.missing == 2
    trace = [line for line in lines if line[12:16].strip() == "CA"]
    with pytest.raises(ValueError, match="a trace of CA atoms alone"):
        read_structure(write(tmp_path / "trace.pdb", trace))


@pytest.mark.parametrize("marks", ["MODEL", "END", "ENDMDL"])
def test_models_by_any_mark(tmp_path: Path, marks: str) -> None:
    models = []
    for k in range(3):
        begin, end = ([f"MODEL     {k:4d}"], ["ENDMDL"]) if marks == "MODEL" else ([], [marks])
        models += begin + pdb_lines(HELIX + k) + ["TER"] + end
    file = write(tmp_path / "x.pdb", models)
    assert count_models(file) == 3
    for k, (chain,) in enumerate(read_models(file)):
        assert np.abs(chain.coords - HELIX - k).max() < 1e-3
    with pytest.raises(ValueError, match="has 3 models, model 4 was asked for"):
        read_structure(file, model=4)


@pytest.mark.parametrize("name", ["x.pdb", "x.ent", "x.pdb1", "x.pdb.gz", "x.pdb1.gz", "X.PDB", "x.ent.gz"])
def test_file_names_of_the_archive(tmp_path: Path, name: str) -> None:
    text = "\n".join(pdb_lines(HELIX)) + "\nEND\n"
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (chain,) = read_structure(tmp_path / name)
    assert chain.name.lower() == "x_a" and len(chain) == 6


@pytest.mark.parametrize("chain", ["A", ""])
def test_pqr_is_read_by_words(tmp_path: Path, chain: str) -> None:
    rows = []
    for i, residue in enumerate(HELIX):
        for name, (x, y, z) in zip(("N", "CA", "C", "O"), residue, strict=True):
            rows.append(f"ATOM {len(rows) + 1} {name} HIE {chain} {i - 2} {x:.4f} {y:.4f} {z:.4f} -0.4157 1.8240")
    (found,) = read_structure(write(tmp_path / "x.pqr", ["REMARK 1 PQR", *rows]))
    assert (found.sequence, found.chain_id, found.resnum[0]) == ("HHHHHH", chain, -2)
    assert np.abs(found.coords - HELIX).max() < 1e-3


def test_pqr_whose_words_touch_is_read_by_columns(tmp_path: Path) -> None:
    far = HELIX - np.array([120.0, 150.0, 110.0])
    rows = [line[:54] + "  -0.416 1.8240" for line in pdb_lines(far, numbers=range(1001, 1007))]
    rows += ["ATOM      1    C STP     1     -26.417  62.269-123.283    0.00     3.30"]
    (found,) = read_structure(write(tmp_path / "x.pqr", rows))
    assert (len(found), found.chain_id) == (6, "A") and np.abs(found.coords - far).max() < 1e-3


def test_bytes_that_editors_leave_do_not_hide_the_first_residue(tmp_path: Path) -> None:
    text = "\r\n".join(pdb_lines(HELIX)) + "\r\n"
    (tmp_path / "x.pdb").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert sizes(tmp_path / "x.pdb") == [("A", 6)]


CIF = {
    "group_PDB": "ATOM",
    "id": "{i}",
    "type_symbol": "{e}",
    "label_atom_id": "{a}",
    "label_alt_id": ".",
    "label_comp_id": "ALA",
    "label_asym_id": "Axp",
    "label_seq_id": "{n}",
    "pdbx_PDB_ins_code": "?",
    "Cartn_x": "{x:.3f}",
    "Cartn_y": "{y:.3f}",
    "Cartn_z": "{z:.3f}",
    "occupancy": "1.00",
    "B_iso_or_equiv": "0.00",
    "auth_seq_id": "{m}",
    "auth_asym_id": "A",
    "pdbx_PDB_model_num": "1",
}


def cif(columns: dict[str, str], water: bool = False) -> str:
    rows = [f"_atom_site.{name}" for name in columns]
    for k, residue in enumerate(HELIX):
        for j, (name, (x, y, z)) in enumerate(zip(("N", "CA", "C", "O"), residue, strict=True)):
            values = {"i": 4 * k + j + 1, "e": name[0], "a": name, "n": k + 1, "m": k + 101, "x": x, "y": y, "z": z}
            rows.append(" ".join(columns.values()).format(**values))
    for k in range(2 * water):
        other = columns | {"label_comp_id": "HOH", "label_seq_id": ".", "auth_seq_id": ".", "group_PDB": "HETATM"}
        row = " ".join(other[name] for name in columns)
        rows.append(row.format(i=90 + k, e="O", a="O", n=".", m=".", x=50, y=0, z=k))
    return "loop_\n" + "\n".join(rows) + "\n#\n"


@pytest.mark.parametrize("without", ["", "group_PDB", "auth_seq_id auth_asym_id", "pdbx_PDB_model_num", "occupancy"])
def test_mmcif_without_columns_that_have_a_default(tmp_path: Path, without: str) -> None:
    columns = {key: value for key, value in CIF.items() if key not in without.split()}
    (tmp_path / "x.cif").write_text("data_x\n" + cif(columns, water=True))
    (chain,) = read_structure(tmp_path / "x.cif")
    label = "auth_seq_id" in without
    assert (chain.chain_id, chain.resnum[0], len(chain)) == (("Axp", 1, 6) if label else ("A", 101, 6))


@pytest.mark.parametrize(
    "change", [str.upper, str.lower, lambda t: t.replace("_atom_site", "_ATOM_SITE"), lambda t: t.replace("\n", "\r\n")]
)
def test_mmcif_keywords_and_tags_have_no_case(tmp_path: Path, change: object) -> None:
    head, row = cif(CIF).rsplit("_atom_site.pdbx_PDB_model_num", 1)
    text = change("data_x\n" + head + "_atom_site.pdbx_PDB_model_num") + row  # type: ignore[operator]
    (tmp_path / "x.cif").write_bytes(text.encode())
    assert sizes(tmp_path / "x.cif") == [("A", 6)]
    assert len(gemmi.read_structure(str(tmp_path / "x.cif"))[0][0]) == 6


def test_mmcif_with_several_blocks_reads_the_first_that_holds_atoms(tmp_path: Path) -> None:
    empty, atoms = "data_comp\nloop_\n_chem_comp.id\n_chem_comp.name\nALA alanine\n#\n", "data_m\n" + cif(CIF)
    for number, parts in enumerate(([empty, atoms], [atoms, empty], ["data_nothing\n", atoms], [empty, atoms, empty])):
        (tmp_path / f"{number}.cif").write_text("".join(parts))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert sizes(tmp_path / f"{number}.cif") == [("A", 6)]
    (tmp_path / "two.cif").write_text(atoms + "data_other\n" + cif(CIF | {"auth_asym_id": "B"}))
    with pytest.warns(UserWarning, match="others hold atoms too: other"):
        assert sizes(tmp_path / "two.cif") == [("A", 6)]


@pytest.mark.parametrize(
    "value, reason",
    [("nan", "not finite"), ("1e30", "beyond 100,000 A"), ("-1e300", "beyond 100,000 A"), ("inf", "not finite")],
)
def test_absurd_coordinates_name_file_and_residue(tmp_path: Path, value: str, reason: str) -> None:
    lines = pdb_lines(HELIX, numbers=range(50, 56))
    lines[9] = lines[9][:30] + f"{value:>8}" + lines[9][38:]
    with pytest.raises(ValueError, match=rf"x\.pdb: residue ALA 52 of chain 'A' has .*{reason}"):
        read_structure(write(tmp_path / "x.pdb", lines))
    (tmp_path / "x.cif").write_text("data_x\n" + cif(CIF).replace(f"{HELIX[2, 1, 0]:.3f}", value, 1))
    with pytest.raises(ValueError, match=rf"x\.cif: residue ALA 103 of chain 'A' has .*{reason}"):
        read_structure(tmp_path / "x.cif")


def test_unplaced_residues_and_bombs_are_refused(tmp_path: Path) -> None:
    flat = HELIX.copy()
    flat[2:4] = 0
    with pytest.raises(ValueError, match=r"residue ALA 3 of chain 'A' has atoms in one place \(2 such residues\)"):
        read_structure(write(tmp_path / "x.pdb", pdb_lines(flat)))
    waters = [atom_line("O", "HOH", "A", 1, (0, 0, 0))[:30] + "     nan     nan     nan"] * 2
    assert sizes(write(tmp_path / "w.pdb", pdb_lines(HELIX), waters)) == [("A", 6)]


def test_a_packed_file_stops_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manifoldflow.tasks.proteins.reading.LIMIT", 10**5)
    (tmp_path / "bomb.pdb.gz").write_bytes(gzip.compress(b" " * 10**6))
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_structure(tmp_path / "bomb.pdb.gz")
