"""The smallest service: dice. Its checkpoints are text files with a number of sides, so nothing of it is a flow."""

import random
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from manifoldflow.serving import Answer, Endpoint, Job, Service
from manifoldflow.serving.schema import Facts, Request, Seed


class Roll(Request):
    n: int = Field(1, ge=1, le=1000, description="times to roll")
    seed: Seed | None = None


class Rolled(BaseModel):
    model: str
    rolls: list[int]


class DieFacts(Facts):
    sides: int


@dataclass(eq=False)
class RollJob(Job):
    kind = "roll"

    n: int

    @property
    def want(self):
        return self.n

    @property
    def rows(self):
        return self.n


class Die:
    """A model in the worker."""

    def __init__(self, served):
        self.sides = int(Path(served.path).read_text())

    def answer(self, call):
        if 666 in call.wants:
            raise RuntimeError("a cursed number")
        rng = random.Random(call.state)
        return Answer(tuple([rng.randint(1, self.sides) for _ in range(n)] for n in call.wants))

    def measure(self):
        return 0.0


def job(served, body):
    if body.n == 13:
        raise ValueError("n must not be 13 here")
    return RollJob(served.name, body.seed, body.n)


class DiceService(Service):
    title = "dice"
    prefix = "dice_"
    loader = "testkit.dice:Die"
    facts = DieFacts

    def inspect(self, path):
        return int(path.read_text())

    def describe(self, served):
        return {"name": served.name, "sides": served.about}

    def endpoints(self):
        def reply(served, body, rolls, seconds):
            return {"model": served.name, "rolls": rolls}

        return [Endpoint("/v1/roll", Roll, Rolled, job, reply, "Roll a die.")]
