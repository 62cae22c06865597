/* Put the parts of each article together, and keep a live one fresh. */
const parts = [...document.querySelectorAll("[data-article]")].map((article) => {
  const data = JSON.parse(document.getElementById(`${article.id}-data`).textContent);
  return { article, charts: new Charts(article, data), curve: new Curve(article, data), timeline: new Timeline(article, data), flame: new Flame(article, data), whatIf: new WhatIf(article, data) };
});
nameCells(document);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const { charts, curve, timeline } of parts) {
    charts.draw();
    curve.draw();
    timeline.draw();
  }
});

async function refresh() {
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) return;
    // Its style is here already, and has a nonce that this page does not know.
    const text = (await answer.text()).replace(/<style[^]*?<\/style>/g, "");
    const fresh = new DOMParser().parseFromString(text, "text/html");
    if (fresh.getElementById("login")) location.reload(); // the session has ended
    nameCells(fresh);
    document.title = fresh.title;
    for (const section of document.querySelectorAll("[data-refresh]")) {
      const newer = fresh.getElementById(section.id);
      // What someone is reading by keyboard stays.
      if (newer) section.hidden = newer.hidden;
      if (!newer || section.contains(document.activeElement) || section.innerHTML === newer.innerHTML) continue;
      const scrolled = [...section.querySelectorAll(".scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
      section.replaceChildren(...newer.childNodes);
      section.querySelectorAll(".scroll").forEach((box, i) => scrolled[i] && box.scrollTo(...scrolled[i]));
    }
    for (const { article, charts, curve, timeline, whatIf } of parts) {
      const data = JSON.parse(fresh.getElementById(`${article.id}-data`).textContent);
      charts.show(data);
      curve.show(data);
      timeline.offer(data);
      whatIf.offer(data);
    }
  } catch { /* the sidecar is away: the page stays as it is */ }
}
const box = document.getElementById("refresh");
if (box) setInterval(() => box.checked && !document.hidden && refresh(), 5000);
watchCaptures(refresh);
