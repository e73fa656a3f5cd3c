"""The sequence designer's web application, for servers of one's own; ``manifoldflow serve`` is one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from manifoldflow.serving import app
from manifoldflow.tasks.dna.serving.service import DnaService


def create_app(
    models: Mapping[str, str | Path], *, motifs: str | Path | None = None, motif: str | None = None, **options: Any
) -> FastAPI:
    """The application; its worker lives from start-up to shutdown.

    Args:
        models: checkpoint file or run folder by name; requests get the first unless they name one.
        motifs: JASPAR, MEME or TRANSFAC file of motifs to show in designs.
        motif: names of motifs of that file, with commas; all of them if absent.
        options: those of :func:`manifoldflow.serving.app.create_app`.

    Raises:
        ValueError: no models, or a checkpoint or motif that cannot be used.
    """
    return app.create_app(DnaService(motifs, motif), models, **options)
