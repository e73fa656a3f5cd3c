"""Whether two crystals are one structure: pymatgen's StructureMatcher, in parallel, with a time-out for each pair.

Match rate and RMSE are those of the field: lengths are divided by :math:`(V / N)^{1/3}`, so an RMSE of 0.05 is a twentieth of
the mean distance of atoms. Numbers do not depend on the number of processes.
"""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.crystals.structure import Crystal

UNMATCHED = 0.5
"""What a structure without a match counts in cRMSE: the tolerance of the published matcher."""


@dataclass(frozen=True)
class Matcher:
    """Tolerances of a StructureMatcher.

    Args:
        name: for tables.
        stol: of sites, in units of the cube root of the volume per atom.
        angle_tol: of cell angles, degrees.
        ltol: of cell lengths, as a share.
    """

    name: str
    stol: float
    angle_tol: float
    ltol: float

    def contains(self, other: "Matcher") -> bool:
        """Whether what the other accepts this one accepts, too: it looks through all lattices and sites of the other."""
        return self.stol >= other.stol and self.angle_tol >= other.angle_tol and self.ltol >= other.ltol


PUBLISHED = Matcher("published", stol=0.5, angle_tol=10.0, ltol=0.3)
"""Of CDVAE, DiffCSP, FlowMM and CrysBFN. On Perov-5 it accepts a third of random structures."""
STRICT = Matcher("strict", stol=0.3, angle_tol=5.0, ltol=0.2)
"""pymatgen's own defaults, those of OMatG's functions."""


class Matches(NamedTuple):
    """What comparing pairs gave.

    Args:
        rms: ``(pairs, matchers)``, NaN where they do not match.
        timed_out: ``(pairs,)`` bool: given up, counted as no match.
    """

    rms: NDArray[np.float64]
    timed_out: NDArray[np.bool_]


class _TimeOut(Exception):
    pass


def _alarm(*_: Any) -> None:
    raise _TimeOut


def rms_of(found: Crystal, truth: Crystal, matchers: Sequence[Matcher] = (PUBLISHED, STRICT)) -> list[float]:
    """Normalised root mean square distance of the best superposition, one per matcher; NaN where they do not match.

    Crystals of different reduced formulas never match, and what a wider matcher refused is not shown to a narrower one:
    both are exact.
    """
    nothing = float("nan")
    if found.formula != truth.formula or is_needle(found) or is_needle(truth):
        return [nothing] * len(matchers)
    from pymatgen.analysis.structure_matcher import StructureMatcher

    pair = found.to_pymatgen(), truth.to_pymatgen()
    result: list[float] = [nothing] * len(matchers)
    refused: list[Matcher] = []
    for i, m in sorted(enumerate(matchers), key=lambda item: (-item[1].stol, -item[1].ltol, -item[1].angle_tol)):
        if any(wider.contains(m) for wider in refused):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rms = StructureMatcher(ltol=m.ltol, stol=m.stol, angle_tol=m.angle_tol).get_rms_dist(*pair)
        if rms is None:
            refused.append(m)
        else:
            result[i] = float(rms[0])
    return result


def is_needle(crystal: Crystal) -> bool:
    """Whether a cell is so flat or so long that no crystal has its like: pymatgen would look through its neighbours for hours.

    Atoms in a single row, each with its share of the volume as a cube, make a cell as long as their number; this one is four
    times as long, or has next to no volume.
    """
    volume = crystal.volume
    if not (np.isfinite(crystal.cell).all() and np.isfinite(crystal.frac).all() and volume >= 1e-3):
        return True
    try:
        longest = float(np.linalg.norm(crystal.reduced().cell, axis=1).max())
    except ValueError:
        return True
    return longest / (volume / len(crystal)) ** (1 / 3) > 4 * len(crystal) + 16


