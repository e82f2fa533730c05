// Lesson 05's instrument. Points are drawn as one path a region: thousands of them cost no more than a few.
import { draw, fill, instrument, make, numbers, show, slider, spoken, words, write } from "./base.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, EDGE] = [470, 300, 34, 34, 8];
const CURVES = 330; // width
const FURTHEST = 2.5; // ratio at the right end of the curves
const DECIMALS = 6; // of a mean that may be 0 up to rounding
const DRAWN = 2000; // points at most: painting more takes longer than an eye waits
const TICKS = [0.125, 0.25, 0.5, 1, 2, 4, 8];
const CLIPPED = ["high_good", "low_bad"];
const SIGNS = { within: "○", high_good: "✕", low_bad: "✕", low_good: "△", high_bad: "▽", neither: "·" };

// ----------------------------------------------------------------------------------------------------------- the maths

function regionOf(ratio, advantage, clip) {
  if (ratio >= 1 - clip && ratio <= 1 + clip) return "within";
  const side = ratio > 1 + clip ? "high" : ratio < 1 - clip ? "low" : "";
  const sign = advantage > 0 ? "good" : advantage < 0 ? "bad" : "";
  return side && sign ? `${side}_${sign}` : "neither";
}

/** The clipped surrogate of one action: a loss, and its slope in the log-probability. */
function surrogate(ratio, advantage, clip) {
  const inside = Math.min(Math.max(ratio, 1 - clip), 1 + clip);
  const [unclipped, clipped] = [-advantage * ratio, -advantage * inside];
  return { loss: Math.max(unclipped, clipped), slope: clipped > unclipped ? 0 : unclipped };
}

const mean = (list) => list.reduce((total, x) => total + x, 0) / list.length;

// -------------------------------------------------------------------------------------------------------- the pictures

/** One point, as a piece of a path: its shape says its region, as its colour does. */
function shape(region, x, y) {
  const at = `M${x.toFixed(1)} ${y.toFixed(1)}`;
  if (CLIPPED.includes(region)) return `${at}m-3-3l6 6m0-6l-6 6`;
  if (region === "low_good") return `${at}m0-4l4 7h-8z`;
  if (region === "high_bad") return `${at}m0 4l4-7h-8z`;
  return region === "within" ? `${at}m-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0` : `${at}m-1 0h2`;
}

/** From numbers to places; what lies outside is put on the edge. */
const scale = (low, high, from, to) => (value) => from + ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (to - from);

const line = (className, x1, y1, x2, y2) => draw("line", { class: className, x1, y1, x2, y2 });

/** Ratio against advantage; the ratio's axis is logarithmic, so that twice and half are equally far from 1. */
class Plane {
  constructor(onpick) {
    this.picture = draw("svg", { class: "clip-plane", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, role: "img" });
    this.picture.addEventListener("click", (event) => {
      const box = this.picture.getBoundingClientRect();
      onpick(this.ratioAt((event.clientX - box.left) * (WIDTH / box.width)), this.advantageAt((event.clientY - box.top) * (HEIGHT / box.height)));
    });
  }

  draw(logRatios, advantages) {
    const widest = (list, least, most) => Math.min(most, Math.max(least, ...list.filter(Number.isFinite).map(Math.abs)) * 1.05);
    this.reach = widest(logRatios, 0.75, 2.2);
    this.height = widest(advantages, 1.5, Infinity);
    this.x = scale(-this.reach, this.reach, LEFT, WIDTH - EDGE);
    this.y = scale(-this.height, this.height, HEIGHT - BOTTOM, EDGE);
    [this.logRatios, this.advantages] = [logRatios, advantages];
    this.step = Math.ceil(logRatios.length / DRAWN);
    const ticks = TICKS.filter((ratio) => Math.abs(Math.log(ratio)) <= this.reach);
    const levels = [-1, 0, 1].map((sign) => sign * Math.floor(this.height));
    this.zone = draw("rect", { class: "clip-zone", y: EDGE, height: HEIGHT - BOTTOM - EDGE });
    this.bounds = [line("clip-bound", 0, EDGE, 0, HEIGHT - BOTTOM), line("clip-bound", 0, EDGE, 0, HEIGHT - BOTTOM)];
    this.names = [words("clip-name", WIDTH - EDGE, 22, "clipped ✕", "end"), words("clip-name", LEFT + 4, 22, "leads back △", "start"),
      words("clip-name", LEFT + 4, HEIGHT - BOTTOM - 8, "clipped ✕", "start"), words("clip-name", WIDTH - EDGE, HEIGHT - BOTTOM - 8, "leads back ▽", "end")];
    this.paths = {};
    this.layer = draw("g");
    this.hand = draw("circle", { class: "clip-hand", r: 7 });
    fill(this.picture, this.zone, ...this.bounds, line("clip-axis", LEFT, this.y(0), WIDTH - EDGE, this.y(0)),
      line("clip-axis", LEFT, EDGE, LEFT, HEIGHT - BOTTOM),
      ...ticks.map((ratio) => words("clip-tick", this.x(Math.log(ratio)), HEIGHT - BOTTOM + 14, String(ratio))),
      ...levels.map((level) => words("clip-tick", LEFT - 5, this.y(level) + 4, String(level).replace("-", "−"), "end")),
      words("clip-tick", WIDTH / 2, HEIGHT - 4, "ratio"), this.layer, ...this.names, this.hand);
  }

