// Lesson 02's instrument. All numbers come from Python (microscope.py); this shows them and says how they hang together.
import { choice, dropdown, fill, instrument, make, number, numbers, show, spoken, toggle, walkable, write } from "./base.js";

const PLACEMENTS = [["eos", "on the last action"], ["later", "one slot later (N+)"]];
const SHIFTS = [["none", "nothing"], ["rewards", "rewards"], ["values", "values"], ["mask", "mask"]];
const FUNCTIONS = [["library", "the library's"], ["yours", "yours"]];
const COMPUTED = ["kl", "rewards", "reward_mask", "td_errors", "advantages", "returns", "recursion_mask"];
const TEXTS = ["states", "actions"];
const WRONG = {
  rewards: "Wrong on purpose: every reward sits one place too late. Look at what becomes of the score.",
  values: "Wrong on purpose: every value sits one place too late, as if the critic were read before the token.",
  mask: "Wrong on purpose: the mask of GAE and of the value loss sits one place too late, rewards and values do not.",
};
const LATER = "N+ and TRL: the score, the mask of GAE and the mask of the value loss move one slot later together, so the value "
  + "after the last token is read, and trained.";
const CLOSE = 1e-4; // numbers arrive with seven digits

/** [first, entries] over `width` places; what was trimmed is 0. */
function untrimmed([first, entries], width) {
  const track = new Array(width).fill(0);
  numbers(entries).forEach((x, i) => { track[first + i] = x; });
  return track;
}

/** The positions that are shown; [from, to] where two or more are folded. The last state is always shown. */
function columnsOf(row, context, whole) {
  const width = row.tokens.length;
  const isShown = (t) => whole || (t >= row.prompt - context && t < row.length + context) || t === width - 1;
  const columns = [];
  for (let t = 0; t < width; t++) {
    let end = t;
    while (end < width && !isShown(end)) end++;
    if (end - t >= 2) columns.push([t, end - 1]);
    else columns.push(t);
    t = Math.max(t, end - t >= 2 ? end - 1 : t);
  }
  return columns;
}

const isFold = (column) => Array.isArray(column);
const agree = (a, b) => Object.is(a, b) || Math.abs(a - b) <= CLOSE * Math.max(1, Math.abs(a), Math.abs(b));

// ---------------------------------------------------------------------------------------------------- one row's tracks

/** The row in view under the switches in view: its tracks, what they are linked to, and what each cell means. */
class Row {
  constructor(data, view) {
    this.settings = data.numbers;
    this.klName = data.kl_name;
    this.row = data.rows[view.row];
    this.states = this.row.tokens.length;
    this.variant = Row.variant(data, view, view.functions);
    this.shift = this.variant.shift;
    this.links = new Map(this.variant.links);
    this.paid = number(this.variant.paid[view.row]);
    this.tracks = this.read(this.variant, view);
    this.library = view.functions === "yours" ? this.read(Row.variant(data, view, "library"), view) : this.tracks;
  }

  static variant(data, view, functions) {
    return data.variants.find((each) =>
      each.functions === functions && each.placement === view.placement && each.shift === view.shift);
  }

  read(variant, view) {
    const { row, states } = this;
    const places = [...Array(states).keys()];
    const late = variant.shift === "values" ? 1 : 0;
    const values = [...Array(late).fill(0), ...numbers(row.values)].slice(0, states);
    const tracks = {
      states: row.tokens,
      pad_mask: places.map((t) => Number(t < row.length)),
      values,
      actions: row.tokens.slice(1),
      action_mask: places.slice(1).map((t) => Number(t >= row.prompt && t < row.length)),
      log_probs: untrimmed(row.log_probs, states - 1),
      ref_log_probs: untrimmed(row.ref_log_probs, states - 1),
    };
    COMPUTED.forEach((name, i) => {
      tracks[name] = variant.error ? new Array(states - 1).fill(NaN) : untrimmed(variant.rows[view.row][i], states - 1);
    });
    return tracks;
  }

