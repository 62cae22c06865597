/* Recorded steps under a change: what is asked for by sliders, what comes of it beneath. One question at a time. */
const SETTLE_MS = 150, STRIP = 14;
const BOXES = { graph: "full", async: "true" };

class WhatIf {
  constructor(article, data) {
    this.section = article.querySelector("[data-whatif]");
    if (!this.section) return;
    const find = (name) => this.section.querySelector(name);
    [this.form, this.words, this.answers, this.beyond] = ["form", "words", "answers", "beyond"].map((name) => find(`[data-whatif-${name}]`));
    [this.host, this.kernels] = ["host", "kernels"].map((name) => this.form.elements[name]);
    this.classes = [...this.form.querySelectorAll("details input")];
    this.sliders = [this.host, this.kernels, ...this.classes];
    this.blocks = new Map();
    this.form.addEventListener("input", (event) => this.change(event.target));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    find("[data-whatif-reset]").addEventListener("click", () => this.reset());
    find("[data-whatif-newest]")?.addEventListener("click", () => this.begin());
    // A step is replayed on the server when someone looks at it.
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      this.begin();
    }, { rootMargin: "200px" });
    seen.observe(this.section);
    this.offer(data);
  }

  offer(data) {
    if (!this.section) return;
    this.which = new URLSearchParams(data.is_step ? { step_id: data.steps[0] } : data.server_id ? { server_id: data.server_id } : {});
    this.section.hidden = !data.steps.length;
  }

  /* Take the steps that are there now, and keep to them: figures of two steps are no effect of a slider. */
  async begin() {
    this.steps = new URLSearchParams(this.which);
    this.asked = null;
    await this.work();
  }

  reset() {
    for (const input of this.sliders) input.value = 1;
    for (const name of Object.keys(BOXES)) this.form.elements[name].checked = false;
    this.change(this.host);
  }

  change(input) {
    if (input === this.host) for (const one of this.classes) one.value = input.value;
    for (const one of this.sliders) {
      one.nextElementSibling.textContent = `× ${Number(one.value).toFixed(2)}`;
      one.setAttribute("aria-valuetext", Number(one.value) === 1 ? "as recorded" : `${Number(one.value).toFixed(2)} times`);
    }
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.work(), SETTLE_MS);
  }

  get wish() {
    const wish = new URLSearchParams();
    const add = (name, value, usual, named = "") => Number(value) !== usual && wish.append(name, named + Number(value));
    add("host", this.host.value, 1);
    for (const one of this.classes) add("host", one.value, Number(this.host.value), `${one.name}=`);
    add("kernels", this.kernels.value, 1);
    for (const [name, value] of Object.entries(BOXES)) if (this.form.elements[name].checked) wish.append(name, value);
    return wish;
  }

  /* What was changed while an answer was awaited is asked once it is there. */
  async work() {
    if (this.isBusy || !this.steps) return;
    this.isBusy = true;
    try {
      while (this.asked !== `${this.wish}`) {
        const wish = this.wish, steps = this.steps;
        this.asked = `${wish}`;
        if (!this.blocks.size) this.words.textContent = "Replaying …";
        this.answers.setAttribute("aria-busy", "true");
        const { answers } = await ask(`whatif?${new URLSearchParams([...steps, ...wish, ["timeline", "true"]])}`);
        if (steps !== this.steps) continue;
        this.steps = new URLSearchParams(answers.map((answer) => ["step_id", answer.step_id]));
        this.words.textContent = answers.map((answer) => this.inShort(answer)).join("; ");
        this.show(answers);
        if (!wish.size) await this.probe(answers);
      }
    } catch (error) {
      this.words.textContent = `No answer: ${error.message}.`;
    } finally {
      this.isBusy = false;
      this.answers.removeAttribute("aria-busy");
    }
  }

  /* What no step can tell of cannot be asked for, and why stands beside it. */
  async probe(answers) {
    const steps = answers.filter((answer) => answer.refused === null).map((answer) => ["step_id", answer.step_id]);
    for (const one of this.sliders) one.disabled = !steps.length;
    const key = `${new URLSearchParams(steps)}`;
    if (key === this.probed) return;
    this.probed = key;
    this.beyond.replaceChildren();
    for (const [name, value] of Object.entries(BOXES)) {
      const box = this.form.elements[name];
      box.disabled = !steps.length;
      if (!steps.length) continue;
      if (this.wish.size) {
        this.probed = null; // who asks meanwhile is answered first
        return;
      }
      const found = (await ask(`whatif?${new URLSearchParams([...steps, [name, value]])}`)).answers;
      box.disabled = found.every((answer) => answer.refused !== null);
      if (box.disabled) this.beyond.append(make("li", `Not to be told: ${found[0].refused}.`));
    }
  }

  show(answers) {
    for (const [id, block] of this.blocks) {
      if (answers.some((answer) => answer.step_id === id)) continue;
      block.remove();
      this.blocks.delete(id);
    }
    for (const answer of answers) {
      const block = this.blocks.get(answer.step_id) ?? make("div", "", { class: "replayed", "data-replayed": answer.phase });
      this.blocks.set(answer.step_id, block);
      this.answers.append(block);
      const isOpen = block.querySelector("details")?.open;
      block.replaceChildren(this.title(answer), ...(answer.refused === null ? this.told(answer) : this.refused(answer)));
      if (isOpen) for (const details of block.querySelectorAll("details")) details.open = true;
    }
    this.section.querySelector("[data-whatif-legend]").hidden = !answers.some((answer) => answer.timeline);
  }

  title(answer) {
    const title = make("h3", `${answer.phase} `);
    title.append(make("a", answer.step_id, { href: `${root}steps/${encodeURIComponent(answer.step_id)}` }));
    return title;
  }

  refused(answer) {
    return [make("p", `No answer: ${answer.refused}.`, { class: "refused" }), ...this.gates(answer)];
  }

  inShort({ phase, refused, steps, window }) {
    if (refused !== null) return `${phase}: no answer`;
    const step = steps[0] ?? window, [was, is] = step.plain_ns ? [step.plain_ns, step.plain_predicted_ns] : [step.observed_ns, step.predicted_ns];
    return `${phase}: ${time(is)} instead of ${time(was)}`;
  }

  *told(answer) {
    const step = answer.steps[0] ?? answer.window, times = make("dl", "", { class: "terms figures" });
    const isPlain = Boolean(step.plain_ns);
    const told = (was, is, low, high, word = "") => [
      [word || "recorded", time(was)],
      [`${word} predicted`.trim(), `${time(is)} (× ${(is / was).toFixed(2)})`],
      [`${word} between`.trim(), `${time(low)} and ${time(high)}`],
    ];
    const rows = [
      ...(isPlain ? told(step.plain_ns, step.plain_predicted_ns, step.plain_low_ns, step.plain_high_ns, "plain step") : []),
      ...told(step.observed_ns, step.predicted_ns, step.low_ns, step.high_ns),
      ["with no host at all", time(step.host_free_ns)],
      ["with no kernels at all", time(step.kernels_free_ns)],
    ];
    for (const [word, value] of rows) {
      const pair = make("div");
      pair.append(make("dt", word), make("dd", value));
      times.append(pair);
    }
    yield times;
    if (answer.timeline) yield this.draw(answer.timeline);
    if (answer.dilation !== null) yield make("p", `A recorded step takes ${answer.dilation.toFixed(2)} times as long as a plain one${isPlain ? "" : ": read the ratio"}.`);
    for (const note of answer.notes) yield make("p", `Note: ${note}.`);
    if (!answer.change) return;
    const wrong = make("p"), how = make("p");
    wrong.append(make("b", "Wrong if, "), `${answer.refuted_by}.`);
    how.append(make("b", "To measure that "), make("code", answer.command));
    yield wrong;
    yield how;
    yield* this.gates(answer);
  }

  *gates({ gates }) {
    if (!gates.length) return;
    const passed = gates.filter((gate) => gate.passes).length, details = make("details"), list = make("ul");
    for (const gate of gates) {
      const limit = `${gate.is_least ? "at least" : "at most"} ${(100 * gate.limit).toFixed(0)}%`;
      list.append(make("li", `${gate.name} ${(100 * gate.value).toFixed(2)}% (${limit}: ${gate.passes ? "passes" : "fails"}): ${gate.reason}`));
    }
    details.append(make("summary", `${passed} of ${gates.length} gates passed`), list);
    details.open = passed < gates.length;
    yield details;
  }

  /* Recorded above predicted, on one axis. */
  draw({ length_ns, observed, predicted }) {
    const figure = make("figure", "", { class: "strips" });
    for (const [word, strips] of [["recorded", observed], ["predicted", predicted]]) {
      for (const strip of strips) figure.append(make("span", `${word} ${strip.title}`), this.strip(`${word} ${strip.title}`, strip, length_ns));
    }
    const axis = make("div", "", { class: "axis" });
    axis.append(...["0", time(length_ns / 2), time(length_ns)].map((word) => make("span", word)));
    figure.append(make("span"), axis);
    return figure;
  }

  strip(title, { kinds, kind, start_ns, length_ns }, whole) {
    const svg = (tag, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      return element;
    };
    const paths = kinds.map(() => ""), sums = kinds.map(() => 0), x = (ns) => ((1000 * ns) / whole).toFixed(2);
    kind.forEach((one, i) => {
      paths[one] += `M${x(start_ns[i])} 0V${STRIP}H${x(start_ns[i] + length_ns[i])}V0Z`;
      sums[one] += length_ns[i];
    });
    const said = kinds.map((word, i) => `${word} ${time(sums[i])}`).filter((_, i) => sums[i]).join("; ");
    const strip = svg("svg", { class: "bar", viewBox: `0 0 1000 ${STRIP}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${said}` });
    strip.append(...kinds.map((word, i) => svg("path", { class: `k-${word}`, d: paths[i] })));
    return strip;
  }
}
