"""Measures of worth, on laws whose differences are known."""

import math
from dataclasses import replace

import pytest
import torch

from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.dna.alphabet import reverse_complement
from manifoldflow.tasks.dna.evaluation import cell, compare_sets, table_rows
from manifoldflow.tasks.dna.flow import DnaConfig, build
from manifoldflow.tasks.dna.markov import MarkovChain, PlantedChain
from manifoldflow.tasks.dna.matrices import Motif
from manifoldflow.tasks.dna.motifs import site_score
from manifoldflow.tasks.dna.rules import held_out
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.tasks.dna.sets import load_set
from manifoldflow.tasks.dna.splits import split
from manifoldflow.tasks.dna.worth import REACH, census, flank_divergence, place_distance, told_apart

BOX = Motif("box", "BOX", tuple(tuple(50.0 * (c == letter) for c in "ACGT") for letter in "TATGACGT"))
SITE = torch.tensor(["ACGT".index(c) for c in "TATGACGT"])
LEAST = site_score(BOX, 1e-4)


def with_sites(starts, length=60, seed=0, before=None, turned=False):
    """Random letters with one site each, and ``before`` as the letter in front of it."""
    tokens = torch.randint(4, (len(starts), length), generator=torch.Generator().manual_seed(seed))
    for row, start in enumerate(starts):
        tokens[row, start : start + 8] = SITE
        if before is not None:
            tokens[row, start - 1] = before
    if turned:
        tokens = reverse_complement(tokens)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return SequenceSet([str(i) for i in range(len(starts))], tokens, mask, None, (), 0)


def test_places_are_compared_by_how_far_sites_must_move():
    a, b = with_sites([20] * 300), with_sites([20, 30] * 150, seed=1)
    assert abs(place_distance(a, a, BOX, LEAST)) < 1e-12
    assert abs(place_distance(a, b, BOX, LEAST) - 5) < 0.5  # half of the sites move by 10
    assert abs(place_distance(a, with_sites([32] * 300, seed=2), BOX, LEAST) - 12) < 0.5
    hidden = replace(b, tokens=torch.zeros_like(b.tokens))
    assert math.isnan(place_distance(a, hidden, BOX, LEAST))


