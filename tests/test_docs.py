"""What the documentation shows works: its code runs, its command lines parse, its links and pictures exist."""

import argparse
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifoldflow import cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TASK = ROOT / "tasks" / "proteins"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "tasks").glob("*/README.md"))]
FENCE = re.compile(
    r"^(?P<mark><!-- not run: .+ -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[tuple[int, str, bool]]:
    """Line number, text, and whether it is to be run, of every fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    found = [m for m in FENCE.finditer(text) if m["language"] in languages]
    return [(text[: m.start("code")].count("\n") + 1, m["code"], m["mark"] is None) for m in found]


def commands(page: Path) -> list[tuple[int, str]]:
    """Line number and text of every ``manifoldflow ...`` line, without comments and what a shell would do with the output."""
    lines = []
    for start, code, _ in blocks(page, "sh", "bash"):
        for number, line in enumerate(code.replace("\\\n", "  ").splitlines(), start):
            if line.startswith(f"{cli.PROG} "):
                lines.append((number, re.split(r"\s[>|]\s", line)[0]))
    return lines


def parse(line: str) -> Any:
    """The options of a command line as the command would get them; nothing runs. A mistake raises."""
    _, verb, *words = shlex.split(line, comments=True)
    task, *words = cli._with_task(verb, words, cli.find_tasks())
    function = cli.load_task(cli.find_tasks()[task]).COMMANDS[verb]
    parser = cli.build_parser(function, cli.PROG)
    words = cli._complete_switches([cli._underscored(word) for word in words], cli._switches(function))
    try:
        return parser.parse_args(words)
    except SystemExit as done:  # --help and --print_config
        assert not done.code, line
        return None


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_there_is_something_to_check() -> None:
    assert sum(len(blocks(page, "python")) for page in PAGES) > 15
    assert sum(len(commands(page)) for page in PAGES) > 15


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for number, code, is_run in blocks(page, "python"):
        # Padded, so that a traceback shows the line of the page.
        program = compile("\n" * (number - 1) + code, str(page), "exec", dont_inherit=True)
        if is_run:
            exec(program, namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name)
def test_command_lines_parse(page: Path) -> None:
    for number, line in commands(page):
        try:
            parse(line)
        except (argparse.ArgumentError, ValueError, TypeError, KeyError, OSError) as error:
            pytest.fail(f"{name(page)}, line {number}: {line}\n{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    "line",
    [
        "manifoldflow sample proteins --lenght 100",
        "manifoldflow sample proteins --length long",
        "manifoldflow train proteins --data d --training.bogus 3",
        "manifoldflow train proteins --out runs",  # --data is missing
        "manifoldflow fly proteins",
        "manifoldflow train pottery",
        "manifoldflow train proteins --data d --config no_such.yaml",
    ],
)
def test_a_wrong_command_line_would_be_found(line: str) -> None:
    with pytest.raises((argparse.ArgumentError, ValueError, TypeError, KeyError, OSError)):
        parse(line)


def test_examples_of_the_command_line_parse() -> None:
    for task in cli.find_tasks().values():
        for line in cli.load_task(task).EXAMPLES.values():
            parse(line)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_and_pictures_exist(page: Path) -> None:
    prose = re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL)
    targets = [t.split("#")[0] for t in LINK.findall(prose) if not re.match(r"[a-z]+:", t)]
    missing = [t for t in targets if t and not (page.parent / t).exists()]
    assert not missing, f"{name(page)} links to what does not exist: {missing}"


def test_every_page_is_in_the_navigation_and_every_entry_exists() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def files(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [file for part in (entry if isinstance(entry, list) else entry.values()) for file in files(part)]

    folder = ROOT / "docs"
    shown = [p.relative_to(folder) for p in folder.rglob("*.md")]
    shown += [p.relative_to(folder).with_suffix(".md") for p in folder.rglob("*.ipynb")]  # pages made of notebooks
    assert sorted(files(config["nav"])) == sorted(map(str, shown))
    assert all((ROOT / hook).is_file() for hook in config["hooks"])


def test_readme_begins_with_demo_and_test() -> None:
    lines = [line for _, code, _ in blocks(README, "sh") for line in code.splitlines() if line.strip()]
    assert [line.split("#")[0].strip() for line in lines[:2]] == ["make demo", "make test"]


def test_quoted_benchmark_numbers_are_those_of_the_table() -> None:
    text, table = README.read_text(encoding="utf-8"), (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"<!-- benchmark: (\S+) -->", text)
    assert quoted
    for number in quoted:
        assert re.search(rf"\| {re.escape(number)} \|$", table, re.MULTILINE), (
            f"{number} is in no row of the benchmarks"
        )
        assert text.count(number) >= 2, f"{number} is marked, but the text says something else"


def test_config_file_of_the_large_model_is_accepted_and_builds() -> None:
    from manifoldflow.tasks.proteins import build

    parsed = parse("manifoldflow train proteins --config tasks/proteins/config.yaml --data d")
    written = yaml.safe_load((TASK / "config.yaml").read_text(encoding="utf-8"))
    assert parsed.model.network.width == written["model"]["network"]["width"] == 256
    assert parsed.max_length == written["max_length"] <= parsed.max_tokens
    assert parsed.training.precision == "bf16-mixed"
    flow = build(parsed.model.as_dict())
    millions = sum(p.numel() for p in flow.parameters()) / 1e6
    assert f"{millions:.1f} million parameters" in (TASK / "README.md").read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference() -> None:
    import manifoldflow as mf

    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = "\n".join(hooks.with_names(page.read_text()) for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: \S*?(\w+)$", text, re.MULTILINE)
    shown += [name for line in re.findall(r"members: \[(.*)\]", text) for name in line.split(", ")]
    missing = set(mf.__all__) - set(shown) - {"__version__", "guidance", "nn"}
    assert not missing, f"no page of docs/api shows {sorted(missing)}"
    assert len(shown) > 150


def test_the_home_page_names_every_extra_and_every_page() -> None:
    home = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert not [name for name in extras if f"`{name}`" not in home]
    pages = [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md"]
    assert not [page for page in pages if f"({page})" not in home]
