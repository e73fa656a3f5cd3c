"""The report, its reference statistics and the demo: against numpy, matplotlib and an HTML parser."""

import base64
import csv
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch

from manifoldflow.checkpoint import data_path
from manifoldflow.tasks.proteins import demo, plots, report, ribbon
from manifoldflow.tasks.proteins.flow import ProteinConfig, build
from manifoldflow.tasks.proteins.geometry import BREAK_OFFSET, CA_C, N_CA
from manifoldflow.tasks.proteins.model import NetworkConfig
from manifoldflow.tasks.proteins.reference import (
    FILE,
    level_of_mass,
    load_reference,
    metric_reference,
    reference_statistics,
    smooth_density,
)
from testkit.chromium import CHROMIUM, Browser

VOID = {"meta", "link", "br", "img", "input", "hr"}
HELIX, STRAND = (-57.8, -47.0), (-120.0, 130.0)


def chain(angles, seed=0):
    """A backbone (N, 4, 3) with the given phi and psi in degrees, by placing one atom after the other (NeRF)."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))

    def place(a, b, c, length, bend, torsion):
        bend, torsion = np.radians(bend), np.radians(torsion)
        u = (c - b) / np.linalg.norm(c - b)
        n = np.cross(b - a, u)
        n /= np.linalg.norm(n)
        local = np.array([-np.cos(bend), np.sin(bend) * np.cos(torsion), np.sin(bend) * np.sin(torsion)])
        return c + length * (local @ np.stack([u, np.cross(n, u), n]))

    atoms = [np.array([0.0, 0, 0]), np.array([N_CA, 0, 0]), np.array([N_CA + 0.5, 1.44, 0])]
    for (_, psi), (phi, _) in pairwise(angles):
        atoms.append(place(*atoms[-3:], 1.329, 116.6, psi))
        atoms.append(place(*atoms[-3:], N_CA, 121.7, 180))
        atoms.append(place(*atoms[-3:], CA_C, 111.0, phi))
    nac = np.array(atoms).reshape(-1, 3, 3)
    psi = np.array([p for _, p in angles])
    o = np.stack([place(*r, 1.231, 120.4, p + 180) for r, p in zip(nac, psi, strict=True)])
    return (np.concatenate([nac, o[:, None]], 1) @ (turn * np.sign(np.linalg.det(turn)))).astype(np.float32)


@pytest.fixture(scope="module")
def samples():
    """Two chains of 40 and 28 residues, padded: a helix, and a helix with strand-like rest and a chain break."""
    chains = [chain([HELIX] * 40), chain([HELIX] * 14 + [STRAND] * 14, seed=1)]
    coords, mask = torch.zeros(2, 40, 4, 3), torch.zeros(2, 40, dtype=torch.bool)
    index = torch.arange(40).repeat(2, 1)
    index[1, 20:] += BREAK_OFFSET
    for i, c in enumerate(chains):
        coords[i, : len(c)], mask[i, : len(c)] = torch.from_numpy(c), True
    return coords, mask, index


@pytest.fixture(scope="module")
def measured(samples):
    coords, mask, index = samples
    return report.measure(coords, mask, residue_index=index)


class Page(HTMLParser):
    """Collects tags, attributes and texts, and fails on a tag that closes nothing or is never closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.scripts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "report.html"
    facts = {"seed": 7, "note": "</script><b>&"}
    report.write_report(measured, None, out, title="A <title>", command="make demo && x", checkpoint_info=facts)
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]  # no temporary file stays
    return out.read_text(encoding="utf-8")


def test_page_is_well_formed_and_its_ids_are_unique(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 4 + 2  # four plots, a strip per chain


def test_page_loads_nothing_from_outside(page):
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "data", "srcset", "xlink:href", "action", "poster"):
            assert name not in attributes, f"{tag} loads {attributes.get(name)}"
    assert not re.search(r"https?://|@import|url\(\s*['\"]?(?!#)|fetch\(|XMLHttpRequest|import\s*\(", page)


