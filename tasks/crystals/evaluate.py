"""Judging structures: predictions against the truth, and sets against sets; the tables of ``manifoldflow evaluate crystals``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.common.tables import share, wilson
from manifoldflow.tasks.crystals.matching import PUBLISHED, STRICT, Matcher, best_of, crmse, match_pairs
from manifoldflow.tasks.crystals.metrics import (
    composition_of,
    coverage,
    first_of_kind,
    geometry,
    histogram,
    known_of,
    space_groups,
    wasserstein,
)
from manifoldflow.tasks.crystals.structure import Crystal

MATCHERS: tuple[Matcher, ...] = (PUBLISHED, STRICT)
AT = (1, 5, 20)
"""Numbers of samples that tables show."""


@dataclass
class Judged:
    """Predictions of one method against the truth.

    Args:
        method: what made them.
        rms: ``(truths, samples, matchers)``, NaN where a sample does not match or was not made.
        pooled: ``(truths, matchers)``: the best of the samples of all truths of the same formula, for METRe.
        timed_out: pairs that were given up.
        valid: ``(truths,)``: the first sample and the truth are both valid in structure and composition.
        missing: truths without any sample.
    """

    method: str
    rms: NDArray[np.float64]
    pooled: NDArray[np.float64]
    timed_out: int = 0
    valid: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    missing: int = 0

    def numbers(self, first: int, matcher: int) -> dict[str, float]:
        """Match rate with its interval, RMSE over the matches, cRMSE and METRe with the first so many samples."""
        best = best_of(self.rms[:, :, matcher], first)
        hits, total = int((~np.isnan(best)).sum()), len(best)
        low, high = wilson(hits, total)
        result = {
            "match": hits / total,
            "match_low": low,
            "match_high": high,
            "rmse": float(np.nanmean(best)) if hits else float("nan"),
            "crmse": crmse(best),
        }
        if first >= self.rms.shape[1]:  # of all samples
            result["metre"] = float((~np.isnan(self.pooled[:, matcher])).mean())
        return result

    def summary(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        rows = {
            f"{matcher.name}@{first}": self.numbers(first, k)
            for k, matcher in enumerate(MATCHERS)
            for first in shown(self.rms.shape[1])
        }
        hits = ~np.isnan(self.rms[:, 0, 0]) & self.valid
        rows["published@1, both valid"] = {"match": float(hits.mean())}
        return rows | {"timed_out": self.timed_out, "without_sample": self.missing, "truths": len(self.rms)}


def shown(num: int) -> list[int]:
    """Of :data:`AT` what so many samples allow, and the number itself."""
    return sorted({n for n in AT if n <= num} | {num})


def judge(
    method: str,
    candidates: Sequence[Sequence[Crystal]],
    truth: Sequence[Crystal],
    num: int = 1,
    *,
    workers: int = 0,
    timeout: float = 30.0,
    progress: bool = False,
) -> Judged:
    """Compare candidates of each truth with it, by both matchers, and with the other truths of its formula for METRe.

    Args:
        method: what made them.
        candidates: for each truth, best first; may be fewer than ``num``, or none.
        truth: reference structures.
        num: candidates that count.
        workers: processes; 0 for one per processor. The numbers do not depend on it.
        timeout: seconds for a pair.
        progress: show a bar.

    Raises:
        ValueError: no truths, or lists of different lengths.
    """
    if not truth or len(candidates) != len(truth):
        raise ValueError(f"{len(candidates)} lists of candidates for {len(truth)} reference structures")
    rows: dict[str, list[int]] = {}
    for i, crystal in enumerate(truth):
        rows.setdefault(crystal.formula, []).append(i)
    index: list[tuple[int, int, int, int]] = []
    pairs: list[tuple[Crystal, Crystal]] = []
    seen: dict[tuple[int, int], int] = {}
    for i, some in enumerate(candidates):
        for k, crystal in enumerate(some[:num]):
            for j in rows.get(crystal.formula, []):
                key = (id(crystal), j)  # samples may be shared by truths of one formula
                if key not in seen:
                    seen[key] = len(pairs)
                    pairs.append((crystal, truth[j]))
                index.append((i, k, j, seen[key]))
    found = match_pairs(pairs, MATCHERS, workers=workers, timeout=timeout, progress=method if progress else None)
    rms = np.full((len(truth), num, len(MATCHERS)), np.nan)
    pooled = np.full((len(truth), len(MATCHERS)), np.nan)
    for i, k, j, at in index:
        if i == j:
            rms[i, k] = found.rms[at]
        pooled[j] = np.fmin(pooled[j], found.rms[at])
    first = [some[0] for some in candidates if some]
    sound = np.zeros(len(truth), bool)
    if first:
        has = np.array([bool(some) for some in candidates])
        sound[has] = geometry(first).is_valid
        sound &= geometry(truth).is_valid
        sound &= np.array([composition_of(crystal.formula).is_valid for crystal in truth])
    missing = sum(not some for some in candidates)
    return Judged(method, rms, pooled, int(found.timed_out.sum()), sound, missing)


def prediction_table(judged: Sequence[Judged]) -> tuple[list[str], list[list[str]], list[str]]:
    """Columns, rows and notes of the table of structure prediction."""
    columns = ["method", "best of", "matcher", "match %", "RMSE", "cRMSE", "METRe %"]
    rows = []
    for item in judged:
        for first in shown(item.rms.shape[1]):
            for k, matcher in enumerate(MATCHERS):
                n = item.numbers(first, k)
                match = f"{100 * n['match']:.1f} ({100 * n['match_low']:.1f}-{100 * n['match_high']:.1f})"
                distances = ["-" if np.isnan(n["rmse"]) else f"{n['rmse']:.3f}", f"{n['crmse']:.3f}"]
                metre = f"{100 * n['metre']:.1f}" if "metre" in n else ""
                rows.append([item.method, str(first), matcher.name, match, *distances, metre])
    notes = [f"{m.name}: StructureMatcher stol {m.stol:g}, angle {m.angle_tol:g}, ltol {m.ltol:g}" for m in MATCHERS]
    notes.append(
        "cRMSE: a structure without a match counts 0.5. RMSE is over matches only: both may fall when samples improve"
    )
    for item in judged:
        if item.timed_out:
            notes.append(f"{item.method}: {item.timed_out} pairs took too long, counted as no match")
        if item.missing:
            notes.append(f"{item.method}: no sample for {item.missing} of {len(item.rms)} structures")
    return columns, rows, notes


def judge_set(
    samples: Sequence[Crystal],
    reference: Sequence[Crystal],
    known: Sequence[Crystal] | None = None,
    *,
    workers: int = 0,
    timeout: float = 30.0,
    tolerance: float = 0.1,
) -> dict[str, Any]:
    """Measures of a set of samples beside a reference set, see :mod:`manifoldflow.tasks.crystals.metrics`.

    Args:
        samples, reference: two sets.
        known: training structures, for novelty; left out if absent.
        workers, timeout: of matching.
        tolerance: of space groups, angstrom.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("no samples to measure")
    mine, theirs = geometry(samples), geometry(reference)
    charges = [composition_of(crystal.formula) for crystal in samples]
    result: dict[str, Any] = {"samples": len(samples), "reference": len(reference)}
    result["valid_structures"] = int(mine.is_valid.sum())
    result["valid_compositions"] = sum(bool(c.is_valid) for c in charges)
    result["unknown_compositions"] = sum(not c.is_known for c in charges)
    result["contact_above_0.7"] = int((mine.contact >= 0.7).sum())
    good = mine.is_valid & np.array([c.is_valid for c in charges])
    usable = good if good.any() else mine.is_valid
    result["density_distance"] = wasserstein(mine.density[usable], theirs.density)
    count = [[len(c.composition) for c in some] for some in (samples, reference)]
    result["elements_distance"] = wasserstein(np.array(count[0])[usable], count[1])
    covered = coverage([samples[i] for i in np.flatnonzero(usable).tolist()], reference)
    result |= {"coverage_recall": covered.recall, "coverage_precision": covered.precision}
    first = first_of_kind(samples, workers=workers, timeout=timeout)
    result["unique"] = int((first == np.arange(len(samples))).sum())
    if known is not None:
        rows = known_of(samples, known, workers=workers, timeout=timeout)
        result["novel"] = sum(row is None for row in rows)
        result["unique_and_novel"] = sum(bool(row is None and first[i] == i) for i, row in enumerate(rows))
    result["space_groups"] = histogram(space_groups(samples, tolerance))
    result["space_groups_of_reference"] = histogram(space_groups(reference, tolerance))
    result["space_group_tolerance"] = tolerance
    return result