  has(name, t) {
    return t >= 0 && t < this.tracks[name].length;
  }

  at(name, t) {
    return this.has(name, t) ? this.tracks[name][t] : 0;
  }

  text(name, t) {
    const value = this.tracks[name][t];
    return TEXTS.includes(name) || name.endsWith("_mask") ? String(value) : show(value);
  }

  differs(name, t) {
    return !TEXTS.includes(name) && !agree(this.tracks[name][t], this.library[name][t]);
  }

  /** Whether the recursion goes on from choice t to the next one. */
  goesOn(t) {
    return this.at("recursion_mask", t) && this.at("recursion_mask", t + 1);
  }

  offset(name) {
    return this.links.get(name)[0][1];
  }

  /** The cells that this one is made from, those that are really read. */
  madeFrom(name, t) {
    const all = (this.links.get(name) || []).map(([source, places]) => [source, t + places]);
    return all.filter(([source, at]) => this.has(source, at) && this.isRead(name, t, source, at));
  }

  isRead(name, t, source, at) {
    if (!["td_errors", "advantages", "returns"].includes(name) || source === "recursion_mask") return true;
    if (!this.at("recursion_mask", t)) return false;
    return at === t || this.goesOn(t);
  }

  /** The cells that this one goes into. */
  goesInto(name, t) {
    const all = [...this.links].flatMap(([target, sources]) =>
      sources.filter(([source]) => source === name).map(([, places]) => [target, t - places]));
    return all.filter(([target, at]) => this.has(target, at) && this.isRead(target, at, name, t));
  }

  /** {symbols, numbers, result, note}: how a cell comes about. `result` is left out where nothing is computed. */
  explain(name, t) {
    return EXPLAIN[name](this, t);
  }
}

// --------------------------------------------------------------------------------------------------- what a cell means

const factor = (x) => (x < 0 ? `(${show(x)})` : show(x));
const minus = (x) => `− ${factor(x)}`;
const plus = (x) => `+ ${factor(x)}`;
const over = (next) => `${next} is not read: no choice follows that counts, so it counts as 0.`;

function placeOf(row, t) {
  if (t < row.prompt) return "in the prompt";
  if (t >= row.length) return "padding";
  return t === row.length - 1 && row.has_eos ? "the response's EOS" : "in the response";
}

const offMask = (name) => ({ note: `${name} is off the mask here: 0, whatever the formula's terms hold.`, result: 0 });

