// Lesson 04's instrument. Both distributions and all sums over the vocabulary are computed here, from the logits.
import { bar, button, choice, dropdown, fill, instrument, make, number, numbers, show, slider, spoken, write } from "./base.js";

const SHOWN = 12; // the likeliest tokens; the others share a line
const ROUNDING = 1e-9; // of sums over the vocabulary: less is 0
const SAME = 0.005; // an estimator this close to the KL is called right
const ESTIMATORS = {
  k1: (logP, logQ) => logP - logQ,
  k2: (logP, logQ) => (logP - logQ) ** 2 / 2,
  k3: (logP, logQ) => Math.expm1(logQ - logP) - (logQ - logP),
};
const WAYS = [
  ["matched: drawn from what is scored", "scored", "scored"],
  ["drawn by the sampler, scored anew", "sampled", "scored"],
  ["drawn by the sampler, its own log-probs", "sampled", "sampled"],
];

// ----------------------------------------------------------------------------------------------------------- the maths

const sum = (list) => list.reduce((total, x) => total + x, 0);
const clean = (x) => (Math.abs(x) < ROUNDING ? 0 : x);

/** Log-probabilities, probabilities, and the running sum that tokens are drawn by. */
function distribution(logits) {
  const top = Math.max(...logits);
  const total = Math.log(sum(logits.map((x) => Math.exp(x - top))));
  const logs = logits.map((x) => x - top - total);
  const mass = logs.map(Math.exp);
  let running = 0;
  return { logs, mass, cdf: mass.map((x) => (running += x)) };
}

/** Which tokens are cut, and by what: top-k first, then top-p by what is left, as `generate` does. */
function cuts(logits, topK, topP) {
  const ascending = logits.map((_, v) => v).sort((a, b) => logits[a] - logits[b] || a - b);
  const least = logits[ascending[logits.length - topK]];
  const reasons = logits.map((x) => (x < least ? "cut by top-k" : ""));
  const { mass } = distribution(without(logits, reasons));
  let running = 0;
  ascending.slice(0, -1).forEach((v) => {
    running += mass[v];
    if (!reasons[v] && running <= 1 - topP) reasons[v] = "cut by top-p";
  });
  return reasons;
}

const without = (logits, reasons) => logits.map((x, v) => (reasons[v] ? -Infinity : x));

const weighted = (mass, term) => sum(mass.map((x, v) => (x === 0 ? 0 : x * term(v))));
const entropy = ({ mass, logs }) => -weighted(mass, (v) => logs[v]);
const divergence = (p, q) => weighted(p.mass, (v) => p.logs[v] - q.logs[v]);

/** The tokens that numbers in [0, 1) lead to: the first whose running sum exceeds them. */
function tokensOf({ cdf }, draws) {
  const last = cdf.length - 1;
  return draws.map((u) => {
    let [low, high] = [0, last];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (cdf[middle] > u * cdf[last]) high = middle;
      else low = middle + 1;
    }
    return low;
  });
}

/** What an estimator says: mean of the draws, and its exact mean and standard deviation. */
function estimate(k, from, said, reference, tokens) {
  const terms = said.logs.map((logP, v) => k(logP, reference.logs[v]));
  const expected = weighted(from.mass, (v) => terms[v]);
  const spread = Math.sqrt(weighted(from.mass, (v) => (terms[v] - expected) ** 2));
  return { drawn: sum(tokens.map((v) => terms[v])) / tokens.length, expected, spread };
}

/** What the three assertions before the first update would see, exactly, in this state. */
function stepZero({ scored, sampled }) {
  const drawable = sampled.mass.map((x, v) => (x > 0 ? sampled.logs[v] - scored.logs[v] : 0));
  const gap = Math.max(...drawable.map(Math.abs));
  const ratio = Math.max(...drawable.map((x) => Math.abs(Math.exp(-x) - 1)));
  return [
    ["the sampler's log-probs serve as old", divergence(sampled, scored), entropy(sampled) - entropy(scored), ratio, null],
    ["a forward pass gives the old ones", 0, 0, 0, gap],
  ].map(([title, ...found]) => [title, ...found.map((x) => (x === null ? null : clean(x)))]);
}

// ------------------------------------------------------------------------------------------------------------ the page

const cells = (names) => Object.fromEntries(names.map((name) => [name, make("td", { class: `kl-${name}` })]));
const heads = (...texts) => make("tr", {}, ...texts.map((text) => make("th", { scope: "col", text })));
const share = (kind) => make("span", { class: `kl-share kl-${kind}`, "aria-hidden": "true" }, make("span"));

