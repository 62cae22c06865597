/* ΔFT as an icicle: a frame stands under what called it and is as wide as its time. */
const ROW = 20, LEAST = 2, DEAREST = 12, REST = "…";

/* A function as one says it: its name, then its file. Torch writes "file.py(7): name". */
const frameLabel = (name) => {
  const python = /^(?:.*\/)?([^/()]+)\((\d+)\): (.+)$/.exec(name), built = /^<built-in (?:function|method) (\S+?)>?(?: |$)/.exec(name);
  return python ? `${python[3]} · ${python[1]}:${python[2]}` : built ? built[1] : name;
};

class Flame {
  constructor(article, data) {
    this.section = article.querySelector("[data-flame]");
    if (!this.section) return;
    const find = (name) => this.section.querySelector(name);
    this.words = find("[data-flame-words]");
    this.box = find(".flame");
    this.tip = find("[data-flame-tip]");
    this.help = this.tip.textContent;
    this.measure = find("[data-flame-measure]");
    this.whole = find("[data-flame-whole]");
    this.measure.addEventListener("change", () => this.zoom(this.top));
    this.whole.addEventListener("click", () => this.zoom(-1));
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.box.parentElement);
    if (!data.is_live) {
      this.show(data.stacks);
      return;
    }
    // A step is taken apart on the server when someone looks at it.
    this.step = data.steps[0];
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      this.load();
      document.querySelector("[name=key]")?.addEventListener("change", () => this.load());
    }, { rootMargin: "200px" });
    seen.observe(this.section);
  }

  async load() {
    this.words.textContent = "The step is being taken apart …";
    try {
      this.show(await ask(`steps/${encodeURIComponent(this.step)}/stacks`));
    } catch (error) {
      this.words.textContent = `No stacks of this step: ${error.message}`;
    }
  }

  show(stacks) {
    this.section.querySelector("[data-flame-body]").hidden = !stacks.parent.length;
    this.words.textContent = stacks.reason ? `Not known: ${stacks.reason}.` : "There is no ΔFT in it.";
    if (!stacks.parent.length) return;
    this.stacks = stacks;
    this.own = { delta_ft_ns: stacks.delta_ft_ns, exposed_ns: stacks.exposed_ns };
    this.all = {};
    for (const [name, own] of Object.entries(this.own)) {
      if (!own) continue;
      const all = [...own];
      for (let i = all.length - 1; i >= 0; i--) if (stacks.parent[i] >= 0) all[stacks.parent[i]] += all[i];
      this.all[name] = all;
    }
    this.section.querySelector("[data-flame-choice]").hidden = !stacks.exposed_ns;
    this.children = stacks.parent.map(() => []);
    this.roots = [];
    stacks.parent.forEach((parent, i) => (parent < 0 ? this.roots : this.children[parent]).push(i));
    const steps = Object.entries(stacks.num_steps).map(([phase, num]) => (phase === "the whole trace" ? phase : phase === "steps" ? `${num} step${num === 1 ? "" : "s"}` : `${num} × ${phase}`));
    const python = stacks.has_python ? "" : " Python is one frame, as its functions were not recorded: a capture with stacks names them.";
    this.words.textContent = `${time(this.sum("delta_ft_ns", this.roots))} of ΔFT (${steps.join(", ")}), from the phase down to the op that is busy.${python}`;
    this.zoom(-1);
  }

  sum(measure, frames) {
    return frames.reduce((sum, i) => sum + this.all[measure][i], 0);
  }

  name(i) {
    return this.stacks.names[this.stacks.name[i]];
  }

  zoom(i) {
    this.top = i;
    this.whole.disabled = i < 0;
    this.section.querySelector("[data-flame-zoom]").textContent = i < 0 ? "" : `${frameLabel(this.name(i))}: ${this.told(i)}`;
    this.draw();
    this.list();
  }

  told(i) {
    const { delta_ft_ns: ft, exposed_ns: exposed } = this.all;
    const share = number((100 * ft[i]) / (this.sum("delta_ft_ns", this.roots) || 1), 1);
    return `${time(ft[i])} (${share} % of ΔFT), ${time(this.own.delta_ft_ns[i])} of it its own${exposed ? `; the device waited for ${time(exposed[i])}` : ""}`;
  }

  /* Place the frames in view: those around the one zoomed to above it, in full width. */
  draw() {
    if (!this.stacks || !this.box.clientWidth) return;
    const width = this.box.clientWidth, value = this.all[this.measure.value], focused = this.box.contains(document.activeElement);
    const above = [];
    for (let i = this.top; i >= 0; i = this.stacks.parent[i]) above.unshift(i);
    this.rows = above.map((i) => [{ i, x: 0, w: width }]);
    let row = [];
    const place = (frames, x, whole, room, into) => {
      for (const i of [...frames].sort((a, b) => value[b] - value[a])) {
        const w = whole ? (room * value[i]) / whole : 0;
        if (w >= LEAST) into.push({ i, x, w });
        x += w;
      }
    };
    if (this.top < 0) place(this.roots, 0, this.roots.reduce((sum, i) => sum + value[i], 0), width, row);
    else place(this.children[this.top], 0, value[this.top], width, row);
    while (row.length) {
      this.rows.push(row);
      const next = [];
      for (const { i, x, w } of row) place(this.children[i], x, value[i], w, next);
      row = next;
    }
    this.box.style.height = `${this.rows.length * ROW}px`;
    this.box.replaceChildren(...this.rows.flatMap((frames, depth) => frames.map((frame, at) => this.frame(frame, depth, at, depth < above.length - 1))));
    this.pick(this.top < 0 ? [0, 0] : [above.length - 1, 0], focused);
  }

  frame({ i, x, w }, depth, at, isAround) {
    const kind = this.stacks.kinds[this.stacks.kind[i]], name = this.name(i);
    const made = make("div", w < 26 ? "" : frameLabel(name), { class: `fl fl-${kind}${isAround ? " around" : ""}`, role: "button", tabindex: "-1", "data-at": `${depth} ${at}`, "aria-label": `${name}: ${this.told(i)}` });
    for (const [property, px] of Object.entries({ left: x, width: Math.max(w - 1, 1), top: depth * ROW })) made.style[property] = `${px}px`;
    return made;
  }

  /* One frame at a time can be reached by Tab. */
  pick([depth, at], focus = true) {
    const row = this.rows[depth];
    if (!row?.length) return;
    const found = this.box.querySelector(`[data-at="${depth} ${Math.min(Math.max(at, 0), row.length - 1)}"]`);
    this.box.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
    found.setAttribute("tabindex", "0");
    if (focus) found.focus();
  }

  at(event) {
    const frame = event.target.closest?.("[data-at]");
    return frame ? frame.dataset.at.split(" ").map(Number) : null;
  }

  say(event) {
    const at = this.at(event), found = at && this.rows[at[0]][at[1]];
    this.tip.textContent = found ? `${this.name(found.i)}: ${this.told(found.i)}` : this.help;
  }

  near(depth, { x, w }) {
    return (this.rows[depth] || []).findIndex((other) => other.x < x + w && other.x + other.w > x);
  }

  listen() {
    for (const kind of ["pointerover", "focusin"]) this.box.addEventListener(kind, (event) => this.say(event));
    this.box.addEventListener("pointerleave", () => (this.tip.textContent = this.help));
    this.box.addEventListener("click", (event) => {
      const at = this.at(event);
      if (at) this.zoom(this.rows[at[0]][at[1]].i);
    });
    this.box.addEventListener("keydown", (event) => {
      const at = this.at(event);
      if (!at || event.ctrlKey || event.metaKey || event.altKey) return;
      const [depth, place] = at, frame = this.rows[depth][place];
      const does = {
        ArrowLeft: () => this.pick([depth, place - 1]), ArrowRight: () => this.pick([depth, place + 1]),
        ArrowUp: () => depth && this.pick([depth - 1, this.near(depth - 1, frame)]),
        ArrowDown: () => this.near(depth + 1, frame) >= 0 && this.pick([depth + 1, this.near(depth + 1, frame)]),
        Enter: () => this.zoom(frame.i), " ": () => this.zoom(frame.i), 0: () => this.zoom(-1), Escape: () => this.zoom(-1),
      }[event.key];
      if (!does) return;
      event.preventDefault();
      does();
    });
  }

  /* The same as a table: what each function or op took itself, wherever it was called from. */
  list() {
    const own = this.own[this.measure.value], sums = new Map(), open = [];
    const visit = (i, within) => {
      const name = this.name(i), sum = sums.get(name) || { own: 0, all: 0, waited: 0 };
      sum.own += own[i];
      sum.waited += this.own.exposed_ns?.[i] ?? 0;
      if (!within.has(name)) sum.all += this.all[this.measure.value][i];
      sums.set(name, sum);
      for (const child of this.children[i]) open.push([child, new Set(within).add(name)]);
    };
    for (const i of this.top < 0 ? this.roots : [this.top]) open.push([i, new Set()]);
    while (open.length) visit(...open.pop());
    const whole = [...sums.values()].reduce((sum, each) => sum + each.own, 0);
    const dearest = [...sums].filter(([name, each]) => each.own && name !== REST).sort((a, b) => b[1].own - a[1].own).slice(0, DEAREST);
    this.section.querySelector("tbody").replaceChildren(...dearest.map(([name, each]) => {
      const row = make("tr");
      row.append(make("td", frameLabel(name), { class: "text name", title: name }), make("td", time(each.own)), make("td", `${number((100 * each.own) / whole, 1)} %`), make("td", time(each.all)), make("td", this.own.exposed_ns ? time(each.waited) : "–"));
      return row;
    }));
    nameCells(this.section);
  }
}
