"use strict";
/* Stills of all scenes that come into sight, and one live view that moves to the scene in use: browsers allow few WebGL
   contexts, and this needs two however many scenes a page has. */
(function () {
  const { scenes, radii } = JSON.parse(document.getElementById("mol-data").textContent);
  const stages = [...document.querySelectorAll(".mol-stage[data-scene]")];
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const BOX = 0x8391a6;
  const waiting = new Set(), near = new Set(), stale = new Set(stages); // to draw now; in sight; without a still that is right
  let library = null, camera = null, live = null, here = null, busy = false, armed = false;

  /* The library: base64 of gzip in the page, unpacked once. */
  function load() {
    library = library || (async () => {
      const packed = Uint8Array.from(atob(document.getElementById("mol-library").textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const code = await new Response(stream).text();
      const script = document.createElement("script");
      script.textContent = code;
      document.head.append(script);
      if (!window.$3Dmol && !window["3Dmol"]) throw new Error("the viewer did not load");
      return window.$3Dmol || window["3Dmol"];
    })();
    return library;
  }

  function viewer(lib, host, id) {
    const made = lib.createViewer(host, { id, backgroundAlpha: 0, antialias: true, disableFog: true, minimumZoomToDistance: 2.4 });
    if (!made) throw new Error("no WebGL");
    made.setBackgroundColor(0xffffff, 0);
    return made;
  }

  function say(stage, text) {
    stage.textContent = "";
    const p = document.createElement("p");
    p.textContent = text;
    stage.append(p);
  }

  /* Rows are cell vectors; the inverse gives fractional coordinates. */
  function inverse(m) {
    const [[a, b, c], [d, e, f], [g, h, i]] = m;
    const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
    if (Math.abs(det) < 1e-6) return null;
    return [[e * i - f * h, c * h - b * i, b * f - c * e], [f * g - d * i, a * i - c * g, c * d - a * f],
      [d * h - e * g, b * g - a * h, a * e - b * d]].map((row) => row.map((x) => x / det));
  }
  const times = (v, m) => [0, 1, 2].map((j) => v[0] * m[0][j] + v[1] * m[1][j] + v[2] * m[2][j]);

  function cellOf(model) {
    const data = model.getCrystData && model.getCrystData();
    if (!data) return null;
    if (data.matrix) { const e = data.matrix.elements; return [[e[0], e[1], e[2]], [e[3], e[4], e[5]], [e[6], e[7], e[8]]]; }
    const r = Math.PI / 180, ca = Math.cos(data.alpha * r), cb = Math.cos(data.beta * r), cg = Math.cos(data.gamma * r), sg = Math.sin(data.gamma * r);
    const y = (ca - cb * cg) / sg;
    return [[data.a, 0, 0], [data.b * cg, data.b * sg, 0], [data.c * cb, data.c * y, data.c * Math.sqrt(Math.max(0, 1 - cb * cb - y * y))]];
  }

  /* All atoms in n cells, those on the faces at every face, and the bonds between neighbours that are no two metals. */
  function crystal(atoms, cell, counts) {
    const back = inverse(cell);
    if (!back) return null;
    const EPS = 0.02, unique = [], made = [];
    for (const a of atoms) {
      const f = times([a.x, a.y, a.z], back).map((x) => x - Math.floor(x + 1e-4));
      const twin = unique.some((u) => u.elem === a.elem && Math.hypot(...times(u.f.map((x, k) => x - f[k] - Math.round(x - f[k])), cell)) < 0.05);
      if (!twin) unique.push({ elem: a.elem, f });
    }
    for (const u of unique) {
      const spans = u.f.map((x, k) => { const all = []; for (let n = -1; n <= counts[k]; n++) if (x + n >= -EPS && x + n <= counts[k] + EPS) all.push(n); return all; });
      for (const i of spans[0]) for (const j of spans[1]) for (const k of spans[2]) {
        const [x, y, z] = times([u.f[0] + i, u.f[1] + j, u.f[2] + k], cell);
        made.push({ elem: u.elem, x, y, z, bonds: [], bondOrder: [], hetflag: true });
      }
    }
    const soft = new Set("H B C N O F Si P S Cl As Se Br Te I At".split(" ")), some = unique.some((u) => soft.has(u.elem));
    const pairs = [];
    for (let i = 0; i < made.length; i++) for (let j = i + 1; j < made.length; j++) {
      const a = made[i], b = made[j];
      if (some && !soft.has(a.elem) && !soft.has(b.elem)) continue;
      if (Math.hypot(a.x - b.x, a.y - b.y, a.z - b.z) < 1.16 * ((radii[a.elem] || 1.5) + (radii[b.elem] || 1.5))) pairs.push([i, j]);
    }
    const metals = new Set(unique.map((u) => u.elem).filter((e) => !soft.has(e)));
    const crowded = (e) => some && metals.size > 1 && metals.has(e) && (radii[e] || 0) >= 1.74; // Sr of SrTiO3, 12 neighbours: clutter
    const all = [...metals].every(crowded);
    for (const [i, j] of pairs) {
      const a = made[i], b = made[j];
      if (!all && (crowded(a.elem) || crowded(b.elem))) continue;
      a.bonds.push(j); b.bonds.push(i); a.bondOrder.push(1); b.bondOrder.push(1);
    }
    return made;
  }

  const STYLES = {
    ball: (c) => ({ stick: { radius: 0.11, ...c }, sphere: { scale: 0.28, ...c } }),
    stick: (c) => ({ stick: { radius: 0.16, ...c } }),
    sphere: (c) => ({ sphere: { scale: 0.62, ...c } }),
  };

  function fill(view, lib, scene) {
    view.removeAllModels(); view.removeAllShapes(); view.removeAllLabels();
    for (const part of scene.m) {
      const color = part.c ? { color: part.c } : { colorscheme: "Jmol" };
      let model = view.addModel(part.t, part.f, { keepH: true, doAssembly: part.f === "cif", duplicateAssemblyAtoms: part.f === "cif" });
      const cell = cellOf(model), atoms = cell && crystal(model.selectedAtoms({}), cell, scene.cells);
      if (atoms) {
        view.removeModel(model);
        model = view.addModel();
        model.addAtoms(atoms);
        if (scene.cell) {
          const corner = (v) => { const [x, y, z] = times(v, cell); return { x, y, z }; };
          const [nx, ny, nz] = scene.cells;
          const line = (a, b) => view.addCylinder({ start: corner(a), end: corner(b), radius: 0.03, color: part.c || BOX, fromCap: 1, toCap: 1 });
          for (let j = 0; j <= ny; j++) for (let k = 0; k <= nz; k++) line([0, j, k], [nx, j, k]);
          for (let i = 0; i <= nx; i++) for (let k = 0; k <= nz; k++) line([i, 0, k], [i, ny, k]);
          for (let i = 0; i <= nx; i++) for (let j = 0; j <= ny; j++) line([i, j, 0], [i, j, nz]);
        }
      }
      model.setStyle({}, STYLES[scene.style](color));
      scene.periodic = scene.periodic || Boolean(atoms);
      scene.count = atoms ? atoms.length : model.selectedAtoms({}).length;
    }
    if (scene.view) { view.setView(scene.view); return; }
    view.setView([0, 0, 0, 0, 0, 0, 0, 1]);
    view.zoomTo();
    if (scene.periodic) { view.rotate(-75, "x"); view.rotate(-16, "y"); view.rotate(7, "x"); view.zoom(0.92); }
  }

  const now = () => new Promise((done) => setTimeout(done, 0));

  async function still(stage) {
    const scene = scenes[stage.dataset.scene], lib = await load();
    if (!camera) {
      const host = document.createElement("div");
      host.setAttribute("aria-hidden", "true");
      host.style.cssText = "position:fixed;left:-3000px;top:0;width:400px;height:300px;";
      document.body.append(host);
      camera = viewer(lib, host, "mol-camera");
    }
    fill(camera, lib, scene);
    camera.render();
    const picture = document.createElement("img");
    picture.alt = "";
    picture.src = camera.pngURI();
    stage.querySelectorAll("img, p").forEach((old) => old.remove());
    stage.prepend(picture);
    stage.dataset.atoms = scene.count;
  }

  async function work() {
    if (busy) return;
    busy = true;
    while (waiting.size) {
      const stage = waiting.values().next().value;
      waiting.delete(stage);
      if (stage === here) continue;
      stale.delete(stage);
      try { await still(stage); } catch (error) { say(stage, /WebGL/i.test(String(error && error.message || error)) ? "This browser shows no 3D (WebGL is off)." : "This structure cannot be drawn."); }
      await now();
    }
    busy = false;
  }

  const watch = new IntersectionObserver((seen) => {
    for (const entry of seen) {
      if (entry.isIntersecting) near.add(entry.target); else near.delete(entry.target);
      if (entry.isIntersecting && stale.has(entry.target)) waiting.add(entry.target); else waiting.delete(entry.target);
    }
    work();
  }, { rootMargin: "200px" });
  stages.forEach((stage) => watch.observe(stage));

  function renew(stage) { stale.add(stage); if (near.has(stage)) waiting.add(stage); }

  function leave() {
    if (!here) return;
    const stage = here, scene = scenes[stage.dataset.scene];
    scene.view = live.getView();
    live.spin(false);
    here = null; armed = false;
    stage.classList.remove("live");
    renew(stage);
    const held = document.createElement("img"); // until the still is made
    held.alt = ""; held.src = live.pngURI();
    stage.querySelectorAll("img, p").forEach((old) => old.remove());
    stage.prepend(held);
    work();
  }

  async function enter(stage) {
    if (here === stage || stage.querySelector("p")) return;
    const lib = await load();
    leave();
    try {
      if (!live) {
        const host = document.createElement("div");
        host.className = "mol-live";
        stage.append(host);
        live = viewer(lib, host, "mol-canvas");
        live.host = host;
      }
      stage.append(live.host);
      live.resize();
      fill(live, lib, scenes[stage.dataset.scene]);
      live.render();
      here = stage;
      stage.classList.add("live");
      stage.querySelectorAll("img").forEach((old) => old.remove());
      turn();
    } catch (error) { say(stage, "This browser shows no 3D (WebGL is off)."); }
  }

  function turn() {
    const box = here && here.closest(".mol-box"), button = box && box.querySelector("[data-spin]");
    live.spin(Boolean(button && button.getAttribute("aria-pressed") === "true" && !calm.matches) && "y");
  }

  for (const stage of stages) {
    stage.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") enter(stage); });
    stage.addEventListener("pointerdown", () => { armed = true; enter(stage); }, true);
    stage.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") armed = false; });
    stage.addEventListener("focus", () => enter(stage));
    // The page scrolls under the pointer until a view has been clicked.
    stage.addEventListener("wheel", (event) => { if (!armed) event.stopImmediatePropagation(); }, { capture: true, passive: true });
    stage.addEventListener("keydown", (event) => {
      const turns = { ArrowLeft: [-12, "y"], ArrowRight: [12, "y"], ArrowUp: [-12, "x"], ArrowDown: [12, "x"] }[event.key];
      const zoom = { "+": 1.15, "=": 1.15, "-": 0.87 }[event.key];
      if (!live || here !== stage || !(turns || zoom)) return;
      event.preventDefault();
      if (turns) live.rotate(...turns); else live.zoom(zoom);
      live.render();
    });
  }
  document.addEventListener("pointerdown", (event) => { if (here && !here.contains(event.target)) armed = false; });
  window.addEventListener("resize", () => { if (here) { live.resize(); live.render(); } });

  /* Buttons of a grid change all its scenes. */
  for (const box of document.querySelectorAll(".mol-box")) {
    const mine = [...box.querySelectorAll(".mol-stage")], press = (button, on) => button.setAttribute("aria-pressed", String(on));
    const first = mine.length && scenes[mine[0].dataset.scene];
    function again() {
      for (const stage of mine) {
        if (stage !== here) { renew(stage); continue; }
        const scene = scenes[stage.dataset.scene];
        if (scene.view) scene.view = live.getView();
        fill(live, null, scene);
        live.render();
      }
      work();
    }
    for (const button of box.querySelectorAll("[data-style]")) {
      press(button, first && first.style === button.dataset.style);
      button.addEventListener("click", () => {
        box.querySelectorAll("[data-style]").forEach((other) => press(other, other === button));
        mine.forEach((stage) => { scenes[stage.dataset.scene].style = button.dataset.style; });
        again();
      });
    }
    for (const button of box.querySelectorAll("[data-cells]")) {
      const n = Number(button.dataset.cells);
      press(button, first && first.cells[0] === n);
      button.addEventListener("click", () => {
        box.querySelectorAll("[data-cells]").forEach((other) => press(other, other === button));
        mine.forEach((stage) => { const scene = scenes[stage.dataset.scene]; scene.cells = [n, n, n]; scene.view = null; });
        again();
      });
    }
    const spin = box.querySelector("[data-spin]");
    if (spin) spin.addEventListener("click", async () => {
      press(spin, spin.getAttribute("aria-pressed") !== "true");
      if (!here && mine.length) await enter(mine[0]);
      if (here && box.contains(here)) turn();
    });
  }
})();