class KlExplorer {
  constructor({ root, data, view, change }) {
    Object.assign(this, { data, view, change });
    this.state = dropdown({ label: "State: the policy has read …", options: data().states, onchange: (state) => change({ state }) });
    this.draws = choice({ label: "Draws", options: [10, 100, 1000].map((n) => [n, String(n)]), onchange: (n) => change({ draws: n }) });
    this.match = button("Make the sampler match", () => change({ temperature: view().score_temperature, top_p: 1, top_k: data().tokens.length }));
    this.sliders = this.makeSliders(data().tokens.length);
    this.about = spoken("kl-about");
    this.tokens = make("table", { class: "kl-tokens" });
    this.summary = make("table", { class: "kl-summary" });
    this.stepZero = make("table", { class: "kl-step-zero" });
    this.estimates = make("table", { class: "kl-estimates" });
    this.matrix = make("div", { class: "rlhf-scroll" });
    root.append(make("h3", { text: "KL explorer" }),
      make("div", { class: "rlhf-controls" }, this.state.element, this.draws.element, this.match),
      make("div", { class: "kl-controls" }, ...Object.values(this.sliders).map(({ element }) => element)), this.about,
      make("div", { class: "rlhf-scroll kl-pair" }, this.tokens, this.summary),
      make("div", { class: "rlhf-scroll" }, this.stepZero), make("div", { class: "rlhf-scroll" }, this.estimates), this.matrix);
  }

  makeSliders(width) {
    const set = (name) => (x) => this.change({ [name]: x });
    const temperature = { min: 0.1, max: 2, step: 0.05 };
    return {
      temperature: slider({ label: "sampler: temperature", ...temperature, oninput: set("temperature") }),
      top_k: slider({ label: "sampler: top-k", min: 1, max: width, step: 1, digits: 0, marks: [[1, "greedy"], [width, "off"]], oninput: set("top_k") }),
      top_p: slider({ label: "sampler: top-p", min: 0.01, max: 1, step: 0.01, marks: [[0.01, "greedy"], [1, "off"]], oninput: set("top_p") }),
      score_temperature: slider({ label: "scored: temperature", ...temperature, oninput: set("score_temperature") }),
    };
  }

  refresh() {
    const [data, view] = [this.data(), this.view()];
    if (data !== this.drawn) this.drawFor(data);
    this.state.set(view.state);
    this.draws.set(view.draws);
    Object.entries(this.sliders).forEach(([name, control]) => control.set(view[name]));
    const now = this.compute(view);
    this.match.disabled = clean(divergence(now.sampled, now.scored)) === 0 && now.kept === data.tokens.length;
    this.showTokens(now, data);
    this.showSummary(now);
    this.showStepZero(now);
    this.showEstimates(now, view);
  }

  compute(view) {
    const logits = this.logits[view.state];
    const reference = (this.reference.length ? this.reference : this.logits)[view.state];
    const reasons = cuts(logits.map((x) => x / view.temperature), view.top_k, view.top_p);
    return {
      reasons,
      logits,
      kept: reasons.filter((reason) => !reason).length,
      sampled: distribution(without(logits.map((x) => x / view.temperature), reasons)),
      scored: distribution(logits.map((x) => x / view.score_temperature)),
      reference: distribution(reference.map((x) => x / view.score_temperature)),
    };
  }

  drawFor(data) {
    this.drawn = data;
    this.logits = data.logits.map(numbers);
    this.reference = data.reference.map(numbers);
    this.uniforms = data.uniforms.map(number);
    this.lines = Array.from({ length: Math.min(SHOWN, data.tokens.length) + (data.tokens.length > SHOWN ? 1 : 0) }, () => this.drawToken());
    fill(this.tokens, this.caption = make("caption"), heads("token", "scored", "", "sampled", "", "log sampled − log scored"),
      ...this.lines.map(({ element }) => element));
    this.drawEstimates();
    const [head, ...rows] = data.matrix;
    fill(this.matrix, rows.length ? make("table", { class: "kl-matrix" }, make("caption", { text: "Every cause, measured" }), heads(...head),
      ...rows.map(([first, ...texts]) => make("tr", {}, make("th", { scope: "row", text: first }), ...texts.map((text) => make("td", { text }))))) : null);
  }

  drawToken() {
    const name = make("th", { scope: "row", class: "rlhf-token" });
    const bars = { scored: share("scored"), sampled: share("sampled") };
    const line = cells(["p", "s", "difference"]);
    const element = make("tr", {}, name, line.p, make("td", {}, bars.scored), line.s, make("td", {}, bars.sampled), line.difference);
    return { element, name, bars, ...line };
  }

