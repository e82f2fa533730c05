// Lesson 09's instrument. Every number of the three formats is a JavaScript number, so all of this is exact.
import { button, choice, dropdown, fill, instrument, make, number, spoken, walkable, write } from "./base.js";

const OWN = "your own bits";
const [LEAST, MOST] = [-4, 8]; // powers of ten that are written out
const PARTS = [["sign", "s"], ["exponent", "e"], ["fraction", "f"]];

// ----------------------------------------------------------------------------------------------------------- the maths

const bias = ({ exponent }) => 2 ** (exponent - 1) - 1;
const largest = (format) => (2 - 2 ** -format.fraction) * 2 ** bias(format);
const smallestNormal = (format) => 2 ** (1 - bias(format));

/** The power of two of a positive number, from its bits. */
function powerOf(x) {
  const bytes = new DataView(new ArrayBuffer(8));
  bytes.setFloat64(0, x);
  return ((bytes.getUint32(0) >>> 20) & 2047) - 1023;
}

function toEven(x) {
  const below = Math.floor(x);
  return x - below > 0.5 || (x - below === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/** Sign, and the other bits as a whole number: neighbouring numbers have neighbouring ones. */
function encode(value, format) {
  const { exponent, fraction } = format;
  const infinite = (2 ** exponent - 1) * 2 ** fraction;
  const sign = value < 0 || Object.is(value, -0) ? 1 : 0;
  if (Number.isNaN(value)) return { sign: 0, place: infinite + 2 ** (fraction - 1) };
  const size = Math.abs(value);
  if (size === 0) return { sign, place: 0 };
  const power = Math.max(powerOf(size), 1 - bias(format));
  const steps = toEven(size / 2 ** (power - fraction)); // 2 ** fraction of them are a 1 before the point
  return { sign, place: Math.min((power + bias(format) - 1) * 2 ** fraction + steps, infinite) };
}

function decode({ sign, place }, format) {
  const { exponent, fraction } = format;
  const [field, rest] = [Math.floor(place / 2 ** fraction), place % 2 ** fraction];
  const plus = sign ? -1 : 1;
  if (field === 2 ** exponent - 1) return rest ? NaN : plus * Infinity;
  return plus * (field === 0 ? rest : rest + 2 ** fraction) * 2 ** (Math.max(field, 1) - bias(format) - fraction);
}

const toPattern = ({ sign, place }, { exponent, fraction }) => sign + place.toString(2).padStart(exponent + fraction, "0");
const fromPattern = (pattern) => ({ sign: Number(pattern[0]), place: parseInt(pattern.slice(1), 2) });

/** The next number up (1) or down (-1), or null where there is none. */
function nextTo(value, format, direction) {
  const { sign, place } = encode(value, format);
  const along = (sign ? -place : place) + direction;
  const ends = (2 ** format.exponent - 1) * 2 ** format.fraction;
  if (Number.isNaN(value) || Math.abs(along) > ends) return null;
  return decode({ sign: along < 0 ? 1 : 0, place: Math.abs(along) }, format);
}

function stateOf(value, found, format) {
  if (Number.isNaN(found)) return "not a number";
  if (Math.abs(found) === Infinity) return Math.abs(value) === Infinity ? "infinity" : "overflow";
  if (found === 0) return value === 0 ? "zero" : "rounds to 0";
  return Math.abs(found) < smallestNormal(format) ? "subnormal" : "normal";
}

/** Nine significant digits, as `digits` in floats.py writes them. */
function figures(x) {
  if (x === 0) return "0";
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "∞" : "−∞";
  const [mantissa, power] = Math.abs(x).toExponential(8).split("e");
  const text = mantissa.replace(".", "").replace(/0+$/, "");
  const size = Number(power);
  const sign = x < 0 ? "−" : "";
  if (size < LEAST || size > MOST) return `${sign}${text[0]}${text.length > 1 ? "." : ""}${text.slice(1)}e${String(size).replace("-", "−")}`;
  if (size < 0) return `${sign}0.${"0".repeat(-size - 1)}${text}`;
  const whole = text.padEnd(size + 1, "0");
  return sign + whole.slice(0, size + 1) + (whole.length > size + 1 ? `.${whole.slice(size + 1)}` : "");
}

// ------------------------------------------------------------------------------------------------------------ the page

class FloatBits {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    const { formats, values } = data();
    this.formats = formats.map(([name, exponent, fraction]) => ({ name, exponent, fraction }));
    this.values = dropdown({ label: "number", options: [...values.map(([name]) => name), OWN], onchange: (place) => this.choose(place) });
    this.format = choice({ label: "format of the bits", options: formats.map(([name]) => [name, name]), onchange: (name) => change({ format: name, pattern: "" }) });
    this.buttons = {
      down: button("next smaller", () => this.set(nextTo(this.found(), this.current(), -1))),
      up: button("next larger", () => this.set(nextTo(this.found(), this.current(), 1))),
      half: button("÷ 2", () => this.set(this.found() / 2)),
      twice: button("× 2", () => this.set(this.found() * 2)),
    };
    this.grid = make("div", { class: "rlhf-scroll" });
    this.formula = make("p", { class: "floats-formula" });
    this.about = spoken("floats-about");
    this.table = make("table", { class: "floats-formats" });
    root.append(make("h3", { text: "Float bits" }),
      make("div", { class: "rlhf-controls" }, this.values.element, this.format.element, make("div", { class: "floats-buttons" }, ...Object.values(this.buttons))),
      this.grid, make("p", { class: "rlhf-muted", text: "Click a bit, or walk with the arrow keys and press Space: it flips." }),
      this.formula, this.about, make("div", { class: "rlhf-scroll" }, this.table));
  }

  current() {
    return this.formats.find(({ name }) => name === this.view().format);
  }

  code() {
    const { pattern, value } = this.view();
    return pattern ? fromPattern(pattern) : encode(number(value), this.current());
  }

  /** What the bits say. */
  found() {
    return decode(this.code(), this.current());
  }

  choose(place) {
    const entry = this.data().values[place];
    if (entry) this.change({ chosen: place, value: entry[1], pattern: "" });
    else this.set(this.found());
  }

  /** Another number. What a number cannot say of its bits, the pattern does. */
  set(value, pattern = "") {
    if (value === null) return;
    this.change({ chosen: this.data().values.length, value: Number.isFinite(value) ? value : String(value), pattern });
  }

  flip(place) {
    const bits = toPattern(this.code(), this.current());
    const flipped = bits.slice(0, place) + (bits[place] === "1" ? "0" : "1") + bits.slice(place + 1);
    const value = decode(fromPattern(flipped), this.current());
    this.set(value, Number.isNaN(value) || Object.is(value, -0) ? flipped : "");
  }

  refresh() {
    const [view, format] = [this.view(), this.current()];
    if (format !== this.drawn) this.drawBits(format);
    this.values.set(view.chosen);
    this.format.set(view.format);
    const [code, found] = [this.code(), this.found()];
    const bits = toPattern(code, format);
    this.cells.forEach((cell, place) => {
      write(cell, bits[place]);
      cell.classList.toggle("one", bits[place] === "1");
      cell.setAttribute("aria-label", `${cell.says}: ${bits[place]}`);
    });
    this.buttons.down.setAttribute("aria-disabled", nextTo(found, format, -1) === null);
    this.buttons.up.setAttribute("aria-disabled", nextTo(found, format, 1) === null);
    write(this.formula, this.spelled(code, format));
    write(this.about, this.sentence(number(view.value), found, format));
    this.fillTable(number(view.value));
  }

  drawBits(format) {
    this.drawn = format;
    const counts = [1, format.exponent, format.fraction];
    const heads = PARTS.map(([name], part) => make("th", { scope: "colgroup", colspan: counts[part], class: `floats-${name}`, text: counts[part] > 3 ? `${name}, ${counts[part]} bits` : name }));
    this.cells = PARTS.flatMap(([name, letter], part) => Array.from({ length: counts[part] }, (_, i) => {
      const place = counts.slice(0, part).reduce((a, b) => a + b, 0) + i;
      const cell = make("td", {
        class: `floats-bit floats-${name}${i === 0 ? " first" : ""}`, title: `${letter}${i}`, onclick: () => this.flip(place),
        onkeydown: (event) => {
          if (event.key !== " " && event.key !== "Enter") return;
          event.preventDefault();
          this.flip(place);
        },
      });
      cell.says = counts[part] === 1 ? name : `${name}, bit ${i + 1} of ${counts[part]}`;
      return cell;
    }));
    const table = make("table", { role: "grid", class: "floats-bits", "aria-label": `the bits of ${format.name}` }, make("tr", {}, ...heads), make("tr", {}, ...this.cells));
    walkable(table, [this.cells]);
    fill(this.grid, table);
  }

  /** The number as its bits are read. */
  spelled({ sign, place }, format) {
    const [field, rest] = [Math.floor(place / 2 ** format.fraction), place % 2 ** format.fraction];
    const whole = 2 ** format.fraction;
    if (field === 2 ** format.exponent - 1) return `exponent all ones, fraction ${rest ? "not 0: NaN" : "0: infinity"}`;
    const power = String(Math.max(field, 1) - bias(format)).replace("-", "−");
    const read = field === 0 ? `subnormal: (0 + ${rest}/${whole})` : `(1 + ${rest}/${whole})`;
    return `${sign ? "−" : "+"} ${read} × 2^(${Math.max(field, 1)} − ${bias(format)}) = ${sign ? "−" : ""}${read.replace("subnormal: ", "")} × 2^${power}`;
  }

  sentence(value, found, format) {
    const state = stateOf(value, found, format);
    const [below, above] = [-1, 1].map((direction) => nextTo(found, format, direction));
    const between = below === null || above === null ? "" : ` Its neighbours are ${figures(below)} and ${figures(above)}.`;
    if (state === "overflow") return `Overflow: ${figures(value)} lies beyond ${format.name}'s largest number, ${figures(largest(format))}. It is stored as ${figures(found)}.`;
    if (state === "rounds to 0") return `Underflow: ${figures(value)} is stored as 0; the smallest number above it is ${figures(above)}.`;
    const rounded = found === value || Number.isNaN(found) ? "" : `${figures(value)} is rounded. `;
    return `${rounded}The bits say ${figures(found)} (${state}).${between}`;
  }

  fillTable(value) {
    const found = this.formats.map((format) => decode(encode(value, format), format));
    const column = (line) => this.formats.map((format, i) => line(found[i], format));
    const error = (x) => (Number.isFinite(x) && value !== 0 ? figures(Math.abs(x - value) / Math.abs(value)) : "none");
    const step = (x, format) => {
      const above = nextTo(Math.abs(x), format, 1);
      return Number.isFinite(above) && above !== null ? figures(above - Math.abs(x)) : "none";
    };
    const rows = [["stored as", column((x) => figures(x))], ["which is", column((x, format) => stateOf(value, x, format))], ["relative error", column(error)],
      ["step to the next", column(step)], ["largest number", column((_, format) => figures(largest(format)))],
      ["smallest normal", column((_, format) => figures(smallestNormal(format)))]];
    fill(this.table, make("caption", { text: `${figures(value)} in each format` }),
      make("tr", {}, make("td"), ...this.formats.map(({ name }) => make("th", { scope: "col", text: name }))),
      ...rows.map(([title, texts]) => make("tr", {}, make("th", { scope: "row", text: title }),
        ...texts.map((text) => make("td", { text, class: ["overflow", "rounds to 0", "subnormal"].includes(text) ? "floats-lost" : null })))));
  }
}

export default instrument("Float bits", (parts) => {
  const bits = new FloatBits(parts);
  return () => bits.refresh();
});
