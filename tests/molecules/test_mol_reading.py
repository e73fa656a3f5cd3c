"""Molecules from files: every bad record is named with its line, and nothing good is lost."""

import gzip
from pathlib import Path

import pytest
from rdkit import Chem

from manifoldflow.tasks.molecules.reading import MoleculeSet, Rules, read_molecules
from manifoldflow.tasks.molecules.writing import write_molecules

ETHANOL = """{name}
  made here

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    1.5000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    2.2000    {y}    0.3000 {last}   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  2  3  1  0
M  END
{after}$$$$
"""


def sdf(name: str = "x", y: str = "1.2000", last: str = "O", after: str = "") -> str:
    return ETHANOL.format(name=name, y=y, last=last, after=after)


def made(tmp_path: Path, text: str, name: str = "a.smi", **options: object) -> MoleculeSet:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_molecules(tmp_path / name, **options)  # type: ignore[arg-type]


def why(found: MoleculeSet) -> dict[int, str]:
    return {bad.where: bad.why for bad in found.rejected}


def test_comments_blank_lines_headings_and_names(tmp_path: Path) -> None:
    found = made(tmp_path, "\ufeffsmiles name\n# by hand\r\n\nOCC\n   \nNCC\t|c:1| ethyl amine\n")
    assert [(r.smiles, r.name, r.where) for r in found.records] == [("CCO", "", 4), ("CCN", "ethyl amine", 6)]


def test_bad_lines_are_named_with_what_is_wrong_and_the_rest_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    lines = ["c1cccc1", "c1ccc[nH]1", "CC(", "C(C)(C)(C)(C)C", "[Xx]C", "C1CC", "C" * 500, "*C"]
    found = made(tmp_path, "\n".join(lines) + "\n")
    assert found.smiles == ["c1cc[nH]c1"]
    told = why(found)
    assert sorted(told) == [1, 3, 4, 5, 6, 7, 8]
    words = {1: "kekulized (atoms 1 2 3 4 5)", 3: "not a SMILES", 4: "5 bonds", 5: "Xx is no element", 6: "ring"}
    words |= {7: "500 heavy atoms", 8: "attachment point"}
    for line, text in words.items():
        assert text in told[line], (line, told[line])
    assert capfd.readouterr() == ("", "")  # RDKit's log is silent
    assert "line 3: left out, not a SMILES" in found.summary(most=10)


def test_a_file_without_a_molecule_raises_and_strict_raises_at_the_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no molecule in it; line 1: 1 attachment point .*; line 2: "):
        made(tmp_path, "*c1ccccc1\nC*\n")
    with pytest.raises(ValueError, match="line 2: not a SMILES"):
        made(tmp_path, "C\nC(\nC\n", strict=True)


def test_salts_charges_isotopes_radicals_and_dummies_by_option(tmp_path: Path) -> None:
    text = "CC(=O)[O-].[Na+] salt\n[13CH4]\nC[N+](C)(C)C\n[CH3]\n*c1ccccc1\nC[N+](=O)[O-]\nC[NH3+]\n"
    assert len(made(tmp_path, text)) == 6
    rules = Rules(salts="strip", charges="neutralise", isotopes="drop", dummies="keep")
    assert made(tmp_path, text, rules=rules).smiles == [
        "CC(=O)O", "C", "C[N+](C)(C)C", "[CH3]", "*c1ccccc1", "C[N+](=O)[O-]", "CN"
    ]  # fmt: skip
    told = why(
        made(tmp_path, text, rules=Rules(salts="reject", charges="reject", isotopes="reject", radicals="reject"))
    )
    assert {1: "2 parts", 2: "isotope", 3: "+1", 4: "radical", 5: "attachment", 7: "+1"}.items() <= {
        k: next(w for w in ("2 parts", "isotope", "+1", "radical", "attachment") if w in v) for k, v in told.items()
    }.items()
    told = why(made(tmp_path, text, rules=Rules(elements="C,N,O,H")))
    assert told[1].startswith("the element Na is not among C, N, O, H")