const EXPLAIN = {
  states: (r, t) => ({ note: `Token ${t}, ${placeOf(r.row, t)}. Having read it, the model chooses token ${t + 1}.` }),

  pad_mask: (r, t) => ({ symbols: `${t} < sequence length`, numbers: `${t} < ${r.row.length}`, result: Number(t < r.row.length) }),

  values(r, t) {
    const read = r.at("recursion_mask", t);
    const shifted = r.shift === "values" ? ` It is the value of state ${t - 1}: shifted on purpose.` : "";
    const use = read ? "what the critic expects from here on." : "said by the critic, but never read: nothing is chosen here that counts.";
    return { symbols: `critic(tokens[: ${t + 1 + r.offset("values")}])`, note: `In reward units: ${use}${shifted}` };
  },

  actions: (r, t) => ({
    symbols: `tokens[${t + 1}]`,
    note: `Chosen in state ${t}: the token at ${t + 1}, ${placeOf(r.row, t + 1)}.`,
  }),

  log_probs: (r, t) => ({
    symbols: `log π(tokens[${t + 1}] | tokens[: ${t + 1}])`,
    note: r.at("action_mask", t)
      ? `In nats: the policy gave this token a probability of ${show(Math.exp(r.at("log_probs", t)))}.` : "Nothing was chosen by the policy here.",
  }),

  ref_log_probs: (r, t) => ({
    symbols: `log π_ref(tokens[${t + 1}] | tokens[: ${t + 1}])`,
    note: r.at("action_mask", t)
      ? `In nats: the reference gives this token ${show(Math.exp(r.at("ref_log_probs", t)))}.` : "Nothing was chosen by the policy here.",
  }),

  kl(r, t) {
    const [log, ref] = [r.at("log_probs", t), r.at("ref_log_probs", t)];
    if (r.klName !== "kl_k1") return { symbols: `${r.klName}(log_probs[${t}], ref_log_probs[${t}])`, note: "In nats." };
    return { symbols: `log_probs[${t}] − ref_log_probs[${t}]`, numbers: `${show(log)} ${minus(ref)}`, result: log - ref, note: "In nats." };
  },

  reward_mask(r) {
    const later = r.variant.placement === "later" ? " In this variant one slot after it, where the row has room." : "";
    return { symbols: "the score is paid here", note: `1 at the last choice of the row.${later}` };
  },

  rewards(r, t) {
    const from = t + r.offset("rewards");
    if (!r.has("reward_mask", from)) return offMask("rewards");
    const chosen = r.at("action_mask", from);
    const [mask, kl, coef] = [r.at("reward_mask", from), chosen ? r.at("kl", from) : 0, r.settings.kl_coef];
    return {
      symbols: `score·reward_mask[${from}] − kl_coef·kl[${from}]`,
      numbers: `${factor(r.paid)}·${mask} − ${coef}·${factor(kl)}`,
      result: (mask ? r.paid : 0) - coef * kl,
      note: r.paid === number(r.row.score) ? "" : `The score ${show(number(r.row.score))} was replaced by ${show(r.paid)}: the text never ended.`,
    };
  },

  td_errors(r, t) {
    if (!r.at("recursion_mask", t)) return offMask("td_errors");
    const [reward, next, value, gamma] = [r.at("rewards", t), r.goesOn(t) ? r.at("values", t + 1) : 0, r.at("values", t), r.settings.gamma];
    return {
      symbols: `rewards[${t}] + gamma·values[${t + 1}] − values[${t}]`,
      numbers: `${show(reward)} + ${gamma}·${factor(next)} ${minus(value)}`,
      result: reward + gamma * next - value,
      note: r.goesOn(t) ? "" : over(`values[${t + 1}]`),
    };
  },

  advantages(r, t) {
    if (!r.at("recursion_mask", t)) return offMask("advantages");
    const [delta, next, { gamma, lam }] = [r.at("td_errors", t), r.goesOn(t) ? r.at("advantages", t + 1) : 0, r.settings];
    return {
      symbols: `td_errors[${t}] + gamma·lam·advantages[${t + 1}]`,
      numbers: `${show(delta)} + ${gamma}·${lam}·${factor(next)}`,
      result: delta + gamma * lam * next,
      note: r.goesOn(t) ? "" : over(`advantages[${t + 1}]`),
    };
  },

  returns(r, t) {
    if (!r.at("recursion_mask", t)) return offMask("returns");
    const [advantage, value] = [r.at("advantages", t), r.at("values", t)];
    return { symbols: `advantages[${t}] + values[${t}]`, numbers: `${show(advantage)} ${plus(value)}`, result: advantage + value, note: "What the critic should have said." };
  },

  recursion_mask: (r, t) => ({
    symbols: "GAE and the value loss count this place",
    note: r.at("recursion_mask", t) === r.at("action_mask", t) ? "As action_mask." : "Not as action_mask: see the switches.",
  }),

  action_mask: (r, t) => ({
    symbols: `prompt length ≤ ${t + 1} < sequence length`,
    numbers: `${r.row.prompt} ≤ ${t + 1} < ${r.row.length}`,
    result: Number(r.row.prompt <= t + 1 && t + 1 < r.row.length),
    note: "1 where the policy chose: the policy loss counts this place.",
  }),
};

// ------------------------------------------------------------------------------------------------------------ the page

