// The page of the sequence designer: asks the server for the models, sends the form, shows what comes back.

import { copy, fastaName, fastaText, save } from "./fasta.js";
import { chosenModel, readForm, setModels, setUpForm, showRefusal } from "./form.js";
import { showMore, showResults, showScores, shownAnswer } from "./results.js";

const $ = (id) => document.getElementById(id);
const SCORED = 64; // designs in a request for scores
let running = null; // the AbortController of the request under way

setUpForm();
setUpTip();
loadModels();

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && !$("design").disabled) design();
});
$("cancel").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("show-more").addEventListener("click", showMore);
$("download").addEventListener("click", () => {
  const answer = shownAnswer();
  save(fastaName(answer), fastaText(answer));
});
$("copy").addEventListener("click", async () => {
  try {
    await copy(fastaText(shownAnswer()));
    say(`Copied ${count(shownAnswer().designs.length)} as FASTA.`);
    $("copy").textContent = "Copied";
  } catch (error) {
    say(`Not copied: ${error.message}.`);
  }
  setTimeout(() => ($("copy").textContent = "Copy FASTA"), 1500);
});

$("score").addEventListener("click", scoreDesigns);

/** Have the model score the designs that are shown, as many at a time as a request may hold. */
async function scoreDesigns() {
  const answer = shownAnswer();
  $("score").disabled = true;
  try {
    for (let at = 0; at < answer.designs.length; at += SCORED) {
      const some = answer.designs.slice(at, at + SCORED);
      say(`Scoring ${count(answer.designs.length)}: ${at} done.`);
      const body = { model: answer.model, label: answer.settings.label, sequences: some.map((design) => design.sequence) };
      const { scores } = await ask("v1/score", body);
      some.forEach((design, i) => (design.score = scores[i]));
    }
    if (answer !== shownAnswer()) return;
    showScores();
    say("Scored: nats per letter, a lower bound on the log-probability; larger is more like the training data.");
  } catch (error) {
    say(`Not scored: ${error.message}`);
  } finally {
    $("score").disabled = false;
  }
}

async function loadModels() {
  try {
    const { models } = await ask("v1/models");
    setModels(models);
    $("design").disabled = false;
    say("");
  } catch (error) {
    $("model-hint").textContent = "";
    $("form-error").textContent = `The models are not to be had: ${error.message}`;
    const again = document.createElement("button");
    again.type = "button";
    again.textContent = "Try again";
    again.addEventListener("click", () => {
      $("form-error").textContent = "";
      loadModels();
    });
    $("form-error").append(" ", again);
  }
}

async function design() {
  const request = readForm();
  if (!request) return;
  const model = chosenModel();
  const focused = document.activeElement;
  running = new AbortController();
  setBusy(true);
  say(`Designing ${count(request.n)}.`);
  const start = performance.now();
  const clock = setInterval(() => {
    $("design").textContent = `Designing … ${Math.round((performance.now() - start) / 1000)} s`;
  }, 1000);
  const watch = setInterval(watchQueue, 2000);
  try {
    const answer = await ask("v1/design", request, running.signal);
    showResults(answer, model);
    say(`${count(answer.designs.length)} in ${answer.seconds.toFixed(1)} s.`);
    showArrival();
  } catch (error) {
    if (error.name === "AbortError") say("Cancelled.");
    else {
      say("");
      setBusy(false); // so that the field can take the focus
      const isMine = error.status >= 400 && error.status < 500 && error.status !== 429;
      if (!(isMine && showRefusal(error.message, request))) $("form-error").textContent = error.message[0].toUpperCase() + error.message.slice(1);
    }
  } finally {
    clearInterval(clock);
    clearInterval(watch);
    running = null;
    setBusy(false);
    if ([document.body, $("cancel")].includes(document.activeElement)) focused.focus({ preventScroll: true });
  }
}

function setBusy(isBusy) {
  $("fields").disabled = isBusy;
  $("design").disabled = isBusy;
  $("design").textContent = isBusy ? "Designing …" : "Design";
  $("bar").hidden = !isBusy;
  $("results").classList.toggle("is-stale", isBusy);
  $("results").setAttribute("aria-busy", String(isBusy));
  if (isBusy) {
    $("cancel").hidden = false;
    $("cancel").focus({ preventScroll: true });
  } else {
    $("cancel").hidden = true;
  }
}

/** While a request is under way, say what it waits for. */
async function watchQueue() {
  try {
    const { status, queued } = await ask("healthz");
    if (!running) return;
    if (status === "starting") say("The models are being loaded.");
    else if (queued > 1) say(`Designing. The server has ${queued} requests in hand.`);
  } catch {
    // the request itself will tell
  }
}

/** Ask the server; its refusals become errors with its words and its status. */
async function ask(path, body, signal) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  let response;
  try {
    response = await fetch(path, { ...options, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  let content = null;
  try {
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && content !== null) return content;
  const detail = typeof content?.detail === "string" ? content.detail : `The server answered ${response.status} without a reason.`;
  const wait = response.headers.get("Retry-After");
  const error = new Error(detail + (response.status === 429 && wait ? ` (again in ${wait} s)` : ""));
  error.status = response.status;
  throw error;
}

/** On a narrow screen the designs lie below the form: go there. */
function showArrival() {
  const top = $("results").getBoundingClientRect().top;
  if (top > window.innerHeight * 0.6) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("results").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }
}

/** A tip at the pointer for what has a title or data-tip; the title is put aside meanwhile, so that there is only one. */
function setUpTip() {
  const tip = $("tip");
  let owner = null;
  const leave = () => {
    if (owner?.dataset.title) {
      owner.title = owner.dataset.title;
      delete owner.dataset.title;
    }
    owner = null;
    tip.hidden = true;
  };
  $("viewer").addEventListener("pointerover", (event) => {
    const found = event.target.closest(".hit, .kept, [data-tip]");
    if (found === owner) return;
    leave();
    if (!found) return;
    owner = found;
    if (found.title) {
      found.dataset.title = found.title;
      found.removeAttribute("title");
    }
    tip.textContent = found.dataset.title ?? found.dataset.tip;
    tip.hidden = false;
    const x = Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18;
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${below + tip.offsetHeight > window.innerHeight ? event.clientY - tip.offsetHeight - 12 : below}px`;
  });
  $("viewer").addEventListener("pointerleave", leave);
  $("viewer").addEventListener("scroll", leave, { passive: true });
}

function count(n) {
  return n === 1 ? "1 sequence" : `${n} sequences`;
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}
