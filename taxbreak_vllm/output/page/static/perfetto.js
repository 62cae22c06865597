/* Hand a step's raw trace to Perfetto: its window is asked until it answers, then given the bytes. It fetches nothing of ours. */
const PERFETTO = "https://ui.perfetto.dev", ASK_EVERY_MS = 100, GIVE_UP_MS = 60_000;

async function openInPerfetto(link, say) {
  const ui = window.open(PERFETTO); // before anything is waited for: a click lets one window open
  if (!ui) {
    say("The browser let no window open: allow pop-ups for this page, or download the raw trace and open it in Perfetto yourself.");
    return;
  }
  say("The trace is on its way to Perfetto …");
  try {
    const answer = await fetch(link.href, { cache: "no-store" });
    if (!answer.ok) throw new Error((await answer.json()).detail || answer.statusText);
    const buffer = await answer.arrayBuffer(), step = link.href.split("/").at(-2);
    await isListening(ui);
    ui.postMessage({ perfetto: { buffer, title: `taxbreak ${decodeURIComponent(step)}`, fileName: `${step}.json.gz` } }, PERFETTO);
    say("Perfetto has the trace.");
  } catch (error) {
    ui.close();
    say(`Not opened in Perfetto: ${error.message}`);
  }
}

function isListening(ui) {
  return new Promise((resolve, reject) => {
    const begun = Date.now();
    const end = (settle) => {
      clearInterval(asking);
      window.removeEventListener("message", hear);
      settle();
    };
    const hear = (event) => {
      if (event.source === ui && event.origin === PERFETTO && event.data === "PONG") end(resolve);
    };
    const asking = setInterval(() => {
      if (ui.closed) end(() => reject(new Error("its window was closed")));
      else if (Date.now() - begun > GIVE_UP_MS) end(() => reject(new Error(`${PERFETTO} does not answer; is it reachable from here?`)));
      else ui.postMessage("PING", PERFETTO);
    }, ASK_EVERY_MS);
    window.addEventListener("message", hear);
  });
}

for (const link of document.querySelectorAll(".step-links a[href$='/trace']")) {
  const item = make("li"), button = make("button", "open in Perfetto", { type: "button", class: "link" }), status = make("p", "", { role: "status", class: "fine" });
  button.addEventListener("click", () => openInPerfetto(link, (text) => (status.textContent = text)));
  item.append(button);
  link.parentElement.after(item);
  link.closest("nav").append(status);
}