class Microscope {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    this.grid = make("div", { class: "rlhf-scroll" });
    this.about = spoken("microscope-about");
    this.note = make("div", { class: "microscope-note" });
    this.controls = this.makeControls();
    root.append(
      make("h3", { text: "Alignment microscope" }),
      make("div", { class: "rlhf-controls" }, ...Object.values(this.controls).map(({ element }) => element)),
      this.note, this.grid, this.makeLegend(), this.about);
  }

  makeControls() {
    const set = (name) => (value) => this.change({ [name]: value });
    const { rows, has_yours: hasYours } = this.data();
    const names = rows.map((row, i) =>
      `row ${i}: prompt ${row.prompt}, response ${row.length - row.prompt}${row.has_eos ? "" : ", no EOS"}`);
    const controls = {
      row: dropdown({ label: `Row (of ${rows.length})`, options: names, onchange: set("row") }),
      placement: choice({ label: "The score is paid", options: PLACEMENTS, onchange: set("placement") }),
      shift: choice({ label: "Shift by one, wrong on purpose", options: SHIFTS, onchange: set("shift") }),
    };
    if (hasYours) controls.functions = choice({ label: "Functions", options: FUNCTIONS, onchange: set("functions") });
    controls.whole = toggle({ label: "whole row", onchange: set("whole") });
    return controls;
  }

  makeLegend() {
    const entry = (name, text) => make("span", {}, make("span", { class: `microscope-key ${name}` }), text);
    return make("p", { class: "microscope-legend rlhf-muted" },
      entry("here", "this cell"), entry("from", "made from"), entry("into", "goes into"),
      make("span", { text: "Point at a cell, or walk with the arrow keys; a click keeps it." }));
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    Object.entries(this.controls).forEach(([name, control]) => control.set(view[name]));
    const { row, functions, placement, shift, whole } = view;
    const shownNow = JSON.stringify([row, functions, placement, shift, whole]);
    if (data !== this.shownData || shownNow !== this.shown) {
      [this.shownData, this.shown] = [data, shownNow];
      this.row = new Row(data, view);
      this.drawNote();
      this.drawGrid(data.tracks, columnsOf(this.row.row, data.context, whole));
      this.cells.forEach((cell) => this.writeCell(cell));
    }
    this.light(view.cell);
  }

  drawNote() {
    const { row, paid, variant } = this.row;
    const ends = row.has_eos ? "" : `; it never ended, so ${show(paid)} is paid instead`;
    const score = `Score of the text: ${show(number(row.score))}${ends}.`;
    const line = (text, name) => (text ? make("p", { class: name, text }) : null);
    fill(this.note,
      line(variant.error ? "" : score, ""),
      line(variant.error ? `Your function failed: ${variant.error}` : "", "microscope-warning"),
      line(WRONG[variant.shift], "microscope-warning"),
      line(variant.placement === "later" ? LATER : "", ""));
  }

  /** Only where the columns are others than before: the cells are kept, and written anew. */
  drawGrid(tracks, columns) {
    const drawn = JSON.stringify([tracks, columns, this.row.states]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.cells = new Map();
    const head = (text) => make("th", { text, scope: "col" });
    const body = (kind, width) => make("tbody", {},
      make("tr", { class: "microscope-title" },
        make("th", { scope: "rowgroup", text: `${kind} indexing` }),
        make("td", { colspan: columns.length, text: `${width} cells: t = 0 … ${width - 1}` })),
      make("tr", {}, make("th", { scope: "row", text: "position" }),
        ...columns.map((t) => (isFold(t) ? head("⋯") : t < width ? head(t) : make("td", { class: "none" })))),
      ...tracks.filter(([, of]) => of === kind).map(([name]) => this.drawTrack(name, columns)));
    const table = make("table", { role: "grid", "aria-label": "states and actions of the row" },
      body("state", this.row.states), body("action", this.row.states - 1));
    walkable(table, tracks.map(([name]) => columns.map((t) => this.cells.get(`${name} ${t}`) || null)));
    this.listen(table);
    fill(this.grid, table);
  }

  drawTrack(name, columns) {
    const cells = columns.map((t) => {
      if (isFold(t)) return make("td", { class: "fold", text: "⋯", title: `positions ${t[0]} to ${t[1]} are folded` });
      if (!this.row.has(name, t)) return make("td", { class: "none", title: "nothing is chosen in the last state" });
      return this.drawCell(name, t);
    });
    return make("tr", {}, make("th", { scope: "row", text: name }), ...cells);
  }

  drawCell(name, t) {
    const cell = make("td", { class: TEXTS.includes(name) ? "rlhf-token" : "" });
    cell.place = [name, t];
    this.cells.set(`${name} ${t}`, cell);
    return cell;
  }

  writeCell(cell) {
    const [name, t] = cell.place;
    const text = this.row.text(name, t);
    const mine = this.row.differs(name, t);
    const written = mine ? `≠ ${text}` : text;
    if (cell.written === written) return;
    write(cell, written);
    cell.classList.toggle("differs", mine);
    cell.classList.toggle("off", name.endsWith("_mask") && text === "0");
    cell.setAttribute("aria-label", `${name}[${t}] is ${text}${mine ? `, the library has ${show(this.row.library[name][t])}` : ""}`);
    if (TEXTS.includes(name)) cell.title = text;
  }

  listen(table) {
    const placeOfEvent = (event) => event.target.closest("td")?.place;
    table.addEventListener("mouseover", (event) => { this.light(placeOfEvent(event) || this.view().cell); });
    table.addEventListener("mouseleave", () => { this.light(this.view().cell); });
    table.addEventListener("click", (event) => { if (placeOfEvent(event)) event.target.closest("td").focus(); });
    table.addEventListener("focusin", (event) => { if (placeOfEvent(event)) this.change({ cell: placeOfEvent(event) }); });
    table.addEventListener("keydown", (event) => { if (event.key === "Escape") this.change({ cell: null }); });
  }

  light(place) {
    (this.lit || []).forEach((cell) => cell.classList.remove("here", "from", "into"));
    this.lit = [];
    if (!place || !this.row.has(...place)) {
      fill(this.about, make("p", { class: "rlhf-muted", text: "No cell is pointed at." }));
      return;
    }
    const [from, into] = [this.row.madeFrom(...place), this.row.goesInto(...place)];
    this.mark([place], "here");
    this.mark(from, "from");
    this.mark(into, "into");
    this.describe(place, from, into);
  }

  mark(places, name) {
    for (const [track, t] of places) {
      const cell = this.cells.get(`${track} ${t}`);
      if (cell) {
        cell.classList.add(name);
        this.lit.push(cell);
      }
    }
  }

  describe([name, t], from, into) {
    const { symbols, numbers: filled, result, note } = this.row.explain(name, t);
    const value = this.row.tracks[name][t];
    const wrong = result !== undefined && !agree(result, value);
    const named = (places) => places.map(([track, at]) => `${track}[${at}]`).join(", ") || "nothing on this page";
    const line = (text, kind) => (text ? make("p", { class: kind, text }) : null);
    fill(this.about,
      make("p", {}, make("strong", { text: `${name}[${t}] = ${this.row.text(name, t)}` })),
      line(symbols && `= ${symbols}`, "microscope-formula"),
      line(filled && `= ${filled}${Number.isNaN(result) ? " = NaN" : ` = ${show(result, name.endsWith("_mask") ? 0 : 3)}`}`, "microscope-formula"),
      line(wrong ? `≠ The formula gives ${show(result)}, the function gave ${show(value)}.` : "", "microscope-warning"),
      line(note, ""),
      line(`Made from: ${named(from)}. Goes into: ${named(into)}.`, "rlhf-muted"));
  }
}

export default instrument("Alignment microscope", (parts) => {
  const microscope = new Microscope(parts);
  return () => microscope.refresh();
});
