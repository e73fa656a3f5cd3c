"""Samples beside real test sequences, measure by measure."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.common.tables import wilson
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
from manifoldflow.tasks.dna.motifs import Motif, hit_rate, position_profile, site_score
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.tasks.dna.worth import census, flank_divergence, place_distance, sites_of, told_apart

P_VALUE = 1e-4
"""A site counts from the score on that a random one reaches with this probability, in tables and pictures alike."""

Strands = Literal["both", "given"]
"""Where sites are looked for."""

NOVELTY_ROWS = 300
"""Sequences whose nearest training sequence is looked for."""

FEATURE_ROWS = 4000
"""Training sequences, drawn at random, whose classifier features are the mark of the Frechet distance."""

LEAST_APART = 200
"""Samples from which on a classifier is trained to tell them from data."""

NOTES = (
    "shares with their 95 % intervals (Wilson)",
    "classifier right: a Markov chain with one motif written in is called right 95 % of the time too; what it does not pass are "
    "the places and flanks of sites, and told from real (0.5: not to be told apart)",
)
"""What a reader of the table must know."""


def compare_sets(
    made: SequenceSet,
    real: SequenceSet,
    parts: Split,
    motifs: list[Motif],
    *,
    classifier_steps: int = 1000,
    judge: Classifier | None = None,
    p_value: float = P_VALUE,
    strands: Strands = "both",
    collection: Sequence[Motif] = (),
    apart: bool = False,
) -> dict[str, dict[str, Any]]:
    """Every measure of the samples, and the same one of the real test sequences against the rest.

    Words, features and rates of many motifs are compared with the training part by as many samples as test sequences, places
    and flanks by as many sites: the second number is the floor that sampling alone leaves. The classifier is trained on the
    training part and sees no sample; it judges samples that have classes of the same names.

    Args:
        made: the samples.
        real: the data.
        parts: their split.
        motifs: whose sites to look at, class by class.
        classifier_steps: of the classifiers' training.
        judge: a classifier that has been trained already.
        p_value: what counts as a site, see :data:`P_VALUE`.
        strands: where sites count: on both, or on the one as given.
        collection: motifs whose rates are compared all together.
        apart: also train a classifier to tell samples from data, see :func:`manifoldflow.tasks.dna.worth.told_apart`.

    Returns:
        ``{measure: {"samples": ..., "real": ...}}``; shares also have ``"samples 95 %"`` and ``"real 95 %"``.
    """
    train, test = real.rows(parts.train), real.rows(parts.test)
    found: dict[str, dict[str, Any]] = {}
    generator = torch.Generator().manual_seed(0)
    count = min(len(made), len(test))
    alike = [s.rows(_spread(len(s), count)) for s in (made, test)]
    for k in (3, 6):
        spectra = [kmer_spectrum(s.tokens, k, mask=s.mask) for s in (*alike, train)]
        found[f"{k}-mer correlation"] = _pair(*(correlation(law, spectra[2]) for law in spectra[:2]))
        found[f"{k}-mer Jensen-Shannon (nats)"] = _pair(*(jensen_shannon(law, spectra[2]) for law in spectra[:2]))
    found["GC content"] = _pair(*(float(gc_content(s.tokens, s.mask).mean()) for s in (made, test)))
    if made.tokens.shape[1] == real.tokens.shape[1] and bool(made.mask.all() and real.mask.all()):
        found["diversity"] = _pair(*(diversity(s.tokens, generator=generator) for s in (made, test)))
    near = [distances_to(s, train) for s in (made, test)]
    found["edits to training, median"] = _pair(*(float(v.median()) for v in near))
    found["edits to training, least"] = _pair(*(float(v.min()) for v in near))
    for motif in motifs:
        found |= _sites(made, test, train, motif, p_value, strands == "both")
    if collection:
        rates = [census(s, collection, p_value, both_strands=strands == "both") for s in (*alike, train)]
        gaps = [100 * float((rate - rates[2]).abs().mean()) for rate in rates[:2]]
        found[f"sites of {len(collection)} motifs, mean gap (points)"] = _pair(*gaps)
    if real.labels is not None:
        net = judge or fit_classifier(train, real.rows(parts.val), steps=classifier_steps)[0]
        assert test.labels is not None
        numbers = _same_classes(made, real)
        right = accuracy(net, made, numbers) if numbers is not None else float("nan")
        found["classifier right"] = _shares((right, len(made)), (accuracy(net, test, test.labels), len(test)))
        some_rows = torch.randperm(len(train), generator=generator)[:FEATURE_ROWS]  # files list class after class
        features = [features_of(net, s) for s in (*alike, train.rows(some_rows))]
        found["Frechet distance"] = _pair(*(frechet_distance(f, features[2]) for f in features[:2]))
    if apart:
        options: dict[str, Any] = {"steps": classifier_steps}
        found["told from real"] = _shares(
            told_apart(made, train, test, **options), told_apart(real.rows(parts.val), train, test, **options)
        )
    return found


def table_rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Cells of a table: the measure, samples and real ones, shares with their intervals."""
    return [[name, *(cell(row, which) for which in ("samples", "real"))] for name, row in found.items()]


