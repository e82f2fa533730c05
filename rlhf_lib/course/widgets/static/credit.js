// Lesson 03's instrument. The recursion is computed here, since every reward and value can be edited.
import { bar, button, dropdown, fill, instrument, make, numbers, show, slider, spoken } from "./base.js";

const STEP = 0.1; // of an arrow key in a field
const EDITABLE = ["rewards", "values"];

// ----------------------------------------------------------------------------------------------------------- the maths

/** TD errors, advantages and returns of a row's choices; after the last one everything is worth 0. */
function credit(rewards, values, gamma, lam) {
  const last = rewards.length - 1;
  const deltas = rewards.map((reward, t) => reward + (t < last ? gamma * values[t + 1] : 0) - values[t]);
  const advantages = [...deltas];
  for (let t = last - 1; t >= 0; t--) advantages[t] = deltas[t] + gamma * lam * advantages[t + 1];
  return { deltas, advantages, returns: advantages.map((advantage, t) => advantage + values[t]) };
}

function edited(list, edits) {
  const changed = [...list];
  edits.forEach(([place, x]) => { changed[place] = Number(x); });
  return changed;
}

/** What was typed as a number, NaN and infinity included; null if it is none. */
function parse(text) {
  const plain = text.trim().replace("−", "-").replace("∞", "Infinity");
  if (/^nan$/i.test(plain)) return NaN;
  return plain === "" || Number.isNaN(Number(plain)) ? null : Number(plain);
}

/** JSON has no NaN and no infinity. */
const travelling = (x) => (Number.isFinite(x) ? x : String(x));

// ------------------------------------------------------------------------------------------------------------ the page

