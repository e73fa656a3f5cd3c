"""Sequences that grow token by token: bits, DNA, peptides."""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from manifoldflow.gflownet.env import Env
from manifoldflow.gflownet.replay import hashed
from manifoldflow.gflownet.reward import Reward
from manifoldflow.state import State, fields


class Sequences(Env):
    r"""Sequences over an alphabet, of a fixed length or of any up to a longest.

    A state holds the tokens from the left, the rest is padding with the number of the alphabet's end.

    Args:
        alphabet: its letters, such as ``"ACGT"``.
        length: of an object; the longest with ``shortest``.
        reward: a function of states that returns log-rewards ``(B,)``, or a :class:`Reward` of strings. 1 for all if absent.
        shortest: an action stops from this length on; every object has ``length`` if absent.
        grows: at the ``"right"``, or at ``"both"`` ends: then there are many ways to a sequence.
    """

    def __init__(
        self,
        alphabet: str,
        length: int,
        reward: Callable[[State], Tensor] | Reward | None = None,
        *,
        shortest: int | None = None,
        grows: Literal["right", "both"] = "right",
    ) -> None:
        if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2 or length < 1:
            raise ValueError(f"Sequences: need two different letters and a length, got {alphabet!r} and {length}")
        if grows not in ("right", "both"):
            raise ValueError(f"Sequences: grows must be 'right' or 'both', got {grows!r}")
        if shortest is not None and not 0 <= shortest <= length:
            raise ValueError(f"Sequences: shortest must lie between 0 and {length}, got {shortest}")
        self.alphabet, self.length, self.reward, self.shortest = alphabet, length, reward, shortest
        self.letters, self.both = len(alphabet), grows == "both"
        self.actions = self.letters * (1 + self.both) + (shortest is not None)
        self.horizon, self.observed = length + (shortest is not None), length * self.letters

    def initial(self, n: int, *, device: torch.device | str | None = None) -> State:
        token = torch.full((n, self.length), self.letters, device=device)
        zero = torch.zeros(n, dtype=torch.int64, device=device)
        return {"token": token, "length": zero, "done": zero.bool()}

    def is_done(self, x: State) -> Tensor:
        return fields(x)["done"]

    def forward_mask(self, x: State) -> Tensor:
        view = fields(x)
        size, free = view["length"], ~view["done"]
        parts = [((size < self.length) & free).unsqueeze(-1).expand(-1, self.letters)]
        if self.both:  # the first letter comes from one side
            parts.append(((size > 0) & (size < self.length) & free).unsqueeze(-1).expand(-1, self.letters))
        if self.shortest is not None:
            parts.append(((size >= self.shortest) & free).unsqueeze(-1))
        return torch.cat(parts, -1)

    def backward_mask(self, x: State) -> Tensor:
        view = fields(x)
        token, size, done = view["token"], view["length"], view["done"]
        stops = self.shortest is not None
        open_ = (size > 0) & ~done if stops else size > 0
        each = torch.arange(self.letters, device=token.device)
        last = token.gather(1, (size - 1).clamp_min(0).unsqueeze(1))
        parts = [(last == each) & open_.unsqueeze(-1)]
        if self.both:
            parts.append((token[:, :1] == each) & (open_ & (size > 1)).unsqueeze(-1))
        if stops:
            parts.append(done.unsqueeze(-1))
        return torch.cat(parts, -1)

    def step(self, x: State, action: Tensor) -> State:
        view = fields(x)
        token, size = view["token"], view["length"]
        place = torch.arange(self.length, device=token.device)
        letter = (action % self.letters).unsqueeze(-1)
        grown = torch.where(place == size.unsqueeze(-1), letter, token)
        if self.both:
            moved = torch.cat([letter, token[:, :-1]], 1)
            front = (action >= self.letters) & (action < 2 * self.letters)
            grown = torch.where(front.unsqueeze(-1), moved, grown)
        if self.shortest is None:
            return {"token": grown, "length": size + 1, "done": size + 1 >= self.length}
        stop = action == self.actions - 1
        token = torch.where(stop.unsqueeze(-1), token, grown)
        return {"token": token, "length": size + ~stop, "done": view["done"] | stop}

    def undo(self, x: State, action: Tensor) -> State:
        view = fields(x)
        token, size = view["token"], view["length"]
        place = torch.arange(self.length, device=token.device)
        less = torch.where(place == size.unsqueeze(-1) - 1, self.letters, token)
        if self.both:
            moved = torch.cat([token[:, 1:], torch.full_like(token[:, :1], self.letters)], 1)
            front = (action >= self.letters) & (action < 2 * self.letters)
            less = torch.where(front.unsqueeze(-1), moved, less)
        if self.shortest is None:
            return {"token": less, "length": size - 1, "done": torch.zeros_like(view["done"])}
        stop = action == self.actions - 1
        token = torch.where(stop.unsqueeze(-1), token, less)
        return {"token": token, "length": size - (~stop).long(), "done": view["done"] & ~stop}

    def action(self, x: State, y: State) -> Tensor:
        before, after = fields(x), fields(y)
        last = after["token"].gather(1, (after["length"] - 1).clamp_min(0).unsqueeze(1)).squeeze(1)
        found = last.clamp_max(self.letters - 1)
        if self.both:
            place = torch.arange(self.length, device=last.device)
            kept = ((before["token"] == after["token"]) | (place >= before["length"].unsqueeze(-1))).all(-1)
            found = torch.where(kept, found, self.letters + after["token"][:, 0].clamp_max(self.letters - 1))
        if self.shortest is None:
            return found
        return torch.where(before["length"] == after["length"], self.actions - 1, found)

    def log_reward(self, x: State) -> Tensor:
        if self.reward is None:
            return torch.zeros(len(fields(x)["done"]), device=fields(x)["done"].device)
        return self.reward.log(self.strings(x)) if isinstance(self.reward, Reward) else self.reward(x)

    def log_paths(self, x: State) -> Tensor:
        size = fields(x)["length"]
        return ((size - 1).clamp_min(0) * math.log(2) if self.both else torch.zeros_like(size)).double()

    def observe(self, x: State) -> Tensor:
        token = fields(x)["token"].unsqueeze(-1)
        return (token == torch.arange(self.letters, device=token.device)).flatten(1).to(torch.get_default_dtype())

    def key(self, x: State) -> Tensor:
        """A number of every state: exact while they fit 62 bits, else a hash."""
        view, base = fields(x), self.letters + 1
        if (self.length + 1) * math.log2(base) > 61:
            return hashed(x)
        weight = torch.tensor([base**i for i in range(self.length)], device=view["token"].device)
        return 2 * (view["token"] * weight).sum(-1) + view["done"]

    def strings(self, x: State) -> list[str]:
        """Objects as strings."""
        view = fields(x)
        return [
            "".join(self.alphabet[t] for t in row[:n])
            for row, n in zip(view["token"].tolist(), view["length"].tolist(), strict=True)
        ]

    def states(self, strings: list[str]) -> State:
        """Strings as objects.

        Raises:
            ValueError: names a string that is too long, too short or has a letter that is not of the alphabet.
        """
        least = self.length if self.shortest is None else self.shortest
        for number, text in enumerate(strings):
            if not least <= len(text) <= self.length or set(text) - set(self.alphabet):
                raise ValueError(
                    f"sequence {number} is {text[:80]!r}, expected {least} to {self.length} letters of {self.alphabet!r}"
                )
        rows = [[self.alphabet.index(c) for c in s] + [self.letters] * (self.length - len(s)) for s in strings]
        size = torch.tensor([len(s) for s in strings])
        return {"token": torch.tensor(rows), "length": size, "done": torch.ones_like(size, dtype=torch.bool)}


