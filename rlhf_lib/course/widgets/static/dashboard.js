// Lesson 00's instrument: curves of a run, one update's numbers, and what was written before and after.
import { button, fill, instrument, make, numbers, show, slider, spoken } from "./base.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, EDGE] = [260, 110, 8];
const DASHES = ["", "6 4"];
const SIGNS = ["●", "■"];

const draw = (tag, attributes, ...children) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

/** From numbers to places in the picture: NaN and infinity have none. */
function scale(lists, total) {
  const finite = lists.flat().filter(Number.isFinite);
  const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
  const span = high - low || Math.abs(high) || 1;
  return {
    low, high,
    x: (i) => EDGE + (total > 1 ? (i / (total - 1)) * (WIDTH - 2 * EDGE) : (WIDTH - 2 * EDGE) / 2),
    y: (value) => HEIGHT - EDGE - ((value - low) / span) * (HEIGHT - 2 * EDGE),
  };
}

/** A line through the finite numbers, broken where one is not. */
function path(list, { x, y }) {
  let pen = "M";
  return list.map((value, i) => {
    if (!Number.isFinite(value)) { pen = "M"; return ""; }
    const step = `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

function mark(kind, cx, cy) {
  return kind === 0 ? draw("circle", { cx, cy, r: 4, class: "dashboard-mark one" })
    : draw("rect", { x: cx - 4, y: cy - 4, width: 8, height: 8, class: "dashboard-mark two" });
}

class Dashboard {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    this.status = spoken("dashboard-status");
    this.progress = make("progress", { "aria-label": "updates done" });
    this.stop = button("Stop after this update", () => change({ stop: true }));
    this.update = slider({
      label: "Update to look at", min: 0, max: 1, step: 1, digits: 0,
      oninput: (update) => change({ update: update === this.data().steps.length - 1 ? -1 : update }),
    });
    this.charts = make("div", { class: "dashboard-charts" });
    this.samples = make("div", { class: "rlhf-scroll" });
    root.append(make("h3", { text: "Training dashboard" }),
      make("div", { class: "rlhf-controls" }, this.progress, this.stop, this.update.element), this.status, this.charts, this.samples);
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    if (data !== this.drawn) this.redraw(data);
    const done = data.steps.length;
    const at = view.update < 0 || view.update >= done ? done - 1 : view.update;
    this.update.set(Math.max(at, 0));
    this.stop.disabled = view.stop || done >= data.total || !/running|loading/.test(data.status);
    this.point(at);
  }

  redraw(data) {
    this.drawn = data;
    const done = data.steps.length;
    this.progress.max = data.total;
    this.progress.value = done;
    this.status.textContent = data.status;
    this.update.element.querySelector("input").max = Math.max(done - 1, 0);
    this.lists = Object.fromEntries(data.names.map((name, column) => [name, numbers(data.steps.map((step) => step[column]))]));
    this.drawnCharts = data.charts.map((chart) => this.chart(chart, data.total));
    fill(this.charts, ...this.drawnCharts.map(({ element }) => element));
    fill(this.samples, data.samples.length ? this.table(data.samples) : null);
  }

  chart({ title, names }, total) {
    const lists = names.map((name) => this.lists[name]);
    const places = scale(lists, total);
    const picture = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${lists[0].length} updates` },
      ...lists.map((list, i) => draw("path", { d: path(list, places), class: `dashboard-line ${i ? "two" : "one"}`, "stroke-dasharray": DASHES[i] })));
    const range = make("span", { class: "rlhf-muted", text: lists[0].length ? `${show(places.low, 2)} to ${show(places.high, 2)}` : "" });
    const values = names.map(() => make("strong"));
    const legend = names.map((name, i) => make("span", {}, make("span", { class: i ? "two" : "one", "aria-hidden": "true", text: `${SIGNS[i]} ` }),
      make("span", { text: names.length > 1 ? `${name} ` : "" }), values[i]));
    return { element: make("figure", {}, make("figcaption", { text: title }), picture, make("div", { class: "dashboard-values" }, ...legend, range)), picture, names, places, values };
  }

  /** Marks one update on every curve, and writes its numbers. */
  point(at) {
    for (const { picture, names, places, values } of this.drawnCharts) {
      picture.querySelectorAll(".dashboard-mark").forEach((element) => element.remove());
      names.forEach((name, i) => {
        const value = at < 0 ? undefined : this.lists[name][at];
        values[i].textContent = value === undefined ? "–" : show(value);
        if (Number.isFinite(value)) picture.append(mark(i, places.x(at), places.y(value)));
      });
    }
  }

  table(samples) {
    const scored = (text, gold) => (text ? `${text}  (gold ${show(Number(gold), 0)})` : "…");
    return make("table", {}, make("caption", { text: "What the policy writes, before and after" }),
      make("tr", {}, ...["title", "before", "after"].map((text) => make("th", { scope: "col", text }))),
      ...samples.map((row) => make("tr", {}, make("th", { scope: "row", text: row.title }),
        make("td", { text: scored(row.before, row.gold_before) }), make("td", { text: scored(row.after, row.gold_after) }))));
  }
}

export default instrument("Training dashboard", (parts) => {
  const dashboard = new Dashboard(parts);
  return () => dashboard.refresh();
});
