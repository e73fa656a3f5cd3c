"""Motif files as people have them, against tables written down here and against Biopython's readers."""

import io
import json
import sys

import numpy as np
import pytest

from manifoldflow.tasks.dna.motifs import Motif, read_motifs

COUNTS = np.array(
    [[4, 0, 6, 10], [20, 0, 0, 0], [1, 17, 1, 1], [0, 2, 16, 2], [2, 3, 0, 15], [9, 1, 9, 1]], dtype=float
)
SHARES = COUNTS / 20
CONSENSUS = "TACGTR"
"""What the table says, by its commonest letters; A and G tie at the last place."""


def lines(table, lead=None, tail=None, between="\t"):
    rows = [between.join(f"{v:g}" for v in row) for row in table]
    rows = [row if lead is None else f"{lead[i]}{between}{row}" for i, row in enumerate(rows)]
    return "\n".join(row if tail is None else f"{row}{between}{tail[i]}" for i, row in enumerate(rows)) + "\n"


def numbered(table, order="ACGT"):
    return lines(table[:, ["ACGT".index(c) for c in order]], [f"{i + 1:02d}" for i in range(len(table))])


HOMER = ">TACGTR\tFOO(bZIP)/Cell-FOO-ChIP-Seq(GSE1)/Homer\t6.04\t-1782.9\t0\tT:980.0(5%),P:1e-10\n"
LOG_ODDS = np.log((COUNTS + 0.25) / 21 / 0.25)

TRANSFAC = (
    "AC  M1\nXX\nID  FOO\nXX\nP0      A      C      G      T\n"
    + lines(COUNTS, [f"{i:02d}" for i in range(1, 7)], CONSENSUS, " ")
    + "XX\nIC 1 2 3 4\nXX\nXL\n00 36\n01 2\nXX\n//\n"
)
MEME = "MEME version 4\n\nALPHABET= ACGT\n\nMOTIF M1 FOO\nletter-probability matrix: alength= 4 w= 6 nsites= 20\n"
MEME += lines(SHARES)
BRACKETS = [" ".join(f"{v:g}" for v in row) for row in COUNTS.T]

