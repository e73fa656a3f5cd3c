"""The designer keeps what it is told to keep, avoids what it is told to avoid, and says what it cannot do."""

import pytest
import torch

from manifoldflow.tasks.dna.alphabet import encode
from manifoldflow.tasks.dna.designer import SequenceDesigner
from manifoldflow.tasks.dna.flow import DnaConfig, build
from manifoldflow.tasks.dna.motifs import find_sites


def designer(representation="masking", length=30, classes="a,b"):
    torch.manual_seed(0)
    config = DnaConfig(representation=representation, length=length, classes=classes, width=16, kernel=5)
    return SequenceDesigner(build(config), config)


@pytest.mark.parametrize("representation", ["masking", "uniform", "dirichlet", "fisher_rao"])
def test_what_is_asked_is_in_every_design(representation):
    made = designer(representation).design(
        12,
        label="b",
        guidance=1.5,
        fixed="ACG" + 24 * "N" + "TTT",
        motifs=["GGGCCC", ("TATA", 6)],
        avoid_sites=["GAATTC", "CCWGG"],
        gc_range=(0.3, 0.7),
        steps=4,
        seed=1,
    )
    assert len(made) == 12
    for one in made:
        assert len(one.sequence) == 30 and one.sequence.startswith("ACG") and one.sequence.endswith("TTT")
        assert one.sequence[6:10] == "TATA" and "GGGCCC" in one.sequence
        assert 0.3 <= one.gc <= 0.7 and one.label == "b"
        assert abs(one.gc - sum(c in "GC" for c in one.sequence) / 30) < 1e-6
        assert one.kept[0][0] == 0 and one.kept[-1][1] == 30  # neighbours are one run
    tokens = encode([d.sequence for d in made])[0]
    assert not find_sites(tokens, "GAATTC").any() and not find_sites(tokens, "CCWGG").any()
    places = {d.sequence.index("GGGCCC") for d in made}
    assert len(places) > 1  # a motif without a place goes anywhere


def test_the_same_call_gives_the_same_sequences():
    one = designer()
    first = [d.sequence for d in one.design(5, steps=3, seed=7)]
    assert first == [d.sequence for d in one.design(5, steps=3, seed=7)]
    assert first != [d.sequence for d in one.design(5, steps=3, seed=8)]
    assert next(one.stream(5, steps=3, seed=7)).sequence == first[0]


def test_an_oracle_is_followed():
    def more_gc(p):
        return p[..., 1:3].sum((1, 2))

    plain = designer().design(60, steps=8, seed=0)
    steered = designer().design(60, oracle=more_gc, oracle_scale=2.0, steps=8, seed=0)
    assert sum(d.gc for d in steered) / 60 > sum(d.gc for d in plain) / 60 + 0.15


def test_scores_are_bounds_per_letter():
    one = designer()
    with torch.no_grad():
        one.flow.model.last[-1].bias.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
        one.flow.model.last[-1].weight.zero_()
    rich, poor = one.score([30 * "A", 30 * "C"], samples=200)
    p = torch.tensor([3.0, 0.0, 0.0, 0.0]).log_softmax(0)
    assert abs(rich - float(p[0])) < 0.03 and abs(poor - float(p[1])) < 0.5


@pytest.mark.parametrize(
    "options, words",
    [
        ({"n": 0}, "between 1 and"),
        ({"n": 10**9}, "between 1 and"),
        ({"label": "c"}, "no class 'c'"),
        ({"guidance": 2.0}, "give label="),
        ({"length": 31}, "between 1 and 30"),
        ({"fixed": "ACGT", "length": 10}, "fixed has 4"),
        ({"fixed": "ACX" + 27 * "N"}, "no letter of DNA"),
        (
            {"fixed": "ACGTNNNNACGT"},
            r"fixed has 12 letters, but this flow was trained on sequences of 30; .* length=12",
        ),
        (
            {"gc_range": (0.34, 0.36)},
            r"gc_range 0.34 to 0.36 holds no share that 30 letters can have .*0.3333 and 0.3667",
        ),
        ({"fixed": 20 * "G" + 10 * "N", "gc_range": (0.1, 0.3)}, r"lies between 0.667 and 1; change gc_range"),
        ({"fixed": 20 * "A" + 10 * "N", "motifs": ["TATAT"], "gc_range": (0.2, 0.3)}, r"lies between 0 and 0.167"),
        ({"motifs": ["TTTTT", ("AAAAAAAAAA", 2)], "gc_range": (0.6, 1.0)}, r"lies between 0 and 0.5"),
        ({"avoid_sites": ["S"], "gc_range": (0.3, 0.5)}, r"lies between 0 and 0"),
        ({"avoid_sites": ["N"]}, r"leave no letter for the 30 free places"),
        ({"motifs": [("ACGT", 28)]}, "does not fit"),
        ({"motifs": [""]}, "is empty"),
        ({"motifs": ["ACGTACGTACGTACGT", "ACGTACGTACGTACGT"]}, "finds no room"),
        ({"motifs": ["TGAATTCA"], "avoid_sites": ["GAATTC"]}, "holds the site GAATTC"),
        ({"fixed": "GAATTC" + 24 * "N", "avoid_sites": ["GAATTC"]}, "fixed letters hold"),
        ({"avoid_sites": ["GAX"]}, "no letter of DNA"),
        ({"gc_range": (0.8, 0.2)}, "gc_range"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_met_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        designer().design(**({"n": 2, "steps": 2} | options))


def test_giving_up_says_how_many_passed_of_what_and_what_to_do():
    with pytest.raises(
        RuntimeError, match=r"only 0 of \d+ sequences had a GC share of 1 to 1; widen gc_range, ask for"
    ):
        designer().design(2, gc_range=(1.0, 1.0), steps=2, rounds=2)
    with pytest.raises(RuntimeError, match=r"had no site AW, CS; avoid fewer sites, ask for"):
        designer().design(2, avoid_sites=["aw", "CS"], steps=2, rounds=2)
    with pytest.raises(ValueError, match="no bound"):
        designer("dirichlet").score(["ACGT"])
    with pytest.raises(ValueError, match="one length, these have 2 to 4"):
        designer().score(["ACGT", "AC"])
    with pytest.raises(ValueError, match="to score have 10 letters, but this flow was trained on sequences of 30"):
        designer().score(["ACGTACGTAC"])


def test_a_flow_of_several_lengths_takes_each_of_them():
    config = DnaConfig(length=30, shortest=12, width=16, kernel=5)
    one = SequenceDesigner(build(config), config)
    assert len(one.design(1, fixed="ACGT" + 8 * "N", steps=2)[0].sequence) == 12
    assert len(one.score([12 * "A"], samples=2)) == 1
    with pytest.raises(ValueError, match="trained on sequences of 12 to 30"):
        one.score([11 * "A"])
    assert len(designer().design(1, fixed="ACGT" + 8 * "N", length=12, steps=2)[0].sequence) == 12  # said aloud


def test_classes_are_known_in_either_case():
    config = DnaConfig(length=30, classes="ctcf,pu1,Pu1", width=16, kernel=5)
    one = SequenceDesigner(build(config), config)
    assert one.design(1, label="CTCF", steps=2)[0].label == "ctcf"
    assert one.score([30 * "A"], label="CtCf", samples=2) == one.score([30 * "A"], label="ctcf", samples=2)
    with pytest.raises(ValueError, match="no class 'PU1'; its classes: ctcf, pu1, Pu1"):  # which of the two?
        one.design(1, label="PU1", steps=2)
    assert one.design(1, label="Pu1", steps=2)[0].label == "Pu1"
