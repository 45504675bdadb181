"use strict";
// Draws the charts from the page's data, and moves the galleries' sliders. No library, no network.

const SVG = "http://www.w3.org/2000/svg";
const COLORS = 8;
const MOST_BANDS = 16; // lines (methods and their targets), beyond which bands would hide one another

function element(name, attributes, parent, text) {
  const made = name.startsWith("svg:")
    ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// As report/numbers.py writes them, in ``digits`` digits.
function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size >= 1e9 || (size !== 0 && size < 1e-3) ? value.toExponential(digits - 1).replace(/(\.0+|(\.\d*[1-9])0+)?e/, "$2e")
    : size >= 999.5 ? value.toLocaleString("en-US", { maximumFractionDigits: Math.max(digits - 3, 0) })
    : String(Number(value.toPrecision(size >= 100 ? digits + 1 : digits)));
  return text.replaceAll("-", "−");
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) {
    found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  }
  return found;
}

// The ticks of updates: round numbers and the last update, which readers look for.
function updateTicks(first, last, count) {
  if (first === last) return [first];
  const gap = (last - first) / (count + 1);
  return [...ticks(first, last, count).filter((tick) => last - tick > gap || tick === last), last]
    .filter((tick, index, all) => all.indexOf(tick) === index);
}

function short(value, digits) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${number(value / 1e6, digits)}M`;
  return size >= 1e4 ? `${number(value / 1e3, digits)}k` : number(value, digits);
}

// Ticks with their labels, in as few digits as tell where they stand: 2.925 is not 2.93.
function labelled(found) {
  const value = (text) => Number(text.replaceAll(",", "").replaceAll("−", "-").replace("k", "e3").replace("M", "e6"));
  const error = Math.abs(found[found.length - 1] - found[0]) * 1e-4;
  const holds = (digits) => found.every((tick) => Math.abs(value(short(tick, digits)) - tick) <= error);
  const digits = [3, 4, 5, 6, 7].find(holds) || 8;
  return found.map((tick) => [tick, short(tick, digits)]);
}

// A path through the points that have a value; it is broken where one is missing and `across` is false.
function path(xs, ys, across) {
  let text = "", pen = "M";
  xs.forEach((x, index) => {
    if (ys[index] === null) { if (!across) pen = "M"; return; }
    text += `${pen}${x.toFixed(1)},${ys[index].toFixed(1)}`;
    pen = "L";
  });
  return text;
}

function style(line) {
  return (line.dashed ? " dashed" : "") + (line.dotted ? " dotted" : "");
}

class Chart {
  constructor(figure, data) {
    this.figure = figure;
    this.lines = data.lines.map((line) => ({ ...line, shown: true }));
    this.title = data.title;
    this.bounds = data.bounds; // that the axis reaches in any case, or null
    this.updates = [...new Set(this.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    this.cursor = null;
    this.svg = element("svg:svg", { tabindex: 0, role: "img" }, figure);
    this.legend = element("ul", { class: "legend" }, figure);
    this.at = element("li", { class: "at", "aria-live": "polite" }, this.legend);
    this.lines.forEach((line) => this.addEntry(line));
    this.addTable();
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.move(null));
    this.svg.addEventListener("blur", () => this.move(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  addEntry(line) {
    const button = element("button", { type: "button", "aria-pressed": "true" }, element("li", {}, this.legend));
    element("span", { class: `key c${line.color % COLORS}${style(line)}`, "aria-hidden": "true" }, button);
    element("span", { class: "name" }, button, line.name + (line.runs > 1 ? ` (${line.runs} runs)` : ""));
    line.entry = element("span", {}, button);
    button.addEventListener("click", () => {
      line.shown = !line.shown;
      button.setAttribute("aria-pressed", String(line.shown));
      this.draw();
    });
  }

  // The values as a table, made when it is opened: for screen readers, and to copy.
  addTable() {
    const details = element("details", {}, this.figure);
    element("summary", {}, details, "Values");
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const table = element("table", {}, element("div", { class: "scroll", tabindex: 0 }, details));
      const head = element("tr", {}, element("thead", {}, table));
      element("th", { scope: "col" }, head, "update");
      this.lines.forEach((line) => element("th", { scope: "col" }, head, line.name));
      const body = element("tbody", {}, table);
      this.updates.forEach((update) => {
        const row = element("tr", {}, body);
        element("th", { scope: "row" }, row, number(update));
        this.lines.forEach((line) => element("td", {}, row, this.text(line, line.x.indexOf(update))));
      });
    });
  }

  text(line, index) {
    if (index < 0 || line.y[index] === null) return "–";
    const low = line.low ? line.low[index] : null;
    const count = line.counts && line.counts[index] < line.runs ? `, ${line.counts[index]} of them` : "";
    const ends = low === null ? [] : [number(low), number(line.high[index])];
    return number(line.y[index]) + (ends[0] === ends[1] ? "" : ` [${ends.join(", ")}]`) + count;
  }

  range() {
    const values = this.lines.filter((line) => line.shown).flatMap((line) =>
      [line.y, line.low || [], line.high || [], ...(line.each || [])].flat()).filter((value) => value !== null);
    if (!values.length) return [0, 1];
    const [least, most] = this.bounds;
    const low = values.reduce((a, b) => Math.min(a, b), least ?? Infinity);
    const high = values.reduce((a, b) => Math.max(a, b), most ?? -Infinity);
    const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low === least ? low : low - margin, high + margin];
  }

  draw() {
    const width = Math.max(this.svg.clientWidth, 200), height = width < 420 ? 210 : 250;
    const left = 58, right = width - 10, top = 8, bottom = height - 26;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren();
    const first = this.updates[0], last = this.updates[this.updates.length - 1];
    const [low, high] = this.range();
    this.x = (update) => (first === last ? (left + right) / 2 : left + ((update - first) / (last - first)) * (right - left));
    this.y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    labelled(ticks(low, high, 5)).forEach(([tick, text]) => {
      element("svg:line", { class: "grid", x1: left, x2: right, y1: this.y(tick), y2: this.y(tick) }, this.svg);
      element("svg:text", { x: left - 6, y: this.y(tick) + 4, "text-anchor": "end" }, this.svg, text);
    });
    updateTicks(first, last, width < 420 ? 3 : 6).forEach((tick) => {
      const anchor = this.x(tick) > right - 20 ? "end" : "middle";
      element("svg:line", { class: "grid", x1: this.x(tick), x2: this.x(tick), y1: bottom, y2: bottom + 4 }, this.svg);
      element("svg:text", { x: this.x(tick), y: height - 8, "text-anchor": anchor }, this.svg, short(tick));
    });
    element("svg:text", { x: 2, y: height - 8 }, this.svg, "update");
    this.lines.filter((line) => line.shown).forEach((line) => this.drawLine(line));
    this.mark = element("svg:g", {}, this.svg);
    this.move(this.cursor);
  }

  drawLine(line) {
    const group = element("svg:g", { class: `c${line.color % COLORS}` }, this.svg);
    const place = (values) => values.map((value) => (value === null ? null : this.y(value)));
    const xs = line.x.map(this.x);
    if (line.low && this.lines.filter((each) => each.shown).length <= MOST_BANDS) {
      const inside = line.x.map((_, index) => index).filter((index) => line.low[index] !== null);
      const ends = inside.map((index) => [xs[index], this.y(line.high[index])])
        .concat(inside.reverse().map((index) => [xs[index], this.y(line.low[index])]));
      if (ends.length) element("svg:path", { class: "band", d: `M${ends.map((end) => end.map((at) => at.toFixed(1)).join(",")).join("L")}Z` }, group);
    }
    (line.each || []).forEach((values) => element("svg:path", { class: "each", d: path(xs, place(values), true) }, group));
    if (line.online !== undefined && line.online >= line.x[0]) {
      const at = this.x(line.online), title = `${line.name}: online from update ${number(line.online)}`;
      const mark = element("svg:line", { class: "line dashed", x1: at, x2: at, y1: 8, y2: this.y(this.range()[0]) }, group);
      element("svg:title", {}, mark, title);
    }
    element("svg:path", { class: `line${style(line)}`, d: path(xs, place(line.y), false) }, group);
    if (line.x.length <= 12 && !line.dashed) {
      line.y.forEach((value, index) => {
        if (value !== null) element("svg:circle", { class: "point", cx: xs[index], cy: this.y(value), r: 3.5 }, group);
      });
    }
  }

  point(event) {
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    let nearest = 0;
    this.updates.forEach((update, index) => {
      if (Math.abs(this.x(update) - at) < Math.abs(this.x(this.updates[nearest]) - at)) nearest = index;
    });
    this.move(nearest);
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const from = this.cursor === null ? this.updates.length - 1 : this.cursor;
    this.move(Math.min(Math.max(from + step, 0), this.updates.length - 1));
  }

  // Shows the values at an update; null: those at the end.
  move(cursor) {
    this.cursor = cursor;
    const update = this.updates[cursor === null ? this.updates.length - 1 : cursor];
    this.at.textContent = cursor === null ? `last, update ${number(update)}` : `update ${number(update)}`;
    this.mark.replaceChildren();
    if (cursor !== null) {
      const x = this.x(update);
      element("svg:line", { class: "cursor", x1: x, x2: x, y1: 8, y2: this.svg.viewBox.baseVal.height - 26 }, this.mark);
    }
    this.lines.forEach((line) => {
      const index = cursor === null ? line.y.findLastIndex((value) => value !== null) : line.x.indexOf(update);
      line.entry.textContent = this.text(line, index);
      if (cursor !== null && line.shown && index >= 0 && line.y[index] !== null) {
        const attributes = { class: `point c${line.color % COLORS}`, cx: this.x(update), cy: this.y(line.y[index]), r: 4.5 };
        element("svg:circle", attributes, this.mark);
      }
    });
    const values = this.lines.map((line) => `${line.name} ${line.entry.textContent}`).join("; ");
    this.svg.setAttribute("aria-label", `${this.title}, ${this.at.textContent}: ${values}`);
  }
}

function gallery(section) {
  const slider = section.querySelector("input[type=range]"), output = section.querySelector("output");
  const updates = JSON.parse(slider.dataset.updates);
  slider.addEventListener("input", () => {
    const chosen = updates[Number(slider.value)];
    output.textContent = number(chosen);
    slider.setAttribute("aria-valuetext", `update ${chosen}`);
    section.querySelectorAll(".pictures figure").forEach((figure) => {
      const images = [...figure.querySelectorAll("img, video")];
      const past = images.filter((image) => Number(image.dataset.update) <= chosen);
      const shown = past.length ? past[past.length - 1] : images[0];
      images.forEach((image) => {
        image.hidden = image !== shown;
        if (image.hidden && image.pause) image.pause();
      });
    });
  });
}

const chartData = JSON.parse(document.getElementById("chart-data").textContent);
document.querySelectorAll("figure.chart").forEach((figure) => new Chart(figure, chartData[Number(figure.dataset.chart)]));
document.querySelectorAll(".gallery").forEach(gallery);
