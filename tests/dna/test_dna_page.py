"""The page of the sequence designer in a real browser, on the real server with a model that was not trained."""

import datetime
import re
import socket
import threading
import time

import numpy as np
import pytest
import torch

import manifoldflow as mf
from manifoldflow.tasks.dna.alphabet import decode
from manifoldflow.tasks.dna.flow import DnaConfig, build
from manifoldflow.tasks.dna.reading import read_sequences
from testkit import serving
from testkit.chromium import CHROMIUM, Browser

pytest.importorskip("fastapi", reason="needs fastapi, of manifoldflow[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx, of manifoldflow[dev]")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn, of manifoldflow[serve]")

from manifoldflow.serving.catalogue import Catalogue  # noqa: E402
from manifoldflow.serving.worker import Bench  # noqa: E402
from manifoldflow.tasks.dna.serving.app import create_app  # noqa: E402
from manifoldflow.tasks.dna.serving.service import DnaService  # noqa: E402

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium or google-chrome on the path")

HOSTILE = "<img src=x onerror=window.harm=1><script>window.harm=1</script>"
MOTIFS = (
    ">MA0000.1\tBOX\nA [ 0 9 0 9 0 9 0 9 ]\nC [ 0 0 0 0 0 0 0 0 ]\nG [ 0 0 0 0 0 0 0 0 ]\nT [ 9 0 9 0 9 0 9 0 ]\n"
    f">MA0001.1\t{HOSTILE}\nA [ 0 9 0 0 9 ]\nC [ 0 0 9 9 0 ]\nG [ 9 0 0 0 0 ]\nT [ 0 0 0 0 0 ]\n"
)
LENGTH = 251
FORM = {"n": 12, "seed": 5, "steps": 2, "motif": "tatatata", "at": 31, "least": 20, "most": 80}


