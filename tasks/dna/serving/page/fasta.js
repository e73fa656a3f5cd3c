// Designs as a FASTA file. Kept places are written as in GenBank: from 1, both ends included, 31..36,80..85.

const WIDTH = 80;

/** Text as one word of a FASTA header. */
function word(text) {
  return String(text).replace(/[\s\p{Cc}\p{Cf}]+/gu, "_");
}

/** The designs of an answer of /v1/design as FASTA text. */
export function fastaText(answer) {
  const { guidance, steps, temperature } = answer.settings;
  const heat = temperature === 1 ? "" : ` temperature=${temperature}`;
  const common = ` model=${word(answer.model)}` + (answer.seed === null ? "" : ` seed=${answer.seed}`) + ` guidance=${guidance} steps=${steps}${heat}`;
  const records = answer.designs.map((design, i) => {
    const label = design.label === null ? "" : ` label=${word(design.label)}`;
    const kept = design.kept.map(([start, end]) => `${start + 1}..${end}`).join(",");
    const score = design.score === undefined ? "" : ` score=${design.score.toFixed(4)}`;
    const header = `>design_${i + 1}${label} gc=${design.gc.toFixed(4)}${score}${kept && ` kept=${kept}`}${common}`;
    const lines = design.sequence.match(new RegExp(`.{1,${WIDTH}}`, "g")) ?? [];
    return [header, ...lines].join("\n");
  });
  return records.join("\n") + "\n";
}

/** A file name with the model and the day, such as promoters_2026-11-23.fasta. */
export function fastaName(answer, now = new Date()) {
  const day = [now.getFullYear(), now.getMonth() + 1, now.getDate()].map((part) => String(part).padStart(2, "0"));
  const name = answer.model.replace(/[^\w.-]+/g, "_").replace(/^[._]+/, "").slice(0, 80) || "designs";
  return `${name}_${day.join("-")}.fasta`;
}

/** Let the browser save text as a file. */
export function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/x-fasta" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Put text on the clipboard, also where the page is not served over https or from this machine. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      return await navigator.clipboard.writeText(text);
    } catch {
      // not allowed here: the old way may still be
    }
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.style.position = "fixed";
  area.style.opacity = "0";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not let this page use the clipboard");
}