  ratioAt(px) {
    return Math.exp(((px - LEFT) / (WIDTH - EDGE - LEFT)) * 2 * this.reach - this.reach);
  }

  advantageAt(py) {
    return ((HEIGHT - BOTTOM - py) / (HEIGHT - BOTTOM - EDGE)) * 2 * this.height - this.height;
  }

  /** Every `step`-th action, as one path a region. */
  points(regions) {
    const parts = {};
    regions.forEach((region, i) => {
      if (i % this.step === 0 && !Number.isNaN(this.logRatios[i] + this.advantages[i])) (parts[region] ||= []).push(shape(region, this.x(this.logRatios[i]), this.y(this.advantages[i])));
    });
    fill(this.layer, ...Object.entries(parts).map(([region, pieces]) => draw("path", { class: `clip-points ${region}`, d: pieces.join("") })));
    this.pointed = regions;
  }

  update(regions, { clip, ratio, advantage }) {
    if (regions !== this.pointed) this.points(regions);
    const [low, high] = [this.x(Math.log(1 - clip)), this.x(Math.log(1 + clip))];
    this.bounds.forEach((bound, i) => ["x1", "x2"].forEach((end) => bound.setAttribute(end, i ? high : low)));
    this.zone.setAttribute("x", low);
    this.zone.setAttribute("width", high - low);
    this.hand.setAttribute("cx", this.x(Math.log(ratio)));
    this.hand.setAttribute("cy", this.y(advantage));
    this.picture.setAttribute("aria-label", `${regions.length} actions by ratio and advantage; the circle is at ratio ${show(ratio, 2)}, advantage ${show(advantage, 2)}`);
  }
}

/** Loss and slope over the ratio, at the advantage that is set. */
class Curves {
  constructor() {
    this.picture = draw("svg", { viewBox: `0 0 ${CURVES} ${HEIGHT}`, width: CURVES, role: "img" });
  }

  update({ clip, ratio, advantage }) {
    const top = Math.max(Math.abs(advantage), 0.1) * FURTHEST;
    const x = scale(0, FURTHEST, LEFT, CURVES - EDGE);
    const y = scale(-top, top, HEIGHT - BOTTOM, EDGE);
    const ratios = Array.from({ length: 251 }, (_, i) => (i / 250) * FURTHEST);
    const path = (name) => ratios.map((r, i) => `${i ? "L" : "M"}${x(r).toFixed(1)} ${y(surrogate(r, advantage, clip)[name]).toFixed(1)}`).join("");
    const here = surrogate(ratio, advantage, clip);
    const levels = [-top, 0, top].map((level) => words("clip-tick", LEFT - 4, Math.max(y(level), 12) + 4, show(level, 1), "end"));
    fill(this.picture, draw("rect", { class: "clip-zone", x: x(1 - clip), width: x(1 + clip) - x(1 - clip), y: EDGE, height: HEIGHT - BOTTOM - EDGE }),
      line("clip-axis", LEFT, y(0), CURVES - EDGE, y(0)), line("clip-axis", LEFT, EDGE, LEFT, HEIGHT - BOTTOM), ...levels,
      ...[0, 1, 2].map((r) => words("clip-tick", x(r), HEIGHT - BOTTOM + 14, String(r))), words("clip-tick", CURVES / 2, HEIGHT - 4, "ratio"),
      draw("path", { class: "clip-loss", d: path("loss") }), draw("path", { class: "clip-slope", d: path("slope") }),
      draw("circle", { class: "clip-hand", r: 6, cx: x(ratio), cy: y(here.loss) }),
      draw("rect", { class: "clip-hand", width: 10, height: 10, x: x(ratio) - 5, y: y(here.slope) - 5 }));
    this.picture.setAttribute("aria-label", `At ratio ${show(ratio, 2)} the loss is ${show(here.loss)}, its slope ${show(here.slope)}`);
  }
}

// ------------------------------------------------------------------------------------------------------------ the page

const row = (title, ...texts) => make("tr", {}, make("th", { scope: "row", text: title }), ...texts.map((content) => make("td", { text: content })));
const figure = (caption, picture) => make("figure", {}, make("figcaption", { text: caption }), picture);