class Held(serving.Held):
    """The models in a thread of this process, behind a gate: a worker of its own would take seconds to start."""

    def __init__(self, models, motifs):
        super().__init__(DnaService.loader, models)
        self.desk = Bench(DnaService.loader, list(Catalogue(DnaService(motifs), models).served.values()), threads=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    made = {"tiny": f"tata,{HOSTILE}", HOSTILE: ""}
    models = {}
    for name, classes in made.items():
        models[name] = folder / f"{len(models)}.safetensors"
        facts = {"source": {"data": "promoters"}}
        mf.save(build(DnaConfig(length=LENGTH, classes=classes, width=8, kernel=5)), models[name], training=facts)
    motifs = folder / "motifs.pfm"
    motifs.write_text(MOTIFS)
    app = create_app(models, motifs=motifs, timeout=120, worker=Held(models, motifs))
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield app, f"http://127.0.0.1:{listener.getsockname()[1]}/"
    running.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture
def page(server, chromium):
    """The page, freshly loaded in a wide light window."""
    chromium.show()
    chromium.open(server[1], "!!window.design && !design.disabled && label.options.length > 1")
    yield chromium
    check_quiet(server, chromium)


@pytest.fixture
def shown(server, chromium):
    """The page with the designs of FORM; tests that change nothing share it."""
    chromium.show()
    if not chromium.run("window.isShared"):
        chromium.open(server[1], "!!window.design && !design.disabled && label.options.length > 1")
        designed(chromium)
        chromium.run("window.isShared = true")
    yield chromium
    check_quiet(server, chromium)


def check_quiet(server, page):
    """No script of a name has run, the console is empty, and nobody else was asked for anything."""
    assert not page.run("window.harm")
    assert not [
        line for line in page.troubles if "status of 422" not in line
    ]  # refusals, which the browser reports itself
    assert all(url.startswith((server[1], "data:", "blob:")) for url in page.requests), page.requests


def choose(page, control, index):
    page.run(f"{control}.selectedIndex = {index}; {control}.dispatchEvent(new Event('change', {{bubbles: true}}))")


def write(page, control, text):
    """Type into a control instead of what it holds."""
    page.run(
        f"(() => {{ const c = {control}; c.closest('details')?.setAttribute('open', ''); c.focus(); c.select(); }})()"
    )
    page.type(str(text))


def fill(page, **changes):
    """Fill in the form and press Enter."""
    values = FORM | changes
    choose(page, "label", changes.get("label", 1))
    write(page, "motifs.querySelectorAll('input')[0]", values["motif"])
    write(page, "motifs.querySelectorAll('input')[1]", values["at"])
    page.run("enzymes.querySelector('[value=GAATTC]').click()")
    write(page, "fixed", values.get("fixed", ""))
    for name, control in (
        ("n", "n"),
        ("steps", "steps"),
        ("least", "document.getElementById('gc-least')"),
        ("seed", "seed"),
    ):
        write(page, control, values[name])
    write(page, "document.getElementById('gc-most')", values["most"])
    page.press("Enter")


def designed(page, **changes):
    """Fill in the form, and wait for the designs."""
    fill(page, **changes)
    page.wait("!found.hidden && !design.disabled && !!document.querySelector('.design .A')", 60)


def answer(server, **changes):
    """What the interface says to the request that the form makes."""
    request = {"n": FORM["n"], "seed": FORM["seed"], "steps": FORM["steps"], "label": "tata", "gc_range": [0.2, 0.8]}
    request |= {"motifs": [{"letters": "TATATATA", "start": FORM["at"] - 1}], "avoid_sites": ["GAATTC"]}
    return httpx.post(server[1] + "v1/design", json=request | changes, timeout=60).json()


def read_rows(page):
    return page.run("[...document.querySelectorAll('.letters-line')].map((e) => e.textContent)")


def download(page):
    """The file that the button gives."""
    for old in page.downloads.glob("*"):
        old.unlink()
    page.run("download.click()")
    deadline = time.monotonic() + 10
    while not (made := list(page.downloads.glob("*.fasta"))):
        assert time.monotonic() < deadline, "nothing was downloaded"
        time.sleep(0.02)
    return made[0]


# -------------------------------------------------------------------- the way through


def test_the_form_designs_what_the_interface_designs(server, page):
    assert page.run("!empty.hidden && found.hidden && empty.innerText.includes('Press Design')")
    designed(page)
    designs = answer(server)["designs"]
    assert read_rows(page) == [d["sequence"] for d in designs]
    assert all(d["sequence"][30:38] == "TATATATA" and "GAATTC" not in d["sequence"] for d in designs)
    names, values = (
        page.run(f"[...document.querySelectorAll('{tag}')].map((e) => e.innerText)") for tag in ("dt", "dd")
    )
    summary = dict(zip(names, values, strict=True))
    mean = 100 * np.mean([d["gc"] for d in designs])
    assert summary["Designs"] == "12" and summary["Mean GC"] == f"{mean:.1f}%" and summary["Model"] == "tiny"
    assert summary["Class"] == "tata" and summary["Seed"] == "5" and summary["Time"].endswith(" s")
    shares = page.run("[...document.querySelectorAll('.design .side span:last-child')].map((e) => e.innerText)")
    assert [float(s.rstrip("%")) for s in shares] == pytest.approx([100 * d["gc"] for d in designs], abs=0.051)
    assert page.run("document.querySelector('#status').innerText").startswith("12 sequences in")
    assert page.run("document.activeElement.id") == "gc-most"  # where the user was


def test_bases_have_colours_and_kept_letters_are_marked(server, shown):
    found = shown.run(
        "[...document.querySelectorAll('.letters-line')].slice(0, 3).map((line) => { const out = []; const walk ="
        " document.createTreeWalker(line, NodeFilter.SHOW_TEXT); while (walk.nextNode()) { const p = walk.currentNode."
        "parentElement; for (const c of walk.currentNode.data) out.push([c, getComputedStyle(p).color, !!p.closest('.kept'),"
        " p.closest('.kept')?.title]) } return out })"
    )
    colours = {}
    for row, design in zip(found, answer(server)["designs"], strict=False):
        assert "".join(letter for letter, *_ in row) == design["sequence"]
        assert [at for at, (*_, is_kept, _) in enumerate(row) if is_kept] == list(range(30, 38))
        assert row[30][3] == "kept: 31–38"
        for letter, colour, *_ in row:
            colours.setdefault(letter, set()).add(colour)
    assert set(colours) == set("ACGT") and all(len(some) == 1 for some in colours.values())
    rgb = {base: [int(v) for v in some.pop()[4:-1].split(",")] for base, some in colours.items()}
    assert [max(range(3), key=rgb[base].__getitem__) for base in "TAC"] == [0, 1, 2]  # red, green, blue
    assert rgb["G"][0] > rgb["G"][1] > 2 * rgb["G"][2]  # amber


PLACES = r"""[...document.querySelectorAll('.design')].map((row) => {
  const texts = document.createTreeWalker(row.querySelector('.letters-line'), NodeFilter.SHOW_TEXT), letters = [];
  while (texts.nextNode()) for (let i = 0; i < texts.currentNode.length; i++) {
    const range = document.createRange();
    range.setStart(texts.currentNode, i);
    range.setEnd(texts.currentNode, i + 1);
    letters.push(range.getBoundingClientRect());
  }
  return [...row.querySelectorAll('.hit')].map((hit) => {
    const [first, last] = /(\d+)–(\d+)/.exec(hit.title).slice(1).map((at) => letters[at - 1]);
    const box = hit.getBoundingClientRect();
    const isBelow = box.top >= first.bottom - 4;
    return [hit.title, hit.innerText, hit.classList.contains('reverse'), box.left - first.left, box.right - last.right, isBelow];
  });
})"""


def test_tracks_lie_under_their_letters(server, shown):
    designs = answer(server)["designs"]
    tracks = shown.run(PLACES)
    assert sum(map(len, tracks)) >= FORM["n"]  # the motif that was kept is its own hit
    for boxes, design in zip(tracks, designs, strict=True):
        assert len(boxes) == len(design["hits"])
        for (title, text, is_reverse, left, right, is_below), hit in zip(boxes, design["hits"], strict=True):
            assert text == hit["motif"] and is_reverse == (hit["strand"] == "-")
            strand = "minus" if is_reverse else "plus"
            assert title.startswith(f"{hit['motif']}\n{hit['start'] + 1}–{hit['end']}, {strand} strand")
            assert f"score {hit['score']:.1f} bits" in title
            assert abs(left) < 1 and abs(right) < 1 and is_below, (title, left, right)
    x, y = shown.run(
        "(() => { const r = document.querySelector('.hit').getBoundingClientRect(); return [r.x + 8, r.y + 5] })()"
    )
    shown.move(x, y)
    assert shown.wait("!tip.hidden && tip.innerText").startswith(tracks[0][0][0].split("\n")[0])
    shown.move(3, 3)
    shown.wait("tip.hidden && document.querySelector('.hit').title")


def test_the_logo_is_the_information_of_the_designs(shown):
    letters = np.array([list(sequence) for sequence in read_rows(shown)])
    share = np.stack([(letters == base).mean(0) for base in "ACGT"])
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(0)
    bits = np.maximum(2 - entropy - 3 / (2 * np.log(2) * len(letters)), 0)
    top, columns = shown.run(
        "(() => { const svg = document.querySelector('.logo'); const h = svg.clientHeight; return [Number(svg.dataset.top),"
        " [...svg.querySelectorAll('g')].map((g) => [...g.querySelectorAll('path')].map((p) => { const b ="
        " p.getBoundingClientRect(); return [p.getAttribute('class'), b.height / h, b.top] }))] })()"
    )
    assert len(columns) == LENGTH and top == 2  # the kept motif has 2 bits less the correction
    for at, column in enumerate(columns):
        heights = {base: height * top for base, height, _ in column}
        for base, one in zip("ACGT", share[:, at], strict=True):
            assert heights.get(base, 0) == pytest.approx(one * bits[at], abs=0.02), (at, base)
        order = [base for base, *_ in sorted(column, key=lambda piece: piece[2])]
        assert [share["ACGT".index(b), at] for b in order] == sorted(
            (share["ACGT".index(b), at] for b in order), reverse=True
        )
    assert f"less {3 / (2 * np.log(2) * 12):.2f} bits" in shown.run("legend.innerText")


def test_the_page_says_what_a_model_learned_and_where_transcription_starts(shown):
    hint = shown.run("document.getElementById('model-hint').innerText")
    assert hint == (
        "Writes 251 letters. Learned from promoters and other DNA (Arabidopsis and mouse). "
        "It starts from blanks and fills them in. Position 201 is the start of transcription."
    )
    assert "count from 1 here, from 0 in the API" in shown.run("document.getElementById('motifs-hint').innerText")
    assert shown.run("settings.innerText") == (
        "251 letters · 2 steps · guidance 1 · TATATATA kept at 31 · GC 20 to 80% · without GAATTC"
    )
    left, first, last = shown.run(
        "(() => { const box = (at) => { const walk = document.createTreeWalker(document.querySelector('.letters-line'),"
        " NodeFilter.SHOW_TEXT); let seen = 0; while (walk.nextNode()) { const n = walk.currentNode.length; if (at < seen + n) {"
        " const r = document.createRange(); r.setStart(walk.currentNode, at - seen); r.setEnd(walk.currentNode, at - seen + 1);"
        " return r.getBoundingClientRect() } seen += n } }; return [document.querySelector('.mark').getBoundingClientRect().left,"
        " box(200).left, box(200).right] })()"
    )
    assert first - 1 < left < last, "the mark is not at its letter"


def test_designs_are_scored_at_a_button_as_the_interface_scores_them(server, page):
    designed(page, n=3)
    page.run("document.getElementById('score').click()")
    page.wait("document.querySelector('.viewer.is-scored') && !document.getElementById('score').disabled", 60)
    body = {"sequences": read_rows(page), "label": "tata"}
    scores = httpx.post(server[1] + "v1/score", json=body, timeout=60).json()["scores"]
    told = page.run("[...document.querySelectorAll('.design .score')].map((e) => e.innerText)")
    assert [float(text) for text in told] == pytest.approx(scores, abs=5.1e-4)
    assert f"score={scores[0]:.4f}"[:-1] in download(page).read_text()


def test_the_page_works_under_the_prefix_of_a_proxy(server, chromium):
    from fastapi import FastAPI

    outer = FastAPI()
    outer.mount("/user/ann/proxy/8000", server[0])
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(outer, log_level="warning", ws="none", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/user/ann/proxy/8000/"
    try:
        chromium.show()
        chromium.open(address, "!!window.design && !design.disabled && label.options.length > 1")
        designed(chromium, n=2)
        assert len(read_rows(chromium)) == 2 and not chromium.troubles
        assert all(url.startswith((address, "data:", "blob:")) for url in chromium.requests), chromium.requests
        chromium.open(address + "docs", "!!document.querySelector('.opblock')")
        assert not chromium.troubles
        assert all(url.startswith((address, "data:", "blob:")) for url in chromium.requests), chromium.requests
        chromium.run("[...document.querySelectorAll('.opblock-summary-control')].at(-1).click()")  # health, and try it
        chromium.wait("!!document.querySelector('.try-out__btn')")
        chromium.run("document.querySelector('.try-out__btn').click()")
        chromium.wait("!!document.querySelector('.execute')")
        chromium.run("document.querySelector('.execute').click()")
        chromium.wait("!!document.querySelector('.live-responses-table')")
        assert address + "healthz" in chromium.requests
    finally:
        running.should_exit = True
        thread.join(20)


def test_the_downloaded_fasta_holds_the_designs(server, shown):
    path = download(shown)
    assert path.name == f"tiny_{datetime.date.today().isoformat()}.fasta"
    designs = answer(server)["designs"]
    headers = [line for line in path.read_text().splitlines() if line.startswith(">")]
    for number, (header, design) in enumerate(zip(headers, designs, strict=True), 1):
        gc = f"gc={design['gc']:.4f}"
        assert header == f">design_{number} label=tata {gc} kept=31..38 model=tiny seed=5 guidance=1 steps=2"
    found = read_sequences(path)
    assert decode(found.tokens) == [d["sequence"] for d in designs] and found.classes == ("tata",)


# -------------------------------------------------------------------- what goes wrong


def test_a_bad_motif_is_explained_at_its_field(server, page):
    fill(page, motif="TAXA")
    text = page.wait("document.querySelector('#motifs-error').innerText")
    body = {"motifs": [{"letters": "TAXA"}]}
    detail = httpx.post(server[1] + "v1/design", json=body).json()["detail"]
    assert "X" in text and text == detail.replace("motifs[0].letters", "TAXA")
    page.wait("!design.disabled")
    assert page.run("document.activeElement === document.querySelector('[aria-invalid=true]')")
    assert page.run("document.activeElement.value") == "TAXA" and page.run("found.hidden")
    page.type("TATA")
    assert page.run(
        "!document.querySelector('[aria-invalid=true]') && !document.querySelector('#motifs-error').innerText"
    )


@pytest.mark.parametrize(
    "changes, field, words",
    [
        ({"motif": "GAATTC"}, "motifs", "holds the site GAATTC that is to be avoided"),  # the server's words
        ({"n": 0}, "n", "a whole number from 1 to 1000"),
        ({"n": ""}, "n", "a whole number from 1 to 1000"),
        ({"at": 245}, "motifs", "TATATATA at 245 does not fit: the sequences have 251 letters"),
        ({"motif": ""}, "motifs", "Which letters"),
        ({"least": 81}, "gc_range", "must not be the larger one"),
        ({"steps": 501}, "steps", "from 1 to 500"),
        ({"fixed": "ACGTNNNNACGT"}, "fixed", "The template has 12 letters, the sequences have 251: fill it up with N"),
        ({"fixed": "NNNX"}, "fixed", "X at position 4 is no letter of DNA"),
        ({"fixed": 252 * "N"}, "fixed", "take 1 away"),
        ({"fixed": "GAATTC" + 245 * "N"}, "fixed", "The fixed letters hold the site GAATTC"),  # the server's words
        (
            {"least": 79.99, "most": 79.991},
            "gc_range",
            "holds no share that 251 letters can have",
        ),  # the server's words
    ],
)
def test_mistakes_are_told_at_their_fields(page, changes, field, words):
    fill(page, **changes)
    assert words in page.wait(f"document.querySelector('[data-for={field}] .error').innerText")
    assert page.run(f"!!document.activeElement.closest('[data-for={field}]')") and page.run("found.hidden")


def test_a_request_can_be_cancelled_and_a_lost_server_is_told(server, page):
    app, _ = server
    designed(page, n=2)
    app.state.worker.gate.clear()
    try:
        page.press("Enter")
        page.wait("design.disabled && fields.disabled && document.activeElement === cancel && !bar.hidden")
        page.press("Escape")
        page.wait("document.querySelector('#status').innerText === 'Cancelled.' && !design.disabled && cancel.hidden")
        deadline = time.monotonic() + 10
        while app.state.scheduler.queued:
            assert time.monotonic() < deadline, "the server still works for nobody"
            time.sleep(0.02)
    finally:
        app.state.worker.gate.set()
    page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    try:
        page.run("design.click()")
        assert "does not answer" in page.wait("document.querySelector('#form-error').innerText")
    finally:
        page.send(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
    page.troubles[:] = [line for line in page.troubles if "ERR_INTERNET_DISCONNECTED" not in line]
    assert len(read_rows(page)) == 2  # the designs from before are still there


def test_hostile_names_are_only_text(server, page):
    choose(page, "model", 1)
    choose(page, "model", 0)
    designed(page, label=2, n=4, motif="gacca")
    assert HOSTILE in page.run("summary.innerText") and HOSTILE in page.run("legend.innerText")
    assert HOSTILE in page.run("[...document.querySelectorAll('.hit')].map((hit) => hit.title).join()")
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    path = download(page)
    headers = [line for line in path.read_text().splitlines() if not set(line) <= set("ACGT")]
    assert len(headers) == 4 and all(f" label={HOSTILE.replace(' ', '_')} " in line for line in headers)
    choose(page, "model", 1)
    write(page, "n", 1)
    page.press("Enter")
    page.wait("!design.disabled && document.querySelectorAll('.design').length === 1", 30)
    assert HOSTILE in page.run("summary.innerText") and "at least two" in page.run("legend.innerText")
    name = download(page).name
    assert name.endswith(".fasta") and not set("<>/ =") & set(name)


# -------------------------------------------------------------------- how it looks and feels

CONTRAST = """(() => {
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (/^rgb\\(/.test(colour)) return colour;
    }
  };
  const seen = {};
  for (const e of document.querySelectorAll('body *')) {
    const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length;
    if (!hasText || e.closest(':disabled, .hidden, option, noscript, script')) continue;
    seen[getComputedStyle(e).color + ' on ' + behind(e)] = e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 20);
  }
  return seen;
})()"""


def luminance(colour):
    shares = (int(v) / 255 for v in re.findall(r"\d+", colour)[:3])
    return float(
        np.dot([0.2126, 0.7152, 0.0722], [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares])
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(shown, scheme):
    shown.show(scheme=scheme)
    ground = luminance(shown.run("getComputedStyle(document.body).backgroundColor"))
    assert ground < 0.05 if scheme == "dark" else ground > 0.8
    seen = shown.run(CONTRAST)
    assert len(seen) > 12  # four bases, on the page and where they are kept, words, hints, buttons, tracks
    for colours, where in seen.items():
        darker, lighter = sorted(luminance(colour) for colour in colours.split(" on "))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (where, colours)


def test_a_narrow_window_scrolls_in_one_direction(server, page):
    page.show(400, 800, is_phone=True)

    def check():
        assert page.run("document.scrollingElement.scrollWidth") <= 400
        wide = page.run(
            "[...document.querySelectorAll('input, select, button, textarea, p, dd')].filter((e) => e.getClientRects().length"
            " && !e.closest('.viewer') && e.getBoundingClientRect().right > 400).map((e) => e.outerHTML)"
        )
        assert not wide

    check()
    page.run("more.open = true")
    check()
    choose(page, "label", 2)  # a class with a long name
    designed(page, label=2)
    check()
    assert page.run("viewer.scrollWidth > viewer.clientWidth")
    page.wait("results.getBoundingClientRect().top < 400")  # it went to the designs
    fill(page, motif="X" * 300)
    page.wait("document.querySelector('#motifs-error').innerText")
    check()


def test_every_control_has_a_name_and_can_be_reached_by_keys(page):
    nameless = page.run(
        "[...document.querySelectorAll('input, select, textarea, button')].filter((e) => !(e.labels?.length || e.ariaLabel ||"
        " e.innerText || e.hidden)).map((e) => e.outerHTML)"
    )
    assert not nameless
    page.run("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "design":
            break
    wanted = ["model", "label", "n", "add-motif", "fixed", "sites", "gc-least", "gc-most", "design"]
    assert [name for name in reached if name in wanted] == wanted
    assert page.run("[...document.querySelectorAll('[aria-live], [role=status]')].length") >= 1


def test_a_thousand_designs_are_shown_a_hundred_at_a_time(server, page):
    page.send("Performance.enable", timeDomain="threadTicks")

    def busy():
        found = {m["name"]: m["value"] for m in page.send("Performance.getMetrics")["metrics"]}
        return found["TaskDuration"]

    before = busy()
    designed(page, n=1000, steps=1)
    page.wait("document.querySelectorAll('.design').length === 100")
    assert page.run("document.querySelectorAll('.design .A').length > 200")
    taken = busy() - before
    assert taken < 2, f"{taken:.2f} s of the page's time"
    assert page.run("document.getElementById('show-more').innerText") == "Show 100 more (900 left)"
    # Letters get their colours when they come near.
    assert page.run("document.querySelectorAll('.design .A').length < 100 * 251 / 4 / 2")
    page.run("viewer.scrollTo(0, viewer.scrollHeight)")
    page.wait("!![...document.querySelectorAll('.design')].at(-1).querySelector('.A')")
    page.run("document.getElementById('show-more').click()")
    assert page.run("document.querySelectorAll('.design').length") == 200
    path = download(page)
    assert path.read_text().count(">") == 1000
