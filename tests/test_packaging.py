"""The wheel holds what a user needs and works far from the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

import manifoldflow

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def installed(name: str) -> bool:
    """Whether a distribution is installed, from its metadata: looking for the module ``pip`` through the import system
    makes setuptools switch off its distutils for the whole process, and torch.compile then fails in later tests."""
    return bool(list(distributions(name=name)))


needs_hatchling = pytest.mark.skipif(
    not (installed("hatchling") and installed("pip")), reason="the build backend hatchling, or pip, is not installed"
)


def pip(*words: str) -> None:
    """Run pip without the network."""
    command = [sys.executable, "-m", "pip", *words, "--no-deps", "--no-index", "--disable-pip-version-check", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def outside(site: Path, *words: str, folder: Path | None = None) -> str:
    """Run Python in a folder that is no checkout, with the installed wheel before anything else; its output."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder or site.parent, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HOSTILE = {
    "tasks.py": "raise SystemExit('the tasks.py of the working folder was imported')\n",
    "tasks/__init__.py": "raise SystemExit('the package tasks of the working folder was imported')\n",
}


def works_beside(kind: str, site: Path, folder: Path) -> None:
    """Use the library from a folder whose own ``tasks`` ends every program that imports it."""
    (folder / kind).parent.mkdir(exist_ok=True)
    (folder / kind).write_text(HOSTILE[kind])
    code = (
        "import manifoldflow as mf\n"
        "flow = mf.load('proteins')\n"  # its checkpoint names its builder tasks.proteins.flow:build
        "from manifoldflow.tasks import densities, dna, proteins\n"
        "import sys; print(flow.builder, 'tasks' in sys.modules)"
    )
    assert outside(site, "-c", code, folder=folder).split() == ["manifoldflow.tasks.proteins.flow:build", "False"]
    assert "tasks: crystals, densities, dna, energies, molecules, proteins" in outside(
        site, "-m", "manifoldflow", "--help", folder=folder
    )
    assert "--checkpoint" in outside(site, "-m", "manifoldflow", "sample", "dna", "--help", folder=folder)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_checkout_works_in_a_folder_with_tasks_of_its_own(kind: str, tmp_path: Path) -> None:
    works_beside(kind, ROOT, tmp_path)


@needs_hatchling
@pytest.mark.parametrize("kind", HOSTILE)
def test_an_installed_wheel_works_in_a_folder_with_tasks_of_its_own(kind: str, site: Path, tmp_path: Path) -> None:
    works_beside(kind, site, tmp_path)


def test_the_command_line_is_a_module_too(tmp_path: Path) -> None:
    text = outside(ROOT, "-m", "manifoldflow", "--version", folder=tmp_path)
    assert text == f"manifoldflow {manifoldflow.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "manifoldflow", "trian"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown verb 'trian' (did you mean 'train'?)")


def test_every_public_name_is_one_of_the_root_though_none_is_imported_at_first(tmp_path: Path) -> None:
    code = (
        "import sys, manifoldflow as mf\n"
        "assert 'torch' not in sys.modules and mf.__version__\n"
        "mf.Flow\n"
        "from manifoldflow import public\n"
        "assert all(getattr(mf, name) is getattr(public, name) for name in public.__all__)\n"
        "assert set(public.__all__) <= set(dir(mf))\n"
        "names = {}; exec('from manifoldflow import *', names)\n"
        "assert set(public.__all__) <= set(names)\n"
        "assert mf.training.fit and mf.registry.find_tasks\n"  # modules are names, too
        "assert not hasattr(mf, 'Spere') and not hasattr(mf, '_nothing')\n"
        "print('done')"
    )
    assert outside(ROOT, "-c", code, folder=tmp_path) == "done\n"


@pytest.mark.parametrize("module", ["public", "tasks.dna", "tasks.proteins", "tasks.densities"])
def test_an_import_loads_nothing_that_only_some_commands_need(module: str, tmp_path: Path) -> None:
    heavy = ("lightning", "matplotlib", "biotite", "fastapi", "uvicorn", "jsonargparse", "ot", "pandas", "sklearn")
    code = f"import sys, manifoldflow.{module}; print(*(set(sys.modules) & set({heavy!r})))"
    assert outside(ROOT, "-c", code, folder=tmp_path).split() == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(ROOT), "--no-build-isolation", "-w", str(folder))
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("elsewhere") / "site"
    pip("install", str(wheel), "--target", str(folder))
    yield folder


def test_version_is_the_same_in_metadata_and_module() -> None:
    assert PROJECT["project"]["version"] == manifoldflow.__version__


def test_every_direct_dependency_is_pinned_in_constraints() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + [line for lines in extras.values() for line in lines]
    names = {line.split(">=")[0].split("[")[0].lower().replace("_", "-") for line in wanted}
    assert not names - pinned, f"not in constraints.txt: {sorted(names - pinned)}"


@needs_hatchling
def test_wheel_holds_the_packages_their_data_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"manifoldflow/py.typed", "manifoldflow/cli.py", "manifoldflow/tasks/proteins/__init__.py"} <= names
    for folder in ("checkpoints", "reference"):
        here = {f"manifoldflow/data/{folder}/{p.name}" for p in (ROOT / "data" / folder).iterdir() if p.is_file()}
        assert here and here <= names
    kinds = ("*.py", "*.html", "*.css", "*.js")
    sources = {str(p.relative_to(ROOT)) for kind in kinds for p in (ROOT / "manifoldflow").rglob(kind)}
    sources |= {f"manifoldflow/{p.relative_to(ROOT)}" for kind in kinds for p in (ROOT / "tasks").rglob(kind)}
    assert sources <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@needs_hatchling
def test_installed_wheel_imports_outside_the_checkout(site: Path) -> None:
    where, version = outside(site, "-c", "import manifoldflow as m; print(m.__file__); print(m.__version__)").split()
    assert Path(where).is_relative_to(site)
    assert version == manifoldflow.__version__


@needs_hatchling
def test_installed_command_line_finds_the_task_outside_the_checkout(site: Path) -> None:
    text = outside(site, "-m", "manifoldflow.cli", "--help")
    assert "usage: manifoldflow VERB TASK" in text
    assert "tasks: crystals, densities, dna, energies, molecules, proteins" in text


@needs_hatchling
def test_installed_wheel_loads_every_embedded_checkpoint(site: Path) -> None:
    ours = sorted(p.stem for p in (ROOT / "data" / "checkpoints").glob("*.safetensors"))
    if not ours:
        pytest.skip("no checkpoint is embedded yet")
    code = "import sys, manifoldflow as mf; [mf.load(name) for name in sys.argv[1:]]"
    outside(site, "-c", code, *ours)
