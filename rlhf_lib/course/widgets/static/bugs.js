// Lesson 08's instrument: a run over healthy ones, suspects, instruments that cost a point, a name to commit to.
import { button, draw, fill, instrument, make, numbers, polyline, show, slider, spoken, words, write } from "./base.js";

const BOARD = { width: 210, height: 112, left: 50, right: 8, top: 8, bottom: 24 };
const BOARD_FRESH = { update: 0, struck: [], asked: [], chosen: "", guesses: [], given_up: false };
const BOARD_KEY = "Ribbed band between dashed lines: least to most of the healthy runs. Solid line with dots: the case. ▲ above the band, ▼ below it, ✕ not finite. An axis with the word log is linear around the healthy runs and logarithmic beyond.";
const BOARD_FAR = 4; // times the spread of the healthy runs

// ---------------------------------------------------------------------------------------------------------- the curves

/** As it is while the case stays near the healthy runs; else logarithmic beyond them, so that a spike flattens neither. */
function boardBend({ least, most }, low, high) {
  const [under, over] = [Math.min(...least), Math.max(...most)];
  const [middle, spread] = [(under + over) / 2, over - under];
  return spread > 0 && high - low > BOARD_FAR * spread ? (value) => Math.asinh((value - middle) / spread) : null;
}

function boardScale({ run, least, most }) {
  const finite = [...run, ...least, ...most].filter(Number.isFinite);
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const bend = boardBend({ least, most }, low, high);
  const at = bend || ((value) => value);
  const [span, last] = [at(high) - at(low) || 1, least.length - 1];
  return {
    low, high, bent: bend !== null,
    x: (i) => BOARD.left + (i / last) * (BOARD.width - BOARD.left - BOARD.right),
    y: (value) => BOARD.height - BOARD.bottom - ((at(value) - at(low)) / span) * (BOARD.height - BOARD.bottom - BOARD.top),
  };
}

function boardAxes({ low, high, bent, x, y }, last) {
  const [base, end] = [BOARD.height - BOARD.bottom, BOARD.width - BOARD.right];
  const level = high === low ? [low] : [low, high];
  return [
    draw("path", { class: "bugs-axis", d: `M${BOARD.left} ${BOARD.top}V${base}H${end}` }),
    ...level.map((value) => words("", BOARD.left - 7, y(value) + 4, show(value, Math.abs(value) < 100 ? 2 : 0), "end")),
    words("", x(0), base + 14, "0", "middle"), words("", x(last), base + 14, String(last), "end"),
    words("", (x(0) + x(last)) / 2, base + 14, "update", "middle"),
    ...(bent ? [words("", BOARD.left - 7, (BOARD.top + base) / 2 + 4, "log", "end")] : []),
  ];
}

/** Readable without colour: ribs from least to most, dashed edges. */
function boardBand({ least, most }, places) {
  const there = [...least, ...most].every(Number.isFinite);
  if (!there) return [];
  const { x, y } = places;
  const area = `${polyline(most, places)}${least.map((value, i) => `L${x(i).toFixed(1)} ${y(value).toFixed(1)}`).reverse().join("")}Z`;
  return [
    draw("path", { class: "bugs-band", d: area }),
    ...least.map((value, i) => draw("line", { class: "bugs-rib", x1: x(i), x2: x(i), y1: y(value), y2: y(most[i]) })),
    ...[least, most].map((list) => draw("path", { class: "bugs-edge", d: polyline(list, places) })),
  ];
}

const boardSide = (value, least, most) => (!Number.isFinite(value) ? "✕" : value > most ? "▲" : value < least ? "▼" : "");

class BoardChart {
  constructor({ name, ...lists }) {
    Object.assign(this, Object.fromEntries(Object.entries(lists).map(([key, list]) => [key, numbers(list)])));
    const [places, last] = [boardScale(this), this.least.length - 1];
    const outside = this.run.filter((value, i) => boardSide(value, this.least[i], this.most[i])).length;
    this.dots = this.run.map((value, i) => (Number.isFinite(value)
      ? draw("circle", { class: "bugs-dot", cx: places.x(i), cy: places.y(value), r: 2.5 })
      : words("", places.x(i), BOARD.height - BOARD.bottom - 2, "✕", "middle")));
    const label = `${name}: outside the healthy runs in ${outside} of ${this.run.length} updates${places.bent ? "; the axis is logarithmic beyond them" : ""}`;
    this.value = make("div", { class: "bugs-value" });
    this.element = make("figure", { class: "bugs-chart" }, make("figcaption", { text: name }),
      draw("svg", { viewBox: `0 0 ${BOARD.width} ${BOARD.height}`, role: "img", "aria-label": label },
        ...boardBand(this, places), ...boardAxes(places, last), draw("path", { class: "bugs-run", d: polyline(this.run, places) }), ...this.dots),
      this.value);
  }

  point(at) {
    this.dots.forEach((dot, i) => dot.classList.toggle("here", i === at));
    const [least, most] = [this.least[at], this.most[at]];
    const said = at < this.run.length ? `${show(this.run[at])} ${boardSide(this.run[at], least, most)}`.trim() : "ended";
    write(this.value, `${said} (healthy ${show(least)} to ${show(most)})`);
  }
}

// ------------------------------------------------------------------------------------------------------------ the page

