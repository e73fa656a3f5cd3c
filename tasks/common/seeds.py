"""Seeds: of a step, and as people write them."""

import argparse

import torch


def generator_of(seed: int, step: int = 0) -> torch.Generator:
    """The generator of a step of a run: other steps and other seeds draw other numbers."""
    number = (seed * 1_000_003 + step) % 2**96
    while number >= 2**32:  # the CPU's generator looks at 32 bits of its seed; those above are folded in
        number = (number % 2**32) ^ (number >> 32)
    return torch.Generator().manual_seed(number)


class SeedsError(argparse.ArgumentTypeError, ValueError):
    """Seeds that cannot be read: argparse shows its message, and everybody else knows a mistake of the input."""


def seeds_of(text: str) -> list[int]:
    """``"0-4"`` or ``"0,3,7"`` as a list, for argparse.

    Raises:
        SeedsError: it is neither, or names no seed.
    """
    try:
        ends = [[int(n) for n in part.split("-")] for part in text.split(",")]
    except ValueError:
        ends = []
    found = [seed for part in ends for seed in range(part[0], part[-1] + 1)]
    if not found:
        raise SeedsError(f"seeds must look like 0-4 or 0,3,7, got {text!r}")
    return found
