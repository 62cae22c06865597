/* One step's lanes on a canvas: zoom, pan, and what the device waited for. */
const IDLE = { host: "waits for the host", blocked: "host blocked", queue: "launched, not begun", edge: "before the first, after the last" };
const TOP = 18, PITCH = 42, BAR = 22;

class Timeline {
  constructor(article, data) {
    this.section = article.querySelector("[data-timeline]");
    this.fusion = article.querySelector("[data-fusion]");
    this.box = this.section.querySelector(".lanes");
    this.canvas = this.section.querySelector("canvas");
    this.tip = this.section.querySelector(".tip");
    this.select = this.section.querySelector("[data-steps]");
    this.note = this.section.querySelector("[data-timeline-note]");
    this.help = this.note.textContent;
    this.select.addEventListener("change", () => this.load());
    for (const button of this.section.querySelectorAll("[data-do]")) button.addEventListener("click", () => this.move(button.dataset.do));
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.isSeen = !data.is_live;
    this.offer(data);
    if (this.isSeen) return;
    // A step is taken apart on the server when someone looks at it.
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      this.isSeen = true;
      this.load();
    }, { rootMargin: "200px" });
    seen.observe(this.section);
  }

  offer(data) {
    this.data = data;
    const names = data.is_live ? data.steps : data.timelines.map((timeline) => timeline.step);
    const chosen = this.select.value;
    if (chosen && !names.includes(chosen)) names.push(chosen);
    this.select.replaceChildren(...names.map((name) => make("option", name)));
    if (chosen) this.select.value = chosen;
    this.select.parentElement.hidden = names.length < 2;
    this.section.hidden = this.fusion.hidden = !names.length;
    if (!chosen && this.isSeen) this.load();
  }

  async load() {
    const step = this.select.value;
    if (!step) return;
    if (!this.data.is_live) {
      this.show(this.data.timelines[this.select.selectedIndex]);
      this.showChains(this.data.fusion);
      return;
    }
    this.note.textContent = "The step is being taken apart …";
    try {
      const path = `steps/${encodeURIComponent(step)}`;
      const timeline = await ask(`${path}/timeline`);
      if (step !== this.select.value) return;
      this.show(timeline);
      this.showChains(await ask(`${path}/fusion`));
    } catch (error) {
      this.note.textContent = `No timeline of this step: ${error.message}`;
    }
  }

  show(timeline) {
    this.timeline = timeline;
    this.note.textContent = this.help;
    if (timeline.drawn_ns < timeline.device_window_ns) this.note.textContent += ` Only the first ${time(timeline.drawn_ns)} of ${time(timeline.device_window_ns)} are drawn.`;
    this.canvas.setAttribute("aria-label", `${timeline.lanes.map((lane) => `${lane.title}: ${lane.kind.length} segments`).join("; ")}. The longest waits are in the table below.`);
    const groups = new Map([["host", new Map()], ["device", new Map()], ["kernels", new Map()]]);
    timeline.lanes.forEach((lane, row) => {
      if (lane.title === "ops") return;
      const group = row === 0 ? "host" : lane.title === "device" ? "device" : "kernels";
      for (const kind of new Set(lane.kind)) groups.get(group).set(this.variable(lane, lane.kinds[kind]), this.word(lane, lane.kinds[kind]));
    });
    this.section.querySelector("[data-timeline-legend]").replaceChildren(...[...groups].map(([group, used]) => this.legend(group, used)));
    this.look(0, timeline.drawn_ns);
  }

  legend(group, used) {
    const legend = make("ul", "", { class: "legend" }), title = make("li");
    title.append(make("b", group));
    legend.append(title);
    for (const [variable, word] of used) {
      const item = make("li"), square = document.createElementNS("http://www.w3.org/2000/svg", "svg"), rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [name, value] of Object.entries({ width: 8, height: 8, fill: `var(${variable})` })) rect.setAttribute(name, value);
      square.setAttribute("viewBox", "0 0 8 8");
      square.setAttribute("aria-hidden", "true");
      square.append(rect);
      item.append(square, word);
      legend.append(item);
    }
    return legend;
  }

  showChains(report) {
    const words = this.fusion.querySelector("[data-fusion-words]"), body = this.fusion.querySelector("tbody");
    if (!report) {
      words.textContent = "Not known for this recording.";
      return;
    }
    const chains = report.chains.filter((chain) => chain.is_maximal).slice(0, this.data.max_chains);
    const saved = `Fusing all of them would leave ${report.launches_after} of ${report.launches} launches; score 1 means that the first kernel never runs without the others`;
    words.textContent = `${[...report.notes, ...(report.launches ? [saved] : [])].join(". ")}.`;
    this.fusion.querySelector(".scroll").hidden = !chains.length;
    body.replaceChildren(...chains.map((chain) => {
      const row = make("tr"), names = make("td", chain.kernels.map((name) => report.words[name]).join(" → "), { class: "text name", title: chain.kernels.join("\n") });
      row.append(names, make("td", chain.length), make("td", number(chain.count, 0)), make("td", chain.score.toFixed(2)));
      return row;
    }));
    nameCells(this.fusion);
  }

  word(lane, kind) {
    if (lane.title === "device") return kind === "active" ? "active" : kind === "other_active" ? "active for other steps" : `idle: ${IDLE[kind]}`;
    return kind;
  }

  variable(lane, kind) {
    if (lane.title.startsWith("kernels") || lane.title === "computing ops") return `--f-${kind}`;
    return kind === "compute" ? "--k-active" : `--k-${kind}`;
  }

  look(from, to) {
    const whole = this.timeline.drawn_ns, least = Math.min(whole, 200);
    const length = Math.min(whole, Math.max(least, to - from));
    this.from = Math.min(Math.max(0, from), whole - length);
    this.to = this.from + length;
    this.section.querySelector("[data-range]").textContent = `${time(this.from)} to ${time(this.to)} of ${time(this.timeline.device_window_ns)}`;
    this.draw();
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.listWaits(), 120);
  }

  zoom(factor, at = (this.from + this.to) / 2) {
    this.look(at - (at - this.from) * factor, at + (this.to - at) * factor);
  }

  move(what) {
    if (!this.timeline) return;
    const step = (this.to - this.from) / 5;
    if (what === "fit") this.look(0, this.timeline.drawn_ns);
    else if (what === "in") this.zoom(0.5);
    else if (what === "out") this.zoom(2);
    else this.look(this.from + (what === "left" ? -step : step), this.to + (what === "left" ? -step : step));
  }

  listen() {
    const keys = { ArrowLeft: "left", ArrowRight: "right", "+": "in", "=": "in", "-": "out", 0: "fit", Home: "fit" };
    this.box.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      this.move(keys[event.key]);
    });
    this.box.addEventListener("wheel", (event) => {
      if (!this.timeline || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.zoom(Math.exp(event.deltaY / 300), this.at(event));
    }, { passive: false });
    this.box.addEventListener("pointerdown", (event) => {
      this.drag = { x: event.clientX, from: this.from, to: this.to };
      this.box.setPointerCapture(event.pointerId);
    });
    this.box.addEventListener("pointermove", (event) => {
      if (!this.timeline) return;
      if (this.drag) {
        const by = ((this.drag.x - event.clientX) / this.box.clientWidth) * (this.drag.to - this.drag.from);
        this.look(this.drag.from + by, this.drag.to + by);
      }
      this.point(event);
    });
    for (const end of ["pointerup", "pointercancel"]) this.box.addEventListener(end, () => (this.drag = null));
    this.box.addEventListener("pointerleave", () => (this.tip.hidden = true));
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.from + ((event.clientX - box.left) / box.width) * (this.to - this.from);
  }

  find(lane, at) {
    let low = 0, high = lane.start_ns.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lane.start_ns[middle] <= at) low = middle + 1;
      else high = middle;
    }
    return low - 1 >= 0 && at < lane.start_ns[low - 1] + lane.length_ns[low - 1] ? low - 1 : -1;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const lane = this.timeline.lanes[Math.floor((event.clientY - box.top - TOP) / PITCH)];
    const index = lane ? this.find(lane, this.at(event)) : -1;
    this.tip.hidden = index < 0;
    if (index < 0) return;
    const name = lane.name[index] < 0 ? "" : ` · ${this.timeline.names[lane.name[index]]}`;
    this.tip.textContent = `${this.word(lane, lane.kinds[lane.kind[index]])}${name} · ${time(lane.length_ns[index])}, from ${time(lane.start_ns[index])}`;
    const x = event.clientX - box.left;
    this.tip.style.left = `${Math.max(4, Math.min(x + 12, box.width - this.tip.offsetWidth - 4))}px`;
    const y = event.clientY - box.top;
    this.tip.style.top = `${y + 18 + this.tip.offsetHeight > box.height ? y - this.tip.offsetHeight - 8 : y + 18}px`;
  }

  draw() {
    if (!this.timeline) return;
    const { lanes, words } = this.timeline, ratio = window.devicePixelRatio || 1;
    const width = this.box.clientWidth, height = TOP + lanes.length * PITCH + 4;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    const paint = this.canvas.getContext("2d"), scale = width / (this.to - this.from);
    const fg = cssColor("--fg"), soft = cssColor("--soft"), line = cssColor("--line"), bg = cssColor("--bg");
    paint.scale(ratio, ratio);
    paint.font = "11px system-ui, sans-serif";
    paint.textBaseline = "middle";
    this.drawTicks(paint, width, height, scale, soft, line);
    lanes.forEach((lane, row) => {
      const y = TOP + row * PITCH, colors = lane.kinds.map((kind) => cssColor(this.variable(lane, kind)) || "#888888");
      paint.fillStyle = soft;
      paint.fillText(lane.title, 6, y + 7);
      const first = Math.max(0, lane.start_ns.findIndex((start, i) => start + lane.length_ns[i] >= this.from));
      for (let i = first; i < lane.start_ns.length && lane.start_ns[i] < this.to; i++) {
        const x = (lane.start_ns[i] - this.from) * scale, w = Math.max(lane.length_ns[i] * scale, 0.25);
        paint.fillStyle = colors[lane.kind[i]];
        paint.fillRect(x, y + 15, w, BAR);
        if (w < 46 || lane.name[i] < 0 || lane.title === "device") continue;
        const left = Math.max(x, 0), right = Math.min(x + w, width);
        if (right - left < 46) continue;
        paint.save();
        paint.beginPath();
        paint.rect(left + 3, y + 15, right - left - 6, BAR);
        paint.clip();
        paint.fillStyle = isDark(colors[lane.kind[i]]) ? "#ffffff" : "#12161c";
        paint.fillText(words[lane.name[i]], left + 4, y + 15 + BAR / 2 + 0.5);
        paint.restore();
      }
    });
    paint.fillStyle = fg;
    paint.globalCompositeOperation = "destination-over";
    paint.fillStyle = bg;
    paint.fillRect(0, 0, width, height);
  }

  drawTicks(paint, width, height, scale, soft, line) {
    const wanted = ((this.to - this.from) / width) * 110, power = 10 ** Math.floor(Math.log10(wanted));
    const tick = power * [1, 2, 5, 10].find((factor) => factor * power >= wanted);
    for (let at = Math.ceil(this.from / tick) * tick; at <= this.to; at += tick) {
      const x = (at - this.from) * scale;
      paint.fillStyle = line;
      paint.fillRect(x, 0, 1, height);
      paint.fillStyle = soft;
      if (x < width - 50) paint.fillText(tick >= 1e6 ? `${number(at / 1e6, 0)} ms` : tick >= 1e3 ? `${number(at / 1e3, 0)} µs` : `${number(at, 0)} ns`, x + 4, 9);
    }
  }

  listWaits() {
    const lanes = this.timeline.lanes, host = lanes[0], device = lanes.find((lane) => lane.title === "device");
    const waits = [];
    device.start_ns.forEach((start, i) => {
      const kind = device.kinds[device.kind[i]], from = Math.max(start, this.from), to = Math.min(start + device.length_ns[i], this.to);
      if (IDLE[kind] && to > from) waits.push({ kind, from, to });
    });
    waits.sort((a, b) => b.to - b.from - (a.to - a.from));
    this.section.querySelector("tbody").replaceChildren(...waits.slice(0, 8).map((wait) => {
      const row = make("tr"), show = make("button", time(wait.to - wait.from), { type: "button", title: "zoom to it" });
      show.addEventListener("click", () => {
        const margin = (wait.to - wait.from) * 0.25;
        this.look(wait.from - margin, wait.to + margin);
        this.box.focus();
      });
      const cell = make("td");
      cell.append(show);
      const doing = this.doing(host, wait);
      row.append(make("td", IDLE[wait.kind], { class: "text" }), make("td", time(wait.from)), cell, make("td", doing, { class: "text name", title: doing }));
      return row;
    }));
    nameCells(this.section);
  }

  doing(host, wait) {
    let best = -1, most = 0;
    for (let i = 0; i < host.start_ns.length && host.start_ns[i] < wait.to; i++) {
      const shared = Math.min(host.start_ns[i] + host.length_ns[i], wait.to) - Math.max(host.start_ns[i], wait.from);
      if (shared > most) [best, most] = [i, shared];
    }
    if (best < 0) return "–";
    const name = host.name[best] < 0 ? "" : `: ${this.timeline.names[host.name[best]]}`;
    return host.kinds[host.kind[best]] + name;
  }
}
