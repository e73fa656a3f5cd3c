"""Samples beside real test sequences, measure by measure."""

from typing import Any

import torch
from torch import Tensor

from tasks.dna.fitting import accuracy, fit_classifier
from tasks.dna.metrics import (
    correlation,
    diversity,
    frechet_distance,
    gc_content,
    jensen_shannon,
    kmer_spectrum,
    novelty,
)
from tasks.dna.motifs import Motif, hit_rate, threshold
from tasks.dna.reading import SequenceSet
from tasks.dna.splits import Split

P_VALUE = 1e-4
"""A site counts from the score on that a random one reaches with this probability."""

NOVELTY_ROWS = 500
"""Sequences whose nearest training sequence is looked for."""

FEATURE_ROWS = 4000
"""Training sequences, drawn at random, whose classifier features are the mark of the Frechet distance."""


def compare_sets(
    made: SequenceSet, real: SequenceSet, parts: Split, motifs: list[Motif], *, classifier_steps: int = 1000
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
        near = [novelty(s.tokens[:NOVELTY_ROWS], train.tokens) for s in (made, test)]
        found["distance to training, median"] = _pair(*(float(v.median()) for v in near))
        found["distance to training, least"] = _pair(*(float(v.min()) for v in near))
    for motif in motifs:
        least = threshold(motif, P_VALUE)
        for name, some, other in _by_class(made, test):
            rates = [hit_rate(s.tokens, motif, least, mask=s.mask) for s in (some, other)]
            found[f"{motif.name} site, {name}"] = _pair(*rates)
    if real.labels is not None:
        net, _ = fit_classifier(train, real.rows(parts.val), steps=classifier_steps)
        assert test.labels is not None
        numbers = _same_classes(made, real)
        right = accuracy(net, made.tokens, numbers) if numbers is not None else float("nan")
        found["classifier right"] = _pair(right, accuracy(net, test.tokens, test.labels))
        mixed = train.rows(
            torch.randperm(len(train), generator=generator)[:FEATURE_ROWS]
        )  # files list class after class
        with torch.no_grad():
            features = [net.features(s.tokens) for s in (made, test, mixed)]
        found["Frechet distance"] = _pair(*(frechet_distance(f, features[2]) for f in features[:2]))
    return found


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
