// The form: what it offers for a model, the request that it makes, and mistakes shown where they were made.
// People count from 1 and in percent, the interface from 0 and in shares.

import { box } from "./results.js";

const ENZYMES = [
  ["EcoRI", "GAATTC"],
  ["BamHI", "GGATCC"],
  ["HindIII", "AAGCTT"],
  ["XhoI", "CTCGAG"],
  ["NdeI", "CATATG"],
  ["NotI", "GCGGCCGC"],
  ["BsaI", "GGTCTC"],
  ["BsmBI", "CGTCTC"],
];
const MOST_MOTIFS = 16;
const TOKENS = ["masking", "uniform", "autoregressive"]; // representations with a temperature
const WAYS = {
  masking: "It starts from blanks and fills them in.",
  uniform: "It starts from random letters and changes them.",
  autoregressive: "It writes from left to right.",
  dirichlet: "It sharpens the odds of each letter, step by step.",
  fisher_rao: "It sharpens the odds of each letter, step by step.",
  straight: "It sharpens the odds of each letter, step by step.",
};
const $ = (id) => document.getElementById(id);

let models = [];

/** The model that is chosen. */
export function chosenModel() {
  return models.find((model) => model.name === $("model").value) ?? null;
}

/** Build what depends on nothing, and keep the form in step with itself. */
export function setUpForm() {
  $("enzymes").append(
    ...ENZYMES.map(([name, site]) =>
      box("label", {}, box("input", { type: "checkbox", value: site }), name, box("code", {}, site)),
    ),
  );
  addMotif();
  $("add-motif").addEventListener("click", () => addMotif().querySelector("input").focus());
  $("model").addEventListener("change", offer);
  $("label").addEventListener("change", offerGuidance);
  $("guidance").addEventListener("input", offerGuidance);
  $("fixed").addEventListener("input", countTemplate);
  $("length").addEventListener("input", countTemplate);
  $("form").addEventListener("input", (event) => {
    const field = event.target.closest(".field");
    if (field) clearField(field);
  });
}

/** Offer these models, as of /v1/models. */
export function setModels(given) {
  models = given;
  $("model").replaceChildren(...models.map(({ name }) => option(name, name)));
  offer();
}

function offer() {
  const model = chosenModel();
  if (!model) return;
  const of = model.organism ? ` (${model.organism})` : "";
  const marks = model.marks.map(({ name, position }) => ` Position ${position + 1} is the ${name}.`).join("");
  $("model-hint").textContent = `Writes ${model.length} letters. Learned from ${model.learned}${of}. ${WAYS[model.representation] ?? ""}${marks}`;
  const before = $("label").value;
  $("label").replaceChildren(option("", model.classes.length ? "any" : "none known"), ...model.classes.map((c) => option(`=${c}`, c)));
  if (model.classes.includes(before.slice(1))) $("label").value = before;
  $("label").disabled = !model.classes.length;
  $("temperature").disabled = !TOKENS.includes(model.representation);
  $("steps").disabled = model.representation === "autoregressive";
  $("length").placeholder = String(model.length);
  offerGuidance();
  countTemplate();
}

function offerGuidance() {
  const hasClass = $("label").value !== "";
  const value = Number($("guidance").value);
  $("guidance").disabled = !hasClass;
  $("guidance-value").textContent = hasClass ? value.toFixed(1) : "–";
  const words = value === 0 ? "The class is ignored." : value < 1 ? "The class is weakened." : value > 1 ? "The class is exaggerated." : "";
  $("guidance-hint").textContent = hasClass ? words || "As the model learned the class." : "Choose a class to strengthen it.";
}

function countTemplate() {
  const size = template().length;
  const whole = chosenModel()?.length;
  const hint = "A letter stays as it is, N is free; as long as the sequences.";
  $("fixed-hint").textContent = size ? `${size} of ${wanted() ?? whole} letters` : hint;
}

function addMotif() {
  const number = $("motifs").children.length + 1;
  const letters = box("input", { class: "letters", spellcheck: "false", autocapitalize: "characters", "aria-label": "Letters of a motif to keep", "aria-describedby": "motifs-error", placeholder: "such as TATAAA" });
  const at = box("input", { type: "number", inputmode: "numeric", min: "1", max: "4096", step: "1", "aria-label": "Position of its first letter, from 1; empty for anywhere", "aria-describedby": "motifs-error", placeholder: "anywhere" });
  const remove = box("button", { type: "button", "aria-label": "Remove this motif", title: "Remove" }, "×");
  const row = box("div", { class: "motif" }, letters, at, remove);
  remove.addEventListener("click", () => {
    clearField(row.closest(".field"));
    if ($("motifs").children.length > 1) {
      row.remove();
      $("add-motif").focus();
    } else {
      letters.value = at.value = "";
      letters.focus();
    }
    $("add-motif").hidden = false;
  });
  $("motifs").append(row);
  $("add-motif").hidden = number >= MOST_MOTIFS;
  return row;
}

function option(value, text) {
  return box("option", { value }, text);
}

/** The length that the form asks for, if it does. */
function wanted() {
  return $("length").value && $("length").validity.valid ? Number($("length").value) : null;
}

function template() {
  return $("fixed").value.replace(/\s+/g, "").toUpperCase();
}

