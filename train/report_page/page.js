// Everything that comes from files (names, paths, messages) enters the page as text, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "circle", "path", "text", "polyline", "title"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, work] of Object.entries(value)) element.addEventListener(event, work);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child != null));
  return element;
}
const own = place => `--own: var(--m${place % 8})`;
const shown = value => value == null ? "–" : Math.abs(value) >= 1000 ? value.toFixed(0)
  : String(+value.toPrecision(Math.abs(value) >= 10 ? 4 : 3));
const page = document.getElementById("page"), nav = make("nav", {"aria-label": "Sections"});

function section(id, title, about, ...children) {
  nav.append(make("a", {href: "#" + id}, title));
  page.append(make("section", {id}, make("h2", {}, title), about ? make("p", {class: "about"}, about) : null, ...children));
}

// ---- tables: sorted by a click or a key on a column's head; numbers by value, what has none last ----

function compare(a, b, down) {
  if (a.value == null && b.value == null) return 0;
  if (a.value == null || b.value == null) return a.value == null ? 1 : -1;
  const order = typeof a.value === "string" ? a.value.localeCompare(b.value, undefined, {numeric: true}) : a.value - b.value;
  return down ? -order : order;
}

function cellOf(cell, range) {
  const td = make("td", cell.best ? {class: "best"} : {});
  if (cell.reason) td.append(make("span", {class: "none"}, cell.reason));
  else td.append(make("span", {class: "mean"}, cell.text));
  if (cell.n) td.append(make("span", {class: "n"}, cell.n));
  if (range && cell.low != null) td.append(bar(cell, range));
  if (cell.span) td.append(make("div", {class: "span"}, cell.span));
  return td;
}

function bar(cell, [low, high]) {
  const x = value => high > low ? (value - low) / (high - low) * 104 + 3 : 55;
  return make("svg", {class: "bar", width: 110, height: 9, viewBox: "0 0 110 9", "aria-hidden": true},
    make("line", {x1: 0, x2: 110, y1: 4.5, y2: 4.5, stroke: "var(--line)"}),
    make("line", {x1: x(cell.low), x2: x(cell.high), y1: 4.5, y2: 4.5, stroke: cell.best ? "var(--good)" : "var(--soft)",
      "stroke-width": 3, "stroke-linecap": "round", opacity: .55}),
    make("circle", {cx: x(cell.value), cy: 4.5, r: 3.4, fill: cell.best ? "var(--good)" : "var(--soft)"}));
}

function tableOf(told) {
  const body = make("tbody"), heads = [];
  const ranges = told.columns.map((_, k) => {
    const cells = told.rows.map(row => row[k]).filter(cell => cell.low != null);
    return told.bars && cells.length ? [Math.min(...cells.map(c => c.low)), Math.max(...cells.map(c => c.high))] : null;
  });
  const rows = told.rows.map(row => {
    const cells = row.map((cell, k) => k ? cellOf(cell, ranges[k])
      : make("th", {scope: "row"}, cell.place == null ? null : make("span", {class: "swatch", style: own(cell.place)}), cell.text));
    return {row, line: make("tr", {}, ...cells)};
  });
  const sort = k => {
    const before = heads[k].getAttribute("aria-sort"), first = told.columns[k].down ? "descending" : "ascending";
    const next = before === "ascending" ? "descending" : before === "descending" ? "ascending" : first;
    heads.forEach(head => head.removeAttribute("aria-sort"));
    heads[k].setAttribute("aria-sort", next);
    body.append(...[...rows].sort((a, b) => compare(a.row[k], b.row[k], next === "descending")).map(one => one.line));
  };
  told.columns.forEach((column, k) => heads.push(make("th", {scope: "col"},
    make("button", {type: "button", title: column.title, on: {click: () => sort(k)}}, column.label || "\u00a0"))));
  body.append(...rows.map(one => one.line));
  return make("div", {class: "card scroll" + (told.small ? " small" : "")},
    make("table", {"data-table": told.id}, make("thead", {}, make("tr", {}, ...heads)), body));
}

