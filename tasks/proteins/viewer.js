"use strict";
/* A ribbon viewer without a library and without WebGL: triangles into a depth buffer, then onto a canvas.
   The path of each chain (position, direction across, half-width, half-thickness, residue) is made by ribbon.py. */
(function () {
  const AROUND = 16;
  const data = JSON.parse(document.getElementById("chains").textContent);
  const canvas = document.getElementById("view");
  const tip = document.getElementById("tip");
  const pixels = canvas.getContext("2d");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const meshes = new Map();
  let current = 0, scheme = "structure", turn = identity(), zoom = 1, pan = [0, 0], spinning = false;
  let idle = 0, queued = false, frame = null;

  function identity() { return [1, 0, 0, 0, 1, 0, 0, 0, 1]; }
  function times(a, b) {
    const c = [];
    for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++)
      c.push(a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j]);
    return c;
  }
  function about(axis, angle) {
    const c = Math.cos(angle), s = Math.sin(angle);
    return axis === "y" ? [c, 0, s, 0, 1, 0, -s, 0, c] : axis === "x" ? [1, 0, 0, 0, c, -s, 0, s, c] : [c, -s, 0, s, c, 0, 0, 0, 1];
  }
  function unit(x, y, z) { const r = Math.hypot(x, y, z) || 1; return [x / r, y / r, z / r]; }
  function hex(c) { return [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)); }

  /* 9 numbers per point, 16 bits each, see report.py */
  function decode(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const raw = new Int16Array(bytes.buffer), points = [];
    for (let i = 0; i + 8 < raw.length; i += 9)
      points.push({ p: [raw[i] / 100, raw[i + 1] / 100, raw[i + 2] / 100], s: [raw[i + 3] / 30000, raw[i + 4] / 30000, raw[i + 5] / 30000],
        w: raw[i + 6] / 1000, h: raw[i + 7] / 1000, residue: raw[i + 8] < 0 ? -raw[i + 8] - 1 : raw[i + 8], starts: raw[i + 8] < 0 });
    return points;
  }

  function mesh(index) {
    if (meshes.has(index)) return meshes.get(index);
    const points = decode(data.chains[index].path), m = points.length;
    const vertex = new Float32Array(m * AROUND * 3), normal = new Float32Array(m * AROUND * 3), residue = new Uint16Array(m * AROUND);
    const faces = [];
    let radius = 1;
    for (let i = 0; i < m; i++) {
      const a = points[i], before = a.starts ? a : points[i - 1];
      const after = i + 1 < m && !points[i + 1].starts ? points[i + 1] : a;
      const t = unit(after.p[0] - before.p[0], after.p[1] - before.p[1], after.p[2] - before.p[2]);
      const s = unit(a.s[0], a.s[1], a.s[2]);
      const n = unit(t[1] * s[2] - t[2] * s[1], t[2] * s[0] - t[0] * s[2], t[0] * s[1] - t[1] * s[0]);
      const e = Math.min(1, Math.max(0.55, 1 - (a.w / Math.max(a.h, 1e-6) - 1) / 6));
      for (let k = 0; k < AROUND; k++) {
        const angle = 2 * Math.PI * k / AROUND, c = Math.cos(angle), d = Math.sin(angle);
        const x = a.w * Math.sign(c) * Math.abs(c) ** e, y = a.h * Math.sign(d) * Math.abs(d) ** e;
        const u = a.h * Math.sign(c) * Math.abs(c) ** (2 - e), v = a.w * Math.sign(d) * Math.abs(d) ** (2 - e);
        const q = unit(u * s[0] + v * n[0], u * s[1] + v * n[1], u * s[2] + v * n[2]), o = 3 * (i * AROUND + k);
        for (let j = 0; j < 3; j++) { vertex[o + j] = a.p[j] + x * s[j] + y * n[j]; normal[o + j] = q[j]; }
        residue[i * AROUND + k] = a.residue;
        if (i + 1 < m && !points[i + 1].starts) {
          const next = (k + 1) % AROUND, p = i * AROUND + k, r = i * AROUND + next;
          faces.push(p, p + AROUND, r, r, p + AROUND, r + AROUND);
        }
      }
      radius = Math.max(radius, Math.hypot(a.p[0], a.p[1], a.p[2]) + 2);
    }
    const wide = points.reduce((b, a) => Math.max(b, Math.abs(a.p[0])), 1) + 2.5, tall = points.reduce((b, a) => Math.max(b, Math.abs(a.p[1])), 1) + 2.5;
    const result = { vertex, normal, residue, faces: new Uint32Array(faces), radius, wide, tall };
    meshes.set(index, result);
    return result;
  }

  function colours(index) {
    const chain = data.chains[index], n = chain.states.length, out = new Uint8Array(3 * n);
    const table = { "-": hex(data.colors.coil), H: hex(data.colors.helix), E: hex(data.colors.strand) };
    const stops = data.rainbow.map(hex);
    for (let i = 0; i < n; i++) {
      let c = table[chain.states[i]];
      if (scheme === "rainbow") {
        const at = (n > 1 ? i / (n - 1) : 0) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(at)), f = at - k;
        c = stops[k].map((v, j) => v + f * (stops[k + 1][j] - v));
      }
      out.set(c.map(Math.round), 3 * i);
    }
    return out;
  }

  /* Draws a chain into a buffer of w x h pixels; `scale` is pixels per angstrom. */
  function raster(index, w, h, scale, rotation, shift, line) {
    const m = mesh(index), colour = colours(index), count = m.residue.length;
    const image = new ImageData(w, h), out = new Uint32Array(image.data.buffer);
    const depth = new Float32Array(w * h).fill(-1e9), which = new Uint16Array(w * h);
    const X = new Float32Array(count), Y = new Float32Array(count), Z = new Float32Array(count), C = new Float32Array(count * 3);
    const sun = unit(-0.45, 0.6, 0.75), half = unit(-0.45, 0.6, 1.75), r = rotation, v = m.vertex, q = m.normal;
    const paper = dark.matches ? [24, 29, 38] : [250, 251, 253], eye = 5 * m.radius;
    for (let i = 0; i < count; i++) {
      const o = 3 * i, z = r[6] * v[o] + r[7] * v[o + 1] + r[8] * v[o + 2], near = eye / (eye - z);
      X[i] = w / 2 + shift[0] + scale * near * (r[0] * v[o] + r[1] * v[o + 1] + r[2] * v[o + 2]);
      Y[i] = h / 2 + shift[1] - scale * near * (r[3] * v[o] + r[4] * v[o + 1] + r[5] * v[o + 2]);
      Z[i] = z;
      const a = r[0] * q[o] + r[1] * q[o + 1] + r[2] * q[o + 2], b = r[3] * q[o] + r[4] * q[o + 1] + r[5] * q[o + 2];
      const c = r[6] * q[o] + r[7] * q[o + 1] + r[8] * q[o + 2];
      const light = 0.34 + 0.08 * (1 + b) + 0.62 * Math.max(0, a * sun[0] + b * sun[1] + c * sun[2]);
      const shine = 70 * Math.max(0, a * half[0] + b * half[1] + c * half[2]) ** 28;
      const fog = (dark.matches ? 0.34 : 0.42) * Math.min(1, Math.max(0, 0.5 - 0.5 * z / m.radius)) ** 1.3, k = 3 * m.residue[i];
      for (let j = 0; j < 3; j++) C[o + j] = Math.min(255, colour[k + j] * light + shine) * (1 - fog) + paper[j] * fog;
    }
    const f = m.faces;
    for (let i = 0; i < f.length; i += 3) {
      const a = f[i], b = f[i + 1], c = f[i + 2];
      const area = (X[b] - X[a]) * (Y[c] - Y[a]) - (X[c] - X[a]) * (Y[b] - Y[a]);
      if (area === 0) continue;
      const x0 = Math.max(0, Math.ceil(Math.min(X[a], X[b], X[c]) - 0.5)), x1 = Math.min(w - 1, Math.floor(Math.max(X[a], X[b], X[c]) - 0.5));
      const y0 = Math.max(0, Math.ceil(Math.min(Y[a], Y[b], Y[c]) - 0.5)), y1 = Math.min(h - 1, Math.floor(Math.max(Y[a], Y[b], Y[c]) - 0.5));
      if (x1 < x0 || y1 < y0) continue;
      const ux = (Y[c] - Y[a]) / area, uy = (X[a] - X[c]) / area, vx = (Y[a] - Y[b]) / area, vy = (X[b] - X[a]) / area;
      for (let y = y0; y <= y1; y++) for (let x = x0; x <= x1; x++) {
        const dx = x + 0.5 - X[a], dy = y + 0.5 - Y[a], s = dx * ux + dy * uy, t = dx * vx + dy * vy;
        if (s < -1e-4 || t < -1e-4 || s + t > 1.0001) continue;
        const z = Z[a] + s * (Z[b] - Z[a]) + t * (Z[c] - Z[a]), at = y * w + x;
        if (z <= depth[at]) continue;
        depth[at] = z;
        which[at] = m.residue[a] + 1;
        const p = 3 * a, g = 3 * b, l = 3 * c, u = 1 - s - t;
        out[at] = 0xff000000 | ((u * C[p + 2] + s * C[g + 2] + t * C[l + 2]) << 16) | ((u * C[p + 1] + s * C[g + 1] + t * C[l + 1]) << 8) | (u * C[p] + s * C[g] + t * C[l]);
      }
    }
    /* outlines: in front of something well behind; lighter in thumbnails, where they would be all there is */
    const ink = scale / line < 5 ? 0.75 : dark.matches ? 0.5 : 0.42;
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      const at = y * w + x, z = depth[at] - 1.6;
      if (z < -1e8) continue;
      if ((x >= line ? depth[at - line] : -1e9) < z || (x + line < w ? depth[at + line] : -1e9) < z ||
          (y >= line ? depth[at - line * w] : -1e9) < z || (y + line < h ? depth[at + line * w] : -1e9) < z) {
        const c = out[at];
        out[at] = 0xff000000 | (((c >> 16 & 255) * ink) << 16) | (((c >> 8 & 255) * ink) << 8) | ((c & 255) * ink);
      }
    }
    return { image, which, w, h };
  }

  function paint(target, context, index, fine, rotation, magnify, shift) {
    const w = target.clientWidth, h = target.clientHeight;
    if (!w || !h) return null;
    const ratio = window.devicePixelRatio || 1;
    target.width = Math.round(w * ratio); target.height = Math.round(h * ratio);
    /* twice the screen's resolution when still (averaged: smooth edges), the screen's or less when moving */
    const density = Math.min(fine ? 2 * ratio : Math.min(ratio, 1.25), Math.sqrt((fine ? 3.2e6 : 7e5) / (w * h)));
    const m = mesh(index), scale = 0.94 * magnify * Math.min(w / 2 / m.wide, h / 2 / m.tall);
    const made = raster(index, Math.round(w * density), Math.round(h * density), scale * density, rotation,
      [shift[0] * density, shift[1] * density], Math.max(1, Math.round(density * 0.9)));
    const buffer = document.createElement("canvas");
    buffer.width = made.w; buffer.height = made.h;
    buffer.getContext("2d").putImageData(made.image, 0, 0);
    context.imageSmoothingEnabled = true; context.imageSmoothingQuality = "high";
    context.drawImage(buffer, 0, 0, target.width, target.height);
    return { which: made.which, w: made.w, h: made.h, density };
  }

  function draw(fine) { frame = paint(canvas, pixels, current, fine, turn, zoom, pan) || frame; }
  function refresh() {
    clearTimeout(idle);
    if (!queued) { queued = true; requestAnimationFrame(() => { queued = false; draw(false); }); }
    idle = setTimeout(() => draw(true), 140);
  }
  function spin() {
    if (!spinning) return;
    turn = times(about("y", 0.012), turn);
    clearTimeout(idle);
    draw(false);
    requestAnimationFrame(spin);
  }
  function setSpin(on) {
    spinning = on;
    document.getElementById("spin").setAttribute("aria-pressed", on);
    if (on) requestAnimationFrame(spin); else refresh();
  }
  function home() { turn = times(about("x", 0.12), about("y", -0.25)); zoom = 1; pan = [0, 0]; refresh(); }

  function select(index) {
    current = (index + data.chains.length) % data.chains.length;
    const chain = data.chains[current];
    document.querySelectorAll("#picker button").forEach((b, i) => b.setAttribute("aria-pressed", i === current));
    document.querySelectorAll("[data-chain]").forEach((e) => e.classList.toggle("active", Number(e.dataset.chain) === current));
    document.getElementById("caption").textContent = chain.name + " · " + chain.states.length + " residues · " + chain.note;
    home();
  }
  function thumbnails() {
    document.querySelectorAll("#picker canvas").forEach((c, i) => paint(c, c.getContext("2d"), i, true, times(about("x", 0.12), about("y", -0.25)), 1, [0, 0]));
  }
  function setScheme(name) {
    scheme = name;
    document.querySelectorAll("[data-scheme]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.scheme === name));
    document.getElementById("viewer").dataset.colour = name;
    draw(true); thumbnails();
  }

  /* mouse, touch and pen alike */
  const fingers = new Map();
  let apart = 0, centre = null;
  canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, [e.clientX, e.clientY]); apart = 0; tip.hidden = true; });
  canvas.addEventListener("pointermove", (e) => {
    const old = fingers.get(e.pointerId);
    if (!old) { hover(e); return; }
    const dx = e.clientX - old[0], dy = e.clientY - old[1];
    fingers.set(e.pointerId, [e.clientX, e.clientY]);
    if (fingers.size === 1) {
      if (e.shiftKey || e.buttons === 2) pan = [pan[0] + dx, pan[1] + dy];
      else turn = times(times(about("y", dx * 0.009), about("x", dy * 0.009)), turn);
    } else if (fingers.size === 2) {
      const [a, b] = [...fingers.values()], d = Math.hypot(a[0] - b[0], a[1] - b[1]), mid = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
      if (apart) { zoom = Math.min(8, Math.max(0.4, zoom * d / apart)); pan = [pan[0] + mid[0] - centre[0], pan[1] + mid[1] - centre[1]]; }
      apart = d; centre = mid;
    }
    refresh();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => { fingers.delete(e.pointerId); apart = 0; });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("contextmenu", (e) => e.preventDefault());
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom = Math.min(8, Math.max(0.4, zoom * Math.exp(-e.deltaY * 0.0012))); refresh(); }, { passive: false });
  canvas.addEventListener("dblclick", home);
  canvas.addEventListener("keydown", (e) => {
    const moves = { ArrowLeft: ["y", -0.12], ArrowRight: ["y", 0.12], ArrowUp: ["x", -0.12], ArrowDown: ["x", 0.12] };
    if (moves[e.key]) { turn = times(about(...moves[e.key]), turn); refresh(); }
    else if (e.key === "+" || e.key === "=") { zoom = Math.min(8, zoom * 1.15); refresh(); }
    else if (e.key === "-") { zoom = Math.max(0.4, zoom / 1.15); refresh(); }
    else if (e.key === "n") select(current + 1);
    else if (e.key === "p") select(current - 1);
    else return;
    e.preventDefault();
  });
  function hover(e) {
    if (!frame) return;
    const box = canvas.getBoundingClientRect(), x = e.clientX - box.left, y = e.clientY - box.top;
    const at = Math.floor(y * frame.density) * frame.w + Math.floor(x * frame.density), found = frame.which[at];
    tip.hidden = !found;
    if (!found) return;
    const kind = { "-": "coil", H: "helix", E: "strand" }[data.chains[current].states[found - 1]];
    tip.textContent = "residue " + data.chains[current].numbers[found - 1] + " · " + kind;
    tip.style.left = Math.min(x + 14, box.width - 130) + "px"; tip.style.top = y + 14 + "px";
  }

  const picker = document.getElementById("picker");
  data.chains.forEach((chain, i) => {
    const button = document.createElement("button"), small = document.createElement("canvas"), text = document.createElement("span");
    button.type = "button"; button.title = chain.name + ", " + chain.note;
    text.textContent = (i + 1) + " · " + chain.states.length + " aa";
    button.append(small, text);
    button.addEventListener("click", () => select(i));
    picker.append(button);
  });
  document.querySelectorAll("[data-chain]").forEach((e) => {
    const show = () => { select(Number(e.dataset.chain)); document.getElementById("viewer").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth", block: "nearest" }); };
    e.addEventListener("click", show);
    e.addEventListener("keydown", (k) => { if (k.key === "Enter") show(); });
  });
  document.querySelectorAll("[data-scheme]").forEach((b) => b.addEventListener("click", () => setScheme(b.dataset.scheme)));
  document.querySelectorAll(".copy").forEach((b) => b.addEventListener("click", async () => {
    const text = b.parentElement.querySelector("pre").textContent;
    try { await navigator.clipboard.writeText(text); }
    catch { const area = document.createElement("textarea"); area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove(); }
    b.textContent = "Copied"; setTimeout(() => { b.textContent = "Copy"; }, 1500);
  }));
  document.getElementById("spin").addEventListener("click", () => setSpin(!spinning));
  document.getElementById("home").addEventListener("click", home);
  document.getElementById("save").addEventListener("click", () => {
    draw(true);
    const link = document.createElement("a");
    link.download = data.chains[current].name + ".png"; link.href = canvas.toDataURL("image/png"); link.click();
  });
  dark.addEventListener("change", () => { draw(true); thumbnails(); });
  new ResizeObserver(() => { refresh(); clearTimeout(thumbnails.timer); thumbnails.timer = setTimeout(thumbnails, 200); }).observe(canvas);
  select(0);
  draw(true);
  thumbnails();
})();