def test_tables_with_quotes_missing_values_and_lines_inside_cells(tmp_path: Path) -> None:
    text = 'name,SMILES,act\n"acid, acetic",CC(=O)O,1.5\n"a ""b""",C#N,\n"two\nlines",C,x\nshort,C\n,,\nd,C(,2\n'
    found = made(tmp_path, text, "t.csv")
    assert [(r.smiles, r.name, r.where) for r in found.records] == [
        ("CC(=O)O", "acid, acetic", 2), ("C#N", 'a "b"', 3), ("C", "two\nlines", 4)
    ]  # fmt: skip
    assert found.records[1].properties == {"act": None}
    assert why(found)[6] == "2 cells where the header has 3" and "not a SMILES" in why(found)[8]
    with pytest.raises(ValueError, match=r"line 4: act is 'x', expected a number"):
        found.numbers("act")
    with pytest.raises(ValueError, match=r"no column or property 'activity'; there are: act"):
        found.numbers("activity")


def test_tables_by_tab_semicolon_and_a_chosen_column(tmp_path: Path) -> None:
    assert made(tmp_path, "id\tsmiles\n1\tCO\n", "t.tsv").smiles == ["CO"]
    assert made(tmp_path, "id;smiles\n1;CO\n", "t.csv").records[0].name == "1"
    assert made(tmp_path, "a,b\nx,CO\n", "t.csv", column="b").smiles == ["CO"]
    assert made(tmp_path, "a,b\nx,CO\n", "t.csv", column="2").smiles == ["CO"]
    with pytest.raises(ValueError, match=r"say which holds the SMILES \(--column\), they are a, b"):
        made(tmp_path, "a,b\nx,CO\n", "t.csv")
    with pytest.raises(ValueError, match="no column 'c'; the columns are a, b"):
        made(tmp_path, "a,b\nx,CO\n", "t.csv", column="c")


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.csv", "Compound ID;Canonical SMILES;pIC50\nx;OCC;5,5\n"),
        ("t.csv", '"ChEMBL ID","Name","PUBCHEM_SMILES"\n"a","x","OCC"\n'),
        ("t.smi", "smiles,name\nOCC,x\n"),
        ("t.txt", "id\tact\tSMILES\nx\t1\tOCC\n"),
        ("t.smi", "SMILES\tname\nOCC\tx\n"),
        ("t.smi", "# by hand\n'smiles';name\nOCC;x\n"),
        ("t", "name,Isomeric SMILES\nx,OCC\n"),
        ("t.smi", "OCC x\rNCC y\r"),
    ],
)
def test_a_table_is_told_by_its_header_whatever_it_is_called(tmp_path: Path, name: str, text: str) -> None:
    found = made(tmp_path, text, name)
    assert found.smiles[0] == "CCO" and found.records[0].name == "x"