// ---- plots ----

const jitter = text => { let h = 7; for (const c of text) h = (h * 31 + c.charCodeAt(0)) >>> 0; return h % 1000 / 1000 - .5; };

function ticks(low, high) {
  const raw = (high - low || 1) / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(k => k * power >= raw) * power, found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

function plotOf(column) {
  const W = 340, H = 220, left = 46, bottom = 26, top = 10;
  const values = data.methods.flatMap(m => Object.values(column.values[m] || {}));
  const cells = data.methods.map(m => column.cells[m]).filter(c => c && c.mean != null);
  const all = [...values, ...cells.flatMap(c => [c.mean, c.low ?? c.mean, c.high ?? c.mean])];
  let low = Math.min(...all), high = Math.max(...all);
  const pad = (high - low) * .06 || Math.abs(high) * .05 || 1;
  [low, high] = [low - pad, high + pad];
  const y = v => top + (high - v) / (high - low) * (H - top - bottom);
  const x = k => left + (k + .5) * (W - left - 6) / data.methods.length, width = (W - left - 6) / data.methods.length;
  const svg = make("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": column.label});
  for (const t of ticks(low, high)) svg.append(make("line", {class: "grid", x1: left, x2: W, y1: y(t), y2: y(t)}),
    make("text", {x: left - 7, y: y(t) + 4, "text-anchor": "end"}, shown(+t.toPrecision(6))));
  const inputs = data.inputs.filter(i => data.methods.some(m => column.values[m]?.[i] != null));
  const at = (k, i) => x(k) + jitter(i) * Math.min(width * .34, 40), lines = {};
  if (inputs.length <= 120) for (const i of inputs) {
    const points = data.methods.flatMap((m, k) => column.values[m]?.[i] == null ? [] : [`${at(k, i)},${y(column.values[m][i])}`]);
    if (points.length > 1) svg.append(lines[i] = make("polyline", {class: "pair", points: points.join(" ")}));
  }
  data.methods.forEach((m, k) => {
    for (const i of inputs) if (column.values[m]?.[i] != null) svg.append(make("circle", {
      class: "point", r: 3.2, cx: at(k, i), cy: y(column.values[m][i]), fill: `var(--m${k % 8})`, on: {
        click: () => open(i, true),
        mouseenter: () => lines[i]?.classList.add("lit"), mouseleave: () => lines[i]?.classList.remove("lit")}},
      make("title", {}, `${i}, ${m}: ${shown(column.values[m][i])}`)));
    const cell = column.cells[m];
    if (cell?.mean != null) {
      const c = `var(--m${k % 8})`, off = Math.min(width * .28, 34) + 8;
      if (cell.low != null) svg.append(make("line", {x1: x(k) + off, x2: x(k) + off, y1: y(cell.low), y2: y(cell.high), stroke: c, "stroke-width": 2.4, "stroke-linecap": "round"}));
      svg.append(make("path", {class: "mean", fill: c, d: `M${x(k) + off} ${y(cell.mean) - 6}l6 6l-6 6l-6 -6z`}, make("title", {}, `${m}: ${shown(cell.mean)}`)));
    }
    svg.append(make("text", {class: "name", x: x(k), y: H - 8, "text-anchor": "middle"}, m.length > 16 ? m.slice(0, 15) + "…" : m));
  });
  return make("div", {class: "card plot"}, make("h3", {}, column.label), svg);
}

// ---- players: one button for all, kept together by the clock of the first that still runs ----

let players = [], playing = false, heard = 0, current = null;
const picker = make("select", {id: "input", "aria-label": "Input", class: "grow", on: {change: () => open(picker.value)}});
const playButton = make("button", {id: "play", type: "button", on: {click: () => playing ? pause() : play()}}, "▶ Play");
const seek = make("input", {id: "seek", type: "range", min: 0, max: 1, step: .001, value: 0, "aria-label": "Position",
  on: {input: () => { const t = seek.value * length(); players.forEach(p => place(p.video, t)); tick(true); }}});
