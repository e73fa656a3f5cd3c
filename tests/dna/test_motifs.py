"""Motifs against Biopython, enumeration and real peaks."""

import gzip
import itertools
import re

import pytest
import torch

from manifoldflow.tasks.dna.alphabet import decode, encode
from manifoldflow.tasks.dna.motifs import (
    Motif,
    best_hits,
    find_motif,
    find_sites,
    hit_rate,
    position_profile,
    read_motifs,
    score_all,
    threshold,
)
from manifoldflow.tasks.dna.sets import load_set
from testkit.shared import SHARED_DATA, needs_shared_data


def some_motifs():
    generator = torch.Generator().manual_seed(0)
    return [
        Motif(f"m{w}", f"M{w}", tuple(tuple(r) for r in torch.randint(0, 30, (w, 4), generator=generator).tolist()))
        for w in (3, 8, 12)
    ]


def random_sequences(count, length, seed=0):
    return torch.randint(4, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("background", [(0.25,) * 4, (0.3, 0.2, 0.15, 0.35)])
def test_scores_are_biopythons(background):
    motifs = pytest.importorskip("Bio.motifs")
    tokens = random_sequences(3, 40)
    ours = some_motifs()
    both = best_hits(tokens, ours, background=background)
    forward = score_all(tokens, ours, background=background)
    for number, motif in enumerate(ours):
        counts = {letter: [row[i] for row in motif.counts] for i, letter in enumerate("ACGT")}
        theirs = motifs.Motif(counts=counts)
        law = dict(zip("ACGT", background, strict=True))
        table = theirs.counts.normalize(pseudocounts=0.5).log_odds(law)
        other = table.reverse_complement()
        for row, sequence in enumerate(decode(tokens)):
            one, two = torch.tensor(table.calculate(sequence)), torch.tensor(other.calculate(sequence))
            assert (forward[row, number, : len(one)] - one).abs().max() < 1e-4
            assert (forward[row, number, len(one) :] == -torch.inf).all()
            best = one.maximum(two)
            assert abs(float(both.score[row, number] - best.max())) < 1e-4
            strand = two if both.on_reverse[row, number] else one  # repeated sites may tie
            assert abs(float(strand[both.start[row, number]] - best.max())) < 1e-4


def test_thresholds_are_those_of_enumeration():
    motif = some_motifs()[1]
    background = (0.3, 0.2, 0.2, 0.3)
    every = torch.tensor(list(itertools.product(range(4), repeat=8)))
    score = score_all(every, [motif], background=background)[:, 0, 0].double()
    chance = torch.tensor(background, dtype=torch.float64)[every].prod(-1)
    for p in (0.1, 1e-2, 1e-3, 1e-4):
        least = threshold(motif, p, background=background)
        assert float(chance[score >= least + 5e-3].sum()) <= p * 1.0001
        below = score[score < least - 5e-3].max()
        assert float(chance[score >= below - 1e-6].sum()) > p * 0.98


@pytest.mark.parametrize("p", [1e-2, 1e-3, 1e-4])
def test_no_threshold_lets_more_through_than_asked(p):
    generator = torch.Generator().manual_seed(1)
    every = torch.cartesian_prod(*[torch.arange(4)] * 8)
    for number in range(40):
        counts = torch.randint(0, 60, (8, 4), generator=generator)
        motif = Motif(f"m{number}", f"M{number}", tuple(tuple(r) for r in counts.tolist()))
        score = motif.log_odds()[torch.arange(8), every].sum(-1)
        share = float((score >= threshold(motif, p)).double().mean())
        ladder = score.sort(descending=True).values
        # within the rounding of one place, no less than that either
        nearly = float((score >= ladder[int(p * len(score))] + 0.01).double().mean())
        assert nearly <= share <= p, (number, share)


def test_thresholds_are_biopythons():
    motifs = pytest.importorskip("Bio.motifs")
    from Bio.motifs.thresholds import ScoreDistribution

    for motif in some_motifs()[1:]:
        counts = {letter: [row[i] for row in motif.counts] for i, letter in enumerate("ACGT")}
        table = motifs.Motif(counts=counts).counts.normalize(pseudocounts=0.5).log_odds()
        law = ScoreDistribution(pssm=table, background=dict.fromkeys("ACGT", 0.25), precision=10**3)
        for p in (1e-2, 1e-3):
            assert abs(threshold(motif, p) - law.threshold_fpr(p)) < 0.05


def test_profiles_know_strands_and_padding():
    motif = Motif("a", "A", ((9.0, 0.0, 0.0, 0.0),) * 4)
    tokens, mask, _ = encode(["CCAAAACCCC", "CC", "CCCCCTTTTC"])
    profile = position_profile(tokens, motif, 5.0, mask=mask)
    assert profile.nonzero().flatten().tolist() == [2]  # padding is stored as A
    both = position_profile(tokens, motif, 5.0, mask=mask, both_strands=True)
    assert both.nonzero().flatten().tolist() == [2, 5]


def test_padding_hides_no_site_and_makes_none():
    tokens, mask, _ = encode(["ACGTACGTAC", "TTTTT", "GG"])
    scores = best_hits(tokens, some_motifs(), mask=mask)
    for row, width in ((0, 10), (1, 5), (2, 2)):
        alone = best_hits(tokens[row : row + 1, :width], some_motifs())
        finite = alone.score.isfinite()
        assert (finite == scores.score[row].isfinite()).all()
        assert torch.allclose(alone.score[finite], scores.score[row][finite[0]][None].flatten(), atol=1e-5)


def test_pieces_of_the_scan_change_nothing():
    tokens = random_sequences(17, 30)
    whole, pieces = best_hits(tokens, some_motifs()), best_hits(tokens, some_motifs(), cells=100)
    assert torch.allclose(whole.score, pieces.score, atol=1e-5)
    assert (whole.start == pieces.start).float().mean() > 0.9  # all but ties


def test_the_expected_score_is_linear_in_probabilities():
    tokens = random_sequences(5, 20)
    hot = torch.nn.functional.one_hot(tokens, 4).float()
    mixed = (0.3 * hot + 0.7 * hot.flip(0)).requires_grad_(True)
    motif = some_motifs()[:1]
    score = score_all(mixed, motif)[:, 0, :18]
    expected = 0.3 * score_all(tokens, motif)[:, 0, :18] + 0.7 * score_all(tokens.flip(0), motif)[:, 0, :18]
    assert (score - expected).abs().max() < 1e-4
    score.sum().backward()
    assert mixed.grad.abs().sum() > 0


@pytest.mark.parametrize("pattern", ["GAATTC", "GGTCTC", "CCWGG", "N", "ACGTACGTACGTA"])
def test_sites_are_those_of_a_regular_expression(pattern):
    codes = {"W": "[AT]", "N": "[ACGT]"}
    turn = str.maketrans("ACGTWN", "TGCAWN")
    tokens = random_sequences(200, 60, 3)
    tokens[:50, 10:16] = encode(["GAATTC"])[0]
    found = find_sites(tokens, pattern)
    for row, sequence in zip(found, decode(tokens), strict=True):
        either = "|".join("".join(codes.get(c, c) for c in p) for p in (pattern, pattern.translate(turn)[::-1]))
        expected = [m.start() for m in re.finditer(f"(?={either})", sequence)]
        assert row.nonzero().flatten().tolist() == expected


def test_meme_and_jaspar_and_transfac_say_the_same(tmp_path):
    rows = ((4, 0, 6, 10), (20, 0, 0, 0), (5, 5, 5, 5))
    columns = {letter: [row[i] for row in rows] for i, letter in enumerate("ACGT")}
    jaspar = ">MA1.1\tTEST\n" + "".join(f"{c} [ {' '.join(map(str, columns[c]))} ]\n" for c in "ACGT")
    meme = "MEME version 4\n\nALPHABET= ACGT\n\nMOTIF MA1.1 TEST\nletter-probability matrix: alength= 4 w= 3 nsites= 20 E= 0\n"
    meme += "".join(" ".join(f"{v / 20:.6f}" for v in row) + "\n" for row in rows)
    transfac = "AC  MA1.1\nXX\nID  TEST\nXX\nP0  A C G T\n"
    transfac += "".join(f"{i + 1:02d} {' '.join(map(str, row))}\n" for i, row in enumerate(rows)) + "XX\n//\n"
    for name, text in (("a.pfm", jaspar), ("a.meme", meme), ("a.transfac", transfac)):
        (tmp_path / name).write_text(text)
        (motif,) = read_motifs(tmp_path / name)
        assert (motif.name, motif.identifier) == ("TEST", "MA1.1")
        assert torch.allclose(torch.tensor(motif.counts), torch.tensor(rows).float(), atol=1e-3)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="four counts"):
        Motif("a", "b", ((0.0, 0.0, 0.0, 0.0),))
    with pytest.raises(ValueError, match="no motif 'ctcx'"):
        find_motif(some_motifs(), "ctcx")
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold(some_motifs()[0], 0.0)
    with pytest.raises(ValueError, match="no letter"):
        find_sites(random_sequences(1, 5), "GAX")
    with pytest.raises(ValueError, match="four counts"):
        Motif("a", "b", ((float("nan"), 1.0, 1.0, 1.0),))
    with pytest.raises(ValueError, match="pseudocount must be above 0"):
        score_all(random_sequences(1, 5), [Motif("a", "b", ((1.0, 0.0, 0.0, 0.0),))], pseudocount=0.0)
    with pytest.raises(ValueError, match="of sum 1"):
        threshold(some_motifs()[0], 1e-2, background=(1.0, 1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="0 motifs"):
        best_hits(random_sequences(2, 5), [])
    assert best_hits(random_sequences(0, 5), some_motifs()).score.shape == (0, 3)
    (tmp_path / "x").write_text("hello")
    with pytest.raises(ValueError, match="no motifs that can be read; tried were JASPAR, MEME"):
        read_motifs(tmp_path / "x")


@pytest.mark.parametrize(
    "content, words",
    [
        (">M1 x\nA 1 2\nC 1 2\nG 1 2\n", "rows A, C, G, T of one length"),
        (">M1 x\nA 1 2\nC 1 2\nG 1 2\nT 1\n", "T 1"),
        ("MEME version 4\nMOTIF A b\nletter-probability matrix: w= 3\n0.1 0.2 0.3 0.4\n", "says w= 3 and has 1"),
        ("AC M1\nP0 A C G N\n01 1 2 3 4\n//\n", "columns A C G N"),
        ("AC M1\nP0 A C G T\n01 1 2 3\n//\n", "row 1 has fewer"),
    ],
)
def test_bad_motif_files_are_named(tmp_path, content, words):
    (tmp_path / "bad").write_text(content)
    with pytest.raises(ValueError, match=f"bad: .*{words}"):
        read_motifs(tmp_path / "bad")


def test_letters_of_a_matrix_may_come_in_any_order_and_meme_with_its_title(tmp_path):
    (tmp_path / "a").write_text("AC M1\nID x\nP0 T C A G\n01 4 2 1 3\n//\n")
    assert read_motifs(tmp_path / "a")[0].counts == ((1.0, 2.0, 3.0, 4.0),)
    body = "MEME version 5\nMOTIF A b\nletter-probability matrix: alength= 4 w= 1 nsites= 10\n 0.1 0.2 0.3 0.4\n"
    (tmp_path / "b").write_text(f"****\nMEME - Motif discovery tool\n****\n{body}")
    assert read_motifs(tmp_path / "b")[0].counts == ((1.0, 2.0, 3.0, 4.0),)


def test_a_broken_gzip_of_motifs_is_named(tmp_path):
    packed = bytearray(gzip.compress(b">M1 x\nA 1\nC 1\nG 1\nT 1\n" * 500))
    packed[20:40] = b"\xff" * 20
    (tmp_path / "x.gz").write_bytes(packed)
    with pytest.raises(ValueError, match="whole gzip"):
        read_motifs(tmp_path / "x.gz")


@needs_shared_data
def test_shared_motif_files():
    folder = SHARED_DATA / "dna"
    assert len(read_motifs(folder / "jaspar2016_vertebrates.pfm")) == 519
    assert len(read_motifs(folder / "jaspar2024_vertebrates.transfac.gz")) == 879
    assert len(read_motifs(folder / "motifs_small.meme")) == 12


@needs_shared_data
def test_peaks_carry_their_own_motif():
    data = load_set("ctcf_pu1")
    known = read_motifs(SHARED_DATA / "dna" / "jaspar2016_vertebrates.pfm")
    ctcf, pu1 = find_motif(known, "MA0139.1"), find_motif(known, "MA0080.4")
    rates = {}
    for name, motif in (("ctcf", ctcf), ("pu1", pu1)):
        least = threshold(motif, 1e-4)
        for number, kind in enumerate(data.classes):
            rates[name, kind] = hit_rate(data.tokens[data.labels == number][:3000], motif, least)
    assert rates["ctcf", "ctcf"] > 0.5 > 5 * rates["ctcf", "pu1"]
    assert rates["pu1", "pu1"] > 0.5 > 2 * rates["pu1", "ctcf"]


@needs_shared_data
def test_the_tata_box_lies_30_before_the_start():
    data = load_set("promoters", species="arabidopsis")
    tata = find_motif(read_motifs(SHARED_DATA / "dna" / "jaspar2016_vertebrates.pfm"), "MA0108.2")
    kind = data.classes.index("tata")
    profile = position_profile(data.tokens[data.labels == kind], tata, threshold(tata, 1e-3))
    assert abs(int(profile.argmax()) - (200 - 33)) <= 5
