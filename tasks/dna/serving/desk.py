"""A model of sequences at work: answers calls in the process that holds it."""

import secrets
import time
from typing import Any

import torch

from manifoldflow.serving import Answer, Call, Served
from manifoldflow.serving.calls import one_line
from manifoldflow.tasks.dna.designer import SequenceDesigner
from manifoldflow.tasks.dna.orders import make_order
from manifoldflow.tasks.dna.serving.tracks import Tracks


class Desk:
    """Answers calls with one model.

    Args:
        served: it; ``about`` is an :class:`manifoldflow.tasks.dna.serving.service.About`.
    """

    def __init__(self, served: Served) -> None:
        self.designer = SequenceDesigner.load(served.path)
        self.tracks = Tracks(served.about.motifs if served.about is not None else ())

    def answer(self, call: Call) -> Answer:
        """What the call asks for."""
        return self._design(call) if call.kind == "design" else self._score(call)

    def measure(self, rows: int = 16) -> float:
        """Network evaluations of one letter in a second."""
        config = self.designer.config
        steps = config.length if config.representation == "autoregressive" else 2
        order = make_order(config, rows, steps=steps)
        taken = 1.0
        for _ in range(2):  # the first one also warms up
            start = time.perf_counter()
            self._design(Call("design", "", (order,), (rows,), 0))
            taken = time.perf_counter() - start
        return rows * steps * config.length / taken

    def _design(self, call: Call) -> Answer:
        generator = torch.Generator()
        if isinstance(call.state, bytes):
            generator.set_state(torch.frombuffer(bytearray(call.state), dtype=torch.uint8))
        else:
            generator.manual_seed(secrets.randbits(63) if call.state is None else call.state)
        made = self.designer.draw(call.wants, call.rows, generator=generator)
        parts: list[list[Any] | str] = []
        for designs in made:
            if isinstance(designs, ValueError):
                parts.append(one_line(designs))
                continue
            hits = self.tracks.find([d.sequence for d in designs])
            parts.append(
                [
                    {"sequence": d.sequence, "label": d.label, "kept": d.kept, "gc": round(d.gc, 6), "hits": found}
                    for d, found in zip(designs, hits, strict=True)
                ]
            )
        state = None if call.state is None else generator.get_state().numpy().tobytes()
        return Answer(tuple(parts), state)

    def _score(self, call: Call) -> Answer:
        samples = call.wants[0][2]
        flat = [letters for some, _, _ in call.wants for letters in some]
        labels = [label for some, label, _ in call.wants for _ in some]
        seed = secrets.randbits(63) if call.state is None else int(call.state)  # type: ignore[arg-type]
        scores = iter(self.designer.score(flat, label=labels, samples=samples, seed=seed))
        return Answer(tuple([next(scores) for _ in some] for some, _, _ in call.wants))
