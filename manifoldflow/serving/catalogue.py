"""The models that are served: what is known of them without their weights, and whether their files are still the same."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifoldflow.checkpoint import data_path
from manifoldflow.serving.calls import Served, digest_of
from manifoldflow.serving.errors import Refused, shown
from manifoldflow.serving.service import Service


class Catalogue:
    """The models of a service by name.

    Args:
        service: that knows what they are.
        models: checkpoint file or run folder by name.

    Raises:
        ValueError: no models, or a checkpoint that is not of this service.
        FileNotFoundError: a file that is not there.
    """

    def __init__(self, service: Service, models: Mapping[str, str | Path]) -> None:
        if not models:
            raise ValueError("there is no model to serve: give at least one checkpoint")
        self.service = service
        self.served: dict[str, Served] = {}
        self._seen: dict[str, tuple[Any, bool]] = {}
        for name, given in models.items():
            path = Path(given) / "model.safetensors" if Path(given).is_dir() else Path(given)
            digest = digest_of(path)
            about = service.inspect(path)
            if digest_of(path) != digest:
                raise ValueError(f"{path} is being written just now; try again when it is complete")
            self.served[name] = Served(name, str(path.resolve()), about, digest)

    def find(self, name: str | None) -> Served:
        """A model by name, with or without the prefix of this service's embedded checkpoints; the first if there is none.

        Raises:
            Refused: no such model (404).
        """
        if name is None:
            return next(iter(self.served.values()))
        prefix = self.service.prefix
        for known in (name, name.removeprefix(prefix), prefix + name):
            if known in self.served:
                return self.served[known]
        raise Refused(404, f"no model {shown(name)}; the models are: {', '.join(self.served)}")

    def describe(self) -> list[dict[str, Any]]:
        """What is to be known of every model."""
        return [self.service.describe(served) for served in self.served.values()]

    def changed(self) -> list[str]:
        """Models whose file does not hold what it held at the start. A file is read again only when its status has changed."""
        found = []
        for name, served in self.served.items():
            try:
                status = os.stat(served.path)
                mark = (status.st_mtime_ns, status.st_size, status.st_ino)
            except OSError:
                mark = None
            if name not in self._seen or self._seen[name][0] != mark:
                try:
                    differs = digest_of(served.path) != served.digest
                except OSError:
                    differs = True
                self._seen[name] = (mark, differs)
            found += [name] if self._seen[name][1] else []
        return found


def name_models(checkpoints: str | list[str] | None, prefix: str, task: str) -> dict[str, Path]:
    """Checkpoint files by the names that requests use.

    Args:
        checkpoints: files, run folders or names of embedded checkpoints; several in one string have commas; the embedded ones of
            this task if absent.
        prefix: that the embedded ones of this task begin with.
        task: its name on the command line.

    Raises:
        FileNotFoundError: a file that is not there, or no embedded ones.
        ValueError: two of one name.
    """
    is_file = isinstance(checkpoints, str) and Path(checkpoints).exists()  # its name may hold a comma
    every = [str(checkpoints)] if is_file else listed(checkpoints)
    if not every:
        folder = data_path("checkpoints")
        found = {path.stem.removeprefix(prefix): path for path in sorted(folder.glob(f"{prefix}*.safetensors"))}
        if not found:
            raise FileNotFoundError(
                f"this installation has no embedded models of {task}: train one with manifoldflow train {task}, "
                "and give it by --checkpoints"
            )
        return found
    models: dict[str, Path] = {}
    for given in every:
        path = Path(given)
        embedded = [data_path(f"checkpoints/{name}.safetensors") for name in (given, prefix + given)]
        there = [file for file in embedded if path.name == given and file.is_file()]
        if path.is_dir():
            name, path = path.resolve().name, path / "model.safetensors"
            if not path.is_file():
                raise FileNotFoundError(f"no checkpoint in {given!r}: the folder holds no model.safetensors")
        elif not path.is_file() and there:
            name, path = there[0].stem.removeprefix(prefix), there[0]
        else:
            name = path.stem
        if not path.exists():
            raise FileNotFoundError(f"no checkpoint {given!r}: neither a model file nor a run folder")
        if not path.is_file():
            raise ValueError(f"no checkpoint {given!r}: it is a device or a pipe, not a file")
        if name in models:
            raise ValueError(f"{given}: there is another model called {name!r}; rename the file or folder")
        models[name] = path
    return models


def listed(given: str | list[str] | None) -> list[str]:
    """The values of an option that takes one, several with commas, or a list."""
    parts = given.split(",") if isinstance(given, str) else given or []
    return [part.strip() for part in parts if part.strip()]
