"""Motifs are found where a law that is known has planted them, and the embedded models' tracks are such motifs."""

import json

import pytest
import torch

from manifoldflow.checkpoint import data_path
from manifoldflow.tasks.dna.alphabet import decode, encode
from manifoldflow.tasks.dna.discovery import FILE, WANTED, discover, main
from manifoldflow.tasks.dna.motifs import Motif, find_sites
from manifoldflow.tasks.dna.planted import LAWS
from manifoldflow.tasks.dna.serving.tracks import own_motifs


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


def test_the_embedded_motifs_are_those_of_their_classes():
    made = json.loads(data_path(FILE).read_text())
    assert set(made) == set(WANTED)
    words = {"CTCF site": "AGGGGGC", "PU.1 site": "GAGGAAGT", "TATA box": "TATAAA"}  # what textbooks print
    for model, wanted in WANTED.items():
        motifs = own_motifs(data_path(f"checkpoints/{model}.safetensors"))
        assert [motif.name for motif in motifs] == [name for name, *_ in wanted]
        for motif in motifs:
            assert isinstance(motif, Motif) and 6 <= len(motif) <= 20
            assert bool(find_sites(encode([consensus(motif)])[0], words[motif.name]).any()), (
                motif.name,
                consensus(motif),
            )


@pytest.mark.slow
def test_the_command_writes_the_motifs(tmp_path):
    main(["--num", "4", "--steps", "1", "--out", str(tmp_path / "motifs.json")])
    made = json.loads((tmp_path / "motifs.json").read_text())
    assert {model: [motif["name"] for motif in some] for model, some in made.items()} == {
        model: [name for name, *_ in wanted] for model, wanted in WANTED.items()
    }
