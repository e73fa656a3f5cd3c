"""The sciences that the library is applied to: one package each, imported as ``manifoldflow.tasks.NAME``.

The files lie in the checkout's folder ``tasks/``; ``manifoldflow/tasks`` is a link to it, and wheels hold them there. The
old top-level name ``tasks`` is one that any file ``tasks.py`` of a user hides, so nothing of ours imports by it; it still
works where nothing hides it, for one version: its modules are those of the new name, never second copies of them.
"""

if __name__ != "manifoldflow.tasks":
    import sys
    import warnings
    from importlib import import_module
    from importlib.abc import Loader, MetaPathFinder
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    class _Renamed(MetaPathFinder, Loader):
        """Finds ``tasks.x.y`` as the module ``manifoldflow.tasks.x.y``."""

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return ModuleSpec(name, self) if name.startswith("tasks.") else None

        def create_module(self, spec: ModuleSpec) -> ModuleType:
            module = import_module("manifoldflow." + spec.name)
            spec.loader_state = module.__spec__, module.__loader__
            return module

        def exec_module(self, module: ModuleType) -> None:
            assert module.__spec__ is not None
            module.__spec__, module.__loader__ = module.__spec__.loader_state

    warnings.warn(
        "the package 'tasks' is now 'manifoldflow.tasks': import it by that name (this one goes in the next version)",
        FutureWarning,
        stacklevel=2,
    )
    sys.meta_path.insert(0, _Renamed())
    sys.modules[__name__] = import_module("manifoldflow.tasks")