def set_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers of :func:`judge_set` as lines of a table, shares with their intervals."""
    n = result["samples"]
    words = (
        ("valid_structures", "valid structures (no atoms nearer than 0.5 A)"),
        ("contact_above_0.7", "closest contact at least 0.7 of the radii"),
        ("valid_compositions", "valid compositions (SMACT)"),
        ("unknown_compositions", "compositions without known oxidation states"),
        ("unique", "unique (published matcher)"),
        ("novel", "novel (matches no training structure)"),
        ("unique_and_novel", "unique and novel"),
    )
    rows = [(text, share(result[key], n)) for key, text in words if key in result]
    rows += [
        ("density, Wasserstein distance, g/cm^3", f"{result['density_distance']:.3f}"),
        ("number of elements, Wasserstein distance", f"{result['elements_distance']:.3f}"),
        ("coverage, recall (our fingerprint)", f"{100 * result['coverage_recall']:.1f} %"),
        ("coverage, precision (our fingerprint)", f"{100 * result['coverage_precision']:.1f} %"),
    ]
    for key, text in (("space_groups", "space groups"), ("space_groups_of_reference", "space groups of the reference")):
        total = sum(count for _, _, count in result[key])
        most = ", ".join(f"{symbol} {100 * count / total:.0f} %" for _, symbol, count in result[key][:5])
        rows.append((f"{text} (within {result['space_group_tolerance']:g} A)", most))
    return rows
