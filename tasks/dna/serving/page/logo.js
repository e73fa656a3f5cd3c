// A sequence logo (Schneider & Stephens 1990): at every place the letters, the most frequent on top, as high as
//   share(letter) * R,   R = 2 - H - e(n),   e(n) = (4 - 1) / (2 ln(2) n)   bits,
// where H is the entropy of the shares and e(n) what it is too low by, on average, in a sample of n (Schneider et al. 1986).

const LETTERS = "ACGT";
const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 10; // units of the drawing per place
const HEIGHT = 100;

// The letters in a box of 100 x 100.
const SHAPES = {
  A: "M0 100L37 0H63L100 100H78L70.500 77H29.500L22 100ZM35.500 59H64.500L50 17Z",
  C: "M98 34C93 13 76 0 52 0C20 0 1 20 1 50S20 100 52 100C76 100 94 87 98 65L76 61C73 75 65 82 52 82C34 82 24 70 24 50S34 18 52 18C64 18 72 25 75 38Z",
  G: "M97 33C92 12 76 0 52 0C20 0 1 20 1 50S20 100 52 100C71 100 87 94 98 83V45H52V63H76V74C70 79 62 82 53 82C34 82 24 70 24 50S34 18 52 18C64 18 71 25 74 37Z",
  T: "M0 0H100V18H62V100H38V18H0Z",
};

/** Shares and information of every place: {n, correction, columns: [{shares, bits}]}, bits never below 0. */
export function information(sequences) {
  const n = sequences.length;
  const length = sequences[0]?.length ?? 0;
  const counts = new Uint32Array(4 * length);
  const index = new Int8Array(128).fill(-1);
  [...LETTERS].forEach((letter, i) => (index[letter.charCodeAt(0)] = i));
  for (const sequence of sequences) {
    for (let at = 0; at < length; at++) {
      const letter = index[sequence.charCodeAt(at)];
      if (letter >= 0) counts[4 * at + letter]++;
    }
  }
  const correction = 3 / (2 * Math.LN2 * n);
  const columns = Array.from({ length }, (_, at) => {
    const some = [...counts.subarray(4 * at, 4 * at + 4)];
    const total = some.reduce((sum, count) => sum + count, 0);
    const shares = some.map((count) => (total ? count / total : 0));
    const entropy = shares.reduce((sum, share) => (share ? sum - share * Math.log2(share) : sum), 0);
    return { shares, bits: total ? Math.max(0, 2 - entropy - correction) : 0 };
  });
  return { n, correction, columns };
}

/** The top of the axis, in bits: 2, or less where nothing comes near. */
export function axisTop(info) {
  const most = Math.max(0, ...info.columns.map((column) => column.bits));
  return [0.5, 1].find((top) => most <= top) ?? 2;
}

/** The logo as an SVG that stretches to any width; every place has its numbers in data-tip. */
export function drawLogo(info) {
  const top = axisTop(info);
  const svg = node("svg", {
    class: "logo",
    viewBox: `0 0 ${COLUMN * info.columns.length} ${HEIGHT}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `Sequence logo of ${info.n} designs, ${info.columns.length} places, axis up to ${top} bits`,
    "data-top": top,
  });
  info.columns.forEach(({ shares, bits }, at) => {
    const order = [0, 1, 2, 3].filter((i) => shares[i] > 0).sort((a, b) => shares[a] - shares[b]);
    const group = node("g", { "data-tip": describe(at, shares, bits, order) });
    group.append(node("rect", { class: "hover", x: COLUMN * at, y: 0, width: COLUMN, height: HEIGHT }));
    let y = HEIGHT;
    for (const i of order) {
      const height = (HEIGHT * shares[i] * bits) / top;
      y -= height;
      if (height < 0.3) continue;
      const place = `translate(${(COLUMN * (at + 0.04)).toFixed(2)} ${y.toFixed(3)}) scale(${COLUMN * 0.0092} ${(height / 100).toFixed(5)})`;
      group.append(node("path", { class: LETTERS[i], d: SHAPES[LETTERS[i]], transform: place }));
    }
    svg.append(group);
  });
  return svg;
}

function describe(at, shares, bits, order) {
  const parts = [...order].reverse().map((i) => `${LETTERS[i]} ${(100 * shares[i]).toFixed(0)}%`);
  return `Position ${at + 1}: ${bits.toFixed(2)} bits\n${parts.join(", ")}`;
}

function node(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