const clock = make("span", {class: "clock"}, "0.00 s"), grid = make("div", {class: "players"});
const speed = make("select", {"aria-label": "Speed", on: {change: () => players.forEach(p => p.video.playbackRate = +speed.value)}},
  ...[.25, .5, 1].map(k => make("option", {value: k, selected: k === 1}, k + "×")));

const whole = () => players.filter(p => p.video && p.video.duration > 0);
const length = () => Math.max(0, ...whole().map(p => p.video.duration));
const leader = () => whole().find(p => !p.video.ended) || whole()[0];
const place = (video, t) => { if (video?.duration) video.currentTime = Math.min(t, video.duration - .001); };

function play() {
  const first = leader();
  if (!first) return;
  playing = true;
  playButton.textContent = "❚❚ Pause";
  const t = whole().every(p => p.video.ended) ? 0 : first.video.currentTime;
  whole().forEach(p => { if (t < p.video.duration) { place(p.video, t); p.video.play().catch(() => {}); } });
  requestAnimationFrame(() => tick());
}
function pause() {
  playing = false;
  playButton.textContent = "▶ Play";
  whole().forEach(p => p.video.pause());
}
function tick(once) {
  const first = leader();
  if (first) {
    const t = first.video.currentTime;
    seek.value = length() ? t / length() : 0;
    clock.textContent = `${t.toFixed(2)} / ${length().toFixed(2)} s`;
    if (playing) for (const p of whole())
      if (p !== first && !p.video.ended && !p.video.seeking && Math.abs(p.video.currentTime - t) > .08) place(p.video, t);
    if (playing && whole().every(p => p.video.ended)) play();
  }
  if (playing && !once) requestAnimationFrame(() => tick());
}
function hear(k) {
  heard = k;
  players.forEach((p, j) => { if (p.video) p.video.muted = j !== k; p.button.setAttribute("aria-pressed", j === k); });
}

function playerOf(method, k, input) {
  const file = data.media[method]?.[input], frame = make("div", {class: "frame"}), found = {video: null};
  const fault = text => frame.replaceChildren(make("div", {class: "fault"}, text));
  if (file?.url) {
    found.video = make("video", {src: file.url, preload: "auto", playsinline: true, on: {
      error: () => { found.video = null; fault(`This browser cannot play ${file.name}`); },
      loadedmetadata: () => { if (found.video.videoWidth) frame.style.aspectRatio = `${found.video.videoWidth} / ${found.video.videoHeight}`; tick(true); }}});
    found.video.playbackRate = +speed.value;
    frame.append(found.video);
  } else fault(file ? `${file.name} cannot be read` : "no video of this input");
  found.button = make("button", {type: "button", class: "hear", "aria-pressed": "false", "aria-label": `Hear ${method}`, on: {click: () => hear(k)}}, "sound");
  const values = make("dl");
  for (const column of data.plots) {
    const value = column.values[method]?.[input];
    const others = data.methods.map(m => column.values[m]?.[input]).filter(v => v != null);
    const best = column.better && others.length > 1 && value === (column.better > 0 ? Math.max : Math.min)(...others);
    if (others.length) values.append(make("dt", {}, column.label), make("dd", best ? {class: "best"} : {}, shown(value)));
  }
  found.element = make("div", {class: "player", style: own(k)}, frame,
    make("div", {class: "who"}, make("span", {class: "swatch"}), make("span", {class: "clip"}, method), found.button), values,
    file?.notes ? make("p", {class: "notes"}, file.notes) : null);
  return found;
}

function open(input, scroll) {
  pause();
  current = input;
  picker.value = input;
  players.forEach(p => p.video?.removeAttribute("src"));
  players = data.methods.map((m, k) => playerOf(m, k, input));
  grid.replaceChildren(...players.map(p => p.element));
  hear(heard);
  seek.value = 0;
  if (scroll) document.getElementById("players").scrollIntoView();
}
const step = by => open(data.inputs[(data.inputs.indexOf(current) + by + data.inputs.length) % data.inputs.length]);

// ---- worst and best ----