class BitSequences(Sequences):
    r"""Strings of bits with hidden modes, built word by word (Malkin et al. 2022).

    .. math:: R(x) = \exp\big(-\beta \min_m d(x, m) / n\big)

    with the Hamming distance d to modes m that are made of words from a small vocabulary.

    Args:
        bits: length n.
        word: bits of an action; a divisor of ``bits``.
        modes: number of modes, or the modes themselves, bool ``(M, bits)``.
        sharpness: :math:`\beta`.
        seed: of the modes.
    """

    def __init__(
        self, bits: int = 120, word: int = 1, *, modes: int | Tensor = 60, sharpness: float = 1.0, seed: int = 0
    ):
        if word < 1 or bits % word or 2**word > 94:
            raise ValueError(f"BitSequences: word must divide bits and have at most 6 bits, got {word} and {bits}")
        letters = "".join(chr(33 + i) for i in range(2**word))
        super().__init__(letters, bits // word)
        self.word, self.bits, self.sharpness = word, bits, sharpness
        if isinstance(modes, Tensor):
            self.modes = modes.bool()
        else:
            generator = torch.Generator().manual_seed(seed)
            piece = 8 if bits % 8 == 0 else word
            words = torch.rand(5, piece, generator=generator) < 0.5
            self.modes = words[torch.randint(5, (modes, bits // piece), generator=generator)].flatten(1)

    def as_bits(self, x: State) -> Tensor:
        """Objects as bits, bool ``(B, bits)``."""
        token = fields(x)["token"].unsqueeze(-1)
        return (token >> torch.arange(self.word - 1, -1, -1, device=token.device) & 1).bool().flatten(1)

    def distance(self, x: State) -> Tensor:
        """Hamming distance to the nearest mode, ``(B,)``."""
        own, modes = self.as_bits(x).float(), self.modes.to(fields(x)["token"].device).float()
        return (own @ (1 - modes).T + (1 - own) @ modes.T).amin(-1)

    def log_reward(self, x: State) -> Tensor:
        return -self.sharpness * self.distance(x) / self.bits

    @property
    def log_z(self) -> float:
        """The exact logarithm of the sum of all rewards, by listing all strings.

        Raises:
            ValueError: there are more than 2^22.
        """
        if self.bits > 22:
            raise ValueError(f"BitSequences.log_z lists all strings, and 2^{self.bits} are too many")
        tokens = torch.tensor(list(itertools.product(range(self.letters), repeat=self.length)))
        return float(self.log_reward({"token": tokens}).double().logsumexp(0))