/** The request that the form makes, or null with the mistakes shown. */
export function readForm() {
  clearErrors();
  const mistakes = [];
  const model = chosenModel();
  const number = (id, isWhole) => {
    const input = $(id);
    if (input.disabled || (input.value === "" && !input.validity.badInput && input.placeholder)) return null;
    if (input.value === "" || !input.validity.valid) {
      mistakes.push([input, `Give a ${isWhole ? "whole number" : "number"} from ${input.min} to ${input.max}.`]);
      return null;
    }
    return Number(input.value);
  };
  const label = $("label").value === "" ? null : $("label").value.slice(1);
  const fixed = template();
  const request = {
    model: model?.name ?? null,
    n: number("n", true),
    label,
    guidance: label === null ? 1 : Number($("guidance").value),
    fixed: fixed || null,
    motifs: [],
    avoid_sites: sites(),
    length: number("length", true),
    steps: number("steps", true) ?? 64,
    temperature: number("temperature", false) ?? 1,
    seed: number("seed", true),
  };
  const size = request.length ?? model?.length;
  const odd = /[^ACGTUN]/.exec(fixed);
  if (odd) mistakes.push([$("fixed"), `${odd[0]} at position ${odd.index + 1} is no letter of DNA, and not N for a free one.`]);
  else if (fixed && fixed.length !== size) {
    const what = fixed.length < size ? `fill it up with N` : `take ${fixed.length - size} away`;
    const other = fixed.length < model?.length ? `, or set the length to ${fixed.length} under More settings` : "";
    mistakes.push([$("fixed"), `The template has ${fixed.length} letters, the sequences have ${size}: ${what}${other}.`]);
  }
  for (const row of $("motifs").children) {
    const [letters, at] = row.querySelectorAll("input");
    const word = letters.value.replace(/\s+/g, "").toUpperCase();
    delete row.dataset.sent;
    if (at.validity.badInput || !at.validity.valid) mistakes.push([at, "A position is a whole number from 1, or empty for anywhere."]);
    else if (!word && at.value !== "") mistakes.push([letters, "Which letters are to be kept at this position?"]);
    else if (word && at.value !== "" && Number(at.value) + word.length - 1 > size) {
      mistakes.push([at, `${word} at ${at.value} does not fit: the sequences have ${size} letters.`]);
    } else if (word) {
      row.dataset.sent = request.motifs.length;
      request.motifs.push({ letters: word, start: at.value === "" ? null : Number(at.value) - 1 });
    }
  }
  const [least, most] = [number("gc-least", false), number("gc-most", false)];
  if (least !== null && most !== null && least > most) mistakes.push([$("gc-least"), "The first number must not be the larger one."]);
  request.gc_range = [least / 100, most / 100];
  mistakes.forEach(([input, text]) => showAt(input.closest(".field"), text, [input]));
  if (mistakes.length) mistakes[0][0].focus();
  return mistakes.length ? null : request;
}

function sites() {
  const ticked = [...$("enzymes").querySelectorAll(":checked")].map((input) => input.value);
  const typed = $("sites").value.toUpperCase().split(/[\s,;]+/).filter(Boolean);
  return [...new Set([...ticked, ...typed])];
}

// What the server says begins with the field, or tells by its words which one is meant.
const MEANT = [
  ["label", /no class|\bclass(es)?\b/],
  ["model", /no model/],
  ["motifs", /^(the )?motif/],
  ["fixed", /^(the )?fixed/],
  ["gc_range", /^gc_range|^only \d+ of .* GC /],
  ["avoid_sites", /^avoid_sites|^only \d+ of /],
  ["length", /^length/],
  ["steps", /^steps/],
  ["temperature", /temperature/],
  ["guidance", /^guidance/],
  ["n", /^n must/],
];

/** Show what the server said about a request at the field it is about; false if it is about none. */
export function showRefusal(detail, request) {
  const path = /^(\w+)(?:\[(\d+)\])?(?:\.\w+)?: (.*)$/s.exec(detail);
  let field = path && fieldOf(path[1]);
  let text = detail;
  let inputs = [];
  if (field) {
    const index = path[2] === undefined ? -1 : Number(path[2]);
    const item = path[1] === "motifs" ? request.motifs[index]?.letters : path[1] === "avoid_sites" ? request.avoid_sites[index] : "";
    text = item ? `${item}: ${path[3]}` : path[3];
    if (path[1] === "motifs") inputs = [...$("motifs").querySelectorAll(`[data-sent="${index}"] input:first-child`)];
    if (path[1] === "avoid_sites") inputs = [$("sites")];
  } else {
    field = fieldOf(MEANT.find(([, words]) => words.test(detail))?.[0]);
  }
  if (!field) return false;
  inputs = inputs.length ? inputs : [...field.querySelectorAll("input, select, textarea")].slice(0, 1);
  showAt(field, text[0].toUpperCase() + text.slice(1), inputs);
  inputs[0]?.focus();
  return true;
}

function fieldOf(name) {
  return name && /^\w+$/.test(name) ? document.querySelector(`.field[data-for="${name}"]`) : null;
}

function showAt(field, text, inputs) {
  field.querySelector(".error").textContent = text;
  for (const input of inputs) input.setAttribute("aria-invalid", "true");
  const details = field.closest("details");
  if (details) details.open = true;
}

function clearField(field) {
  field.querySelector(".error").textContent = "";
  for (const input of field.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

function clearErrors() {
  document.querySelectorAll(".field").forEach(clearField);
  $("form-error").textContent = "";
}
