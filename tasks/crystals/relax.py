"""Relaxation with CHGNet, in processes of their own: one that hangs or dies is ended and named, and the others go on.

Energies are those of a learned potential, a surrogate of density functional theory: every number made here says so.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from manifoldflow.tasks.crystals.structure import Crystal, is_too_dense, shortest, wrap

__all__ = ["STEPS", "TIMEOUT", "Relaxed", "Relaxer", "shift_of"]

WORKER = (sys.executable, "-m", "manifoldflow.tasks.crystals.relax_worker")
"""What is run as a relaxer; see :mod:`manifoldflow.tasks.crystals.relax_worker` for what it reads and writes."""
STEPS = 200
"""Of the optimiser, at most."""
FORCE = 0.05
"""Largest force, and stress in the same measure, that counts as relaxed (eV/angstrom)."""
TIMEOUT = 120.0
"""Seconds that one crystal may take."""
LOADING = 300.0
"""Seconds that a relaxer may take to load."""


@dataclass(frozen=True)
class Relaxed:
    """What relaxation made of a crystal.

    Args:
        crystal: relaxed; None where that failed.
        before, energy: CHGNet's, before and after, eV per atom; NaN where it failed.
        shift: root mean square displacement of the atoms in angstrom, see :func:`shift_of`.
        volume: relaxed over unrelaxed.
        steps: of the optimiser.
        converged: forces and stress are below the bound.
        fault: why it failed, empty where it did not.
    """

    crystal: Crystal | None = None
    before: float = float("nan")
    energy: float = float("nan")
    shift: float = float("nan")
    volume: float = float("nan")
    steps: int = 0
    converged: bool = False
    fault: str = ""


def shift_of(before: Crystal, after: Crystal) -> float:
    r"""Root mean square displacement of the atoms in angstrom, a common drift and the strain of the cell taken out.

    :math:`\sqrt{\frac1N \sum_i |d_i - \bar d|^2}` with the shortest images d of the differences of fractional coordinates, in the
    mean of the two metric tensors. Atoms are compared in their order.
    """
    metric = torch.from_numpy(0.5 * (before.metric + after.metric))[None]
    difference = torch.from_numpy(after.frac - before.frac)
    difference = difference - difference.round()
    # The drift of atoms on both sides of a face: from the first atom, then the mean of what is left.
    difference = difference - difference[:1]
    difference = difference - difference.round()
    difference = difference - difference.mean(0)
    length, _ = shortest(difference[None], metric)
    return float(length.square().mean().sqrt())


class Relaxer:
    """Relaxes crystals one after the other in worker processes; use as a context manager.

        with Relaxer() as relaxer:
            for i, result in relaxer.map(crystals):
                ...

    Args:
        steps: of the optimiser, at most.
        force: largest force that counts as relaxed, eV/angstrom.
        timeout: seconds for one crystal; a relaxer that takes longer is killed and a fresh one goes on.
        workers: processes; each takes about 0.6 GB.
    """

    def __init__(self, steps: int = STEPS, force: float = FORCE, timeout: float = TIMEOUT, workers: int = 1) -> None:
        for name, value in (("steps", steps), ("workers", workers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, bound in (("force", force), ("timeout", timeout)):
            if not bound > 0:
                raise ValueError(f"{name} must be above 0, got {bound}")
        self.steps, self.force, self.timeout = steps, force, timeout
        self._workers = [_Worker() for _ in range(workers)]

    def __enter__(self) -> "Relaxer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()

    def relax(self, crystal: Crystal) -> Relaxed:
        """Relax one crystal."""
        return next(iter(self.map([crystal])))[1]

    def map(self, crystals: Iterable[Crystal]) -> Iterator[tuple[int, Relaxed]]:
        """Relax crystals; yields their number and the result as they are done.

        Raises:
            ImportError: CHGNet cannot be loaded.
            RuntimeError: the relaxer does not start.
        """
        source = enumerate(crystals)
        free = list(self._workers)
        while True:
            while free and (following := next(source, None)) is not None:
                if is_too_dense(following[1]):
                    volume = following[1].volume / max(len(following[1]), 1)
                    yield (
                        following[0],
                        Relaxed(fault=f"not relaxed: {volume:.2g} cubic angstrom per atom, denser than any solid"),
                    )
                    continue
                worker = free.pop()
                worker.give(*following, steps=self.steps, force=self.force)
            at_work = [worker for worker in self._workers if worker.job is not None]
            if not at_work:
                return
            wait = min(worker.left(self.timeout) for worker in at_work)
            ready, _, _ = select.select([worker.answers for worker in at_work], [], [], max(0.0, wait))
            for worker in at_work:
                if worker.answers in ready:
                    done = worker.take()
                elif worker.left(self.timeout) <= 0:
                    done = worker.stop(self.timeout)
                else:
                    continue
                if done is not None:
                    free.append(worker)
                    yield done


class _Worker:
    """One process, started when it is given something to do."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._is_ready = False
        self._since = 0.0
        self.job: tuple[int, Crystal] | None = None
        self._request = b""

    @property
    def answers(self) -> Any:
        assert self._process is not None
        return self._process.stdout

    def give(self, number: int, crystal: Crystal, steps: int, force: float) -> None:
        """Begin with a crystal."""
        self.job = (number, crystal)
        content = {
            "id": number,
            "numbers": (crystal.species + 1).tolist(),
            "frac": crystal.frac.tolist(),
            "cell": crystal.cell.tolist(),
            "steps": steps,
            "force": force,
        }
        self._request = json.dumps(content).encode() + b"\n"
        if self._process is None:
            self._process = subprocess.Popen(
                WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
            )
            self._is_ready, self._rest = False, b""
        self._since = time.monotonic()
        if self._is_ready:
            self._send()

    def left(self, timeout: float) -> float:
        """Seconds until its time is over."""
        return self._since + (timeout if self._is_ready else LOADING) - time.monotonic()

    def take(self) -> tuple[int, Relaxed] | None:
        """Read what it says; its job's result once that is whole."""
        part = os.read(self.answers.fileno(), 1 << 16)
        if not part:
            return self._failed("the relaxer ended unexpectedly (out of memory, or a fault in compiled code)")
        self._rest += part
        if b"\n" not in self._rest:
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        answer = json.loads(line)
        if not self._is_ready:
            if "fault" in answer:
                self.end()
                raise ImportError(answer["fault"])
            self._is_ready, self._since = True, time.monotonic()
            self._send()
            return None
        assert self.job is not None
        number, crystal = self.job
        self.job = None
        if "fault" in answer:
            return number, Relaxed(fault=answer["fault"])
        return number, result_of(crystal, answer)

    def stop(self, timeout: float) -> tuple[int, Relaxed]:
        """Kill it: its time is over."""
        return self._failed(f"the relaxer took more than {timeout:g} s and was stopped")

    def _failed(self, fault: str) -> tuple[int, Relaxed]:
        assert self.job is not None
        number, _ = self.job
        is_ready = self._is_ready
        self.end()
        if not is_ready:
            raise RuntimeError(f"the relaxer did not start: {fault}")
        return number, Relaxed(fault=fault)

    def _send(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: reading says so
            self._process.stdin.write(self._request)
            self._process.stdin.flush()

    def end(self) -> None:
        """End the process, whatever it does."""
        self.job, process = None, self._process
        self._process = None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def result_of(crystal: Crystal, answer: dict[str, Any]) -> Relaxed:
    """A result from what a relaxer said of a crystal."""
    frac, cell = np.array(answer["frac"], float).reshape(-1, 3), np.array(answer["cell"], float).reshape(3, 3)
    if not (
        np.isfinite(frac).all() and np.isfinite(cell).all() and np.isfinite([answer["before"], answer["energy"]]).all()
    ):
        return Relaxed(fault="relaxation gave numbers that are not finite")
    made = replace(crystal, frac=wrap(frac), cell=cell)
    if made.volume < 1e-3 * crystal.volume:
        return Relaxed(fault="the cell collapsed in relaxation")
    return Relaxed(
        made,
        float(answer["before"]),
        float(answer["energy"]),
        shift_of(crystal, replace(made, frac=frac)),
        made.volume / crystal.volume,
        int(answer["steps"]),
        bool(answer["converged"]),
    )


def _environment() -> dict[str, str]:
    """The environment of a worker: it finds this package where this process did."""
    import manifoldflow

    root = os.path.dirname(os.path.dirname(os.path.abspath(manifoldflow.__file__)))
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
