// Lesson 01's instrument. The three ways of each statistic are computed here, since any cell of the mask can be toggled.
import { button, choice, fill, instrument, make, numbers, show, spoken, walkable, write } from "./base.js";

const EPS = 1e-8; // of whitening, inside the root
const [NAMES_EM, CELL_EM] = [6.5, 5];
const PADDING = [["given", "as given"], ["nan", "one NaN"], ["inf", "one ∞"], ["nines", "all 9"]];
const WAYS = [["plain", "plain: every cell"], ["multiplied", "multiplied: x·mask"], ["selected", "selected: where(mask, x, 0)"]];

// ---------------------------------------------------------------------------------------------------------- statistics

const sum = (list) => list.reduce((total, x) => total + x, 0);

/** How a way of masking reads the entries (`keep`) and what it divides by (`count`). */
function reader(way, mask) {
  if (way === "plain") return { keep: (list) => list, count: mask.length };
  const count = sum(mask);
  if (way === "multiplied") return { keep: (list) => list.map((x, i) => x * mask[i]), count };
  return { keep: (list) => list.map((x, i) => (mask[i] ? x : 0)), count };
}

/** Mean, variance, and every entry whitened, over all cells. */
function moments(x, mask, way) {
  const { keep, count } = reader(way, mask);
  const mean = sum(keep(x)) / count;
  const variance = sum(keep(x.map((entry) => (entry - mean) ** 2))) / count;
  const whitened = keep(x.map((entry) => (entry - mean) / Math.sqrt(variance + EPS)));
  return { mean, variance, whitened };
}

/** Softmax of one row. Multiplied: over all of it, the product afterwards, as it is often written. */
function softmax(x, mask, way) {
  const counted = way === "selected" ? x.filter((_, i) => mask[i]) : x;
  const top = Math.max(...counted);
  const raised = x.map((entry) => Math.exp(entry - top));
  const total = sum(way === "selected" ? raised.filter((_, i) => mask[i]) : raised);
  return reader(way, mask).keep(raised.map((entry) => entry / total));
}

/** The tensor with something else where the mask is 0: `first` is the place of the first such cell, or -1. */
function withPadding(x, mask, padding) {
  const first = mask.indexOf(0);
  const other = { nan: NaN, inf: Infinity, nines: 9 }[padding];
  if (other === undefined) return x;
  return x.map((entry, i) => (padding === "nines" ? (mask[i] ? entry : other) : i === first ? other : entry));
}

const bracketed = (x, counts) => (counts ? show(x) : `[${show(x)}]`);

// ------------------------------------------------------------------------------------------------------------ the page

