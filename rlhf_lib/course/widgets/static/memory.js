// Lesson 10's instrument. Python computes the budget (one source of the formulas); the page shows it.
import { choice, draw, dropdown, fill, instrument, make, spoken, toggle, words, write } from "./base.js";

const GIB = 2 ** 30;
const [BAR_WIDTH, BAR_HEIGHT, BAR_GAP, LABEL_WIDTH, BELOW] = [560, 30, 12, 110, 34];
const LETTERS = "ABCDEFG";
const NARROWEST = 14; // pixels that a letter needs

const gib = (bytes) => (bytes / GIB).toFixed(2);

/** A slider that steps through given numbers. */
function stepper({ label, unit = "", oninput }) {
  let steps = [];
  const output = make("output");
  const input = make("input", { type: "range", min: 0, step: 1, oninput: () => { tell(); oninput(steps[+input.value]); } });
  function tell() {
    const said = `${steps[+input.value].toLocaleString("en")}${unit}`;
    write(output, said);
    input.setAttribute("aria-valuetext", said);
  }
  return {
    element: make("label", { class: "rlhf-slider memory-slider" }, make("span", { text: label }), make("span", { class: "rlhf-line" }, input), output),
    set(value, among) {
      steps = among;
      input.max = steps.length - 1;
      input.value = steps.indexOf(value);
      tell();
    },
  };
}

/** The next round number of GiB above all that is drawn. */
function reach(gibs) {
  const power = 10 ** Math.floor(Math.log10(gibs));
  return [1, 2, 3, 5, 10].map((factor) => factor * power).find((size) => size >= gibs);
}

class MemoryBudget {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view });
    const set = (name) => (value) => change({ [name]: value });
    const names = { batch: "batch", micro_batch: "micro-batch", prompt: "prompt", response: "response", vocabulary: "vocabulary" };
    const units = { batch: " rows", micro_batch: " rows", prompt: " tokens", response: " tokens", vocabulary: "" };
    this.steppers = Object.fromEntries(Object.entries(names).map(([name, label]) => [name, stepper({ label, unit: units[name], oninput: set(name) })]));
    this.layers = stepper({ label: "layers that train", oninput: set("trainable_layers") });
    this.gpu = stepper({ label: "GPU", unit: " GiB", oninput: set("gpu") });
    this.model = dropdown({ label: "model", options: data().models, onchange: (place) => change({
      model: place, vocabulary: this.data().vocabularies[place], trainable_layers: 10 ** 6 }) });
    this.numbers = choice({ label: "numbers", options: data().numbers.map((name) => [name, name]), onchange: set("numbers") });
    this.again = toggle({ label: "gradient checkpointing", onchange: set("gradient_checkpointing") });
    this.shared = toggle({ label: "frozen layers held once", onchange: set("shared_trunk") });
    this.picture = draw("svg", { class: "memory-bars", role: "img" });
    this.says = spoken("memory-says");
    this.table = make("table", { class: "memory-table" });
    const controls = [this.model, ...Object.values(this.steppers), this.layers, this.gpu, this.numbers, this.again, this.shared];
    root.append(make("h3", { text: "Memory budget" }), make("div", { class: "rlhf-controls memory-controls" }, ...controls.map(({ element }) => element)),
      this.says, make("div", { class: "rlhf-scroll" }, this.picture), make("div", { class: "rlhf-scroll" }, this.table));
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    this.model.set(view.model);
    Object.entries(this.steppers).forEach(([name, control]) => control.set(view[name], this.among(data.choices[name], view[name])));
    this.layers.set(Math.min(view.trainable_layers, data.layers), Array.from({ length: data.layers + 1 }, (_, i) => i));
    this.gpu.set(view.gpu, this.among(data.choices.gpu, view.gpu));
    this.numbers.set(view.numbers);
    this.again.set(view.gradient_checkpointing);
    this.shared.set(view.shared_trunk);
    write(this.says, data.says);
    this.says.classList.toggle("too-much", !data.fits);
    this.drawBars(data, view.gpu);
    this.fillTable(data);
  }

  /** The steps, and what Python may have set between them. */
  among(steps, value) {
    return steps.includes(value) ? steps : [...steps, value].sort((a, b) => a - b);
  }

  drawBars({ phases, says }, gpu) {
    const sums = phases.map(({ groups }) => groups.reduce((a, b) => a + b));
    const end = reach(Math.max(gpu, ...sums.map((sum) => sum / GIB)) * 1.02);
    const x = (bytes) => LABEL_WIDTH + (bytes / GIB / end) * BAR_WIDTH;
    const height = phases.length * (BAR_HEIGHT + BAR_GAP);
    const bars = phases.flatMap(({ name, groups }, i) => {
      const y = i * (BAR_HEIGHT + BAR_GAP) + BAR_GAP;
      let from = 0;
      const pieces = groups.flatMap((bytes, g) => {
        const [left, width] = [x(from), (bytes / GIB / end) * BAR_WIDTH];
        from += bytes;
        return [draw("rect", { class: `memory-piece piece-${g}`, x: left, y, width, height: BAR_HEIGHT }),
          width >= NARROWEST ? words("memory-letter", left + width / 2, y + BAR_HEIGHT / 2 + 4, LETTERS[g], "middle") : null];
      });
      return [words("memory-phase", LABEL_WIDTH - 8, y + BAR_HEIGHT / 2 + 4, name, "end"), ...pieces];
    });
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => words("memory-tick", x(share * end * GIB), height + BELOW - 6, String(Number((share * end).toPrecision(3))), "middle"));
    const line = x(gpu * GIB);
    this.picture.setAttribute("viewBox", `0 0 ${LABEL_WIDTH + BAR_WIDTH + 60} ${height + BELOW + 4}`);
    this.picture.setAttribute("width", LABEL_WIDTH + BAR_WIDTH + 60);
    this.picture.setAttribute("aria-label", says);
    fill(this.picture, ...bars.filter(Boolean), draw("line", { class: "memory-gpu", x1: line, x2: line, y1: 0, y2: height + 6 }),
      words("memory-gpu-name", line, height + 16, `GPU ${gpu} GiB`, line > LABEL_WIDTH + BAR_WIDTH * 0.85 ? "end" : "middle"), ...ticks,
      words("memory-tick", LABEL_WIDTH + BAR_WIDTH + 20, height + BELOW - 6, "GiB", "start"));
  }

  fillTable({ phases, groups }) {
    const heads = ["GiB", ...phases.map(({ name }) => name)].map((text) => make("th", { scope: "col", text }));
    const lines = groups.map((name, g) => make("tr", {},
      make("th", { scope: "row" }, make("span", { class: `memory-key piece-${g}`, text: LETTERS[g] }), make("span", { text: ` ${name}` })),
      ...phases.map((phase) => make("td", { text: phase.groups[g] ? gib(phase.groups[g]) : "" }))));
    const all = make("tr", { class: "memory-all" }, make("th", { scope: "row", text: "all" }),
      ...phases.map((phase) => make("td", { text: gib(phase.groups.reduce((a, b) => a + b)) })));
    fill(this.table, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines, all));
  }
}

export default instrument("Memory budget", (parts) => {
  const budget = new MemoryBudget(parts);
  return () => budget.refresh();
});