LAYOUTS = {
    "jaspar": (">M1\tFOO\n" + "".join(f"{c} [ {row} ]\n" for c, row in zip("ACGT", BRACKETS, strict=True)), 1),
    "jaspar glued": (">M1 FOO\n" + "".join(f"{c}  [{row}]\n" for c, row in zip("ACGT", BRACKETS, strict=True)), 1),
    "jaspar old": (">M1 FOO\n" + lines(COUNTS.T), 1),
    "comments first": ("# a database\n# Date: then\n>M1 FOO\n" + lines(COUNTS.T, "ACGT"), 1),
    "four bare rows": (lines(COUNTS.T, between="  "), 1),
    "bars, order ATCG": (lines(COUNTS.T[[0, 3, 1, 2]], [f"{c} |" for c in "ATCG"], between=" "), 1),
    "UniPROBE": ("Protein: Foo\tSeed k-mer: TACGT\n\n" + lines(SHARES.T, ["A:", "C:", "G:", "T:"]), 20),
    "RNA rows": (">M1\n" + lines(COUNTS.T, "acgu"), 1),
    "cluster-buster": (">M1\n# WEIGHT: 3.0\n# GAP: 10.0\n" + lines(COUNTS), 1),
    "gimme": (">M1\n" + lines(SHARES), 20),
    "HOMER": (HOMER + lines(SHARES), 20),
    "ENCODE, consensus leads": (">M1 FOO_K562\n" + lines(SHARES, CONSENSUS, between=" "), 20),
    "consensus behind": (">M1\n" + lines(COUNTS, tail=CONSENSUS), 1),
    "CIS-BP": ("TF\tT0001\nTF Name\tFOO\nGene\tENSG1\nMotif\tM0001\nPos\tA\tC\tG\tT\n" + numbered(SHARES), 20),
    "CIS-BP, other order": ("Pos\tT\tG\tA\tC\n" + numbered(SHARES, "TGAC"), 20),
    "Tiffin": ("T A G C\n" + lines(COUNTS[:, [3, 0, 2, 1]]), 1),
    "commas": (",A,C,G,T\n" + "\n".join(f"{i}," + ",".join(f"{v:g}" for v in row) for i, row in enumerate(COUNTS)), 1),
    "Windows": (">M1\tFOO\r\n" + lines(COUNTS).replace("\n", "\r\n"), 1),
    "TRANSFAC": (TRANSFAC, 1),
    "STAMP": ("DE\tFOO\n" + lines(COUNTS, "012345", CONSENSUS) + "XX\n", 1),
    "MEME": (MEME, 1),
    "MEME, nothing said": ("MEME version 5.5\n\nMOTIF M1\nletter-probability matrix:\n" + lines(SHARES), 1),
    "MEME with scores first": (MEME.replace("letter", f"log-odds matrix: w= 6\n{lines(LOG_ODDS)}\nletter"), 1),
    "counted places": (">M1\n    1 2 3 4 5 6\n" + lines(COUNTS.T, "ACGT", between=" "), 1),
    "MEME, all of it": (
        "****\nMEME - Motif discovery tool\n****\nMEME version 4.1\n\n"
        + MEME.split("\n\n")[-1].replace(
            "MOTIF M1 FOO\n",
            "MOTIF  M1\twidth =   6  sites =  20\n\n\tMotif M1 position-specific probability matrix\n---\n",
        ),
        1,
    ),
    "JSON": (
        json.dumps({"matrix_id": "M1", "name": "FOO", "pfm": {c: COUNTS.T[i].tolist() for i, c in enumerate("ACGT")}}),
        1,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_table(tmp_path, layout):
    text, scale = LAYOUTS[layout]
    (tmp_path / "FOO.txt").write_bytes(text.encode())
    (motif,) = read_motifs(tmp_path / "FOO.txt")
    assert np.allclose(np.array(motif.counts) * scale, COUNTS, atol=1e-4)
    assert {motif.name.upper(), motif.identifier} & {"FOO", "M1"}
    # whatever the file holds, shares or counts, the pseudocount weighs the same
    assert np.allclose(motif.probabilities().numpy(), (COUNTS + 0.5) / 22, atol=1e-5)


def test_several_motifs_lie_in_one_file(tmp_path):
    text = "".join(
        f"# {kind}\n{LAYOUTS[kind][0]}\n" for kind in ("gimme", "HOMER", "CIS-BP", "Tiffin", "cluster-buster")
    )
    (tmp_path / "all.txt").write_text(text)
    motifs = read_motifs(tmp_path / "all.txt")
    assert [m.identifier for m in motifs] == ["M1", "FOO(bZIP)/Cell-FOO-ChIP-Seq(GSE1)/Homer", "M0001", "all_4", "M1"]
    assert all(np.allclose(m.probabilities(0.0).numpy(), SHARES, atol=1e-5) for m in motifs)


@pytest.mark.parametrize(
    "kind, layout",
    [
        ("jaspar", "jaspar"),
        ("jaspar", "jaspar old"),
        ("clusterbuster", "cluster-buster"),
        ("pfm-four-columns", "CIS-BP, other order"),
        ("pfm-four-columns", "Tiffin"),
        ("pfm-four-columns", "HOMER"),
        ("pfm-four-rows", "bars, order ATCG"),
        ("transfac", "TRANSFAC"),
    ],
)
def test_biopython_reads_the_same(tmp_path, kind, layout):
    motifs = pytest.importorskip("Bio.motifs")
    (tmp_path / "a").write_text(LAYOUTS[layout][0])
    (theirs,) = motifs.parse(io.StringIO(LAYOUTS[layout][0]), kind, **({"strict": False} if kind == "transfac" else {}))
    (ours,) = read_motifs(tmp_path / "a")
    assert np.allclose(np.array([theirs.counts[c] for c in "ACGT"]).T, ours.counts)


@pytest.mark.parametrize("kind", ["jaspar", "transfac", "clusterbuster"])
def test_what_biopython_writes_is_read(tmp_path, kind):
    motifs = pytest.importorskip("Bio.motifs")
    made = motifs.Motif(counts={c: COUNTS.T[i].tolist() for i, c in enumerate("ACGT")})
    made.name = made.matrix_id = "FOO"
    made.base_id, made.version = "FOO", None
    if kind == "transfac":
        from Bio.motifs.transfac import Motif as Other

        made = Other(alphabet="ACGT", counts=made.counts)
        made["ID"] = "FOO"
    (tmp_path / "FOO").write_text(motifs.write([made], kind))
    (motif,) = read_motifs(tmp_path / "FOO")
    assert np.allclose(motif.counts, COUNTS) and motif.identifier == "FOO"


def test_formats_that_biopython_reads_for_us(tmp_path):
    pytest.importorskip("Bio.motifs")
    sites = "".join(f">M1 FOO {i}\nttt{s}aa\n" for i, s in enumerate(("TACG", "TACG", "AACG")))
    weights = {"adenine": 0, "cytosine": 1, "guanine": 2, "thymine": 3}
    columns = "".join(
        f'<column pos="{p}">'
        + "".join(f'<weight symbol="{s}">{row[i]}</weight>' for s, i in weights.items())
        + "</column>"
        for p, row in enumerate(SHARES)
    )
    xms = f'<motifset><motif><name>FOO</name><weightmatrix alphabet="DNA" columns="6">{columns}</weightmatrix></motif></motifset>'
    for name, text, table in (
        ("a.sites", sites, [[1, 0, 0, 2], [3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]]),
        ("a.xms", xms, SHARES),
    ):
        (tmp_path / name).write_text(text)
        (motif,) = read_motifs(tmp_path / name)
        assert np.allclose(motif.counts, table) and motif.name == "FOO"


@pytest.mark.parametrize("base", [2.0, np.e])
def test_log_odds_become_probabilities(tmp_path, base):
    p = (COUNTS + 0.25) / 21
    (tmp_path / "a.pwm").write_text(">M1\n" + lines(np.log(p / 0.25) / np.log(base)))
    (motif,) = read_motifs(tmp_path / "a.pwm")
    assert np.allclose(motif.counts, p, atol=1e-4)


def test_a_motif_without_a_matrix_does_not_lose_the_others(tmp_path):
    whole = LAYOUTS["MEME"][0]
    (tmp_path / "a.meme").write_text(whole + "\nMOTIF 2 CAGM-1\n\nMOTIF 3 CAGM-2\nletter-probability matrix: w= 0\n\n")
    with pytest.warns(UserWarning, match=r"a\.meme: 2 CAGM-1, 3 CAGM-2 left out, without a matrix"):
        assert [m.identifier for m in read_motifs(tmp_path / "a.meme")] == ["M1"]
    (tmp_path / "a.pfm").write_text(">M0 none\n\n" + LAYOUTS["jaspar"][0])
    with pytest.warns(UserWarning, match="M0 left out"):
        assert len(read_motifs(tmp_path / "a.pfm")) == 1


def test_four_by_four_is_read_by_what_makes_sense(tmp_path):
    table = np.array([[10, 80, 5, 5], [70, 10, 10, 10], [25, 25, 25, 25], [90, 2, 4, 4]], dtype=float)
    for text in (lines(table), lines(table.T), lines(table.T, "ACGT"), lines(table, "CANA")):
        (tmp_path / "a").write_text(">M1\n" + text)
        assert np.allclose(read_motifs(tmp_path / "a")[0].counts, table), text
    # a consensus that spells A, C, G, T is no row of each letter
    spelled = np.array([[90, 2, 4, 4], [10, 80, 5, 5], [1, 1, 95, 3], [0, 0, 30, 70]], dtype=float)
    (tmp_path / "a").write_text(">M1\n" + lines(spelled, "ACGT", between=" "))
    assert np.allclose(read_motifs(tmp_path / "a")[0].counts, spelled)
    (tmp_path / "a").write_text(">M1\n" + lines(np.array([[1, 2, 3, 4], [4, 1, 2, 3], [3, 4, 1, 2], [2, 3, 4, 1]])))
    with pytest.raises(ValueError, match="motif M1: it can be read as four rows of letters or four columns of letters"):
        read_motifs(tmp_path / "a")


@pytest.mark.parametrize(
    "text, words",
    [
        ("hello", r"no motifs that can be read; tried were JASPAR, MEME, TRANSFAC, HOMER"),
        (">M1\nMKVLAAGG\n", "no motifs .* M1 come without a matrix"),
        (
            ">M1\n" + lines(SHARES.T[:, :3], "ACGT").replace("0.2", "0.9"),
            "motif M1: the probabilities of place 1 sum to 1.7",
        ),
        (">M1\n" + lines(SHARES, "GGGGGG"), "motif M1: its consensus says G at place 1, the numbers T"),
        (">M1\n" + lines(COUNTS[:, :3]), "six|6 rows of 3"),
        (">M1\n" + lines(COUNTS) + "1 2 3\n", "row 7 has fewer numbers than the others: 3 instead of 4"),
        (">M1\n" + lines(LOG_ODDS * 3), "numbers below 0"),
        (">M1\n" + lines(COUNTS * [[1], [1], [1], [1], [50], [1]]), "place 5 counts 1000 sites where others count 20"),
        (
            "MEME version 4\nMOTIF A\nletter-probability matrix: alength= 20 w= 1\n" + "0.05 " * 20,
            "alphabet of 20 letters",
        ),
        ("MEME version 4\nMOTIF A\nletter-probability matrix: alength= 4 w= 1\n3 4 5 6\n", "holds no probabilities"),
        ('{"pfm": ', "damaged JSON"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, text, words):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_motifs(tmp_path / "bad")


def test_text_needs_no_biopython(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "Bio", None)
    (tmp_path / "a").write_text(LAYOUTS["jaspar"][0])
    assert len(read_motifs(tmp_path / "a")) == 1
    (tmp_path / "a").write_text("<motifset></motifset>")
    with pytest.raises(ImportError, match=r"manifoldflow\[dna\]"):
        read_motifs(tmp_path / "a")


def test_shares_weigh_as_twenty_sites():
    shares = Motif("a", "A", tuple(tuple(row) for row in SHARES.tolist()))
    counts = Motif("a", "A", tuple(tuple(row) for row in COUNTS.tolist()))
    assert np.allclose(shares.log_odds(), counts.log_odds())


def test_a_consensus_is_a_motif():
    motif = Motif.from_consensus("ets", "RGAN", 0.9)
    assert np.allclose(
        motif.counts, [[0.45, 0.05, 0.45, 0.05], [1 / 30, 1 / 30, 0.9, 1 / 30], [0.9] + [1 / 30] * 3, [0.25] * 4]
    )
    with pytest.raises(ValueError, match="no letter of DNA"):
        Motif.from_consensus("x", "GAX")
    with pytest.raises(ValueError, match="share must lie"):
        Motif.from_consensus("x", "GA", 1.0)