def test_cells_of_any_size_are_read_and_a_quote_without_end_is_said(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    assert made(tmp_path, "smiles,note\nCCO," + "x" * 200_000 + "\nCC,a\n", "t.csv").smiles == ["CCO", "CC"]
    assert csv.field_size_limit() == before
    found = made(tmp_path, 'smiles,note\nCC,"a"b\nCCC,"x\ny"\nCCO,"never\nCN,y\nCF,z\n', "t.csv")
    assert found.smiles == ["CCC"] and list(why(found)) == [2, 5]
    assert "not quoted" in why(found)[2] and "does not end, and the 2 lines below" in why(found)[5]


def test_what_programs_write_for_nothing_is_missing(tmp_path: Path) -> None:
    found = made(tmp_path, "smiles,act\nC,nan\nCC,N/A\nCCC,1e-3\nCCCC,\n", "t.csv")
    assert found.numbers("act") == [None, None, 1e-3, None]


def test_hydrogens_and_the_numbers_of_a_reaction_do_not_make_another_molecule(tmp_path: Path) -> None:
    found = made(tmp_path, "[H]C([H])([H])[H]\n[CH3:1][OH:2]\n[H][H]\n[2H]C\n[H+]\n[CH3:7][H:8]\n")
    assert found.smiles == ["C", "CO", "[H][H]", "[2H]C", "[H+]", "C"]
    assert made(tmp_path, "C[*:1]\n", rules=Rules(dummies="keep")).smiles == ["C[*:1]"]


def test_queries_are_no_molecules(tmp_path: Path) -> None:
    query = sdf("q").replace("  2  3  1  0", "  2  3  8  0")
    found = made(tmp_path, query + sdf("good"), "a.sdf")
    assert found.smiles == ["CCO"] and "bond between atoms 2 and 3 has no certain order" in why(found)[1]
    told = why(made(tmp_path, "C~C\nCC\n[D]C\n"))
    assert "query" in told[1] and "deuterium is written [2H]" in told[3]


def test_gzip_is_told_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.smi.gz").write_bytes(gzip.compress(b"CCO\nCCN amine\n"))
    assert read_molecules(tmp_path / "a.smi.gz").smiles == ["CCO", "CCN"]


def test_names_in_latin_1_are_read_and_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_bytes("CCO caf\xe9\nCCN\n".encode("latin-1"))
    assert [(r.smiles, r.name) for r in read_molecules(tmp_path / "a.smi").records] == [("CCO", "caf\xe9"), ("CCN", "")]
    (tmp_path / "b.smi").write_bytes("CCO\n".encode("utf-16"))
    with pytest.raises(ValueError, match="is UTF-16 text; write it as UTF-8"):
        read_molecules(tmp_path / "b.smi")


def test_sdf_bad_records_among_good(tmp_path: Path) -> None:
    bad = sdf("two").replace("  3  2  0", "  9  9  0")
    cut = "four\n\n"
    text = (
        sdf("one")
        + bad
        + sdf("three", last="Xx")
        + cut
        + "$$$$\n"
        + sdf("five", last="F").replace("2  3  1", "2  3  2")
    )
    found = made(tmp_path, text + sdf("last").replace("$$$$\n", ""), "a.sdf")
    assert [(r.name, r.where) for r in found.records] == [("one", 1), ("last", 6)]
    told = why(found)
    assert "the counts line says 9 atoms" in told[2] and "'Xx', which is no element" in told[3]
    assert "cut off after 2 lines" in told[4] and told[5]


def test_sdf_records_that_are_not_whole_say_so_in_their_own_words(tmp_path: Path) -> None:
    records = [
        sdf("no end").replace("M  END\n", ""),
        sdf("bond to nowhere").replace("  2  3  1  0", "  2  9  1  0"),
        sdf("a bond too many").replace("  3  2  0", "  3  1  0"),
        sdf("an atom too many").replace("  3  2  0", "  2  2  0"),
        sdf("no number").replace("1.5000    0.0000 ", "1.5000       nix "),
        V3000.replace(" O ", " Xx "),
        V3000.replace("M  V30 END BOND\n", ""),
    ]
    found = made(tmp_path, "".join(records) + V3000, "a.sdf")
    assert found.smiles == ["CC[O-]"] and found.records[0].name == "v3"
    told = why(found)
    words = ["no line 'M  END'", "bond 2 is between atoms 2 and 9, of 3", "3 atoms and 1 bond, and there are more",
             "line 1 of the bonds is none", "line 2 of the atoms is none", "Xx is no element", ""]  # fmt: skip
    for record, text in enumerate(words, 1):
        assert text in told[record] and "[" not in told[record] and ".cpp" not in told[record], told[record]


def test_sdf_records_behind_an_empty_line_and_values_that_begin_with_an_angle(tmp_path: Path) -> None:
    after = "> <a>\n> b\n\n> <c>\n> <d>\n1\n> 2\n\n> <e>\none\n\ntwo\n\n>  7 DT12\nfoo\n\n"
    found = made(tmp_path, sdf("one", after=after) + "\n" + sdf("two"), "a.sdf")
    assert [(r.smiles, r.name) for r in found.records] == [("CCO", "one"), ("CCO", "two")]
    wanted = {"a": "> b", "c": None, "d": "1\n> 2", "e": "one\n\ntwo", "7 DT12": "foo"}
    assert found.records[0].properties == wanted


V3000 = """v3
  own

  0  0  0     0  0            999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 3 2 0 0 0
M  V30 BEGIN ATOM
M  V30 1 C 0 0 0 0
M  V30 2 C 1.5 0 0 0
M  V30 3 O 2.2 1.2 0 0 -
M  V30 CHG=-1
M  V30 END ATOM
M  V30 BEGIN BOND
M  V30 1 1 1 2
M  V30 2 1 2 3
M  V30 END BOND
M  V30 END CTAB
M  END
$$$$
"""


def test_sdf_properties_of_several_lines_and_coordinates(tmp_path: Path) -> None:
    after = "> <note>\nfirst line\nsecond line\n\n>  25  <pIC50> (x)\n7.5\n\n> <empty>\n\n"
    found = made(tmp_path, sdf("one", after=after).replace("\n", "\r\n"), "a.sdf")
    (record,) = found.records
    assert record.properties == {"note": "first line\nsecond line", "pIC50": "7.5", "empty": None}
    assert record.smiles == "CCO" and found.numbers("pIC50") == [7.5]
    assert record.mol.GetConformer().GetAtomPosition(2).y == pytest.approx(1.2)


def test_two_conformers_are_two_records_or_one_molecule_and_one_distinct_either_way(tmp_path: Path) -> None:
    text = sdf() + sdf(y="-1.200")
    found = made(tmp_path, text, "a.sdf")
    assert (len(found), found.distinct) == (2, ["CCO"])
    merged = made(tmp_path, text, "a.sdf", conformers="merge")
    assert len(merged) == 1 and merged.records[0].mol.GetNumConformers() == 2
    places = [c.GetAtomPosition(2).y for c in merged.records[0].mol.GetConformers()]
    assert places == pytest.approx([1.2, -1.2])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    smiles = ["CCO", "c1ccncc1", "C[C@H](N)C(=O)O"]
    for name in ("a.smi", "a.csv", "a.sdf"):
        write_molecules(tmp_path / name, smiles, columns={"qed": [0.1, 0.2, None]})
        found = read_molecules(tmp_path / name)
        assert found.smiles == [Chem.CanonSmiles(s) for s in smiles]
        if name != "a.smi":
            assert found.numbers("qed") == [0.1, 0.2, None]
    with pytest.raises(ValueError, match=r"end in \.smi, \.csv, \.sdf"):
        write_molecules(tmp_path / "a.xyz", smiles)


def test_names_and_values_of_several_lines_do_not_break_what_is_written(tmp_path: Path) -> None:
    smiles, names = ["CCO", "CCN"], ["two\nCN lines", "b"]
    columns = {"a > b": ["x\n\n$$$$\n> <y>\nz", None]}
    for name in ("a.smi", "a.csv", "a.sdf"):
        write_molecules(tmp_path / name, smiles, names=names, columns=columns)
        found = read_molecules(tmp_path / name)
        assert found.smiles == smiles and not found.rejected
        assert [" ".join(r.name.split()) for r in found.records] == ["two CN lines", "b"]
    assert found.records[0].properties["a > b"] == "x\n $$$$\n > <y>\nz"


def test_a_prepared_table_has_one_column_of_smiles(tmp_path: Path) -> None:
    from manifoldflow.tasks.molecules.prepare_command import prepare

    (tmp_path / "a.sdf").write_text(sdf("one", after="> <smiles>\nOCC\n\n> <name>\nother\n\n"))
    prepare(str(tmp_path / "a.sdf"), str(tmp_path / "b.csv"))
    lines = (tmp_path / "b.csv").read_text().splitlines()
    assert lines == ["smiles,name,smiles_in_file,name_in_file", "CCO,one,OCC,other"]
    prepare(str(tmp_path / "b.csv"), str(tmp_path / "c.sdf"))
    prepare(str(tmp_path / "c.sdf"), str(tmp_path / "d.csv"))  # what is the same is not said twice
    assert (tmp_path / "d.csv").read_text().splitlines()[0] == "smiles,name,smiles_in_file,name_in_file"
