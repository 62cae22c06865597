/* HDBI and taxes over time. */
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 604800];
const PHASES = ["--k-active", "--k-python", "--k-queue", "--k-library", "--k-launch", "--k-runtime"];

class Charts {
  constructor(article, data) {
    this.section = article.querySelector("[data-history]");
    this.select = this.section.querySelector("[data-chart-phase]");
    this.select.addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.resize()).observe(this.section);
    this.show(data);
  }

  show(data) {
    this.data = data;
    this.points = [...data.history].sort((a, b) => a.at - b.at);
    this.phases = [...new Set(this.points.map((point) => point.phase))].sort();
    this.section.hidden = this.points.length < 2;
    const chosen = this.select.value;
    this.select.replaceChildren(...this.phases.map((phase) => make("option", phase)));
    this.select.value = this.phases.includes(chosen) ? chosen : this.phases.includes("decode") ? "decode" : this.phases[0];
    this.draw();
  }

  width(host) {
    return Math.max(200, Math.floor(host.clientWidth));
  }

  resize() {
    for (const plot of this.plots || []) plot.setSize({ width: this.width(plot.root.parentElement), height: 220 });
  }

  draw() {
    if (this.section.hidden) return;
    for (const plot of this.plots || []) plot.destroy();
    const at = this.points.map((point) => point.at);
    const hdbi = this.phases.map((phase) => this.points.map((point) => (point.phase === phase ? point.hdbi : null)));
    const chosen = this.points.filter((point) => point.phase === this.select.value);
    const taxes = [
      ["step", "window_ns", "--fg", 2], ["of it: waits for the host", "exposed_ns", "--k-host", 2, "40"],
      ["ΔFT", "delta_ft_ns", "--k-python", 1], ["ΔCT", "delta_ct_ns", "--k-library", 1], ["ΔKT", "delta_kt_ns", "--k-queue", 1],
    ].filter(([, field]) => chosen.some((point) => point[field] !== null));
    this.section.querySelector("figure").hidden = hdbi.every((values) => values.every((value) => value === null));
    this.plots = [
      this.plot("hdbi", [at, ...hdbi], this.phases.map((phase, i) => [phase, PHASES[i % PHASES.length], 1.5]), { range: [0, 1] }, (v) => v.toFixed(1), (v) => v.toFixed(3)),
      this.plot("taxes", [chosen.map((point) => point.at), ...taxes.map(([, field]) => chosen.map((point) => point[field]))],
        taxes.map(([title, , color, width, fill]) => [title, color, width, fill]), { range: (_, low, high) => [0, (high || 1) * 1.08] }, time, time),
    ];
  }

  plot(name, data, series, scale, onAxis, onLegend) {
    const host = this.section.querySelector(`[data-chart=${name}]`);
    const axis = { stroke: cssColor("--soft"), grid: { stroke: cssColor("--line"), width: 1 }, ticks: { stroke: cssColor("--line"), width: 1 } };
    const options = {
      width: this.width(host), height: 220, scales: { x: { time: false }, y: scale },
      axes: [{ ...axis, incrs: STEPS, space: 70, ...(this.data.is_time ? { values: (_, ticks) => ticks.map(clock) } : {}) },
        { ...axis, size: 74, values: (_, ticks) => ticks.map(onAxis) }],
      series: [this.data.is_time ? { label: "time", value: (_, v) => (v ? clock(v) : "–") } : { label: "step" }, ...series.map(([label, color, width, fill]) => ({
        label, stroke: cssColor(color), width, ...(fill ? { fill: cssColor(color) + fill } : {}), spanGaps: true, points: { size: 5, fill: cssColor(color) }, value: (_, v) => (v === null || v === undefined ? "–" : onLegend(v)),
      }))],
    };
    host.setAttribute("role", "img");
    host.setAttribute("aria-label", `${series.map(([title]) => title).join(", ")} of ${data[0].length} steps; the list of steps below has the figures`);
    return new uPlot(options, data, host);
  }
}