class ClipExplorer {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    const set = (name) => (x) => change({ [name]: x });
    this.sliders = {
      clip: slider({ label: "clip", min: 0, max: 1, step: 0.01, oninput: set("clip") }),
      ratio: slider({ label: "ratio", min: 0.05, max: 4, step: 0.05, oninput: set("ratio") }),
      advantage: slider({ label: "advantage", min: -4, max: 4, step: 0.1, digits: 1, oninput: set("advantage") }),
    };
    this.plane = new Plane((ratio, advantage) => change({ ratio: Number(ratio.toFixed(2)), advantage: Number(advantage.toFixed(2)) }));
    this.curves = new Curves();
    this.about = spoken("clip-about");
    this.regions = make("table", { class: "clip-regions" });
    this.overAll = make("table", { class: "clip-over-all" });
    this.atHand = make("table", { class: "clip-at-hand" });
    root.append(make("h3", { text: "Clip explorer" }),
      make("div", { class: "rlhf-controls clip-controls" }, ...Object.values(this.sliders).map(({ element }) => element)),
      this.hint = make("p", { class: "rlhf-muted" }),
      make("div", { class: "clip-pictures" }, figure("Every action: advantage over ratio", this.plane.picture),
        figure("Loss (○, solid) and its slope in log p (□, dashed)", this.curves.picture)),
      this.about, make("div", { class: "clip-tables" }, this.regions, make("div", {}, this.overAll, this.atHand)));
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    if (data !== this.drawn) this.drawFor(data);
    Object.entries(this.sliders).forEach(([name, control]) => control.set(view[name]));
    if (view.clip !== this.clip) this.regionNames = this.ratios.map((ratio, i) => regionOf(ratio, this.advantages[i], view.clip));
    this.plane.update(this.regionNames, view);
    this.curves.update(view);
    this.showTables(view);
    this.clip = view.clip;
  }

  drawFor(data) {
    [this.drawn, this.clip] = [data, null];
    this.ratios = numbers(data.ratios);
    this.logRatios = this.ratios.map(Math.log);
    this.advantages = numbers(data.advantages);
    this.plane.draw(this.logRatios, this.advantages);
    const each = this.plane.step > 1 ? `One action in ${this.plane.step} is drawn, all are counted` : "Each sign is one action";
    this.hint.textContent = `${each}. Click into the plane, or move ratio and advantage: the circle is your point.`;
    this.lines = data.regions.map(([name, title, says]) => {
      const count = make("td");
      const element = make("tr", {}, make("th", { scope: "row", text: `${SIGNS[name]} ${title}` }), make("td", { class: "clip-says", text: says }), count);
      return { name, says, element, count };
    });
    fill(this.regions, make("caption", { text: `Regions of ${this.ratios.length} actions` }), ...this.lines.map(({ element }) => element));
  }

  showTables({ clip, ratio, advantage }) {
    const here = regionOf(ratio, advantage, clip);
    const count = (name) => this.regionNames.filter((region) => region === name).length;
    this.lines.forEach(({ name, element, count: cell }) => {
      write(cell, String(count(name)));
      element.classList.toggle("here", name === here);
    });
    const total = this.ratios.length;
    const losses = this.ratios.map((r, i) => surrogate(r, this.advantages[i], clip).loss);
    fill(this.overAll, make("caption", { text: "Over all actions" }),
      row("clip fraction", show(CLIPPED.map(count).reduce((a, b) => a + b) / total)),
      row("if every ratio outside counted", show(1 - count("within") / total)), row("mean loss", show(Number(mean(losses).toFixed(DECIMALS)))));
    const { loss, slope } = surrogate(ratio, advantage, clip);
    fill(this.atHand, make("caption", { text: "At your point" }),
      row("objective", show(-loss)), row("loss", show(loss)), row("its slope in log p", show(slope)));
    const { says } = this.lines.find(({ name }) => name === here);
    write(this.about, `Your point: ratio ${show(ratio, 2)}, advantage ${show(advantage, 2)}: ${this.data().regions.find(([name]) => name === here)[1]} (${says}). ${this.nearest(ratio, advantage)}`);
  }

  /** The action that lies closest in the picture. */
  nearest(ratio, advantage) {
    const { x, y } = this.plane;
    const distances = this.logRatios.map((logRatio, i) => Math.hypot(x(logRatio) - x(Math.log(ratio)), y(this.advantages[i]) - y(advantage)));
    const best = distances.reduce((place, distance, i) => (distance < distances[place] || Number.isNaN(distances[place]) ? i : place), 0);
    const [b, t] = this.data().places[best];
    return `Nearest action: row ${b}, t ${t}, ratio ${show(this.ratios[best])}, advantage ${show(this.advantages[best])}.`;
  }
}

export default instrument("Clip explorer", (parts) => {
  const explorer = new ClipExplorer(parts);
  return () => explorer.refresh();
});
