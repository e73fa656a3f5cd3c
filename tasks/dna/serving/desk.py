"""The models at work: answers calls in the process that holds them."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

import torch

from manifoldflow.tasks.dna.designer import SequenceDesigner
from manifoldflow.tasks.dna.orders import make_order
from manifoldflow.tasks.dna.serving.calls import Answer, DesignCall, ScoreCall, Served
from manifoldflow.tasks.dna.serving.tracks import Tracks


class Desk:
    """Answers calls with the models in this process.

    Args:
        models: to load.
        threads: of torch.
    """

    def __init__(self, models: Sequence[Served], threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.designers = {model.name: SequenceDesigner.load(model.path) for model in models}
        self.tracks = {model.name: Tracks(model.motifs) for model in models}

    def answer(self, message: DesignCall | ScoreCall) -> Answer:
        """What the message asks for."""
        return self._design(message) if isinstance(message, DesignCall) else self._score(message)

    def measure(self, model: str, rows: int = 16) -> float:
        """How fast a model is: network evaluations of one letter in a second."""
        config = self.designers[model].config
        steps = config.length if config.representation == "autoregressive" else 2
        order = make_order(config, rows, steps=steps)
        taken = 1.0
        for _ in range(2):  # the first one also warms up
            start = time.perf_counter()
            self._design(DesignCall(model, (order,), (rows,), 0))
            taken = time.perf_counter() - start
        return rows * steps * config.length / taken

    def _design(self, message: DesignCall) -> Answer:
        generator = torch.Generator()
        if isinstance(message.state, bytes):
            generator.set_state(torch.frombuffer(bytearray(message.state), dtype=torch.uint8))
        else:
            generator.manual_seed(secrets.randbits(63) if message.state is None else message.state)
        made = self.designers[message.model].draw(message.orders, message.rows, generator=generator)
        parts: list[list[Any] | str] = []
        for designs in made:
            if isinstance(designs, ValueError):
                parts.append(one_line(designs))
                continue
            hits = self.tracks[message.model].find([d.sequence for d in designs])
            parts.append(
                [
                    {"sequence": d.sequence, "label": d.label, "kept": d.kept, "gc": round(d.gc, 6), "hits": found}
                    for d, found in zip(designs, hits, strict=True)
                ]
            )
        state = None if message.state is None else generator.get_state().numpy().tobytes()
        return Answer(tuple(parts), state)

    def _score(self, message: ScoreCall) -> Answer:
        flat = [letters for some in message.sequences for letters in some]
        labels = [label for some, label in zip(message.sequences, message.labels, strict=True) for _ in some]
        seed = secrets.randbits(63) if message.seed is None else message.seed
        scores = iter(self.designers[message.model].score(flat, label=labels, samples=message.samples, seed=seed))
        return Answer(tuple([next(scores) for _ in some] for some in message.sequences))


def one_line(error: BaseException) -> str:
    """The message of an error; with its kind where it is not one of those that are meant to be read."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__} {text}".strip()
