// What all instruments share. An instrument's own file imports from here; Python joins the two into one module, since
// a widget's module cannot import its neighbours. Nothing is fetched, and text reaches the page as text only.

/** A number of the state: NaN and the infinities travel as strings. */
export const number = (x) => (typeof x === "string" ? Number(x) : x);

export const numbers = (list) => list.map(number);

/** A number as the page shows it; `show` in plain.py writes the same. */
export function show(x, digits = 3) {
  if (Number.isNaN(x)) return "NaN";
  if (x === 0) return "0";
  const sign = x < 0 ? "−" : "";
  const size = Math.abs(x);
  if (size === Infinity) return `${sign}∞`;
  if (size < 10 ** -digits) return sign + size.toExponential(0);
  return sign + (size >= 1e6 ? size.toExponential(1) : size.toFixed(digits));
}

/** An element. `text` is set as text; other properties are attributes, `on...` are listeners; null is left out. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An element of a picture; all properties are attributes. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Words in a picture. */
export const words = (className, x, y, text, anchor = "middle") =>
  draw("text", { class: className, x, y, "text-anchor": anchor }, String(text));

/** The path of a line through the finite numbers, broken where one is not; `x` and `y` are places in the picture. */
export function polyline(list, { x, y }) {
  let pen = "M";
  return list.map((value, i) => {
    if (!Number.isFinite(value)) { pen = "M"; return ""; }
    const step = `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

/** Another text, if it is another: a table that did not change need not be laid out again. */
export function write(element, text) {
  if (element.written === text) return;
  element.written = text;
  element.textContent = text;
}

/** Fills `element` with other children. */
export const fill = (element, ...children) => element.replaceChildren(...children.filter((child) => child !== null));

// ------------------------------------------------------------------------------------------------------- the controls
// Native form controls: keyboard, focus and screen readers come with them. Each is {element, set(value)}.

let made = 0;
const unique = (stem) => `rlhf-${stem}-${made++}-${Math.random().toString(36).slice(2)}`;

/** One of a few: radio buttons. `options` are [value, text]. */
export function choice({ label, options, onchange }) {
  const name = unique("choice");
  const inputs = options.map(([value]) =>
    make("input", { type: "radio", name, value, onchange: () => onchange(value) }));
  const labels = options.map(([, text], i) => make("label", {}, inputs[i], make("span", { text })));
  const element = make("fieldset", { class: "rlhf-choice" }, make("legend", { text: label }), ...labels);
  return { element, set: (value) => inputs.forEach((input) => { input.checked = input.value === String(value); }) };
}

/** Yes or no: a check box. */
export function toggle({ label, onchange }) {
  const input = make("input", { type: "checkbox", onchange: () => onchange(input.checked) });
  return {
    element: make("label", { class: "rlhf-toggle" }, input, make("span", { text: label })),
    set: (value) => { input.checked = value; },
  };
}

/** One of many: a drop-down list. `options` are texts, the value is their place. */
export function dropdown({ label, options, onchange }) {
  const select = make("select", { onchange: () => onchange(select.selectedIndex) },
    ...options.map((text) => make("option", { text })));
  return {
    element: make("label", { class: "rlhf-dropdown" }, make("span", { text: label }), select),
    set: (value) => { select.selectedIndex = value; },
  };
}

/** A number on a line. `marks` are [value, text], named under the line. */
export function slider({ label, min, max, step, digits = 2, marks = [], oninput }) {
  const output = make("output");
  const input = make("input", { type: "range", min, max, step, oninput: () => { tell(+input.value); oninput(+input.value); } });
  function tell(value) {
    output.textContent = show(value, digits);
    const mark = marks.find(([at]) => at === value);
    input.setAttribute("aria-valuetext", mark ? `${show(value, digits)}, ${mark[1]}` : show(value, digits));
  }
  const named = marks.map(([at, text]) => make("span", { text, class: at === min ? "first" : at === max ? "last" : "" }));
  const line = make("span", { class: "rlhf-line" }, input, make("span", { class: "rlhf-marks", "aria-hidden": "true" }, ...named));
  return {
    element: make("label", { class: "rlhf-slider" }, make("span", { text: label }), line, output),
    set: (value) => { input.value = value; tell(value); },
  };
}

/** `aria-disabled`, set by whoever has nothing for it to do, keeps it in reach: a disabled button would drop the focus. */
export const button = (text, onclick) => make("button", { type: "button", class: "rlhf-button", text, onclick });

/** A line that screen readers read out when it changes. */
export const spoken = (name) => make("div", { class: name, role: "status", "aria-live": "polite" });

// ----------------------------------------------------------------------------------------------------------- the grids

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** The cell that a key leads to from `cell` in a grid of rows of cells, where some places may be empty (null). */
function neighbour(cells, cell, key, ctrl) {
  const row = cells.findIndex((line) => line.includes(cell));
  const filled = cells[row].filter(Boolean);
  if (key === "Home") return ctrl ? cells[0].find(Boolean) : filled[0];
  if (key === "End") return ctrl ? cells[cells.length - 1].filter(Boolean).pop() : filled[filled.length - 1];
  const [down, right] = STEPS[key];
  const column = cells[row].indexOf(cell);
  for (let r = row + down, c = column + right; cells[r] && c >= 0 && c < cells[r].length; r += down, c += right) {
    if (cells[r][c]) return cells[r][c];
  }
  return cell;
}

/** Arrow keys, Home and End walk over the cells; Tab enters at the last one visited and leaves again. */
export function walkable(grid, cells) {
  const all = new Set(cells.flat().filter(Boolean));
  let [current] = all;
  all.forEach((cell) => { cell.tabIndex = cell === current ? 0 : -1; });
  grid.addEventListener("keydown", (event) => {
    if (!all.has(event.target) || !(event.key in STEPS || event.key === "Home" || event.key === "End")) return;
    event.preventDefault();
    neighbour(cells, event.target, event.key, event.ctrlKey).focus();
  });
  grid.addEventListener("focusin", (event) => {
    if (!all.has(event.target)) return;
    current.tabIndex = -1;
    current = event.target;
    current.tabIndex = 0;
  });
}

/** A bar from zero on a scale of ±`scale`: its length says the size, its side and its hatching the sign. */
export function bar() {
  const inner = make("span");
  return {
    element: make("span", { class: "rlhf-bar", "aria-hidden": "true" }, inner),
    set(value, scale) {
      const share = scale > 0 && Number.isFinite(value) ? Math.min(1, Math.abs(value) / scale) * 50 : 0;
      inner.className = value < 0 ? "less" : "more";
      inner.style.cssText = `width:${share}%;${value < 0 ? "right" : "left"}:50%`;
    },
  };
}

// ------------------------------------------------------------------------------------------------------ the instrument

/** Else JupyterLab takes the arrow keys, and "d d" deletes the cell. It looks for this on the very element in focus. */
const keepKeys = (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true");

/**
 * An anywidget module. `build({root, data, view, change})` puts the instrument into `root` and returns the function that
 * brings it up to date. `data()` and `view()` are the state, `change({...})` sets some of `view`, here and in Python.
 */
export function instrument(title, build) {
  return {
    render({ model, el }) {
      const root = make("section", { class: "rlhf", "aria-label": title, onfocusin: keepKeys });
      root.state = () => ({ data: model.get("data"), view: model.get("view") }); // to look at from the browser's console
      el.append(root);
      const change = (part) => {
        model.set("view", { ...model.get("view"), ...part });
        model.save_changes();
      };
      const refresh = build({ root, data: () => model.get("data"), view: () => model.get("view"), change });
      const events = ["change:data", "change:view"];
      events.forEach((event) => model.on(event, refresh));
      refresh();
      return () => events.forEach((event) => model.off(event, refresh));
    },
  };
}