@pytest.mark.parametrize(
    "values, known, word",
    [
        ([0.537] * 100, {"mean": 0.369, "std": 0.27}, "higher"),  # 54 % helix beside 37 %, once "in range" in green
        ([0.2] * 100, {"mean": 0.369, "std": 0.27}, "lower"),
        ([0.36, 0.38] * 500, {"mean": 0.369, "std": 0.27}, "alike"),
        ([0.1, 0.9, 0.5, 0.6], {"mean": 0.369, "std": 0.27}, "unclear"),
        ([0.37] * 3, {"mean": 0.369, "std": 0.27}, "unclear"),
    ],
)
def test_a_mean_is_called_alike_only_where_it_is_known_to_be(values, known, word):
    found, difference, half = report.compare_means(np.array(values), known, 1751)
    assert found == word
    assert difference == pytest.approx(np.mean(values) - known["mean"])
    assert half >= 1.96 * np.std(values, ddof=1) / len(values) ** 0.5


def test_a_side_that_is_no_worse_is_not_held_against_the_samples():
    known = {"mean": 0.98, "std": 0.01}
    assert report.compare_means(np.full(100, 1.0), known, 1751, True, False)[0] == "better"
    assert report.compare_means(np.full(100, 1.0), known, 1751, True, True)[0] == "higher"
    assert report.compare_means(np.full(100, 0.9), known, 1751, True, False)[0] == "lower"


def test_chips_and_table_give_the_same_numbers(page, measured):
    for name in ("helix", "strand"):
        mean = 100 * measured.table[name].mean()
        assert f"{name}, mean of chains <b>{mean:.0f} %</b>" in page
        assert f'data-label="samples">{mean:.1f} %' in page


def test_own_checkpoint_is_shown_in_words():
    facts = report.checkpoint_facts("proteins")
    assert facts["training settings"].startswith("max steps 1,000,000, max minutes 138")
    assert not any(set(str(value)) & set("{}[]'") for value in facts.values())


def test_sequences_stand_beside_those_of_real_chains(samples, tmp_path):
    coords, mask, index = samples
    m = report.measure(coords, mask, residue_index=index, extra={"sequence_nll": 1.234, "alanine": 0.21})
    page = report.write_report(m, None, tmp_path / "r.html").read_text()
    assert "1.234" in page and "21.0 %" in page and "0.939" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_every_dot_takes_clicks_and_nothing_is_cut_in_a_browser(measured, tmp_path):
    out = report.write_report(
        measured, None, tmp_path / "r.html", command="manifoldflow sample proteins " + "--x y " * 60
    )
    browser = Browser(tmp_path)
    try:
        browser.open(out.as_uri())
        covered = browser.run(
            "[...document.querySelectorAll('circle.sample')].filter((c) => { c.scrollIntoView({ block: 'center' });"
            "const b = c.getBoundingClientRect();"
            "return document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2).tagName !== 'circle'; }).length"
        )
        assert measured.table["strand"][0] == 0 and covered == 0  # a dot on the axis, under the frame
        cut = browser.run(
            "[...document.querySelectorAll('svg:not(.strip) text, .code pre')].filter((e) => {"
            "const b = e.getBoundingClientRect(), f = (e.closest('svg') || e).getBoundingClientRect();"
            "return b.left < f.left - 1 || b.right > f.right + 1 || e.scrollWidth > e.clientWidth + 1 && e.tagName === 'PRE';"
            "}).map((e) => e.textContent)"
        )
        assert cut == []
        browser.run("document.querySelector('.copy').click()")
        browser.wait("document.querySelector('.copy').textContent === 'Copied'")
        browser.show(width=390, height=844, is_phone=True)
        seen = browser.run(
            "[...document.querySelectorAll('td.n')].every((e) => { const b = e.getBoundingClientRect();"
            "return b.width > 0 && b.right <= innerWidth; })"
        )
        assert seen  # the verdicts too
    finally:
        browser.close()


