// Lists the runs and draws their curves; asks every other second for what is new.
"use strict";

const EVERY_MS = 2000;
const SHOWN_AT_FIRST = 6;
const COLOURS = ["#0b6fa4", "#d1495b", "#3a7d44", "#e09f3e", "#6f4c9b", "#5c6770", "#00a5a8", "#8c510a"];
const AXES = ["training time (optimizer steps)", "training tokens (k = 10³, M = 10⁶, G = 10⁹)",
  "training time (hours, minutes, seconds)"];
const LOW = 3, MEAN = 4, HIGH = 5; // of a row, after its place on the three axes
const CHARTS = [
  { title: "Loss", label: "loss (nats per token)", curve: "loss", heldout: "loss_heldout", log: "loss" },
  { title: "Bits per byte", label: "bits per byte", curve: "bits", heldout: "bits_heldout", log: "loss" },
  { title: "Learning rate", label: "learning rate (no unit)", curve: "rate" },
  { title: "Throughput", label: "tokens per second", curve: "speed", zero: true },
  { title: "Gradient norm before clipping", label: "L2 norm (no unit)", curve: "norm", log: "always" },
];

const runs = new Map(); // id -> { info, colour, shown, curves: { name: { generation, known, rows } } }
const byId = (id) => document.getElementById(id);

function make(kind, parent, attributes = {}, text = "") {
  const svg = kind === "svg" || parent.namespaceURI === "http://www.w3.org/2000/svg";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", kind) : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text; // names come from folders: never markup
  parent.append(node);
  return node;
}

// Numbers as text -----------------------------------------------------------------------------

const DASH = "–";
const known = (value) => value !== null && value !== undefined;
const digits = (value, most) => (known(value) ? value.toFixed(most) : DASH);

function prefixed(value) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${+(value / size).toPrecision(4)}${letter}`;
  }
  return `${+value.toPrecision(4)}`;
}

function duration(seconds) {
  if (!known(seconds)) return DASH;
  const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}h${two(minutes)}m` : minutes ? `${minutes}m${two(whole % 60)}s` : `${whole}s`;
}

const onAxis = (axis, value) => (axis === 2 ? duration(value) : prefixed(value));

// The list ------------------------------------------------------------------------------------

function addRun(info) {
  const shown = [...runs.values()].filter((run) => run.shown).length < SHOWN_AT_FIRST;
  const run = { info, shown, colour: COLOURS[runs.size % COLOURS.length], curves: {} };
  runs.set(info.id, run);
  return run;
}

function list(found) {
  const present = new Set(found.runs.map((info) => info.id));
  for (const id of runs.keys()) if (!present.has(id)) runs.delete(id);
  // New runs take their place in the order of writing, so that the newest are shown at first.
  const newest = [...found.runs].sort((a, b) => (b.last_write || 0) - (a.last_write || 0));
  for (const info of newest) (runs.get(info.id) || addRun(info)).info = info;
  const body = byId("runs"); // rows stay where they are, and so does the focus
  for (const row of [...body.children]) if (!present.has(row.dataset.id)) row.remove();
  found.runs.forEach((info, place) => {
    const run = runs.get(info.id);
    run.row ??= makeRow(body, run);
    if (body.children[place] !== run.row) body.insertBefore(run.row, body.children[place]);
    fillRow(run, found.now);
  });
  byId("state").textContent = runs.size ? "" : "none found yet";
}

function makeRow(body, run) {
  const row = make("tr", body);
  row.dataset.id = run.info.id;
  const label = make("label", make("td", row));
  const box = make("input", label, { type: "checkbox" });
  box.checked = run.shown;
  box.addEventListener("change", () => { run.shown = box.checked; draw(); refreshCurves(); });
  const swatch = make("svg", label, { viewBox: "0 0 10 10" });
  swatch.style.cssText = "display:inline-block;width:.7rem;height:.7rem;margin:0 .4rem";
  make("circle", swatch, { cx: 5, cy: 5, r: 5, fill: run.colour });
  label.append(run.info.name);
  for (let cell = 1; cell < 8; cell++) make("td", row, { class: cell > 1 ? "number" : "" });
  return row;
}

