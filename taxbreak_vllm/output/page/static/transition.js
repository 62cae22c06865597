/* Who decides how long a step takes, over the sizes of batches: shares on the left, TKLQT per launch on the right. */
const SHARES = [["HDBI", "hdbi", "--k-active", 2], ["waits for the host", "exposed_ratio", "--k-host", 2], ["hardware limit", "limit_ratio", "--k-library", 1]];

class Curve {
  constructor(article, data) {
    this.section = article.querySelector("[data-transition]");
    if (!this.section) return;
    this.select = this.section.querySelector("[data-turn-phase]");
    this.host = this.section.querySelector("[data-chart=transition]");
    this.select.addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.plot && this.plot.setSize({ width: this.width(), height: 220 })).observe(this.section);
    this.show(data);
  }

  width() {
    return Math.max(200, Math.floor(this.host.clientWidth));
  }

  show(data) {
    if (!this.section) return;
    const drawn = data.transitions.filter((each) => each.buckets.length > 1);
    this.section.hidden = !drawn.length;
    const told = JSON.stringify(drawn);
    if (told === this.told) return; // nobody's pointer is on a curve that is drawn anew
    this.told = told;
    this.drawn = new Map(drawn.map((each) => [each.phase || "these steps", each]));
    const chosen = this.select.value;
    this.select.replaceChildren(...[...this.drawn.keys()].map((phase) => make("option", phase)));
    this.select.value = this.drawn.has(chosen) ? chosen : this.drawn.has("decode") ? "decode" : [...this.drawn.keys()][0] || "";
    this.draw();
  }

  draw() {
    if (!this.section || this.section.hidden) return;
    if (this.plot) this.plot.destroy();
    const { buckets, between, unit } = this.drawn.get(this.select.value);
    const line = (label, field, color, width, scale, say) => ({
      label, scale, stroke: cssColor(color), width, spanGaps: true, points: { show: true, size: 5, fill: cssColor(color) },
      told: buckets.map((bucket) => bucket[field]), value: (_, v) => (v === null || v === undefined ? "–" : say(v)),
    });
    const lines = [
      ...SHARES.map(([label, field, color, width]) => line(label, field, color, width, "share", (v) => v.toFixed(3))),
      line("TKLQT a launch", "tklqt_per_launch_ns", "--k-queue", 2, "tklqt", time),
    ].filter((each) => each.told.some((value) => value !== null));
    const axis = { stroke: cssColor("--soft"), grid: { stroke: cssColor("--line"), width: 1 }, ticks: { stroke: cssColor("--line"), width: 1 } };
    const sizes = unit === "prompt_tokens" ? "prompt tokens" : "requests";
    const hasQueue = lines.some((each) => each.scale === "tklqt");
    const options = {
      width: this.width(), height: 220,
      scales: { x: { time: false, distr: 3, log: 2 }, share: { range: [0, 1] }, ...(hasQueue ? { tklqt: { distr: 3, log: 10 } } : {}) },
      axes: [
        { ...axis, label: sizes, labelSize: 18, values: (_, ticks) => ticks.map((v) => (v === null ? "" : String(v))) },
        { ...axis, scale: "share", size: 48, values: (_, ticks) => ticks.map((v) => v.toFixed(2)) },
        ...(hasQueue ? [{ ...axis, scale: "tklqt", side: 1, size: 74, grid: { show: false }, values: (_, ticks) => ticks.map((v) => (v === null ? "" : time(v))) }] : []),
      ],
      series: [{ label: sizes, value: (_, v) => (v === null || v === undefined ? "–" : String(v)) }, ...lines],
      hooks: {
        drawClear: [(plot) => {
          if (!between) return;
          const [from, to] = between.map((size) => plot.valToPos(size, "x", true));
          plot.ctx.fillStyle = cssColor("--line");
          plot.ctx.fillRect(from, plot.bbox.top, Math.max(2, to - from), plot.bbox.height);
        }],
      },
    };
    this.host.setAttribute("role", "img");
    this.host.setAttribute("aria-label", `${lines.map((each) => each.label).join(", ")} over ${buckets.length} sizes of batches; the table above has the figures`);
    this.plot = new uPlot(options, [buckets.map((bucket) => bucket.most), ...lines.map((each) => each.told)], this.host);
  }
}