def test_texts_of_the_user_are_escaped(page):
    assert "A &lt;title&gt;" in page and "make demo &amp;&amp; x" in page
    assert "&lt;/script&gt;&lt;b&gt;&amp;" in page


def test_viewer_data_hold_the_ribbons_to_their_resolution(page, measured):
    data = json.loads(next(s for s in Page(page).scripts if '"chains"' in s[:20]))
    assert [len(c["states"]) for c in data["chains"]] == [40, 28]
    assert data["chains"][1]["numbers"] == [*range(1, 21), *range(21 + BREAK_OFFSET, 29 + BREAK_OFFSET)]
    for i, entry in enumerate(data["chains"]):
        raw = np.frombuffer(base64.b64decode(entry["path"]), "<i2").reshape(-1, 9)
        decoded = raw / np.array([100, 100, 100, 30000, 30000, 30000, 1000, 1000, 1])
        assert np.abs(decoded - measured.path(i))[:, :3].max() <= 0.00501
        assert (raw[:, 8] < 0).sum() == (1, 2)[i]  # a piece of chain starts, also after the break
        assert set(np.where(raw[:, 8] < 0, -raw[:, 8] - 1, raw[:, 8]).tolist()) == set(range(len(entry["states"])))


def test_chain_too_large_for_the_viewer_is_an_error():
    with pytest.raises(ValueError, match="327 angstrom"):
        report.encode_path(np.full((1, 9), 400.0))


def test_overview_is_a_picture_with_content(measured, tmp_path):
    from matplotlib.image import imread

    out = report.write_overview(measured, None, tmp_path / "overview.png")
    picture = imread(out)
    assert min(picture.shape[:2]) > 500
    assert picture[..., :3].std() > 0.02
    assert [p.name for p in tmp_path.iterdir()] == ["overview.png"]


def test_frames_and_atoms_give_the_same_report_numbers(samples):
    from manifoldflow.tasks.proteins.geometry import atoms_from_frames, frames_from_atoms

    coords, mask, index = samples
    frames = frames_from_atoms(coords)
    atoms = report.measure(atoms_from_frames(frames, mask, index), mask, residue_index=index)
    direct = report.measure(frames, mask, residue_index=index)
    assert atoms.overall == direct.overall


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c, m: (c[:, :, :3], m), "do not fit"),
        (lambda c, m: (c, m[:1]), "do not fit"),
        (lambda c, m: (c * float("nan"), m), "not finite"),
        (lambda c, m: (c, m & (torch.arange(40) < 2)), "3 residues"),
        (lambda c, m: (c[:0], m[:0]), "at least one sample"),
    ],
)
def test_unusable_samples_are_one_clear_error(samples, change, message):
    coords, mask = change(*samples[:2])
    with pytest.raises(ValueError, match=message):
        report.measure(coords, mask)


def test_ribbon_of_a_helix_stays_on_its_ca_atoms_and_lies_along_its_axis(samples):
    coords = ribbon.upright(samples[0][0].double().numpy())
    path = ribbon.ribbon_path(coords, np.full(40, ribbon.HELIX))
    assert max(np.linalg.norm(path[:, :3] - ca, axis=1).min() for ca in coords[:, 1]) < 1e-6
    assert np.abs(path[20:-20, 3]).mean() > 0.85  # upright() puts the long axis, the helix', on x
    assert np.allclose(np.linalg.norm(path[:, 3:6], axis=1), 1)


def test_upright_is_a_rotation_about_the_centre():
    coords = chain([HELIX] * 10 + [STRAND] * 12).astype(float)
    turned = ribbon.upright(coords)
    before, after = (np.linalg.norm(c[:, None, 1] - c[None, :, 1], axis=-1) for c in (coords, turned))
    assert np.allclose(before, after)

    def volume(c):
        return np.linalg.det(c[:, [0, 2, 3]] - c[:, 1:2])

    assert np.allclose(volume(coords), volume(turned))  # not the mirror image
    assert np.all(np.diff(turned[:, 1].var(0)) <= 0)