class BugBoard {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    this.group = `bugs-${Math.random().toString(36).slice(2)}`;
    this.title = make("h3");
    this.update = slider({ label: "update to look at", min: 0, max: 7, step: 1, digits: 0, oninput: (update) => change({ update }) });
    this.ended = make("p", { class: "bugs-ended" });
    this.charts = make("div", { class: "bugs-charts" });
    this.suspects = make("fieldset", { class: "bugs-suspects" });
    this.questions = make("div", { class: "bugs-questions" });
    this.buttons = {
      commit: button("Commit to this name", () => this.commit()),
      give: button("Give up", () => { if (!this.over()) change({ given_up: true }); }),
      next: button("Next case", () => this.next()),
    };
    this.points = spoken("bugs-points");
    this.answers = spoken("bugs-answers");
    root.append(this.title, make("div", { class: "rlhf-controls" }, this.update.element), this.ended, this.charts,
      make("p", { class: "rlhf-muted", text: BOARD_KEY }), make("div", { class: "bugs-below" }, this.suspects, this.questions),
      make("div", { class: "bugs-buttons" }, ...Object.values(this.buttons)), this.points, this.answers);
  }

  over() {
    return this.data().revealed.length > 0 || this.view().given_up;
  }

  /** Python has not answered yet. */
  waits() {
    const { case: number, suspects, answers } = this.data();
    return number !== this.view().case || answers.length < this.view().guesses.filter((name) => suspects.includes(name)).length;
  }

  commit() {
    const { chosen, guesses } = this.view();
    if (chosen && !guesses.includes(chosen) && !this.over() && !this.waits()) this.change({ guesses: [...guesses, chosen] });
  }

  next() {
    if (this.over() && !this.waits()) this.change({ ...BOARD_FRESH, case: this.data().case + 1 });
  }

  ask(name) {
    const { asked } = this.view();
    if (!asked.includes(name) && !this.waits()) this.change({ asked: [...asked, name] });
  }

  strike(name, struck) {
    const others = this.view().struck.filter((other) => other !== name);
    this.change({ struck: struck ? [...others, name] : others });
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    if (data.case !== this.drawn) this.redraw(data);
    this.update.set(view.update);
    this.drawnCharts.forEach((chart) => chart.point(view.update));
    this.mark(view);
    this.rows.forEach((row) => this.answer(row, data, view));
    this.buttons.commit.setAttribute("aria-disabled", !view.chosen || view.guesses.includes(view.chosen) || this.over());
    this.buttons.give.setAttribute("aria-disabled", this.over());
    this.buttons.next.setAttribute("aria-disabled", !this.over());
    write(this.points, `${data.points} points. An instrument costs 1, a wrong name 2.${data.score ? ` All cases: ${data.score}.` : ""}`);
    this.verdict(data);
  }

  redraw(data) {
    this.drawn = data.case;
    write(this.title, `Blind bug board: case ${data.case}`);
    write(this.ended, data.ended_by ? `The run ended early: ${data.ended_by}` : "");
    this.drawnCharts = data.metrics.map((metric) => new BoardChart(metric));
    this.update.element.querySelector("input").max = Math.max(...this.drawnCharts.map(({ least }) => least.length)) - 1;
    fill(this.charts, ...this.drawnCharts.map(({ element }) => element));
    this.names = data.suspects.map((name) => this.suspect(name));
    fill(this.suspects, make("legend", { text: "suspects: one of them it is" }), ...this.names.map(({ element }) => element));
    this.rows = data.questions.map(([name, says]) => this.question(name, says));
    fill(this.questions, make("p", { class: "rlhf-muted", text: "instruments, a point each; some take seconds" }), ...this.rows.map(({ element }) => element));
  }

  suspect(name) {
    const radio = make("input", { type: "radio", name: this.group, onchange: () => this.change({ chosen: name }) });
    const box = make("input", { type: "checkbox", "aria-label": `strike out ${name}`, onchange: () => this.strike(name, box.checked) });
    const element = make("div", { class: "bugs-suspect" }, make("label", { class: "bugs-name" }, radio, make("span", { text: name })),
      make("label", { class: "bugs-strike" }, box, make("span", { text: "strike out" })));
    return { name, radio, box, element };
  }

  mark({ chosen, struck }) {
    for (const { name, radio, box, element } of this.names) {
      radio.checked = name === chosen;
      box.checked = struck.includes(name);
      element.classList.toggle("struck", box.checked);
    }
  }

  question(name, says) {
    const press = button(name, () => this.ask(name));
    const finding = spoken("bugs-finding");
    return { name, press, finding, element: make("div", { class: "bugs-question" }, press, make("span", { text: says }), finding) };
  }

  answer({ name, press, finding }, data, view) {
    const found = data.findings.find((one) => one.name === name);
    const asked = view.asked.includes(name);
    press.setAttribute("aria-disabled", asked);
    const state = found ? JSON.stringify(found) : asked ? "measuring …" : "";
    if (finding.state === state) return;
    finding.state = state;
    if (found) fill(finding, this.lines("bugs-lines", found.lines));
    else finding.textContent = state;
  }

  verdict({ answers, revealed }) {
    const state = JSON.stringify([answers, revealed]);
    if (this.said === state) return;
    this.said = state;
    fill(this.answers, ...answers.map(({ name, right, says }) => make("p", { class: right ? "bugs-right" : "bugs-wrong", text: `${right ? "✓" : "✗"} ${name}: ${says}` })),
      revealed.length ? this.lines("bugs-revealed", revealed) : null);
  }

  lines(name, lines) {
    return make("table", { class: name }, ...lines.map(([head, text]) => make("tr", {}, make("th", { scope: "row", text: head }), make("td", { text }))));
  }
}

export default instrument("Blind bug board", (parts) => {
  const board = new BugBoard(parts);
  return () => board.refresh();
});
