// The designs as an alignment: logo and ruler on top, then a row of coloured letters with its motif tracks for each.
// Whatever comes from the server goes in as text, never as markup.

import { axisTop, drawLogo, information } from "./logo.js";

const PAGE = 100; // designs that are shown at first, and more with every press
const TRACK_COLOURS = 6;
const LANE = 18; // pixels of one lane of tracks
const BLOCK = 20; // letters of a block
const KEYS = 12; // motifs in the legend
const $ = (id) => document.getElementById(id);

let answer = null;
let marks = [];
let colours = new Map();
let painter = null;

/** Show an answer of /v1/design by a model of /v1/models. */
export function showResults(given, model) {
  answer = given;
  marks = model.marks;
  const tracks = model.motifs;
  $("score").hidden = !model.can_score;
  $("viewer").classList.remove("is-scored");
  colours = new Map();
  for (const name of [...tracks, ...answer.designs.flatMap((design) => design.hits.map((hit) => hit.motif))]) {
    if (!colours.has(name)) colours.set(name, `var(--track-${(colours.size % TRACK_COLOURS) + 1})`);
  }
  $("empty").hidden = true;
  $("found").hidden = false;
  const info = information(answer.designs.map((design) => design.sequence));
  showSummary();
  showLegend(info);
  painter?.disconnect();
  const viewer = $("viewer");
  painter = new IntersectionObserver(paintVisible, { root: viewer, rootMargin: "600px 0px" });
  viewer.replaceChildren(topRow(info));
  viewer.scrollTo(0, 0);
  showMore();
}

/** Show the next designs; the page stays quick with a thousand because letters are coloured when they come near. */
export function showMore() {
  const viewer = $("viewer");
  const shown = viewer.querySelectorAll(".design").length;
  const rows = answer.designs.slice(shown, shown + PAGE).map((design, i) => designRow(design, shown + i));
  viewer.append(...rows);
  for (const row of rows) painter.observe(row);
  const left = answer.designs.length - shown - rows.length;
  $("show-more").hidden = left === 0;
  $("show-more").textContent = `Show ${Math.min(PAGE, left)} more (${left} left)`;
}

/** Show the scores of the designs, in a column that they have for themselves. */
export function showScores() {
  $("viewer").classList.add("is-scored");
  for (const row of $("viewer").querySelectorAll(".design")) fillSide(row.firstChild, Number(row.dataset.number));
  const scores = answer.designs.map((design) => design.score);
  const mean = scores.reduce((sum, score) => sum + score, 0) / scores.length;
  $("summary").append(box("div", {}, box("dt", {}, "Mean score"), box("dd", {}, mean.toFixed(3))));
}

/** The answer that is shown, or null. */
export function shownAnswer() {
  return answer;
}

function showSummary() {
  const n = answer.designs.length;
  const gc = answer.designs.reduce((sum, design) => sum + design.gc, 0) / n;
  const facts = [
    ["Designs", String(n)],
    ["Mean GC", percent(gc)],
    ["Time", `${answer.seconds.toFixed(answer.seconds < 10 ? 1 : 0)} s`],
    ["Model", answer.model],
  ];
  const label = answer.designs[0]?.label ?? null;
  if (label !== null) facts.push(["Class", label]);
  if (answer.seed !== null) facts.push(["Seed", String(answer.seed)]);
  $("settings").textContent = settings(answer.settings);
  $("summary").replaceChildren(...facts.map(([name, value]) => box("div", {}, box("dt", {}, name), box("dd", {}, value))));
}

/** What was asked for, in words; what is as by default is left out. */
function settings({ guidance, label, fixed, motifs, gc_range, avoid_sites, length, steps, temperature }) {
  const words = [`${length} letters`, `${steps} steps`];
  if (label !== null) words.push(`guidance ${guidance}`);
  if (temperature !== 1) words.push(`temperature ${temperature}`);
  if (fixed) words.push("a fixed template");
  for (const motif of motifs) words.push(`${motif.letters} kept${motif.start === null ? "" : ` at ${motif.start + 1}`}`);
  if (gc_range[0] > 0 || gc_range[1] < 1) words.push(`GC ${+(100 * gc_range[0]).toFixed(2)} to ${+(100 * gc_range[1]).toFixed(2)}%`);
  if (avoid_sites.length) words.push(`without ${avoid_sites.join(", ")}`);
  return words.join(" · ");
}

function showLegend(info) {
  const keys = [];
  if (answer.designs.some((design) => design.kept.length)) {
    keys.push(box("span", {}, box("b", { class: "kept" }, "ACGT"), "kept as asked"));
  }
  const found = new Map();
  for (const { hits } of answer.designs) {
    for (const name of new Set(hits.map((hit) => hit.motif))) found.set(name, (found.get(name) ?? 0) + 1);
  }
  const common = [...found].sort((a, b) => b[1] - a[1]);
  for (const [name, n] of common.slice(0, KEYS)) {
    const swatch = box("i");
    swatch.style.setProperty("--track", colours.get(name));
    keys.push(box("span", {}, swatch, `${name}, in ${n} of ${answer.designs.length}`));
  }
  if (common.length > KEYS) keys.push(box("span", {}, `and ${common.length - KEYS} more motifs`));
  const notes = [];
  if (info.n > 1) {
    notes.push(
      `Logo: information in bits over ${info.n} designs, less ${info.correction.toFixed(2)} bits at every position ` +
        `for the small sample.`,
    );
  } else {
    notes.push("A logo needs at least two designs.");
  }
  if (colours.size && !found.size) notes.push("No motif of the tracks scores high enough in these designs.");
  $("legend").replaceChildren(
    ...(keys.length ? [box("div", { class: "key" }, ...keys)] : []),
    ...notes.map((note) => box("p", {}, note)),
  );
}

