"""3D views in pages: data that cannot break out, few contexts, what is drawn where; in a browser where there is one."""

import json
import re
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from manifoldflow.tasks.common.viewer import POLICY, Model, Scene, Viewers, as_json, crystal_xyz
from testkit.chromium import CHROMIUM, Browser

FACES = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
SALT = (["Na"] * 4 + ["Cl"] * 4, [*FACES, *[[x + 0.5, y, z] for x, y, z in FACES]], 5.64 * np.eye(3))
WATER = "3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
EVIL = '</script ><!-- <script </script><script>window.hit = 1</script><img src=x onerror="window.hit = 2">'


class Scripts(HTMLParser):
    """The script elements of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.inside: dict[str, str | None] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.inside = dict(attrs)

    def handle_data(self, data: str) -> None:
        if self.inside is not None:
            self.found.append((self.inside, data))
            self.inside = None


def page_of(views: Viewers, body: str) -> str:
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{views.css()}</style>'
    return f"<!DOCTYPE html><html><head>{head}</head><body>{body}{views.scripts()}</body></html>"


def test_the_library_is_embedded_once_and_unpacks_to_itself_with_its_licence() -> None:
    views = Viewers()
    body = views.grid([Scene(WATER, caption=f"number {i}") for i in range(30)]) + views.view(Scene(WATER))
    page = page_of(views, body)
    scripts = {a.get("id"): text for a, text in Scripts(page).found}
    code = zlib.decompress(b64decode(scripts["mol-library"]), 31).decode()
    assert "$3Dmol" in code and "createViewer" in code
    assert len(re.findall('id="mol-library"', page)) == 1 and "Redistributions of source code" in page
    assert len(json.loads(scripts["mol-data"])["scenes"]) == 31
    assert len(page) < 350_000


def test_nothing_in_a_structure_or_a_caption_becomes_markup() -> None:
    views = Viewers()
    body = views.grid([Scene(f"1\n{EVIL}\nH 0 0 0", caption=f"{EVIL}\n{EVIL}")])
    scripts = Scripts(page_of(views, body)).found
    assert [a.get("id") for a, _ in scripts] == [
        "mol-data",
        "mol-library",
        None,
    ]  # three elements, none of them the intruder's
    assert EVIL in json.loads(scripts[0][1])["scenes"][0]["m"][0]["t"]
    assert "<img" not in body and "onerror=&quot;" in body
    assert json.loads(as_json({"a": "<&>\u2028"})) == {"a": "<&>\u2028"} and as_json("<!-- \u2028").isascii()


def test_a_page_without_scenes_has_no_scripts() -> None:
    assert Viewers().scripts() == ""


def test_a_crystal_is_written_in_its_cell_with_the_vectors_as_rows() -> None:
    lattice = np.array([[3.0, 0, 0], [0.5, 4.0, 0], [0.25, 0.75, 5.0]])
    frac = np.array([[1.25, -0.25, 0.5], [0, 0, 0]])
    lines = crystal_xyz(["Fe", "O"], frac, lattice).splitlines()
    assert (
        lines[0] == "2"
        and lines[1] == 'Lattice="3.00000 0.00000 0.00000 0.50000 4.00000 0.00000 0.25000 0.75000 5.00000"'
    )
    name, *where = lines[2].split()
    assert name == "Fe"
    assert np.allclose([float(x) for x in where], 0.25 * lattice[0] + 0.75 * lattice[1] + 0.5 * lattice[2], atol=1e-5)


@pytest.mark.parametrize(
    "species, frac, lattice, words",
    [
        (["Na"], np.zeros((2, 3)), np.eye(3), "make no crystal"),
        (["Na"], np.zeros((1, 3)), np.eye(2), "make no crystal"),
        (["Na"], [[0, 0, np.nan]], np.eye(3), "not finite"),
    ],
)
def test_what_is_no_crystal_is_refused(species, frac, lattice, words) -> None:
    with pytest.raises(ValueError, match=words):
        crystal_xyz(species, frac, lattice)


def test_a_supercell_has_cells() -> None:
    with pytest.raises(ValueError, match="at least one cell"):
        Viewers().view(Scene(WATER, supercell=(0, 1, 1)))


def test_buttons_for_cells_only_where_something_is_periodic() -> None:
    views = Viewers()
    assert "data-cells" not in views.grid([Scene(WATER)])
    assert "data-cells" in views.grid([Scene.crystal(*SALT)])
    assert "data-cells" not in views.grid([Scene(WATER)])  # not because of another grid of the page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium")
    made = Browser(tmp_path_factory.mktemp("browser"), webgl=True)
    yield made
    made.close()


CIF = """data_cscl
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Cs1 Cs 0 0 0
Cl1 Cl 0.5 0.5 0.5
"""


def test_scenes_are_drawn_in_sight_and_nothing_is_fetched(browser: Browser, tmp_path: Path) -> None:
    views = Viewers()
    scenes = [
        Scene(WATER.replace("water", EVIL), caption=EVIL),
        Scene.crystal(*SALT),
        Scene(CIF, "cif", supercell=(2, 1, 1)),
        Scene([Model(WATER, "xyz", "#d8485f"), Model(WATER.replace("0.93", "0.99"), "xyz", "#2a8fbd")]),
    ]
    body = views.grid(scenes) + '<div style="height:5000px"></div>' + views.grid([Scene.crystal(*SALT)] * 20)
    page = tmp_path / "page.html"
    page.write_text(page_of(views, body), encoding="utf-8")
    browser.open(page.as_uri())
    browser.wait("document.querySelectorAll('.mol-stage img').length >= 4", 60)
    counts = browser.run("[...document.querySelectorAll('.mol-stage[data-atoms]')].map((s) => Number(s.dataset.atoms))")
    # Atoms on faces are drawn at every face: 27 of rock salt; of CsCl in two cells 12 corners and 2 centres.
    assert counts == [3, 27, 14, 3]
    pixels = (
        "(async (i) => { const img = document.querySelectorAll('.mol-stage img')[i]; await img.decode();"
        "const c = document.createElement('canvas'); c.width = img.naturalWidth; c.height = img.naturalHeight;"
        "const g = c.getContext('2d'); g.drawImage(img, 0, 0); const d = g.getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let k = 3; k < d.length; k += 4) n += d[k] > 128; return n / (d.length / 4); })"
    )
    covered = [browser.run(f"{pixels}({i})") for i in range(4)]
    assert all(0.02 < share < 0.7 for share in covered), covered
    # One view goes live below the pointer, and it is a still again when another takes over.
    for i in (1, 0):
        x, y = browser.run(
            f"(({{ x, y }}) => [x, y])(document.querySelectorAll('.mol-stage')[{i}].getBoundingClientRect())"
        )
        browser.move(x + 60, y + 60)
        browser.wait(f"document.querySelectorAll('.mol-stage')[{i}].querySelector('.mol-live canvas') ? 1 : 0", 60)
    browser.wait("document.querySelectorAll('.mol-stage')[1].querySelector('img') ? 1 : 0", 60)
    assert browser.run("document.querySelectorAll('canvas').length") <= 4  # of two contexts, however many scenes
    assert browser.run("window.hit === undefined")
    assert browser.troubles == []
    assert [r for r in browser.requests if not r.startswith(("data:", "blob:"))] == [page.as_uri()]
