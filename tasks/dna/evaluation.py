"""Samples beside real test sequences, measure by measure."""

from typing import Any

import torch
from torch import Tensor

from manifoldflow.tasks.dna.fitting import Classifier, accuracy, features_of, fit_classifier
from manifoldflow.tasks.dna.metrics import (
    correlation,
    diversity,
    frechet_distance,
    gc_content,
    jensen_shannon,
    kmer_spectrum,
    nearest_edit_distance,
)
from manifoldflow.tasks.dna.motifs import Motif, hit_rate, position_profile, threshold
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.tasks.dna.splits import Split

P_VALUE = 1e-4
"""A site counts from the score on that a random one reaches with this probability."""

PROFILE_P_VALUE = 1e-3
"""The same for profiles of places, where a chance site is spread over all of them."""

NOVELTY_ROWS = 300
"""Sequences whose nearest training sequence is looked for."""

FEATURE_ROWS = 4000
"""Training sequences, drawn at random, whose classifier features are the mark of the Frechet distance."""


def compare_sets(
    made: SequenceSet,
    real: SequenceSet,
    parts: Split,
    motifs: list[Motif],
    *,
    classifier_steps: int = 1000,
    judge: Classifier | None = None,
) -> dict[str, dict[str, float]]:
    """Every measure of the samples, and the same one of the real test sequences against the rest.

    Words of 3 and 6 letters are compared with the training part. The classifier is trained on the training part and sees no
    sample; it judges samples that have classes of the same names.

    Args:
        made: the samples.
        real: the data.
        parts: their split.
        motifs: whose rates to count, class by class.
        classifier_steps: of the classifier's training.
        judge: a classifier that has been trained already.

    Returns:
        ``{measure: {"samples": ..., "real": ...}}``.
    """
    train, test = real.rows(parts.train), real.rows(parts.test)
    found: dict[str, dict[str, float]] = {}
    generator = torch.Generator().manual_seed(0)
    for k in (3, 6):
        spectra = {
            name: kmer_spectrum(s.tokens, k, mask=s.mask) for name, s in (("m", made), ("t", test), ("r", train))
        }
        found[f"{k}-mer correlation"] = _pair(*(correlation(spectra[n], spectra["r"]) for n in "mt"))
        found[f"{k}-mer Jensen-Shannon (nats)"] = _pair(*(jensen_shannon(spectra[n], spectra["r"]) for n in "mt"))
    found["GC content"] = _pair(*(float(gc_content(s.tokens, s.mask).mean()) for s in (made, test)))
    if made.tokens.shape[1] == real.tokens.shape[1] and bool(made.mask.all() and real.mask.all()):
        found["diversity"] = _pair(*(diversity(s.tokens, generator=generator) for s in (made, test)))
    near = [distances_to(s, train) for s in (made, test)]
    found["edits to training, median"] = _pair(*(float(v.median()) for v in near))
    found["edits to training, least"] = _pair(*(float(v.min()) for v in near))
    for motif in motifs:
        least = threshold(motif, P_VALUE)
        for name, some, other in _by_class(made, test):
            rates = [hit_rate(s.tokens, motif, least, mask=s.mask) for s in (some, other)]
            found[f"{motif.name} site, {name}"] = _pair(*rates)
            peaks = [peak_of_sites(s, motif) for s in (some, other)]
            found[f"{motif.name} commonest start, {name}"] = _pair(*(float(place) for place, _ in peaks))
            found[f"{motif.name} share there, {name}"] = _pair(*(share for _, share in peaks))
    if real.labels is not None:
        net = judge or fit_classifier(train, real.rows(parts.val), steps=classifier_steps)[0]
        assert test.labels is not None
        numbers = _same_classes(made, real)
        right = accuracy(net, made, numbers) if numbers is not None else float("nan")
        found["classifier right"] = _pair(right, accuracy(net, test, test.labels))
        some_rows = torch.randperm(len(train), generator=generator)[:FEATURE_ROWS]  # files list class after class
        features = [features_of(net, s) for s in (made, test, train.rows(some_rows))]
        found["Frechet distance"] = _pair(*(frechet_distance(f, features[2]) for f in features[:2]))
    return found


def distances_to(made: SequenceSet, train: SequenceSet, rows: int = NOVELTY_ROWS) -> Tensor:
    """Edit distance of some samples, spread over the set, to the nearest training sequence, as a share of their lengths."""
    some = made.rows(torch.linspace(0, len(made) - 1, min(rows, len(made))).round().long())
    letters, _ = nearest_edit_distance(some.tokens, train.tokens, mask=some.mask, reference_mask=train.mask)
    return letters / some.mask.sum(-1).clamp_min(1)


def peak_of_sites(data: SequenceSet, motif: Motif) -> tuple[int, float]:
    """Where sites of a motif start most often on the strand as given, from 0, and the share of sequences with one there."""
    profile = position_profile(data.tokens, motif, threshold(motif, PROFILE_P_VALUE), mask=data.mask)
    return int(profile.argmax()), float(profile.max())


def _pair(samples: float, real: float) -> dict[str, float]:
    return {"samples": samples, "real": real}


def _same_classes(made: SequenceSet, real: SequenceSet) -> Tensor | None:
    """The samples' classes in the numbers of the data; None if they have none or others."""
    if made.labels is None or not set(made.classes) <= set(real.classes):
        return None
    return torch.tensor([real.classes.index(name) for name in made.classes])[made.labels]


def _by_class(made: SequenceSet, test: SequenceSet) -> list[tuple[str, Any, Any]]:
    numbers = _same_classes(made, test)
    if numbers is None or test.labels is None:
        return [("all", made, test)]
    rows = []
    for number, name in enumerate(test.classes):
        here = (numbers == number).nonzero().squeeze(1)
        if len(here):
            rows.append((name, made.rows(here), test.rows((test.labels == number).nonzero().squeeze(1))))
    return rows
