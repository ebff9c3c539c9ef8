"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { dims, references, metrics, inks, palettes } = data;
  const $ = (id) => document.getElementById(id);
  const size = (name) => dims.find((dim) => dim.name === name).labels.length;
  const number = (value) => (value === null ? NaN : typeof value === "string" ? Number(value) : value);
  const values = Float64Array.from(data.values, number);
  const steps = {};
  dims.reduceRight((step, dim) => { steps[dim.name] = step; return step * dim.labels.length; }, 1);
  const outer = dims.filter((dim) => !dim.cell); // metric, example, …: what references have too
  const outerSteps = {};
  outer.reduceRight((step, dim) => { outerSteps[dim.name] = step; return step * dim.labels.length; }, 1);
  const failed = new Map(data.failed.map(([at, line]) => [at, data.lines[line]]));
  const sampled = outer.filter((dim) => dim.name !== "metric").map((dim) => dim.name);

  // x, y: axes of columns and rows; at: the place along every other axis, or "mean"; cursor: [column, row]
  const state = { x: data.x, y: data.y, at: {}, cursor: null };
  for (const dim of dims) state.at[dim.name] = sampled.includes(dim.name) && dim.labels.length > 1 ? "mean" : 0;

  const metric = () => (metrics.length > 1 ? metrics[state.at.metric] : metrics[0]);

  function offset(at, by) {
    let sum = 0;
    for (const name in by) sum += by[name] * at[name];
    return sum;
  }

  // All that is averaged: of the axes after the first, means; over the first, mean, standard error and count.
  function averaged(from, by, start, names) {
    if (!names.length) return { mean: from[start], stderr: NaN, n: Number.isNaN(from[start]) ? 0 : 1, of: 1 };
    const [first, ...rest] = names;
    const each = [];
    for (let i = 0; i < size(first); i++) {
      const { mean } = averaged(from, by, start + i * by[first], rest);
      if (!Number.isNaN(mean)) each.push(mean);
    }
    const n = each.length;
    const mean = n ? each.reduce((sum, value) => sum + value, 0) / n : NaN;
    const square = each.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    return { mean, stderr: n > 1 ? Math.sqrt(square / (n - 1) / n) : NaN, n, of: size(first) };
  }

  function reasons(start, names) {
    if (!names.length) return failed.has(start) ? [failed.get(start)] : [];
    const [first, ...rest] = names;
    const found = [];
    for (let i = 0; i < size(first); i++) found.push(...reasons(start + i * steps[first], rest));
    return found;
  }

  const meaned = (at) => sampled.filter((name) => at[name] === "mean");

  // One cell: at gives the place along every axis of cells and metric, and a place or "mean" along the others
  function cell(at) {
    const names = meaned(at);
    const fixed = Object.fromEntries(Object.keys(steps).map((name) => [name, at[name] === "mean" ? 0 : at[name]]));
    const start = offset(fixed, steps);
    const found = averaged(values, steps, start, names);
    if (data.summary && !names.length) {
      found.stderr = data.summary.stderr ? number(data.summary.stderr[start]) : NaN;
      found.n = data.summary.n ? data.summary.n[start] : null;
      found.of = data.summary.of;
    }
    const why = reasons(start, names);
    return { ...found, over: names[0] || (data.summary ? data.summary.over : ""), failures: why.length, why: why[0] || "" };
  }

  function reference(name) {
    const names = meaned(state.at);
    const fixed = Object.fromEntries(outer.map((dim) => [dim.name, state.at[dim.name] === "mean" ? 0 : state.at[dim.name]]));
    return averaged(Float64Array.from(references[name], number), outerSteps, offset(fixed, outerSteps), names).mean;
  }

  const here = (column, row) => ({ ...state.at, [state.x]: column, [state.y]: row });

  // The middle and the reach of the colours: the same for all components, heads and positions of a metric
  let kept = {};
  function scale() {
    const key = JSON.stringify([outer.map((dim) => state.at[dim.name])]);
    if (kept.key === key) return kept.value;
    const runs = Object.keys(references).map((name) => [name, reference(name)]).filter(([, value]) => Number.isFinite(value));
    const base = metric().baseline;
    const centre = base === null ? 0 : (runs.find(([name]) => name === base) || ["", 0])[1];
    const cells = [];
    each(dims.filter((dim) => dim.cell), { ...state.at }, (at) => cells.push([{ ...at }, cell(at)]));
    const known = [...cells.map(([, found]) => found.mean), ...runs.map(([, value]) => value)].filter(Number.isFinite);
    let low = centre, high = centre;
    for (const value of known) { low = Math.min(low, value); high = Math.max(high, value); }
    const half = Math.max(high - centre, centre - low) || 1;
    if (low === high) { low = centre - half; high = centre + half; }
    kept = { key, value: { centre, half, low, high, runs, cells } };
    return kept.value;
  }

  function each(over, at, does) {
    if (!over.length) return does(at);
    for (let i = 0; i < over[0].labels.length; i++) {
      at[over[0].name] = i;
      each(over.slice(1), at, does);
    }
  }

  // Colours

  const dark = () => {
    const theme = document.documentElement.dataset.theme;
    return theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : theme === "dark";
  };
  const ink = () => inks[dark() ? "dark" : "light"];

  function colour(value) {
    const { centre, half } = scale();
    const stops = palettes[dark() ? "dark" : "light"];
    const place = Math.min(Math.max((value - centre) / half / 2 + 0.5, 0), 1) * (stops.length - 1);
    const below = Math.min(Math.floor(place), stops.length - 2);
    const part = stops[below].map((from, i) => Math.round(from + (place - below) * (stops[below + 1][i] - from)));
    return `rgb(${part.join(", ")})`;
  }

  // Text

  const show = (value) => {
    if (value === null || Number.isNaN(value)) return "missing";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
    return text.replace("-", "−");
  };
  const spell = (label) => String(label).replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const label = (name, at) => spell(dims.find((dim) => dim.name === name).labels[at]);

  function lines(at) {
    const found = cell(at);
    const where = dims.filter((dim) => dim.cell && dim.name).map((dim) => `${dim.name} ${label(dim.name, at[dim.name])}`);
    const unit = metric().unit && metric().unit !== metric().title ? ` ${metric().unit}` : "";
    const told = [...where, `${metric().title} ${show(found.mean)}${Number.isNaN(found.mean) ? "" : unit}`];
    if (!Number.isNaN(found.stderr)) told.push(`standard error ${show(found.stderr)}`);
    const base = metric().baseline;
    if (base !== null && Number.isFinite(found.mean) && references[base]) told.push(`${show(found.mean - scale().centre)} from ${base}`);
    if (found.over) told.push(found.n === null ? `mean over ${found.over}` : `n ${found.n}${found.n < found.of ? ` of ${found.of}` : ""} (${found.over})`);
    for (const name of sampled) if (state.at[name] !== "mean" && size(name) > 1) told.push(`${name} ${label(name, state.at[name])}`);
    if (found.failures) told.push(`failed${found.over && found.failures > 1 ? ` ${found.failures} times` : ""}: ${spell(found.why)}`);
    return told;
  }

  // Drawing

  const canvas = $("map"), stage = $("stage"), tip = $("tip");
  let box = null; // where the cells are, in CSS pixels

  function prepare(target, width, height) {
    const ratio = window.devicePixelRatio || 1;
    target.width = Math.round(width * ratio);
    target.height = Math.round(height * ratio);
    target.style.width = `${width}px`;
    target.style.height = `${height}px`;
    const pen = target.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = '12px system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif';
    return pen;
  }

  function fitted(pen, text, room) {
    if (pen.measureText(text).width <= room) return text;
    const signs = Array.from(text);
    let keep = signs.length - 1;
    const cut = () => signs.slice(0, keep - Math.floor(keep / 3)).join("") + "…" + signs.slice(signs.length - Math.floor(keep / 3)).join("");
    while (keep > 1 && pen.measureText(cut()).width > room) keep--;
    return cut();
  }

  function draw() {
    const columns = size(state.x), rows = size(state.y);
    let pen = canvas.getContext("2d");
    pen.font = '12px system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif';
    const widest = (name, most) => Math.min(most, Math.max(...dims.find((dim) => dim.name === name).labels.map((_, i) => Math.ceil(pen.measureText(label(name, i)).width))));
    const left = widest(state.y, 150) + 26, upright = widest(state.x, 150);
    const flat = upright < 26;
    const room = Math.max(stage.clientWidth || 800, 200) - left - 12;
    const wide = Math.min(Math.max(Math.floor(room / columns), 6), 46);
    const high = Math.min(Math.max(Math.round(540 / rows), 7), 26);
    const foot = (flat ? 16 : upright + 8) + 20;
    box = { left, top: 6, wide, high, columns, rows };
    pen = prepare(canvas, left + wide * columns + 12, box.top + high * rows + foot);
    const { paper, ink: text, soft, gap } = ink();
    pen.fillStyle = paper;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const found = cell(here(column, row));
        const [x, y] = corner(column, row);
        pen.fillStyle = Number.isNaN(found.mean) ? gap : colour(found.mean);
        pen.fillRect(x, y, wide, high);
        if (found.failures && Number.isNaN(found.mean)) hatch(pen, x, y, soft);
        else if (Number.isNaN(found.mean)) dot(pen, x, y, soft);
      }
    }
    pen.fillStyle = text;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const skipRows = Math.ceil(14 / high), skip = Math.ceil((flat ? upright + 6 : 14) / wide);
    for (let row = 0; row < rows; row += skipRows) pen.fillText(fitted(pen, label(state.y, row), 150), left - 5, corner(0, row)[1] + high / 2);
    const base = box.top + high * rows;
    for (let column = 0; column < columns; column += skip) {
      pen.save();
      pen.translate(corner(column, 0)[0] + wide / 2, base + 4);
      if (flat) { pen.textAlign = "center"; pen.translate(0, 7); } else pen.rotate(-Math.PI / 2);
      pen.fillText(fitted(pen, label(state.x, column), 150), 0, 0);
      pen.restore();
    }
    pen.fillStyle = soft;
    pen.textAlign = "center";
    pen.fillText(state.x, left + (wide * columns) / 2, base + foot - 9);
    pen.save();
    pen.translate(9, box.top + (high * rows) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(state.y, 0, 0);
    pen.restore();
    if (state.cursor) {
      const [x, y] = corner(...state.cursor);
      pen.lineWidth = 2;
      pen.strokeStyle = paper;
      pen.strokeRect(x - 1, y - 1, wide + 2, high + 2);
      pen.strokeStyle = text;
      pen.strokeRect(x + 1, y + 1, wide - 2, high - 2);
    }
  }

  const corner = (column, row) => [box.left + column * box.wide, box.top + (box.rows - 1 - row) * box.high];

  function hatch(pen, x, y, soft) {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, box.wide, box.high);
    pen.clip();
    pen.strokeStyle = soft;
    pen.lineWidth = 1;
    pen.beginPath();
    for (let at = -box.high; at < box.wide; at += 5) { pen.moveTo(x + at, y + box.high); pen.lineTo(x + at + box.high, y); }
    pen.stroke();
    pen.restore();
  }

  function dot(pen, x, y, soft) {
    pen.fillStyle = soft;
    for (let right = 3; right < box.wide - 2; right += 6) {
      for (let down = 3; down < box.high - 2; down += 6) pen.fillRect(x + right, y + down, 1.5, 1.5);
    }
  }

  function drawBar() {
    const { centre, low, high, runs } = scale();
    const width = Math.min(Math.max(stage.clientWidth || 800, 200), 560);
    const pen = prepare($("bar"), width, 62);
    const { paper, ink: text, soft } = ink();
    pen.fillStyle = paper;
    pen.fillRect(0, 0, width, 62);
    const from = 30, to = width - 30;
    const place = (value) => from + ((value - low) / (high - low)) * (to - from);
    for (let x = from; x < to; x++) {
      pen.fillStyle = colour(low + ((x - from) / (to - from)) * (high - low));
      pen.fillRect(x, 20, 1.5, 12);
    }
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    let end = -Infinity;
    const marks = [];
    for (const [name, value] of [...runs].sort((a, b) => a[1] - b[1])) {
      const last = marks[marks.length - 1];
      if (last && place(value) - place(last.value) < 24) last.names.push(name);
      else marks.push({ value, names: [name] });
      pen.fillStyle = text;
      pen.fillRect(place(value) - 0.5, 16, 1, 18);
    }
    for (const { value, names } of marks) {
      const name = names.join(", "), half = pen.measureText(name).width / 2;
      const x = Math.min(Math.max(place(value), half), width - half);
      if (x - half > end) { pen.fillText(name, x, 8); end = x + half + 4; }
    }
    pen.fillStyle = soft;
    end = -Infinity;
    for (const value of [low, centre, high].filter((value, i, all) => i === 0 || value > all[i - 1])) {
      const half = pen.measureText(show(value)).width / 2;
      if (place(value) - half > end) { pen.fillText(show(value), place(value), 42); end = place(value) + half + 4; }
    }
    pen.fillText(metric().unit && metric().unit !== metric().title ? `${metric().title}, ${metric().unit}` : metric().title, width / 2, 56);
  }

  // Around it

  function select(name, options, chosen, does) {
    const tag = document.createElement("label");
    const list = document.createElement("select");
    list.id = `choose-${name}`;
    for (const [value, text] of options) {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = text;
      option.selected = String(value) === String(chosen);
      list.append(option);
    }
    list.addEventListener("change", () => { does(list.value); update(); });
    tag.append(document.createTextNode(name), list);
    return tag;
  }

  function controls() {
    const focused = document.activeElement && document.activeElement.id;
    const form = $("controls");
    form.replaceChildren();
    const free = dims.filter((dim) => dim.cell && dim.labels.length > 1).map((dim) => dim.name);
    const axes = [...new Set([state.y, state.x, ...free])].filter(Boolean);
    for (const dim of dims) {
      if (dim.labels.length < 2 || dim.name === state.x || dim.name === state.y) continue;
      const options = dim.labels.map((_, i) => [i, label(dim.name, i)]);
      if (sampled.includes(dim.name)) options.unshift(["mean", `mean of ${dim.labels.length}`]);
      form.append(select(dim.name, options, state.at[dim.name], (value) => { state.at[dim.name] = value === "mean" ? value : Number(value); }));
    }
    if (axes.length > 1) {
      const turn = (mine, other) => (value) => {
        if (state[other] === value) state[other] = state[mine];
        state[mine] = value;
        state.cursor = null;
      };
      form.append(select("rows", axes.map((name) => [name, name]), state.y, turn("y", "x")));
      form.append(select("columns", axes.map((name) => [name, name]), state.x, turn("x", "y")));
    }
    if (focused && $(focused) && document.activeElement !== $(focused)) $(focused).focus();
  }

  function tops() {
    const { cells, centre } = scale();
    const base = metric().baseline;
    $("top-title").textContent = `Furthest from ${base === null ? "0" : base}`;
    const shown = dims.filter((dim) => dim.cell && dim.labels.length > 1);
    const order = cells.filter(([, found]) => !Number.isNaN(found.mean)).map((entry, i) => [entry, i]);
    order.sort(([[, a], i], [[, b], j]) => Math.abs(b.mean - centre) - Math.abs(a.mean - centre) || i - j);
    const head = $("top").tHead.rows[0], body = $("top").tBodies[0];
    const add = (row, kind, text) => { const part = document.createElement(kind); part.textContent = text; row.append(part); return part; };
    head.replaceChildren();
    body.replaceChildren();
    const over = cells.some(([, found]) => found.over);
    for (const name of [metric().title, ...(over ? ["± standard error", "n"] : []), ...shown.map((dim) => dim.name)]) add(head, "th", name).scope = "col";
    for (const [[at, found]] of order.slice(0, 10)) {
      const row = body.insertRow();
      const go = document.createElement("button");
      go.type = "button";
      go.textContent = show(found.mean);
      go.addEventListener("click", () => {
        for (const dim of shown) if (dim.name !== state.x && dim.name !== state.y) state.at[dim.name] = at[dim.name];
        state.cursor = [at[state.x], at[state.y]];
        update();
        stage.focus();
      });
      add(row, "td", "").append(go);
      if (over) {
        add(row, "td", Number.isNaN(found.stderr) ? "" : show(found.stderr));
        add(row, "td", found.n === null ? "" : String(found.n));
      }
      for (const dim of shown) add(row, "td", label(dim.name, at[dim.name]));
    }
  }

  function update() {
    controls();
    const lone = dims.filter((dim) => dim.labels.length === 1 && dim.name !== state.x && dim.name !== state.y && dim.name !== "metric");
    const { runs, cells } = scale();
    const broken = cells.filter(([, found]) => Number.isNaN(found.mean) && found.failures).length;
    const empty = cells.filter(([, found]) => Number.isNaN(found.mean) && !found.failures).length;
    $("told").textContent = [
      data.told,
      ...Object.entries(data.selected).map(([name, value]) => `${name} ${spell(value)}`),
      ...lone.map((dim) => `${dim.name} ${label(dim.name, 0)}`),
      ...runs.map(([name, value]) => `${name} ${show(value)}`),
      ...(broken ? [`hatched: ${broken} failed`] : []),
      ...(empty ? [`dotted: ${empty} missing`] : []),
    ].filter(Boolean).join(" · ");
    draw();
    drawBar();
    tops();
    say();
    $("theme").textContent = dark() ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", dark() ? "Switch to the light theme" : "Switch to the dark theme");
  }

  function say() {
    $("readout").textContent = state.cursor ? lines(here(...state.cursor)).join(" · ") : "Point at a cell, or move there with the arrow keys.";
  }

  function point(event) {
    const bounds = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - bounds.left - box.left) / box.wide);
    const up = Math.floor((event.clientY - bounds.top - box.top) / box.high);
    if (column < 0 || column >= box.columns || up < 0 || up >= box.rows) return null;
    return [column, box.rows - 1 - up];
  }

  function showTip(spot) {
    tip.hidden = !spot;
    if (!spot) return;
    tip.textContent = lines(here(...spot)).join("\n");
    const [x, y] = corner(...spot);
    const right = x + box.wide + 8;
    const fits = right + tip.offsetWidth <= stage.scrollLeft + stage.clientWidth;
    tip.style.left = `${Math.max(stage.scrollLeft, fits ? right : x - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.max(0, Math.min(y, stage.clientHeight - tip.offsetHeight))}px`;
  }

  stage.addEventListener("pointermove", (event) => showTip(point(event)));
  stage.addEventListener("pointerleave", () => showTip(null));
  stage.addEventListener("click", (event) => {
    const spot = point(event);
    if (!spot) return;
    state.cursor = spot;
    draw();
    say();
  });
  stage.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { columns, rows } = box;
    const [column, row] = state.cursor || [0, rows];
    const to = {
      ArrowRight: state.cursor ? [column + 1, row] : [0, rows - 1],
      ArrowLeft: state.cursor ? [column - 1, row] : [columns - 1, rows - 1],
      ArrowUp: state.cursor ? [column, row + 1] : [0, 0],
      ArrowDown: state.cursor ? [column, row - 1] : [0, rows - 1],
      Home: [0, row], End: [columns - 1, row], PageUp: [column, rows - 1], PageDown: [column, 0],
    }[event.key];
    if (event.key === "Escape") {
      state.cursor = null;
      showTip(null);
    } else if (to) {
      state.cursor = [Math.min(Math.max(to[0], 0), columns - 1), Math.min(Math.max(to[1], 0), rows - 1)];
    } else return;
    event.preventDefault();
    draw();
    say();
    if (state.cursor) {
      const [x] = corner(...state.cursor);
      if (x < stage.scrollLeft + 20) stage.scrollLeft = x - 20;
      if (x + box.wide > stage.scrollLeft + stage.clientWidth) stage.scrollLeft = x + box.wide + 20 - stage.clientWidth;
      showTip(state.cursor);
    }
  });
  stage.addEventListener("blur", () => showTip(null));
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    update();
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  window.addEventListener("resize", () => { draw(); drawBar(); });
  window.addEventListener("beforeprint", update);
  $("about").textContent = JSON.stringify(data.about, null, 2);
  window.iitkit = { data, state, cell, here, lines, reference, scale, colour, update, place: (column, row) => {
    const [x, y] = corner(column, row);
    const bounds = canvas.getBoundingClientRect();
    return [bounds.left + x + box.wide / 2, bounds.top + y + box.high / 2];
  } };
  update();
})();