function fillRow(run, now) {
  const info = run.info, [, state, ...numbers] = run.row.children;
  state.className = info.state;
  state.title = info.reason;
  state.textContent = info.state;
  const share = known(info.step) && info.steps ? ` (${(100 * info.step / info.steps).toFixed(1)} %)` : "";
  const values = [
    known(info.step) ? `${info.step}/${info.steps ?? "?"}${share}` : DASH, duration(info.eta_s),
    digits(info.loss, 4), digits(info.bits_per_byte, 4),
    known(info.tokens_per_s) ? prefixed(info.tokens_per_s) : DASH,
    known(info.last_write) ? `${duration(Math.max(0, now - info.last_write))} ago` : DASH,
  ];
  values.forEach((value, place) => { numbers[place].textContent = value; });
}

// Asking --------------------------------------------------------------------------------------

async function ask(address) {
  const answer = await fetch(address, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer.json();
}

async function askCurves(run) {
  let complete = false;
  while (!complete && run.shown) {
    const have = Object.entries(run.curves).map(([name, c]) => `${name}:${c.generation}:${c.known}`);
    const query = new URLSearchParams({ run: run.info.id, known: have.join(",") });
    const found = await ask(`curves.json?${query}`);
    for (const [name, news] of Object.entries(found.curves)) {
      const before = run.curves[name]?.rows.slice(0, news.start) ?? [];
      run.curves[name] = { ...news, rows: [...before, ...news.rows] };
    }
    complete = found.complete;
    if (!complete) draw();
  }
}

async function refreshCurves() {
  await Promise.all([...runs.values()].filter((run) => run.shown).map(askCurves));
  draw();
}

async function refresh() {
  try {
    if (!document.hidden) {
      list(await ask("runs.json"));
      await refreshCurves();
      document.documentElement.dataset.drawn = "yes";
    }
  } catch (error) {
    byId("state").textContent = `no answer (${error.message}); trying again`;
  }
  setTimeout(refresh, EVERY_MS);
}

// Drawing -------------------------------------------------------------------------------------

function scale(values, from, to, { log = false, zero = false, time = false, pad = false }) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  const [f, back] = log ? [Math.log, Math.exp] : [(v) => v, (v) => v];
  const margin = 0.04 * (f(high) - f(low)) || 0.05 * Math.abs(f(high)) || 1;
  if (pad || low === high) [low, high] = [back(f(low) - margin), back(f(high) + margin)];
  if (zero) low = 0;
  const place = (v) => from + ((f(v) - f(low)) / (f(high) - f(low))) * (to - from);
  return { place, ticks: log ? logTicks(low, high) : ticks(low, high, time) };
}

const SECONDS = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 18000, 36000, 86400, 432000];

function ticks(low, high, time) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const round = [1, 2, 5, 10].map((m) => m * power);
  const step = (time ? [...SECONDS, ...round] : round).find((size) => size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const m of decades < 3 ? [1, 2, 5] : [1]) {
      const value = m * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}

function rowsOf(run, name, axis, log) {
  const rows = run.curves[name]?.rows ?? [];
  return rows.filter((row) => known(row[axis]) && (!log || row[LOW] > 0));
}

function draw() {
  const axis = Number(byId("axis").value);
  for (const chart of CHARTS) drawChart(chart, axis);
}

