"""Motifs are found where a law that is known has planted them, and the embedded models' tracks are such motifs."""

import json

import pytest
import torch

from manifoldflow.tasks.dna.alphabet import decode
from manifoldflow.tasks.dna.discovery import WANTED, discover, main
from manifoldflow.tasks.dna.planted import LAWS


def consensus(motif):
    return decode(torch.tensor([row.index(max(row)) for row in motif.counts])[None])[0]


def test_a_planted_motif_is_found_on_either_strand_with_its_probabilities():
    generator = torch.Generator().manual_seed(1)
    tata, plain = (LAWS[name].sample(600, generator=generator) for name in ("tata", "plain"))
    turned = torch.rand(len(tata), generator=generator) < 0.5
    tata[turned] = 3 - tata[turned].flip(1)
    found = discover(tata, plain, name="box", identifier="box", width=14)
    motif = found.motif if "TATAAAAG" in consensus(found.motif) else found.motif.reverse_complement()
    at = consensus(motif).index("TATAAAAG")
    rows = motif.probabilities(0.0)[at : at + 8]
    truth = LAWS["tata"].plants[1].motif.probabilities(0.0)
    assert float((rows - truth).abs().max()) < 0.06 and found.share > 0.85
    assert len(motif) <= 10  # what says nothing was cut off


def test_sequences_too_short_for_a_motif_are_told():
    with pytest.raises(ValueError, match="a motif of 20 places needs two sequences and a control with 22 letters"):
        discover(torch.zeros(5, 10, dtype=torch.int64), torch.zeros(5, 10, dtype=torch.int64), name="a", identifier="a")


@pytest.mark.slow
def test_the_command_writes_the_motifs(tmp_path):
    main(["--num", "4", "--steps", "1", "--out", str(tmp_path / "motifs.json")])
    made = json.loads((tmp_path / "motifs.json").read_text())
    assert {model: [motif["name"] for motif in some] for model, some in made.items()} == {
        model: [name for name, *_ in wanted] for model, wanted in WANTED.items()
    }