function topRow(info) {
  const length = info.columns.length;
  const side = box("div", { class: "side" });
  const body = box("div", { class: "track" });
  if (info.n > 1) {
    const top = axisTop(info);
    const axis = box("div", { class: "axis", "aria-hidden": "true" }, box("em", {}, "bits"));
    for (const [share, value] of [[0, top], [0.5, top / 2], [1, 0]]) {
      const text = box("span", {}, String(value));
      const tick = box("i");
      text.style.top = tick.style.top = `${100 * share}%`;
      axis.append(text, tick);
    }
    side.append(axis);
    const logo = drawLogo(info);
    logo.style.width = `${length}ch`;
    body.append(logo);
  }
  const ruler = box("div", { class: "ruler", "aria-hidden": "true" });
  for (let at = 1; at <= length; at += at === 1 ? 9 : 10) {
    const tick = box("span", {}, box("i", {}, String(at)));
    tick.style.left = `${at - 0.5}ch`;
    ruler.append(tick);
  }
  for (const { name, position } of marks.filter((mark) => mark.position < length)) {
    const mark = box("span", { class: "mark", "data-tip": `Position ${position + 1}: ${name}` }, box("b", {}, name));
    mark.style.left = `${position + 0.5}ch`;
    ruler.classList.add("has-marks");
    ruler.append(mark);
  }
  ruler.style.width = `${length}ch`;
  body.append(ruler);
  side.append(box("div", { class: "heads", "aria-hidden": "true" }, box("span", {}, "No."), box("span", { class: "score" }, "Score"), box("span", {}, "GC")));
  return box("div", { class: "row top" }, side, body);
}

function designRow(design, number) {
  const side = box("div", { class: "side" });
  fillSide(side, number);
  const letters = box("span", { class: "letters-line" }, design.sequence);
  const row = box("div", { class: "row design" }, side, box("div", {}, letters, ...tracks(design)));
  row.dataset.number = number;
  return row;
}

/** What stands beside a design: number, class where there is one, score where it is known, GC content. */
function fillSide(side, number) {
  const { gc, label, score } = answer.designs[number];
  const title = [label === null ? "" : `class ${label}`, score === undefined ? "" : `score ${score.toFixed(3)} nats per letter`, `GC ${percent(gc)}`];
  side.replaceChildren(
    box("span", {}, String(number + 1)),
    box("span", { class: "score" }, score === undefined ? "" : score.toFixed(3)),
    box("span", { title: "GC content" }, percent(gc)),
  );
  side.title = title.filter(Boolean).join(", ");
}

function tracks({ hits }) {
  if (!hits.length) return [];
  const ends = []; // where each lane is free again
  const boxes = [...hits]
    .sort((a, b) => a.start - b.start)
    .map((hit) => {
      let lane = ends.findIndex((end) => end <= hit.start);
      if (lane < 0) lane = ends.length;
      ends[lane] = hit.end;
      const strand = hit.strand === "-" ? "minus strand, ←" : "plus strand, →";
      const title = `${hit.motif}\n${hit.start + 1}–${hit.end}, ${strand}\nscore ${hit.score.toFixed(1)} bits`;
      const made = box("div", { class: hit.strand === "-" ? "hit reverse" : "hit", title, role: "img", "aria-label": title });
      made.append(box("span", {}, hit.motif));
      made.style.left = `${hit.start}ch`;
      made.style.width = `${hit.end - hit.start}ch`;
      made.style.top = `${lane * LANE + 1}px`;
      made.style.setProperty("--track", colours.get(hit.motif));
      return made;
    });
  const lanes = box("div", { class: "tracks" }, ...boxes);
  lanes.style.height = `${ends.length * LANE}px`;
  return [lanes];
}

function paintVisible(entries) {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    painter.unobserve(target);
    const { sequence, kept } = answer.designs[Number(target.dataset.number)];
    target.querySelector(".letters-line").replaceChildren(...paint(sequence, kept));
  }
}

/**
 * Letters in spans of one colour, one for every run, and what is kept in spans of its own.
 * Browsers round the width of every span, so blocks of known width keep the letters in step with logo, ruler and tracks.
 */
function paint(sequence, kept) {
  const blocks = [];
  for (let from = 0; from < sequence.length; from += BLOCK) {
    const to = Math.min(from + BLOCK, sequence.length);
    const block = box("span", { class: "block" });
    block.style.width = `${to - from}ch`;
    let at = from;
    for (const [start, end] of kept) {
      if (end <= from || start >= to) continue;
      const [first, last] = [Math.max(start, from), Math.min(end, to)];
      const places = end - start === 1 ? `${end}` : `${start + 1}–${end}`;
      block.append(...runs(sequence.slice(at, first)));
      block.append(box("span", { class: "kept", title: `kept: ${places}` }, ...runs(sequence.slice(first, last))));
      at = last;
    }
    block.append(...runs(sequence.slice(at, to)));
    blocks.push(block);
  }
  return blocks;
}

function runs(letters) {
  return Array.from(letters.matchAll(/A+|C+|G+|T+|[^ACGT]+/g), ([run]) =>
    "ACGT".includes(run[0]) ? box("span", { class: run[0] }, run) : document.createTextNode(run),
  );
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

/** An element with attributes and children; text stays text. */
export function box(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