def cell(row: dict[str, Any], which: str, digits: int = 3) -> str:
    """A value, with its interval if it has one."""
    text = f"{row[which]:.{digits}g}"
    low, high = row.get(f"{which} 95 %") or (None, None)
    return text if low is None else f"{text} ({low:.2g}-{high:.2g})"


def _sites(
    made: SequenceSet, test: SequenceSet, train: SequenceSet, motif: Motif, p_value: float, both: bool
) -> dict[str, dict[str, Any]]:
    """What there is to say of the sites of one motif, class by class."""
    least = site_score(motif, p_value)
    found: dict[str, dict[str, Any]] = {}
    for name, some, other in _by_class(made, test):
        known = train
        if train.labels is not None and name in train.classes:
            known = train.rows((train.labels == train.classes.index(name)).nonzero().squeeze(1))
        rates = [hit_rate(s.tokens, motif, least, mask=s.mask, both_strands=both) for s in (some, other)]
        found[f"{motif.name} site, {name}"] = _shares((rates[0], len(some)), (rates[1], len(other)))
        peaks = [peak_of_sites(s, motif, p_value, both) for s in (some, other)]
        found[f"{motif.name} commonest start, {name}"] = _pair(*(float(place) for place, _ in peaks))
        found[f"{motif.name} share there, {name}"] = _pair(*(share for _, share in peaks))
        bearers = [sites_of(s, motif, least, both)[0] for s in (some, other)]
        count = min(map(len, bearers))
        if count < 20:
            continue  # too few sites for laws of their places and flanks
        # As many sites of both: the second number is the floor that sampling leaves.
        pieces = [s.rows(rows[_spread(len(rows), count)]) for s, rows in zip((some, other), bearers, strict=True)]
        for what, measure in (("place (letters)", place_distance), ("flanks (nats)", flank_divergence)):
            pair = [measure(piece, known, motif, least, both_strands=both) for piece in pieces]
            found[f"{motif.name} {what}, {name}"] = _pair(*pair)
    return found


def distances_to(made: SequenceSet, train: SequenceSet, rows: int = NOVELTY_ROWS) -> Tensor:
    """Edit distance of some samples, spread over the set, to the nearest training sequence, as a share of their lengths."""
    some = made.rows(_spread(len(made), min(rows, len(made))))
    letters, _ = nearest_edit_distance(some.tokens, train.tokens, mask=some.mask, reference_mask=train.mask)
    return letters / some.mask.sum(-1).clamp_min(1)


def peak_of_sites(
    data: SequenceSet, motif: Motif, p_value: float = P_VALUE, both_strands: bool = True
) -> tuple[int, float]:
    """Where sites of a motif start most often, from 0, and the share of sequences with one there."""
    profile = position_profile(
        data.tokens, motif, site_score(motif, p_value), mask=data.mask, both_strands=both_strands
    )
    return int(profile.argmax()), float(profile.max())


def _spread(rows: int, count: int) -> Tensor:
    """So many row numbers, spread evenly."""
    return torch.linspace(0, rows - 1, count).round().long()


def _pair(samples: float, real: float) -> dict[str, Any]:
    return {"samples": samples, "real": real}


def _shares(samples: tuple[float, int], real: tuple[float, int]) -> dict[str, Any]:
    """Two shares, each of so many, with their intervals."""
    row = _pair(samples[0], real[0])
    for name, (value, total) in (("samples", samples), ("real", real)):
        row[f"{name} 95 %"] = wilson(value * total, total) if value == value else None  # NaN: not measured
    return row


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
