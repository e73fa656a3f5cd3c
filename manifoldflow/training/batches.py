"""Batches from a given step on, for ever, made here or by worker processes; and a look at what comes in at the door."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from manifoldflow.manifolds.base import Manifold
from manifoldflow.state import fields
from manifoldflow.training.trainable import Batch, size_of

Batches = Iterable[Batch] | Callable[[int], Iterator[Batch]]


class Carried:
    """A batch on its way through Lightning, which may not enter frozen parts of it; the module moves and converts it whole.

    Args:
        batch: the batch.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


LOOK_EVERY = 500
"""Batches between two looks at the data."""

OFF = 5e-3
"""How far a point may lie off its manifold, times 1 + its squared length: three digits are fine, degrees are not."""


class Endless:
    """Training batches for ever.

    Args:
        batches: an iterable, which is repeated; or a function from the number of a batch to an endless iterator.
        start: number of the first batch.
        seed: of what the function draws from torch's own generator: a batch depends on it and on the number alone.
        workers: processes that make the batches, in turns; the order is that of none.
        check: called with every batch.
        look: called with a batch and its number, now and then.
    """

    def __init__(
        self,
        batches: Batches,
        start: int,
        seed: int,
        workers: int,
        check: Callable[[Batch], Any],
        look: Callable[[Batch, int], None],
    ) -> None:
        if workers and not callable(batches):
            raise ValueError(
                "workers need batches that are a function of the step; a DataLoader has num_workers= of its own"
            )
        self.batches, self.start, self.seed, self.workers = batches, start, seed, workers
        self.check, self.look = check, look

    def __iter__(self) -> Iterator[Carried]:
        for number, batch in enumerate(self._all(), self.start):
            self.check(batch)
            if number == self.start or number % LOOK_EVERY == 0:
                self.look(batch, number)
            yield Carried(batch)

    def _all(self) -> Iterator[Batch]:
        if not callable(self.batches):
            yield from self._repeated(self.batches)
        elif not self.workers:
            yield from _made(self.batches, self.start, self.seed)
        else:
            for batch in DataLoader(_Made(self.batches, self.start, self.seed), None, num_workers=self.workers):
                if isinstance(batch, _Failed):
                    raise batch.error
                yield batch

    def _repeated(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        skip = self.start
        while True:
            seen = 0
            for batch in batches:
                seen += 1
                if skip > 0:
                    skip -= 1
                    continue
                yield batch
            if seen == 0:
                raise ValueError("no training batches: the data set or loader is empty")


def _made(make: Callable[[int], Iterator[Batch]], start: int, seed: int) -> Iterator[Batch]:
    """What a function of the step gives from ``start`` on, every batch with random numbers of its own."""
    made, number = iter(make(start)), start
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, number))
            try:
                batch = next(made)
            except StopIteration:
                if number == start:
                    raise ValueError("no training batches: the function of the step gave none") from None
                raise ValueError(
                    f"the function of the step must give batches for ever, it ended before step {number + 1}"
                ) from None
        yield batch
        number += 1


class _Failed:
    """An error in a worker, to be raised as it is where the batches are used."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Made(IterableDataset):
    """The batches that fall to a worker: every n-th, each asked for by its number."""

    def __init__(self, make: Callable[[int], Iterator[Batch]], start: int, seed: int) -> None:
        self.make, self.start, self.seed = make, start, seed

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        turn, count = (info.id, info.num_workers) if info is not None else (0, 1)
        try:
            if count == 1:
                yield from _made(self.make, self.start, self.seed)
            for number in range(self.start + turn, 2**62, count):
                yield next(_made(self.make, number, self.seed))
        except Exception as error:
            yield _Failed(error)


class Repeatable:
    """The validation batches; not a list, which Lightning would take for several loaders."""

    def __init__(self, batches: Iterable[Batch], check: Callable[[Batch], Any]) -> None:
        self.batches, self.check = batches, check

    def __iter__(self) -> Iterator[Carried]:
        empty = True
        for batch in self.batches:
            empty = False
            self.check(batch)
            yield Carried(batch)
        if empty:
            raise ValueError("no validation batches: give a list or a loader, which can be read again and again")


def seed_of(seed: int, number: int) -> int:
    """The seed of a step's draws."""
    return (seed * 1_000_003 + number) * 4099 % 2**63


def look(module: Any, batch: Batch, number: int) -> None:
    """Check a batch of a flow: samples, fields, dtypes, and that the points that count lie on their manifolds.

    It reads values, so it is for the first batch and one now and then, on the host. A module without ``spaces`` only has the
    number of its samples checked.

    Raises:
        ValueError, TypeError: says which field, what is wrong and what to do.
    """
    where = f"training batch {number + 1}"
    data = batch.get("x") if isinstance(batch, Mapping) else None
    if data is None:
        return
    if next(_values(data), None) is not None and size_of(data) == 0:
        raise ValueError(f"{where} is empty: it has no samples")
    spaces = fields(getattr(module, "spaces", None))
    mask = batch.get("mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
        raise TypeError(f"{where}: the mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    for name, value in fields(data).items():
        space = spaces.get(name)
        if space is None:  # a module without spaces, or an unknown field, which the flow itself refuses
            continue
        what = f"{where}, field {name!r}" if isinstance(data, Mapping) else where
        if not isinstance(value, Tensor):
            raise TypeError(f"{what}: expected a tensor, got {type(value).__name__}; torch.as_tensor makes one")
        try:
            _look_at(space, value, _spread(module, name, mask))
        except (ValueError, TypeError) as error:
            raise type(error)(f"{what}: {error}") from None


def _values(data: Any) -> Iterator[Tensor]:
    yield from (v for v in fields(data).values() if isinstance(v, Tensor))


def _spread(module: Any, name: str, mask: Tensor | None) -> Tensor | None:
    """The mask of nodes as one of the elements of a field."""
    field = getattr(module, "fields", {}).get(name)
    return mask if field is None else field.spread(mask)


def _look_at(space: Any, value: Tensor, mask: Tensor | None) -> None:
    is_manifold = isinstance(space, Manifold)
    if is_manifold and not value.is_floating_point():
        raise TypeError(f"points of {space} are floating point numbers, got {value.dtype}; call .float() first")
    batch = value.shape[: value.ndim - space.event_ndim]
    if mask is not None:
        if mask.shape != batch[: mask.ndim]:
            raise ValueError(f"the mask has shape {tuple(mask.shape)}, the data {tuple(batch)}")
        if not bool(mask.any()):
            raise ValueError("the mask leaves no element: True marks what is real")
    real = value if mask is None else value[mask]
    if not is_manifold:
        space.check(real, with_mask=False)
        return
    if not bool(torch.isfinite(real).all()):
        counts = ~torch.isfinite(value).reshape(*batch, -1).all(-1)
        row = int((counts if mask is None else counts & mask).nonzero()[0][0])
        raise ValueError(f"sample {row} holds NaN or infinity")
    base = getattr(space, "base", space)  # centring is the flow's: where a set lies does not matter
    period = getattr(base, "period", None)
    if period is None:
        base.check(real, OFF * (1 + float(real.square().sum(-1).max())))
    elif float(real.min()) < -0.51 * period or float(real.max()) > 1.01 * period:
        warnings.warn(
            f"{space}: the data reach from {float(real.min()):.3g} to {float(real.max()):.3g}, more than one period of "
            f"{period:.4g}; angles in radians need period=2*pi, in degrees period=360",
            stacklevel=2,
        )
