"""What a run shows on the console: one bar with the time that is left, or a line now and then where there is no terminal."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from manifoldflow.training.config import TrainConfig
from manifoldflow.training.keeper import Keeper

EVERY = 0.2
"""Seconds between two updates of the bar."""

LINE_EVERY = 60.0
"""Seconds between two lines of a log."""


class Bar(pl.Callback):
    """How far a run is, by the steps or the clock, whichever is further.

    Args:
        keeper: has the latest numbers.
        config: has the limits.
        console: where to draw; standard error if absent.
    """

    def __init__(self, keeper: Keeper, config: TrainConfig, console: Console | None = None) -> None:
        self.keeper, self.config = keeper, config
        self.console = console or Console(stderr=True)
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.first_step, self.began, self.shown_at = 0, 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.first_step, self.began = trainer.global_step, time.monotonic()
        self.shown_at = self.began
        if not trainer.is_global_zero or not (self.console.is_terminal or self.console.is_jupyter):
            return
        text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=20), text]
        self.progress = Progress(*columns, console=self.console, refresh_per_second=5)
        self.task = self.progress.add_task("training", total=1.0, text="")
        self.progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        now = time.monotonic()
        wait = EVERY if self.progress is not None else LINE_EVERY
        if now - self.shown_at >= wait and trainer.is_global_zero:
            self.shown_at = now
            self._show(trainer.global_step, module.minutes)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            self._show(trainer.global_step, module.minutes, ended=True)
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _show(self, step: int, minutes: float, ended: bool = False) -> None:
        done, left = self.state(step, minutes, time.monotonic())
        text = f"{step:,} steps, " + (f"{clock(60 * minutes)} in all" if ended else f"{clock(left)} left")
        numbers = [f"{name} {value:.4g}" for name, value in self.keeper.shown.items() if name != "per_s"]
        speed = self.keeper.shown.get("per_s")
        text = ", ".join([text, *numbers, *([f"{speed:,.0f} elements/s"] if speed is not None else [])])
        if self.progress is not None:
            self.progress.update(self.task, completed=1.0 if ended else done, text=text)
        else:
            print(f"training: {'100' if ended else f'{100 * done:.0f}'} %, {text}", file=sys.stderr, flush=True)

    def state(self, step: int, minutes: float, now: float) -> tuple[float, float | None]:
        """The share of the run that is done, and the seconds that are left (None while nothing is known)."""
        c, made = self.config, step - self.first_step
        shares, left = [step / c.max_steps], []
        if made > 0:
            left.append((c.max_steps - step) * (now - self.began) / made)
        if c.max_minutes > 0:
            shares.append(minutes / c.max_minutes)
            left.append(60 * (c.max_minutes - minutes))
        return min(1.0, max(shares)), max(0.0, min(left)) if left else None


def clock(seconds: float | None) -> str:
    """``1:05:09``, ``2:30`` or ``?``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
