"""The one list of tasks, and of the functions that may build a model from a checkpoint.

A task is a module registered in the entry-point group ``manifoldflow.tasks``. It exposes

- ``COMMANDS``: a dict from verb to a plainly typed function (the command line),
- ``EXAMPLES`` (optional): a dict from verb to a command that works,
- ``BUILDERS`` (optional): the functions ``build(config: dict) -> module`` that its checkpoints may name, as a tuple of
  ``"package.module:function"``. A checkpoint comes from anywhere, so it chooses among these and nothing else.

Nothing heavy is imported here, and a task only when it is asked for.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

GROUP = "manifoldflow.tasks"
OURS = "manifoldflow.tasks."
_BEFORE = "tasks."
"""What the names of our tasks began with before version 0.2; checkpoints of that time still carry it."""


def find_tasks() -> dict[str, EntryPoint]:
    """The registered tasks by name, unloaded; those beside this package too where its metadata is missing (PYTHONPATH)."""
    folder = Path(__file__).resolve().parent / "tasks"
    found = {entry.name: _renamed(entry, folder) for entry in entry_points(group=GROUP)}
    if not any(entry.module.startswith(OURS) for entry in found.values()):
        for init in sorted(folder.glob("*/__init__.py")):
            name = init.parent.name
            if "COMMANDS" in init.read_text(encoding="utf-8"):  # what tasks share lies there too
                found.setdefault(name, EntryPoint(name, OURS + name, GROUP))
    return dict(sorted(found.items()))


def load_task(entry: EntryPoint) -> ModuleType:
    """Import a task.

    Raises:
        ImportError: a package that the task needs is missing.
        TypeError: the module has no dict ``COMMANDS``.
    """
    task = _imported(entry)
    if not isinstance(getattr(task, "COMMANDS", None), dict):
        raise TypeError(f"task {entry.name!r} ({entry.value}) has no dict COMMANDS of verbs and functions")
    return task


def find_builder(name: str) -> Callable[[dict[str, Any]], Any]:
    """The function of a builder's name, if a registered task declares it.

    Only tasks of the package that the name begins with are imported, and the function's own module only after the name was
    found in their ``BUILDERS``.

    Args:
        name: ``"package.module:function"``, as in a checkpoint; ``tasks.X`` of version 0.1 means ``manifoldflow.tasks.X``.

    Raises:
        LookupError: no registered task declares it.
        ImportError: the task, or the function it declares, cannot be imported.
    """
    wanted = f"manifoldflow.{name}" if name.startswith(_BEFORE) else name
    declared: list[str] = []
    for entry in _related(wanted):
        listed = getattr(_imported(entry), "BUILDERS", ())
        # A string is a sequence too: BUILDERS = "a:b" must not allow what is part of it.
        declared += [listed] if isinstance(listed, str) else [str(builder) for builder in listed]
    if wanted not in declared:
        known = ", ".join(declared) or f"none in this package (the tasks: {', '.join(find_tasks()) or 'none'})"
        raise LookupError(f"no registered task declares it among its BUILDERS, which are: {known}")
    module, _, function = wanted.partition(":")
    try:
        made = getattr(import_module(module), function)
    except AttributeError as error:
        raise ImportError(f"the task declares the builder {wanted!r}, but: {error}") from error
    if not callable(made):
        raise ImportError(f"the task declares the builder {wanted!r}, which is no function")
    return made


def _renamed(entry: EntryPoint, folder: Path) -> EntryPoint:
    """One of our tasks under its name of today, where a checkout has moved on and its metadata is that of version 0.1."""
    is_ours = entry.value == _BEFORE + entry.name and (folder / entry.name / "__init__.py").is_file()
    return EntryPoint(entry.name, OURS + entry.name, GROUP) if is_ours else entry


def _related(builder: str) -> Iterator[EntryPoint]:
    """The tasks that may declare a builder: the one that it lies in, or if it lies in none, all of its package."""
    module = builder.partition(":")[0]
    tasks = list(find_tasks().values())
    around = [entry for entry in tasks if f"{module}.".startswith(f"{entry.module}.")]
    package = module.partition(".")[0]
    near = [e for e in tasks if e.module.partition(".")[0] == package and not e.module.startswith(OURS)]
    yield from around or near


def _imported(entry: EntryPoint) -> ModuleType:
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        if error.name is None or (error.name + ".").startswith(entry.module.split(".")[0] + "."):
            raise ImportError(f"task {entry.name!r} is registered as {entry.value!r}, but: {error}") from error
        extra = f"'manifoldflow[{entry.name}]'" if entry.module.startswith(OURS) else error.name.split(".")[0]
        raise ImportError(
            f"task {entry.name!r} needs the package {error.name!r}; install it with: pip install {extra}"
        ) from error