class GaeExplorer {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    const names = data().rows.map((row, i) => `row ${i}: ${row.actions.length} choices`);
    this.row = dropdown({ label: `Row (of ${names.length})`, options: names, onchange: (row) => change({ row, rewards: [], values: [] }) });
    this.gamma = slider({ 
      label: "gamma", min: 0, max: 1, step: 0.01, marks: [[0, "only now"], [1, "no discount"]], oninput: (gamma) => change({ gamma }),
    });
    this.lam = slider({
      label: "lambda", min: 0, max: 1, step: 0.01, marks: [[0, "TD error"], [1, "Monte Carlo"]], oninput: (lam) => change({ lam }),
    });
    this.undo = button("Undo the edits", () => change({ rewards: [], values: [] }));
    this.about = spoken("credit-about");
    this.table = make("table");
    root.append(make("h3", { text: "GAE explorer" }),
      make("div", { class: "rlhf-controls" }, this.row.element, this.lam.element, this.gamma.element, this.undo),
      make("p", { class: "rlhf-muted", text: "Rewards and values can be edited: type a number, or press ↑ and ↓ in a field." }),
      make("div", { class: "rlhf-scroll credit-table" }, this.table), this.about);
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    if (data !== this.drawnData || view.row !== this.drawnRow) this.draw(data, view.row);
    this.row.set(view.row);
    this.gamma.set(view.gamma);
    this.lam.set(view.lam);
    this.undo.disabled = view.rewards.length + view.values.length === 0;
    const [rewards, values] = EDITABLE.map((name) => edited(this.given[name], view[name]));
    const now = credit(rewards, values, view.gamma, view.lam);
    const before = credit(this.given.rewards, this.given.values, view.gamma, view.lam);
    const monteCarlo = credit(rewards, values, view.gamma, 1);
    this.update({ ...now, rewards, values, monteCarlo: monteCarlo.advantages, before: before.advantages }, view);
    this.say(now, view);
  }

  draw(data, row) {
    [this.drawnData, this.drawnRow] = [data, row];
    const choices = data.rows[row];
    this.given = Object.fromEntries(EDITABLE.map((name) => [name, numbers(choices[name])]));
    this.lines = choices.actions.map((action, i) => this.drawLine(choices.places[i], action, i));
    this.heads = ["t", "action", "reward", "value", "TD error (λ = 0)", "advantage", "", "moved by", "Monte Carlo (λ = 1)", "return"]
      .map((text) => make("th", { scope: "col", text }));
    fill(this.table, make("caption", { text: `Row ${row}: credit for each choice` }), make("tr", {}, ...this.heads),
      ...this.lines.map(({ element }) => element));
  }

  drawLine(t, action, i) {
    const fields = Object.fromEntries(EDITABLE.map((name) => [name, this.drawField(name, t, i)]));
    const cells = Object.fromEntries(["deltas", "advantages", "bar", "moved", "monteCarlo", "returns"].map((name) => [name, make("td", { class: `credit-${name}` })]));
    const element = make("tr", {}, make("th", { scope: "row", text: t }), make("td", { class: "rlhf-token", text: action, title: action }),
      ...EDITABLE.map((name) => make("td", {}, fields[name])), ...Object.values(cells));
    return { element, fields, cells };
  }

  drawField(name, t, i) {
    const field = make("input", { type: "text", inputmode: "decimal", "aria-label": `${name}[${t}]`, size: 7 });
    const set = (x) => {
      field.typing = false;
      field.setAttribute("aria-invalid", x === null ? "true" : "false");
      if (x !== null) this.change({ [name]: [...this.view()[name].filter(([place]) => place !== i), [i, travelling(x)]] });
    };
    // only what was typed: the number that the field shows is rounded
    const take = () => { if (field.typing) set(parse(field.value)); };
    field.addEventListener("input", () => { field.typing = true; });
    field.addEventListener("change", take);
    field.addEventListener("keydown", (event) => {
      const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (event.key === "Enter") take();
      if (!direction) return;
      event.preventDefault();
      const x = parse(field.value);
      if (x !== null) set(Number((x + direction * STEP).toFixed(6)));
    });
    return field;
  }

  update(tracks, view) {
    this.heads[5].textContent = `advantage (λ = ${show(view.lam, 2)})`;
    const finite = [...tracks.advantages, ...tracks.deltas, ...tracks.monteCarlo].filter(Number.isFinite).map(Math.abs);
    const scale = Math.max(0, ...finite);
    const isEdited = (name, i) => view[name].some(([place]) => place === i);
    this.lines.forEach(({ fields, cells }, i) => {
      for (const name of EDITABLE) {
        fields[name].classList.toggle("edited", isEdited(name, i));
        if (fields[name].typing) continue; // whoever types goes on, whatever else changes
        fields[name].value = show(tracks[name][i]);
        fields[name].setAttribute("aria-invalid", "false");
      }
      ["deltas", "advantages", "monteCarlo", "returns"].forEach((name) => { cells[name].textContent = show(tracks[name][i]); });
      fill(cells.bar, bar(tracks.advantages[i], scale));
      const moved = tracks.advantages[i] - tracks.before[i];
      cells.moved.textContent = Object.is(tracks.advantages[i], tracks.before[i]) || moved === 0 ? "" : `${moved > 0 ? "▲ +" : "▼ "}${show(moved)}`;
    });
  }

  say({ advantages }, { lam, gamma }) {
    const ends = {
      0: "λ = 0: every advantage is its own TD error; credit reaches back one step, through the critic.",
      1: "λ = 1: Monte Carlo, every advantage is the discounted sum of the rewards to come, minus the value; the critic's later values cancel.",
    };
    const reach = `A TD error counts (γλ)^k = ${Number((gamma * lam).toFixed(4))}^k of itself for the choice k places before it.`;
    fill(this.about, make("p", { text: ends[lam] || reach }),
      make("p", { class: "rlhf-muted", text: `First choice: advantage ${show(advantages[0])}. After the last choice everything is worth 0.` }));
  }
}

export default instrument("GAE explorer", (parts) => {
  const explorer = new GaeExplorer(parts);
  return () => explorer.refresh();
});