def _chunk(
    pairs: list[tuple[Crystal, Crystal]], matchers: tuple[Matcher, ...], timeout: float
) -> list[tuple[list[float], bool]]:
    """What a process does: pairs one after the other, each under an alarm clock."""
    results = []
    old = signal.signal(signal.SIGALRM, _alarm)
    try:
        for found, truth in pairs:
            try:
                signal.setitimer(signal.ITIMER_REAL, timeout)
                values, late = rms_of(found, truth, matchers), False
            except _TimeOut:
                values, late = [float("nan")] * len(matchers), True
            except (ValueError, ZeroDivisionError, np.linalg.LinAlgError, RuntimeError, IndexError):
                values, late = (
                    [float("nan")] * len(matchers),
                    False,
                )  # a cell that pymatgen cannot reduce matches nothing
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            results.append((values, late))
    finally:
        signal.signal(signal.SIGALRM, old)
    return results


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    function: Callable[..., list[Any]],
    items: Sequence[Any],
    *args: Any,
    workers: int = 0,
    chunk: int = 16,
    seconds: float = float("inf"),
    missing: Any = None,
    alone: bool = True,
    progress: str | None = None,
) -> list[Any]:
    """Results of a function of a list, in order, the list cut into pieces and shared among processes.

    Args:
        function: of a piece and ``args``; importable, gives one result an item.
        items: the list.
        workers: processes; 0 for one per processor.
        chunk: items in a piece.
        seconds: when no piece ends for so long, those that run are given up and their processes stopped; their results are
            ``missing``. Only in other processes.
        missing: see there.
        alone: with one worker, work in this process, which saves the start of another.
        progress: what a bar is called; None shows none.

    Raises:
        RuntimeError: the processes cannot start, as below a script without ``if __name__ == "__main__":``.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    workers = workers or cores()
    starts = list(range(0, len(items), chunk))
    results: list[Any] = [missing] * len(items)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        transient=True,
        disable=progress is None,
    )
    with bar:
        task = bar.add_task(progress or "", total=len(items))
        if not items or (workers == 1 and alone):
            for start in starts:
                piece = list(items[start : start + chunk])
                results[start : start + len(piece)] = function(piece, *args)
                bar.advance(task, len(piece))
            return results
        waiting = list(reversed(starts))
        while waiting:
            # Not fork: this process may hold the threads of torch.
            pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=multiprocessing.get_context("spawn"))
            running: dict[Future[list[Any]], int] = {}
            try:
                if len(waiting) == len(starts):
                    _check_start(pool)
                is_stuck = False
                while (waiting or running) and not is_stuck:
                    while waiting and len(running) < workers:
                        start = waiting.pop()
                        running[pool.submit(function, list(items[start : start + chunk]), *args)] = start
                    done, _ = wait(
                        running, timeout=None if seconds == float("inf") else seconds, return_when=FIRST_COMPLETED
                    )
                    is_stuck = not done
                    for future in done:
                        start = running.pop(future)
                        try:
                            found = future.result()
                        except BrokenProcessPool:
                            is_stuck = True
                            bar.advance(task, len(items[start : start + chunk]))
                            continue
                        results[start : start + len(found)] = found
                        bar.advance(task, len(found))
                if is_stuck:
                    for start in running.values():  # none ended in all that time
                        bar.advance(task, len(items[start : start + chunk]))
            finally:
                for process in list((pool._processes or {}).values()) if running else []:
                    process.kill()
                pool.shutdown(wait=not running, cancel_futures=True)
    return results


def _check_start(pool: ProcessPoolExecutor) -> None:
    """A process that cannot start would be taken for one that its piece has stopped, and every result be missing."""
    try:
        pool.submit(cores).result()
    except BrokenProcessPool:
        raise RuntimeError(
            "the processes that share the work could not start: in a script of your own, put what it does below "
            'if __name__ == "__main__":, because each of them reads the script again'
        ) from None


def match_pairs(
    pairs: Sequence[tuple[Crystal, Crystal]],
    matchers: Sequence[Matcher] = (PUBLISHED, STRICT),
    *,
    workers: int = 0,
    timeout: float = 30.0,
    progress: str | None = None,
) -> Matches:
    """Compare pairs of crystals with every matcher.

    Args:
        pairs: found and truth.
        matchers: tolerances.
        workers: processes; 0 for one per processor.
        timeout: seconds for a pair; a pair that takes longer is no match, and is named.
        progress: what a bar is called; None shows none.
    """
    if not pairs:
        return Matches(np.zeros((0, len(matchers))), np.zeros(0, bool))
    # Pairs that cannot match cost nothing, and are not sent anywhere.
    able = [i for i, (found, truth) in enumerate(pairs) if found.formula == truth.formula]
    results: list[tuple[list[float], bool] | None] = [None] * len(able)
    # The alarm clock is not heard inside of compiled code; then a piece is given up with its process, and its pairs are tried
    # again one by one, so that only the pair that is stuck is lost.
    for chunk in (8, 1):
        left = [k for k, result in enumerate(results) if result is None]
        some = in_parallel(
            _chunk,
            [pairs[able[k]] for k in left],
            tuple(matchers),
            timeout,
            workers=workers,
            chunk=chunk,
            seconds=chunk * timeout + 30,
            alone=len(able) < 100,
            progress=progress,
        )
        for k, result in zip(left, some, strict=True):
            results[k] = result
    late = ([float("nan")] * len(matchers), True)
    rms = np.full((len(pairs), len(matchers)), np.nan)
    timed_out = np.zeros(len(pairs), bool)
    for i, (values, is_late) in zip(able, [result or late for result in results], strict=True):
        rms[i], timed_out[i] = values, is_late
    return Matches(rms, timed_out)


def best_of(rms: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    """The smallest of the first so many samples, ``(truths, samples) -> (truths,)``; NaN where none matches."""
    part = np.where(np.isnan(rms[:, :first]), np.inf, rms[:, :first])
    least = part.min(1) if part.shape[1] else np.full(len(part), np.inf)
    return np.where(np.isinf(least), np.nan, least)


def crmse(rms: NDArray[np.float64]) -> float:
    """Mean of the distances, a structure without a match counting :data:`UNMATCHED`."""
    return float(np.where(np.isnan(rms), UNMATCHED, rms).mean()) if len(rms) else float("nan")