def test_flanks_are_compared_letter_by_letter_along_the_site():
    starts = [15 + i % 20 for i in range(2000)]
    plain, other = with_sites(starts), with_sites(starts, seed=1)
    always = with_sites(starts, seed=2, before=2)
    floor = flank_divergence(plain, other, BOX, LEAST)
    assert 0 < floor < 2 * REACH * 3 / 4000  # 3 free numbers a place, two samples of 2000
    u, g = torch.full((4,), 0.25, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    middle = (u + g) / 2
    expected = 0.5 * ((u * (u / middle).log()).sum() + (1 / middle[2]).log())
    assert abs(flank_divergence(plain, always, BOX, LEAST) - float(expected) - floor) < 0.01
    # on the other strand the same letters stand beside the same site
    assert flank_divergence(always, with_sites(starts, seed=3, before=2, turned=True), BOX, LEAST) < 2 * floor
    assert flank_divergence(plain, with_sites(starts, seed=3, before=2, turned=True), BOX, LEAST) > 0.5 * float(
        expected
    )


def test_a_census_counts_the_sites_of_all_motifs():
    data = with_sites([5] * 50)
    motifs = [BOX, Motif("none", "NONE", tuple((0.0, 9.0, 0.0, 0.0) for _ in range(12)))]
    assert census(data, motifs, 1e-4).tolist() == [1.0, 0.0]


def test_samples_are_told_from_data_only_where_they_differ():
    data = load_set("planted")
    parts = split(data)
    train, test = data.rows(parts.train), data.rows(parts.test)
    share, asked = told_apart(data.rows(parts.val), train, test, steps=60)
    assert abs(share - 0.5) < 4 * 0.5 / asked**0.5 and asked == 2 * round(0.2 * len(parts.val))
    noise = data.rows(parts.val)
    noise = replace(noise, tokens=torch.randint(3, noise.tokens.shape, generator=torch.Generator().manual_seed(0)))
    assert told_apart(noise, train, test, steps=60)[0] > 0.9
    with pytest.raises(ValueError, match="at least 20"):
        told_apart(data.rows(torch.arange(5)), train, test)


def test_a_rule_passes_the_rate_of_sites_and_not_their_places():
    """What the README says of the trivial baseline, on the embedded set: the GC box lies anywhere, the TATA box does not."""
    from manifoldflow.tasks.dna.planted import LAWS

    data = load_set("planted").rows(torch.arange(2000))
    parts = split(data)
    train = data.rows(parts.train)
    tata = LAWS["tata"].plants[1].motif
    of_class = train.tokens[train.labels == data.classes.index("tata")]
    tokens = PlantedChain(MarkovChain.fit(of_class), tata).sample(400, 80, generator=torch.Generator().manual_seed(0))
    made = SequenceSet([str(i) for i in range(400)], tokens, torch.ones_like(tokens, dtype=torch.bool),
                       torch.zeros(400, dtype=torch.int64), ("tata",), 0)  # fmt: skip
    found = compare_sets(made, data, parts, [tata], classifier_steps=40)
    rate, place = found["tata site, tata"], found["tata place (letters), tata"]
    assert (
        abs(rate["samples"] - rate["real"]) < 0.15 and rate["real"] > 0.5 and place["samples"] > 5 > 1 > place["real"]
    )
    low, high = rate["samples 95 %"]
    assert low < rate["samples"] < high and high - low < 0.1
    assert "(" in cell(rate, "samples") and "(" not in cell(place, "samples")
    assert [row[0] for row in table_rows(found)] == list(found)


def test_samples_are_compared_with_the_training_part_and_so_are_the_test_sequences():
    """Three parts of three laws, and samples that copy the training part: only the right comparison calls them copies."""
    laws = [[0.4, 0.4, 0.1, 0.1], [0.25] * 4, [0.1, 0.1, 0.4, 0.4]]  # of training, validation and test
    drawn = [
        torch.multinomial(torch.tensor(p), 60 * 40, True, generator=torch.Generator().manual_seed(k)).reshape(60, 40)
        for k, p in enumerate(laws)
    ]
    drawn[2][:, 10:18] = SITE
    tokens = torch.cat(drawn)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    real = SequenceSet([str(i) for i in range(180)], tokens, mask, None, (), 0)
    parts = Split(*torch.arange(180).split(60))
    found = compare_sets(real.rows(parts.train), real, parts, [BOX])
    for name in ("edits to training, median", "edits to training, least"):
        assert found[name]["samples"] == 0 and found[name]["real"] > 0.2
    assert found["3-mer correlation"]["samples"] > 0.999 > 0.9 > found["3-mer correlation"]["real"]
    assert found["6-mer Jensen-Shannon (nats)"]["samples"] < 1e-6 < 0.1 < found["6-mer Jensen-Shannon (nats)"]["real"]
    assert found["box site, all"]["real"] == 1.0 and found["box site, all"]["samples"] < 0.2
    assert found["box commonest start, all"]["real"] == 10
    assert abs(found["GC content"]["samples"] - 0.5) < 0.05


def test_held_out_scores_stand_beside_those_of_a_chain():
    torch.manual_seed(0)
    data = load_set("planted").rows(torch.arange(600))
    train, test = data.rows(torch.arange(500)), data.rows(torch.arange(500, 600))
    flow = build(DnaConfig(length=80, classes="plain,tata", width=8, kernel=3))
    bound, chain = held_out(flow, train, test, both_strands=False, samples=4)
    expected = [
        MarkovChain.fit(train.tokens[train.labels == k]).log_prob(test.tokens[test.labels == k]).sum() for k in (0, 1)
    ]
    assert abs(chain + float(sum(expected)) / 8000) < 1e-9
    few = held_out(flow, train, test.rows(test.labels.argsort(stable=True)), both_strands=False, rows=40, samples=1)
    assert abs(few[1] - chain) < 0.006  # of both classes, whatever the order of the file
    assert bound > chain and abs(bound - math.log(4)) < 0.3  # untrained: letters at random
    assert (
        held_out(build(DnaConfig(length=80, representation="linear", width=8)), train, test, both_strands=False) is None
    )
