"""The pages of reports: one file, nothing fetched, nothing of a user's text becomes markup, plots in the page's colours."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from manifoldflow.tasks.common.plots import new_figure
from manifoldflow.tasks.common.report import (
    PALETTE,
    Report,
    code,
    facts,
    figure,
    notes,
    several,
    style_axes,
    table,
    text,
)
from manifoldflow.tasks.common.viewer import Scene
from testkit.chromium import CHROMIUM, Browser

EVIL = '</td></script ><script>window.hit = 1</script><img src=x onerror="window.hit = 2">'


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


def drawn():
    plot = new_figure(4, 3)
    axes = plot.subplots()
    axes.plot([0, 1], [0, 1], color=PALETTE["accent"], label="samples")
    axes.set_xlabel("x <b>&")
    axes.legend()
    style_axes(axes)
    return plot


def full_page(evil: str) -> Report:
    page = Report(evil, chips=[(evil, evil)], lead=evil)
    page.card(
        evil, evil, text(evil), notes([evil]), facts({evil: evil}), code(evil), table([evil], [[evil]]), note=evil
    )
    page.cards([(evil, figure(drawn(), evil, evil), evil), (evil, several([evil]))])
    return page


def test_text_is_text_wherever_it_is_given() -> None:
    evil, tame = Tags(full_page(EVIL).html()).found, Tags(full_page("tame").html()).found
    assert evil == tame and "img" not in evil


def test_plots_take_the_colours_and_the_letters_of_the_page() -> None:
    made = str(figure(drawn(), "a line"))
    assert "var(--accent)" in made and "var(--rule)" in made and "var(--ink)" in made
    assert not [value for value in PALETTE.values() if value in made.lower()]
    assert "DejaVu" not in made and re.search(r"<text[^>]*>x &lt;b&gt;&amp;</text>", made)
    assert str(figure(drawn(), "a line")) == made  # the same plot is the same text


def test_cells_of_tables() -> None:
    made = str(
        table(
            ["name", "energy (eV)", "count"], [["a", -1.23456, 3], ["b", float("nan"), None], ["c", 0.5, 2]], digits=2
        )
    )
    assert "−1.23" in made and made.count("–") == 2 and 'data-sort="number"' in made
    assert re.search(r'<th class="n" data-sort="number">energy', made) and '<th data-sort="text">name' in made


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_page_in_a_browser(tmp_path: Path) -> None:
    page = full_page(EVIL)
    page.card("Numbers", table(["name", "value"], [["a", 2.0], ["b", -10.0], ["c", float("nan")], ["d", 1.0]]))
    page.card("Views", page.grid([Scene("1\n\nH 0 0 0")]))
    path = page.write(tmp_path / "report.html")
    browser = Browser(tmp_path)
    try:
        for scheme, width in (("light", 1280), ("dark", 390)):
            browser.show(width=width, height=800, scheme=scheme, is_phone=width < 500)
            browser.open(path.as_uri())
            assert browser.run("document.documentElement.scrollWidth") <= width  # nothing sticks out
        rows = "[...document.querySelectorAll('table')].at(-1).tBodies[0].innerText"
        order = f"{rows}.split(/\\s+/).filter((w) => /[a-d]/.test(w)).join('')"
        for wanted in ("bdac", "adbc"):  # what is not known comes last both ways
            browser.run("[...document.querySelectorAll('th[data-sort=number]')].at(-1).click()")
            assert browser.run(order) == wanted
        assert browser.run("window.hit === undefined")
        assert [r for r in browser.requests if not r.startswith(("data:", "blob:"))] == [path.as_uri()]
        assert browser.troubles == []
    finally:
        browser.close()
