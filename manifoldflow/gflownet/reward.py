"""Any Python function as a reward: asked in batches, checked, timed, remembered, counted and written down."""

import json
import math
import multiprocessing
import queue
import random
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from manifoldflow.files import open_text, write_text

Function = Callable[[list[Any]], Any]


class RewardError(ValueError):
    """A reward that is none; names the object. Nothing else was harmed: ``fit`` saves the run before it ends."""

    keeps_run = True


class RewardTimeout(RewardError):
    """A reward that did not come in time."""


class BudgetSpent(RewardError):
    """The calls that were granted are used up."""


class Reward:
    """A reward of Python objects (SMILES, sequences, whatever an environment makes) from a function of one's own.

    Objects that were seen before are answered from memory and cost nothing. What goes wrong is pinned down to the object by
    asking again in halves, then raised or replaced by the floor, and every call of the function counts, failed ones too. The
    function has random numbers of its own: whether it draws or seeds, those of the program stay as they were.

        reward = Reward(lambda smiles: [score(s) for s in smiles], timeout=30, budget=10_000, record="calls.jsonl")
        env.log_reward = lambda x: reward.log(env.to_smiles(x))

    Args:
        function: list of n objects -> n numbers that are not negative (a sequence, an array or a tensor).
        single: the function takes one object and returns one number.
        batch: most objects that the function is given at once; all if absent.
        key: object -> what tells it from others: a string, a number or a tuple of such. The object itself if absent.
        floor: smallest reward; what lies below is raised to it, as no policy can learn the logarithm of 0.
        bad: what to do about a reward that is NaN, infinite or negative, an exception, an answer of the wrong length:
            ``"raise"``, or ``"floor"`` and go on.
        timeout: seconds that one call of the function may take; None for ever.
        late: what to do then: ``"raise"`` or ``"floor"``.
        worker: where a function with a time limit runs. ``"thread"`` takes any function, but one that hangs cannot be ended: it
            is left behind. ``"process"`` (forked once, so the function's later changes of itself stay there) is killed.
        budget: most objects that the function may be given in all.
        record: a file to which every answer is added, one line of JSON each. One that exists is read first: its answers are
            known, and its calls count.

    Attributes:
        calls: objects the function was given, repetitions while pinning down a failure included.
        asked: objects that rewards were asked for.
        failed: objects that got the floor because something went wrong.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        single: bool = False,
        batch: int | None = None,
        key: Callable[[Any], Any] | None = None,
        floor: float = 1e-10,
        bad: Literal["raise", "floor"] = "raise",
        timeout: float | None = None,
        late: Literal["raise", "floor"] = "raise",
        worker: Literal["thread", "process"] = "thread",
        budget: int | None = None,
        record: str | Path | None = None,
    ) -> None:
        for name, value, known in (("bad", bad, "raise floor"), ("late", late, "raise floor"),
                                   ("worker", worker, "thread process")):  # fmt: skip
            if value not in known.split():
                raise ValueError(f"Reward: {name} must be {' or '.join(known.split())}, got {value!r}")
        if not (floor > 0 and math.isfinite(floor)):
            raise ValueError(f"Reward: floor must be positive, got {floor}")
        for name, bound in (("batch", batch), ("timeout", timeout), ("budget", budget)):
            if bound is not None and not bound > 0:
                raise ValueError(f"Reward: {name} must be positive, got {bound}")
        self.function: Function = (lambda many: [function(one) for one in many]) if single else function
        self.batch, self.key, self.floor, self.bad, self.late = 1 if single else batch, key, floor, bad, late
        self.budget, self.record = budget, Path(record) if record is not None else None
        self.known: dict[Hashable, float] = {}
        self.calls = self.asked = self.failed = 0
        self._caller: Any = None
        self._random = _OwnRandom()
        if timeout is not None:
            self._caller = (_InThread if worker == "thread" else _InProcess)(self.function, timeout)
        self.timeout = timeout
        if self.record is not None:
            self._read(self.record)

    def __deepcopy__(self, memo: Any) -> "Reward":
        """Copies of a model share their reward: one memory, one budget."""
        return self

    def __call__(self, objects: Sequence[Any]) -> Tensor:
        """Rewards, float64 ``(n,)``, at least ``floor``.

        Raises:
            RewardError: names the object, and what to do.
        """
        objects = list(objects)
        keys = [_hashable(o if self.key is None else self.key(o)) for o in objects]
        self.asked += len(objects)
        fresh = {k: o for k, o in zip(keys, objects, strict=True) if k not in self.known}  # each once
        names, values = list(fresh), list(fresh.values())
        size = self.batch or max(len(values), 1)
        for i in range(0, len(values), size):
            error: RewardError | None = None
            for k, answer in zip(names[i : i + size], self._answers(values[i : i + size]), strict=True):
                if isinstance(answer, RewardError):
                    if error is not None:  # a second one: enough is known, and every further one costs calls and time
                        break
                    error = answer  # what was paid for, or stands beside it, is kept first
                else:
                    self._keep(k, *answer)
            if error is not None:
                raise error
        return torch.tensor([self.known[k] for k in keys], dtype=torch.float64)

    def log(self, objects: Sequence[Any]) -> Tensor:
        """Logarithms of the rewards, float64 ``(n,)``."""
        return self(objects).log()

    def top(self, count: int) -> list[tuple[Hashable, float]]:
        """The best of all objects seen, by their keys, with their rewards."""
        return sorted(self.known.items(), key=lambda pair: -pair[1])[:count]

    @property
    def left(self) -> int | None:
        """Calls that the budget still grants."""
        return None if self.budget is None else max(self.budget - self.calls, 0)

    # ---------------------------------------------------------------- one call of the function

    def _answers(self, objects: list[Any]) -> Iterator[tuple[float, str] | RewardError]:
        """A reward of every object and what was wrong with it, empty if nothing; failures are looked for in halves."""
        raw, why, late = self._call(objects)
        if raw is not None:
            yield from (self._judged(o, v) for o, v in zip(objects, raw, strict=True))
        elif len(objects) > 1:
            half = len(objects) // 2
            try:
                yield from self._answers(objects[:half])
                yield from self._answers(objects[half:])
            except BudgetSpent as spent:
                if (self.late if late else self.bad) == "floor":
                    raise
                raise (RewardTimeout if late else RewardError)(
                    f"the reward of {len(objects)} objects, the first {_shown(objects[0])}, {why}, and the budget of "
                    f"{self.budget} calls ended before it was found out for which; mend the reward function"
                ) from spent
        elif (self.late if late else self.bad) == "raise":
            option = "late" if late else "bad"
            yield (RewardTimeout if late else RewardError)(
                f"the reward of {_shown(objects[0])} {why}; mend the reward function, or let such objects have the floor "
                f"with Reward(..., {option}='floor')"
            )
        else:
            yield self.floor, why

    def _judged(self, thing: Any, value: float) -> tuple[float, str] | RewardError:
        if math.isfinite(value) and value >= 0:
            return max(value, self.floor), ""
        why = f"is {value}"
        if self.bad == "floor":
            return self.floor, why
        return RewardError(
            f"the reward of {_shown(thing)} {why}, expected a number that is not negative; mend the reward function "
            "(an energy E becomes exp(-E)), or let such objects have the floor with Reward(..., bad='floor')"
        )

    def _call(self, objects: list[Any]) -> tuple[list[float] | None, str, bool]:
        """The numbers; or None, what was wrong, and whether it was the time."""
        if self.budget is not None and self.calls + len(objects) > self.budget:
            raise BudgetSpent(
                f"the budget of {self.budget} reward calls has {self.left} left, and {len(objects)} more are needed "
                f"(first {_shown(objects[0])}); raise budget=, or stop here"
            )
        self.calls += len(objects)
        try:
            with self._random:
                made = self.function(objects) if self._caller is None else self._caller(objects)
        except TimeoutError as error:
            if self._caller is None:  # of a network, say, and not ours
                return None, f"raised {type(error).__name__}: {error}", False
            return None, f"did not come within {self.timeout:g} s", True
        except (Exception, SystemExit) as error:
            told = str(error) if isinstance(error, _FromProcess) else f"{type(error).__name__}: {error}"
            return None, f"raised {told}", False
        try:
            numbers = torch.as_tensor(made, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            return None, f"is no number ({str(error)[:120]})", False
        if numbers.shape != (len(objects),):
            shape = tuple(numbers.shape)
            return None, f"came with shape {shape} for {len(objects)} object(s), expected ({len(objects)},)", False
        return numbers.tolist(), "", False

    # ---------------------------------------------------------------- memory

    def _keep(self, key: Hashable, value: float, why: str) -> None:
        self.known[key] = value
        self.failed += bool(why)
        if self.record is not None:
            line = {"key": key, "reward": value, "calls": self.calls} | ({"failed": why} if why else {})
            try:
                text = json.dumps(line)
            except TypeError:
                raise ValueError(f"Reward: record= needs keys of strings, numbers or tuples, got {key!r}") from None
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with self.record.open("a", encoding="utf-8") as file:  # a line is written whole, or is the last
                file.write(text + "\n")

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        with open_text(path) as file:
            lines = file.read().split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                key, value, calls = _hashable(entry["key"]), float(entry["reward"]), int(entry["calls"])
            except (ValueError, KeyError, TypeError):
                begins = '{"key": '
                is_cut = line.strip("\0")[: len(begins)] == begins[: len(line.strip("\0"))]
                if number == len(lines) and is_cut:  # off by the end of its run
                    text = "".join(part + "\n" for part in lines[:-1])
                    write_text(path, text)
                    continue
                raise ValueError(
                    f"{path}, line {number}: not an answer of a reward; give record= a file of its own"
                ) from None
            self.known[key] = value
            self.calls = max(self.calls, calls)
            self.failed += "failed" in entry
            if number == len(lines):  # whole but for its end: what comes next begins a line of its own
                write_text(path, "\n".join(lines) + "\n")


def _hashable(key: Any) -> Hashable:
    if isinstance(key, Tensor):
        key = key.tolist()
    return tuple(_hashable(k) for k in key) if isinstance(key, list | tuple) else key


def _shown(thing: Any) -> str:
    text = repr(thing.tolist() if isinstance(thing, Tensor) else thing)
    return text if len(text) <= 200 else text[:200] + " ..."


class _OwnRandom:
    """Within, random numbers of a stream of their own: a function that seeds, or draws, does not change those of the program,
    and its own go on from call to call."""

    def __init__(self) -> None:
        self.own: tuple[Any, Any, Any] | None = None
        self.outer: tuple[Any, Any, Any] | None = None

    def __enter__(self) -> None:
        self.outer = self._states()
        if self.own is None:
            seed = (torch.initial_seed() + 2_654_435_769) % 2**32
            first = np.random.RandomState(seed)
            self.own = (
                torch.Generator().manual_seed(seed).get_state(),
                first.get_state(),
                random.Random(seed).getstate(),
            )
        self._restore(self.own)

    def __exit__(self, *_: object) -> None:
        assert self.outer is not None
        self.own = self._states()
        self._restore(self.outer)

    def _states(self) -> tuple[Any, Any, Any]:
        return torch.get_rng_state(), np.random.get_state(), random.getstate()

    def _restore(self, states: tuple[Any, Any, Any]) -> None:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class _FromProcess(Exception):
    """An exception of the function, as text: from another process, or where its own class would be taken for ours."""


class _InThread:
    """Calls a function in a thread, and leaves the thread behind if it hangs."""

    def __init__(self, function: Function, timeout: float) -> None:
        self.function, self.timeout = function, timeout

    def __call__(self, objects: list[Any]) -> Any:
        answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((True, self.function(objects)))
            except BaseException as error:
                answers.put((False, error))

        threading.Thread(target=work, daemon=True, name="reward").start()
        try:
            is_well, answer = answers.get(timeout=self.timeout)
        except queue.Empty:
            raise TimeoutError from None
        if not is_well:
            if isinstance(answer, TimeoutError):  # of a network, say, and not ours
                raise _FromProcess(f"{type(answer).__name__}: {answer}")
            # A reward has an end of its own: a SystemExit in it must not look like ours.
            raise answer if isinstance(answer, Exception) else RuntimeError(repr(answer))
        return answer


class _InProcess:
    """Calls a function in a process of its own, which is killed and begun anew if it hangs."""

    def __init__(self, function: Function, timeout: float) -> None:
        self.function, self.timeout = function, timeout
        self.process: Any = None
        self.pipe: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "timeout": self.timeout, "process": None, "pipe": None}

    def __call__(self, objects: list[Any]) -> Any:
        if self.process is None:
            self._begin()
        self.pipe.send(objects)
        if not self.pipe.poll(self.timeout):
            self.close()
            raise TimeoutError
        try:
            is_well, answer = self.pipe.recv()
        except EOFError:
            code = self.close()
            raise _FromProcess(f"nothing: its process died (exit code {code})") from None
        if not is_well:
            raise _FromProcess(answer)
        return answer

    def _begin(self) -> None:
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.function, other), daemon=True)
        self.process.start()
        other.close()

    def close(self) -> int | None:
        """End the process; its exit code."""
        if self.process is None:
            return None
        self.process.join(0.2)
        self.process.kill()
        self.process.join()
        code, self.process = self.process.exitcode, None
        self.pipe.close()
        return code

    def __del__(self) -> None:
        if getattr(self, "process", None) is not None:
            self.process.kill()


def _serve(function: Function, pipe: Any) -> None:
    torch.set_num_threads(1)  # threads of the process that was forked are not here
    for objects in _received(pipe):
        try:
            made = function(objects)
            answer: tuple[bool, Any] = (True, made.detach().cpu().tolist() if isinstance(made, Tensor) else list(made))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _received(pipe: Any) -> Iterator[list[Any]]:
    while True:
        try:
            yield pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