function drawChart(chart, axis) {
  const log = chart.log === "always" || (chart.log === "loss" && byId("log").checked);
  const drawn = [...runs.values()].filter((run) => run.shown).map((run) => ({
    run, rows: rowsOf(run, chart.curve, axis, log),
    heldout: chart.heldout ? rowsOf(run, chart.heldout, axis, log) : [],
  }));
  const all = drawn.flatMap(({ rows, heldout }) => [...rows, ...heldout]);
  chart.figure.hidden = !all.length;
  if (!all.length) return;
  const svg = chart.svg, width = svg.clientWidth, height = svg.clientHeight;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", `${chart.title}: ${chart.label} against ${AXES[axis]}`);
  const x = scale(all.map((row) => row[axis]), 64, width - 12, { time: axis === 2 });
  const y = scale(all.map((row) => row[MEAN]), height - 44, 8, { log, zero: chart.zero, pad: true });
  drawAxes(svg, chart, axis, x, y, width, height);
  const plot = make("svg", svg, { x: 60, y: 8, width: width - 66, height: height - 52, overflow: "hidden",
    viewBox: `60 8 ${width - 66} ${height - 52}` });
  for (const { run, rows, heldout } of drawn) drawRun(plot, run.colour, rows, heldout, axis, x, y);
  chart.drawn = { drawn, axis, x };
}

function drawAxes(svg, chart, axis, x, y, width, height) {
  for (const value of y.ticks) {
    make("line", svg, { x1: 64, x2: width - 12, y1: y.place(value), y2: y.place(value) });
    make("text", svg, { x: 58, y: y.place(value) + 4, "text-anchor": "end" }, tickText(value));
  }
  const room = Math.max(1, Math.ceil(x.ticks.length * 64 / (width - 76)));
  x.ticks.filter((_, i) => i % room === 0).forEach((value) => {
    make("line", svg, { x1: x.place(value), x2: x.place(value), y1: 8, y2: height - 44 });
    make("text", svg, { x: x.place(value), y: height - 28, "text-anchor": "middle" }, onAxis(axis, value));
  });
  make("text", svg, { class: "x label", x: (52 + width) / 2, y: height - 8, "text-anchor": "middle" }, AXES[axis]);
  make("text", svg, { class: "y label", "text-anchor": "middle",
    transform: `translate(14 ${(height - 36) / 2}) rotate(-90)` }, chart.label);
}

function tickText(value) {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return prefixed(value);
}

function drawRun(plot, colour, rows, heldout, axis, x, y) {
  const at = (row, column) => `${x.place(row[axis]).toFixed(1)} ${y.place(row[column]).toFixed(1)}`;
  if (rows.length) {
    const upper = rows.map((row) => at(row, HIGH)), lower = rows.map((row) => at(row, LOW)).reverse();
    make("path", plot, { d: `M${[...upper, ...lower].join("L")}Z`, fill: colour, opacity: 0.2 });
    const path = `M${rows.map((row) => at(row, MEAN)).join("L")}`;
    make("path", plot, { d: path, fill: "none", stroke: colour, "stroke-width": 1.5 });
  }
  for (const row of heldout.length > 60 ? [] : heldout) {
    const [cx, cy] = at(row, MEAN).split(" ");
    make("circle", plot, { cx, cy, r: 3, fill: "#fff", stroke: colour, "stroke-width": 1.5 });
  }
  if (heldout.length > 60) {
    const path = `M${heldout.map((row) => at(row, MEAN)).join("L")}`;
    make("path", plot, { d: path, fill: "none", stroke: colour, "stroke-dasharray": "4 3" });
  }
}

function readOut(chart, event) {
  if (!chart.drawn) return;
  const { drawn, axis, x } = chart.drawn;
  const left = event.clientX - chart.svg.getBoundingClientRect().left;
  const parts = drawn.flatMap(({ run, rows }) => {
    if (!rows.length) return [];
    const distance = (row) => Math.abs(x.place(row[axis]) - left);
    const nearest = rows.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    return [`${run.info.name} ${tickText(nearest[MEAN])} at ${onAxis(axis, nearest[axis])}`];
  });
  chart.readout.textContent = parts.join(" · ");
}

for (const chart of CHARTS) {
  chart.figure = make("figure", byId("charts"));
  make("figcaption", chart.figure, {}, chart.title);
  chart.svg = make("svg", chart.figure, { role: "img" });
  chart.readout = make("p", chart.figure, { class: "readout" });
  chart.svg.addEventListener("pointermove", (event) => readOut(chart, event));
}
for (const id of ["axis", "log"]) byId(id).addEventListener("change", draw);
addEventListener("resize", draw);
refresh();