class MaskExplorer {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    this.padding = choice({ label: "In the padding", options: PADDING, onchange: (padding) => change({ padding }) });
    this.reset = button("Reset the mask", () => change({ flipped: [] }));
    this.title = make("h3");
    this.fillRate = spoken("masks-fill");
    this.grid = make("div", { class: "rlhf-scroll masks-grid" });
    this.statistics = make("table", { class: "masks-statistics" });
    this.row = make("table", { class: "masks-row" });
    root.append(this.title,
      make("div", { class: "rlhf-controls" }, this.padding.element, this.reset), this.grid,
      make("p", { class: "rlhf-muted", text: "Click a cell, or walk with the arrow keys and press Space: it counts, or it does not (in brackets)." }),
      this.fillRate, this.statistics, make("div", { class: "rlhf-scroll" }, this.row));
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    if (data !== this.drawn) this.draw(data);
    this.padding.set(view.padding);
    this.reset.setAttribute("aria-disabled", view.flipped.length === 0);
    const mask = [...this.mask];
    view.flipped.forEach(([b, t]) => { mask[b * this.width + t] = 1 - mask[b * this.width + t]; });
    const x = withPadding(this.x, mask, view.padding);
    this.mark(x, mask);
    this.showStatistics(x, mask);
    this.showRow(x, mask, view.row);
  }

  draw(data) {
    this.drawn = data;
    this.x = numbers(data.x.flat());
    this.mask = data.mask.flat();
    this.width = data.x[0].length;
    this.title.textContent = `Mask explorer: ${data.name}`;
    const cells = data.x.map((row, b) => row.map((_, t) => this.drawCell(b, t)));
    const style = `table-layout:fixed;width:${NAMES_EM + this.width * CELL_EM}em`; // else each change lays out every cell
    const table = make("table", { style, role: "grid", "aria-label": `${data.name} and its mask`, "aria-multiselectable": "true" },
      make("tr", {}, make("th", { scope: "row", text: "position", style: `width:${NAMES_EM}em` }), ...cells[0].map((_, t) => make("th", { scope: "col", text: t }))),
      ...cells.map((row, b) => make("tr", {}, make("th", { scope: "row", text: data.row_names[b] }), ...row)));
    walkable(table, cells);
    this.cells = cells.flat();
    fill(this.grid, table);
    this.drawRow(data);
  }

  drawCell(b, t) {
    const flip = () => {
      const { flipped } = this.view();
      const others = flipped.filter(([row, column]) => row !== b || column !== t);
      this.change({ flipped: others.length < flipped.length ? others : [...flipped, [b, t]], row: b });
    };
    return make("td", {
      onclick: flip,
      onkeydown: (event) => {
        if (event.key !== " " && event.key !== "Enter") return;
        event.preventDefault();
        flip();
      },
      onfocus: () => { if (this.view().row !== b) this.change({ row: b }); },
    });
  }

  /** Only cells that have changed are touched: there may be thousands. */
  mark(x, mask) {
    this.cells.forEach((cell, i) => {
      if (Object.is(cell.x, x[i]) && cell.counts === mask[i]) return;
      [cell.x, cell.counts] = [x[i], mask[i]];
      write(cell, bracketed(x[i], mask[i]));
      cell.classList.toggle("off", !mask[i]);
      cell.setAttribute("aria-selected", mask[i] ? "true" : "false");
      cell.setAttribute("aria-label", `${show(x[i])}, ${mask[i] ? "counts" : "does not count"}`);
    });
  }

  showStatistics(x, mask) {
    const count = sum(mask);
    const all = Object.fromEntries(WAYS.map(([way]) => [way, moments(x, mask, way)]));
    this.moments = all;
    fill(this.fillRate, make("p", {}, make("strong", { text: `Fill rate: ${count} of ${mask.length} cells count, ${show(count / mask.length)}.` }),
      make("span", { text: count === 0 ? " Nothing counts, and a mean of nothing is NaN." : "" })));
    const line = (name, title) => make("tr", {}, make("th", { scope: "row", text: title }),
      ...WAYS.map(([way]) => make("td", { text: show(all[way][name]) })),
      make("td", { text: show(all.plain[name] / all.selected[name]) }));
    fill(this.statistics,
      make("caption", { text: "Over everything" }),
      make("tr", {}, make("td"), ...WAYS.map(([, title]) => make("th", { scope: "col", text: title })), make("th", { scope: "col", text: "plain ÷ selected" })),
      line("mean", "mean"), line("variance", "variance"));
  }

  /** The lines of the row in view: a title, a sum, and one cell for each place. */
  drawRow(data) {
    const titles = [data.name, "mask", ...["whitened", "softmax"].flatMap((name) => WAYS.map(([way]) => `${name}, ${way}`))];
    this.caption = make("caption");
    this.lines = titles.map(() => ({ total: make("td", { class: "masks-sum" }), cells: data.x[0].map(() => make("td")) }));
    fill(this.row, this.caption, ...this.lines.map(({ total, cells }, i) =>
      make("tr", {}, make("th", { scope: "row", text: titles[i] }), total, ...cells)));
  }

  showRow(x, mask, b) {
    const part = (list) => list.slice(b * this.width, (b + 1) * this.width);
    const [entries, counts] = [part(x), part(mask)];
    const results = [
      ...WAYS.map(([way]) => part(this.moments[way].whitened)),
      ...WAYS.map(([way]) => softmax(entries, counts, way)),
    ];
    const total = (list) => show(sum(list.filter((_, t) => counts[t])));
    const texts = [
      ["sum", entries.map((entry, t) => bracketed(entry, counts[t]))],
      ["", counts.map(String)],
      ...results.map((list) => [total(list), list.map((entry) => show(entry))]),
    ];
    write(this.caption, `${this.data().row_names[b]}, and the sum of what counts`);
    this.lines.forEach((line, i) => {
      write(line.total, texts[i][0]);
      line.cells.forEach((cell, t) => {
        write(cell, texts[i][1][t]);
        cell.classList.toggle("off", !counts[t]);
      });
    });
  }
}

export default instrument("Mask explorer", (parts) => {
  const explorer = new MaskExplorer(parts);
  return () => explorer.refresh();
});