function endsOf(column) {
  const boxes = data.methods.map((m, k) => {
    const sorted = Object.entries(column.values[m] || {}).sort((a, b) => (a[1] - b[1]) * (column.better || 1));
    const [low, high] = column.better ? ["worst", "best"] : ["lowest", "highest"];
    return box(m, k, [[low, sorted.slice(0, 5)], [high, sorted.slice(-5).reverse()]]);
  });
  if (data.methods.length > 1) {
    const [a, b] = data.methods.slice(-2), of = column.values;
    const apart = data.inputs.filter(i => of[a]?.[i] != null && of[b]?.[i] != null).map(i => [i, of[b][i] - of[a][i]]);
    apart.sort((p, q) => Math.abs(q[1]) - Math.abs(p[1]));
    boxes.push(box(`${b} less ${a}`, null, [["largest differences", apart.slice(0, 10)]]));
  }
  return boxes;
}
function box(title, k, lists) {
  const head = make("h3", {}, k == null ? null : make("span", {class: "swatch", style: own(k)}), title);
  return make("div", {}, head, ...lists.flatMap(([kind, found]) => [make("div", {class: "kind"}, kind), make("ol", {},
    ...found.map(([input, value]) => make("li", {}, make("button", {type: "button", on: {click: () => open(input, true)}},
      make("span", {class: "clip"}, input), make("span", {}, shown(value))))))]));
}

// ---- the page ----

const theme = make("button", {id: "theme", type: "button", on: {click: () => paint(document.documentElement.dataset.theme !== "dark")}});
function paint(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  theme.textContent = dark ? "☀ Light" : "☾ Dark";
}
paint(matchMedia("(prefers-color-scheme: dark)").matches);
document.getElementById("top").append(make("h1", {}, data.title), make("p", {class: "about"}, data.caption), theme, nav);

if (data.warnings.length) section("warnings", "Before you believe a number", null,
  make("div", {class: "card warnings"}, make("ul", {}, ...data.warnings.map(line => make("li", {}, line)))));
for (const told of data.tables.filter(t => t.first)) section(told.id, told.title, told.about, tableOf(told));
if (data.plots.length) section("plots", "Every video", "Each point is a video, a diamond the mean with its 95 % interval. Point at one to follow its input; click to watch it.",
  make("div", {class: "plots"}, ...data.plots.map(plotOf)));
if (data.inputs.length) {
  picker.append(...data.inputs.map(input => make("option", {value: input}, input)));
  const move = (by, text, label) => make("button", {type: "button", "aria-label": label, on: {click: () => step(by)}}, text);
  section("players", "Side by side", "All methods on one input, from one button and one clock; sound comes from one of them.",
    make("div", {class: "card stage"}, make("div", {class: "bar-row"}, move(-1, "←", "Previous input"), picker, move(1, "→", "Next input")),
      make("div", {class: "bar-row"}, playButton, seek, clock, speed), grid));
}
if (data.plots.length && data.inputs.length) {
  const boxes = make("div", {class: "card ends"});
  const choose = make("select", {"aria-label": "Metric", on: {change: () => boxes.replaceChildren(...endsOf(data.plots[choose.value]))}},
    ...data.plots.map((column, k) => make("option", {value: k}, column.label)));
  boxes.append(...endsOf(data.plots[0]));
  section("ends", "Worst and best", "The inputs to look at first; a click opens them above.", make("div", {class: "bar-row"}, choose), boxes);
}
for (const told of data.tables.filter(t => !t.first)) section(told.id, told.title, told.about, tableOf(told));
if (data.gate) section("gate", "The gate", data.gate.about, make("div", {class: "card"}, make("img", {class: "gate", src: data.gate.image, alt: "Weights of the experts by block and step"})));
section("settings", "Settings", "All that these numbers depend on.", ...data.settings.map(([title, text], k) =>
  make("details", {class: "card", open: k === 0}, make("summary", {}, title), make("pre", {}, text))));
page.append(make("footer", {}, "Written by train.evaluate. The same numbers are in evaluation.json."));
if (data.inputs.length) open(data.inputs[0]);