  showTokens({ logits, reasons, sampled, scored, kept }, data) {
    write(this.caption, `The ${Math.min(SHOWN, logits.length)} likeliest of ${logits.length} tokens`);
    const order = logits.map((_, v) => v).sort((a, b) => logits[b] - logits[a] || a - b);
    const widest = Math.max(...scored.mass, ...sampled.mass);
    this.lines.forEach((line, i) => {
      const members = i < SHOWN ? [order[i]] : order.slice(SHOWN);
      const [p, s] = [scored, sampled].map(({ mass }) => clean(sum(members.map((v) => mass[v]))));
      const cut = members.filter((v) => reasons[v]).length;
      write(line.name, i < SHOWN ? data.tokens[order[i]] : `${members.length} others`);
      write(line.p, show(p));
      write(line.s, show(s));
      line.bars.scored.firstChild.style.width = `${(100 * p) / widest}%`;
      line.bars.sampled.firstChild.style.width = `${(100 * s) / widest}%`;
      line.bars.sampled.firstChild.style.visibility = s > 0 ? "" : "hidden";
      line.element.classList.toggle("cut", cut === members.length);
      const difference = clean(sampled.logs[order[i]] - scored.logs[order[i]]);
      write(line.difference, i >= SHOWN ? `✂ ${cut} of ${members.length} cut` : cut ? `✂ ${reasons[order[i]]}` : `${difference > 0 ? "+" : ""}${show(difference)}`);
    });
    const missing = logits.length - kept;
    const mass = clean(1 - sum(scored.mass.filter((_, v) => !reasons[v])));
    write(this.about, missing
      ? `✂ The sampler can draw ${kept} of ${logits.length} tokens. What it never draws has ${show(mass)} of the scored probability, which makes KL(scored || sampled) infinite.`
      : `The sampler can draw all ${logits.length} tokens.`);
  }

  showSummary({ reasons, kept, sampled, scored }) {
    const line = (title, ...values) => make("tr", {}, make("th", { scope: "row", text: title }), ...values.map((text) => make("td", { text })));
    const nats = (x) => show(clean(x));
    fill(this.summary, make("caption", { text: "Two distributions" }), heads("", "scored", "sampled"),
      line("tokens it can draw", reasons.length, kept),
      line("entropy, nats", nats(entropy(scored)), nats(entropy(sampled))),
      line("KL(this || other), nats", nats(divergence(scored, sampled)), nats(divergence(sampled, scored))));
  }

  showStepZero(now) {
    const verdict = (x) => (x === null ? "–" : x === 0 ? "✓ 0" : `✗ ${show(x)}`);
    fill(this.stepZero, make("caption", { text: "Step 0: policy and reference have the same weights" }),
      heads("", "KL, nats", "entropy error", "max |ratio − 1|", "sampler gap"),
      ...stepZero(now).map(([title, ...found]) => make("tr", {}, make("th", { scope: "row", text: title }),
        ...found.map((x) => make("td", { text: verdict(x) })))));
  }

  drawEstimates() {
    this.truth = make("caption");
    this.drawnHead = make("th", { scope: "col" });
    this.ways = WAYS.map(([title]) => Object.keys(ESTIMATORS).map((name, i) => {
      const line = cells(["drawn", "expected", "spread", "bar", "verdict"]);
      line.amount = bar();
      line.bar.append(line.amount.element);
      const head = i === 0 ? make("th", { scope: "rowgroup", rowspan: 3, text: title }) : null;
      line.element = make("tr", { class: i === 0 ? "first" : "" }, ...[head].filter(Boolean), make("th", { scope: "row", text: name }),
        line.drawn, line.expected, line.spread, line.bar, line.verdict);
      return line;
    }));
    const head = make("tr", {}, make("td"), make("td"), this.drawnHead,
      ...["expected", "spread of one draw", "", "on average"].map((text) => make("th", { scope: "col", text })));
    fill(this.estimates, this.truth, head, ...this.ways.flat().map(({ element }) => element));
  }

  showEstimates(now, view) {
    const truth = clean(divergence(now.scored, now.reference));
    const uniforms = this.uniforms.slice(0, view.draws);
    const found = WAYS.map(([, from, said]) => {
      const tokens = tokensOf(now[from], uniforms);
      return Object.values(ESTIMATORS).map((k) => estimate(k, now[from], now[said], now.reference, tokens));
    });
    const scale = Math.max(...[...found.flat().map(({ expected }) => expected), truth].filter(Number.isFinite).map(Math.abs));
    write(this.truth, `Estimates of KL(policy || reference), both as scored, which is ${show(truth)} nats`);
    write(this.drawnHead, `mean of ${view.draws} draws`);
    this.ways.flat().forEach((line, i) => {
      const { drawn, expected, spread } = found.flat()[i];
      write(line.drawn, show(clean(drawn)));
      write(line.expected, show(clean(expected)));
      write(line.spread, show(clean(spread)));
      line.amount.set(clean(expected), scale);
      write(line.verdict, verdictOn(clean(expected), truth));
    });
  }
}

function verdictOn(expected, truth) {
  if (expected === truth || Math.abs(expected / truth - 1) < SAME) return "✓ right";
  return truth === 0 || !Number.isFinite(expected / truth) ? "✗ wrong" : `✗ ${show(expected / truth, 2)} times the KL`;
}

export default instrument("KL explorer", (parts) => {
  const explorer = new KlExplorer(parts);
  return () => explorer.refresh();
});
