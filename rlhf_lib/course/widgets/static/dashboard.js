// Lesson 00's instrument: curves of a run, one update's numbers, and what was written before and after.
import { button, draw, fill, instrument, make, numbers, polyline, show, slider, spoken, words, write } from "./base.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, EDGE] = [270, 128, 42, 18, 8];
const ASKED = "Asked to stop. Does a cell wait for this run? It hears nothing meanwhile: interrupt the kernel (■), with the same clean end.";
const ASKED_TO_GO_ON = "Asked to go on. Is a cell running? It goes on when that one has ended.";
const DASHES = ["", "6 4"];
const SIGNS = ["●", "■"];

/** From numbers to places in the picture: NaN and infinity have none. */
function scale(lists, total) {
  const finite = lists.flat().filter(Number.isFinite);
  const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
  const span = high - low || Math.abs(high) || 1;
  return {
    low, high,
    x: (i) => LEFT + (total > 1 ? (i / (total - 1)) * (WIDTH - LEFT - EDGE) : (WIDTH - LEFT - EDGE) / 2),
    y: (value) => HEIGHT - BOTTOM - ((value - low) / span) * (HEIGHT - BOTTOM - EDGE),
  };
}

/** The ends of both axes, and a line at 0 where the curve crosses it. */
function axes({ low, high, x, y }, total) {
  const level = (value) => draw("line", { class: "dashboard-axis", x1: LEFT, x2: WIDTH - EDGE, y1: y(value), y2: y(value) });
  const ends = low === high ? [low] : [low, high];
  const updates = total > 1 ? [[0, "start"], [total - 1, "end"]] : [[0, "middle"]];
  return [
    ...ends.map(level), low < 0 && high > 0 ? level(0) : null,
    ...ends.map((value) => words("", LEFT - 4, y(value) + 4, show(value, 2), "end")),
    ...updates.map(([i, anchor]) => words("", x(i), HEIGHT - 4, i === 0 ? "update 0" : String(i), anchor)),
  ].filter(Boolean);
}

/** A sign under each update without a number. */
const gaps = (lists, { x }) => lists[0].map((_, i) => i).filter((i) => lists.some((list) => !Number.isFinite(list[i])))
  .map((i) => words("", x(i), HEIGHT - BOTTOM + 4, "✕", "middle"));

function mark(kind, cx, cy) {
  return kind === 0 ? draw("circle", { cx, cy, r: 4, class: "dashboard-mark one" })
    : draw("rect", { x: cx - 4, y: cy - 4, width: 8, height: 8, class: "dashboard-mark two" });
}

class Dashboard {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    this.status = spoken("dashboard-status");
    this.progress = make("progress", { "aria-label": "updates done" });
    this.stop = button("Stop after this update", () => { if (this.may("stop")) change({ stop: true }); });
    this.goOn = button("Go on", () => { if (this.may("start") || this.may("go on")) change({ stop: false, go_on: true }); });
    this.update = slider({
      label: "Update to look at", min: 0, max: 1, step: 1, digits: 0,
      oninput: (update) => change({ update: update === this.data().steps.length - 1 ? -1 : update }),
    });
    this.charts = make("div", { class: "dashboard-charts" });
    this.samples = make("div", { class: "rlhf-scroll" });
    root.append(make("h3", { text: "Training dashboard" }),
      make("div", { class: "rlhf-controls" }, this.progress, this.stop, this.goOn, this.update.element), this.status, this.charts, this.samples);
  }

  /** Whether this is what can be asked for now, and nobody has asked already. */
  may(what) {
    const { stop, go_on: goOn } = this.view();
    return this.data().can === what && !(what === "stop" ? stop : goOn);
  }

  /** The buttons stay in reach where they have nothing to do: who has just pressed one keeps the focus. */
  invite({ can }) {
    for (const element of [this.stop, this.goOn]) element.hidden = can === null;
    this.goOn.textContent = can === "start" ? "Start" : "Go on";
    this.stop.setAttribute("aria-disabled", String(!this.may("stop")));
    this.goOn.setAttribute("aria-disabled", String(!this.may("start") && !this.may("go on")));
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    if (data !== this.drawn) this.redraw(data);
    const done = data.steps.length;
    const at = view.update < 0 || view.update >= done ? done - 1 : view.update;
    this.update.set(Math.max(at, 0));
    this.invite(data);
    const asked = view.stop && data.can === "stop" ? ASKED : view.go_on && data.can !== "stop" ? ASKED_TO_GO_ON : "";
    write(this.status, asked ? `${data.status}. ${asked}` : data.status);
    this.point(at);
  }

  redraw(data) {
    this.drawn = data;
    const done = data.steps.length;
    this.progress.max = data.total;
    this.progress.value = done;
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
      ...(lists.flat().some(Number.isFinite) ? axes(places, total) : []), ...gaps(lists, places),
      ...lists.map((list, i) => draw("path", { d: polyline(list, places), class: `dashboard-line ${i ? "two" : "one"}`, "stroke-dasharray": DASHES[i] })));
    const values = names.map(() => make("strong"));
    const legend = names.map((name, i) => make("span", {}, make("span", { class: i ? "two" : "one", "aria-hidden": "true", text: `${SIGNS[i]} ` }),
      make("span", { text: names.length > 1 ? `${name} ` : "" }), values[i]));
    return { element: make("figure", {}, make("figcaption", { text: title }), picture, make("div", { class: "dashboard-values" }, ...legend)), picture, names, places, values };
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
    const better = ({ gold_before: before, gold_after: after }) => (Number(after) > Number(before) ? " ▲" : Number(after) < Number(before) ? " ▼" : "");
    const scored = (text, gold, sign) => (text ? `${text} (gold ${show(Number(gold), 0)}${sign})` : "…");
    return make("table", { class: "dashboard-samples" }, make("caption", { text: "What the policy writes, before and after (▲ better, ▼ worse)" }),
      make("tr", {}, ...["title", "before", "after"].map((text) => make("th", { scope: "col", text }))),
      ...samples.map((row) => make("tr", {}, make("th", { scope: "row", text: row.title }),
        make("td", { text: scored(row.before, row.gold_before, "") }), make("td", { text: scored(row.after, row.gold_after, better(row)) }))));
  }
}

export default instrument("Training dashboard", (parts) => {
  const dashboard = new Dashboard(parts);
  return () => dashboard.refresh();
});
