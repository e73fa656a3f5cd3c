"""How fast the models are, as measured: how much to put into a call, and how long a new request would wait."""

from collections.abc import Mapping, Sequence

from manifoldflow.serving.jobs import Job

QUANTUM = 2.0
"""Seconds that a call of the model should take. On a processor larger batches gain little, and what is small waits for them."""

LEAST_ROWS = 32
"""Rows that a call may have however slow the model is; smaller ones would mostly pay for being a call."""

TRUSTED_ROWS = 16
"""Rows from which on a call says how fast a model is. Smaller ones give a lower bound."""


class Pace:
    """Units of work (:attr:`Job.unit`) in a second, for every model; a running mean."""

    def __init__(self) -> None:
        self._rate: dict[str, float] = {}
        self._is_trusted: set[str] = set()
        self._bias = 1.0

    def expect(self, rates: Mapping[str, float]) -> None:
        """Start from these rates, where nothing better is known."""
        new = {name: rate for name, rate in rates.items() if rate > 0 and name not in self._is_trusted}
        self._rate |= new
        self._is_trusted |= set(new)

    def learn(self, job: Job, rows: int, seconds: float) -> None:
        """Note that a call with ``rows`` such as the job's took this long."""
        rate, name = job.unit * rows / max(seconds, 1e-6), job.model
        old = self._rate.get(name, rate)
        if rows >= TRUSTED_ROWS:
            self._rate[name] = old + 0.3 * (rate - old) if name in self._is_trusted else rate
            self._is_trusted.add(name)
        else:
            self._rate[name] = max(old, rate)

    def rows(self, job: Job) -> int:
        """Rows that a call with such jobs should have."""
        rate = self._rate.get(job.model, 0.0)
        return min(job.most_rows, max(LEAST_ROWS, int(QUANTUM * rate / job.unit)))

    def wait(self, job: Job, others: Sequence[Job]) -> float:
        """Seconds after which a new job would be done, 0 where nothing is known yet.

        Jobs take turns call by call, so each of the others costs it at most as much as it needs itself, or one call.
        """
        if job.model not in self._is_trusted:
            return 0.0
        own = self._seconds(job)
        return own + self._bias * sum(min(self._seconds(other), max(own, QUANTUM)) for other in others)

    def correct(self, foreseen: float, taken: float) -> None:
        """Note how long a job took that ``wait`` gave so many seconds: the machine may have other things to do, too."""
        if foreseen > 1.0:
            self._bias *= min(2.0, max(0.5, taken / foreseen)) ** 0.2
            self._bias = min(5.0, max(0.5, self._bias))

    def _seconds(self, job: Job) -> float:
        rate = self._rate.get(job.model)
        return 0.0 if rate is None else job.unit * job.left / rate