def test_picture_shows_the_nearer_of_two_crossing_rods():
    def rod(along, z):
        points = np.zeros((12, 4, 3))
        points[:, :, along] = (np.arange(12) * 3.8 - 20.9)[:, None]
        points[..., 2] = z
        points[:, 3, 1 - along] += 1
        return points

    joined = np.ones(23, bool)
    joined[11] = False
    red, blue = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
    colors = np.repeat(np.stack([red, blue]), 12, 0)
    for front, back in ((5, -5), (-5, 5)):
        path = ribbon.ribbon_path(np.concatenate([rod(0, front), rod(1, back)]), np.zeros(24, int), joined)
        middle = ribbon.render(path, colors, (101, 101), 10.0)[50, 50]
        assert (middle[0] > middle[2]) == (front > back)
        assert middle[3] == 1


def test_contours_hold_the_share_of_probability_that_they_claim():
    reference = load_reference()
    from matplotlib.path import Path

    counts = np.array(reference["ramachandran"]["counts"], float).reshape(72, 72)
    centers = (np.arange(72) + 0.5) * 5 - 180
    phi, psi = np.meshgrid(centers, centers, indexing="ij")
    points = np.stack([phi.ravel(), psi.ravel()], -1)
    for mass, curves in plots.ramachandran_contours(reference):
        inside = sum(Path(c).contains_points(points).astype(int) for c in curves) % 2 == 1
        assert counts.ravel()[inside].sum() / counts.sum() == pytest.approx(mass, abs=0.01)


def test_smoothing_is_periodic_and_keeps_the_total():
    counts = np.zeros((72, 72))
    counts[0, 71] = 10
    density = smooth_density(counts, width=10)
    assert density.sum() == pytest.approx(1)
    assert density[71, 71] == pytest.approx(density[1, 71]) and density[0, 0] == pytest.approx(density[0, 70])
    shares = np.array([[0.5, 0.3], [0.15, 0.05]])
    assert level_of_mass(shares, 0.75) == 0.3
    assert level_of_mass(shares, 0.75, weight=np.array([[1.0, 1], [1, 1]])) == 0.15


def test_reference_statistics_match_numpy():
    chains = [chain([HELIX] * n, seed=n) for n in (30, 41, 56)] + [chain([STRAND] * 35, seed=4)]
    statistics = json.loads(json.dumps(reference_statistics(chains, tm_chains=0)))  # JSON-able
    lengths = np.array([len(c) for c in chains])
    ca = [c[:, 1].astype(float) for c in chains]
    rg = np.array([np.sqrt(((c - c.mean(0)) ** 2).sum(1).mean()) for c in ca])
    slope, log_a = np.polyfit(np.log(lengths), np.log(rg), 1)
    steps = np.concatenate([np.linalg.norm(np.diff(c, axis=0), axis=1) for c in ca])
    assert statistics["rg"]["trend"] == pytest.approx([np.exp(log_a), slope], rel=1e-3)
    assert statistics["per_chain"]["rg"]["mean"] == pytest.approx(rg.mean(), rel=1e-4)
    assert statistics["per_chain"]["rg_ratio"]["q50"] == pytest.approx(
        np.median(rg / np.exp(log_a) / lengths**slope), rel=1e-3
    )
    assert statistics["ca_ca"]["mean"] == pytest.approx(steps.mean(), rel=1e-4)
    assert sum(statistics["ca_ca"]["counts"]) + statistics["ca_ca"]["outside"] == len(steps)
    grid = np.array(statistics["ramachandran"]["counts"]).reshape(72, 72)
    assert grid.sum() == (lengths - 2).sum()
    assert grid[24, 26] == (lengths[:3] - 2).sum()  # (-57.8, -47.0) degrees, rows phi
    assert grid[11:13, 61:63].sum() == lengths[3] - 2  # (-120, 130) lies on a corner of cells


def test_chain_breaks_are_left_out_of_the_statistics():
    whole = chain([HELIX] * 30)
    index = np.arange(30) + BREAK_OFFSET * (np.arange(30) >= 12)
    statistics = reference_statistics([whole, chain([HELIX] * 40)], [index, np.arange(40)], tm_chains=0)
    assert sum(statistics["ca_ca"]["counts"]) + statistics["ca_ca"]["outside"] == 28 + 39
    assert sum(statistics["ramachandran"]["counts"]) == 26 + 38


def test_shipped_reference_is_small_and_usable():
    assert data_path(FILE).stat().st_size < 100_000
    reference = load_reference()
    assert reference["chains"] > 1000
    assert metric_reference(reference).ramachandran.sum() == pytest.approx(1)
    assert reference["per_chain"]["ca_ca"]["mean"] == pytest.approx(3.80, abs=0.01)


def test_reference_command_reads_npz_and_says_what_is_wrong(tmp_path, capsys):
    chains = [chain([HELIX] * n) for n in (50, 60)]
    arrays = {
        "name": np.array(["1abc_A", "1abc_B"]),
        "offset": np.array([0, 50, 110]),
        "coords": np.concatenate(chains),
        "aatype": np.array(["A"] * 110),
        "break_after": np.zeros(110, bool),
    }
    np.savez(tmp_path / "chains.npz", **arrays)
    out = tmp_path / "deep" / "reference.json"
    assert report.main(["--reference", str(tmp_path / "chains.npz"), "--out", str(out)]) == 0
    assert load_reference(out)["chains"] == 2
    assert report.main(["--reference", str(tmp_path / "none.npz"), "--out", str(out)]) == 2
    assert "none.npz" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json: not a JSON"):
        load_reference(tmp_path / "broken.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is missing"):
        load_reference(tmp_path / "other.json")


def tiny_flow(rotations):
    torch.manual_seed(0)
    network = NetworkConfig(width=16, depth=1, heads=2, points=2, hidden=16, pair_hidden=4)
    return build(ProteinConfig(network=network, rotations=rotations)).eval()


@pytest.mark.parametrize("rotations", ["so3", "quaternion"])
def test_demo_sampling_batches_all_lengths_and_repeats_with_its_seed(rotations):
    from rich.console import Console

    flow, lengths = tiny_flow(rotations), demo.spread_lengths(9)
    quiet = Console(quiet=True)
    runs = [demo._sample(flow, lengths, 2, torch.Generator().manual_seed(s), quiet) for s in (3, 3, 4)]
    (x, mask), (again, _), (other, _) = runs
    assert mask.sum(1).tolist() == lengths and lengths[0] == 60 and lengths[-1] == 120
    assert torch.equal(x["trans"], again["trans"]) and not torch.equal(x["trans"], other["trans"])
    gram = x["rots"] @ x["rots"].mT
    assert (gram - torch.eye(3)).abs().max() < 1e-4


def test_demo_writes_backbones_table_page_and_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "spread_lengths", lambda num: [20, 26])  # small, for time
    files = demo.run(tmp_path / "demo", num=2, steps=1, flow=tiny_flow("so3"))
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == sorted(p.name for p in files)
    assert {p.name for p in files} == {"report.html", "overview.png", "metrics.csv", "sample_000.pdb", "sample_001.pdb"}
    rows = list(csv.DictReader((tmp_path / "demo" / "metrics.csv").open()))
    assert [(r["name"], float(r["length"])) for r in rows] == [("sample_000", 20), ("sample_001", 26)]
    ca = [line for line in (tmp_path / "demo" / "sample_001.pdb").read_text().splitlines() if line[12:16] == " CA "]
    assert len(ca) == 26
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--checkpoint", "nope"], "nope"),
        (["--num", "0"], "num"),
        (["--steps", "0"], "steps"),
        (["--threads", "0"], "threads"),
    ],
)
def test_demo_errors_are_one_line_and_status_2(tmp_path, capsys, arguments, message):
    assert demo.main(["--out", str(tmp_path / "demo"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "demo").exists()
