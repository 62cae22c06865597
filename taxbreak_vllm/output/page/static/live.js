/* Ask for steps and watch them come. */
function watchCaptures(onDone) {
  const form = document.getElementById("capture");
  if (!form) return;
  const status = document.getElementById("capture-status"), box = document.getElementById("capture-progress");
  const cancel = document.getElementById("cancel"), submit = form.querySelector("[type=submit]");
  let running = null;
  const say = (text) => (status.textContent = text);
  const end = (text) => {
    running = null;
    submit.disabled = false;
    cancel.hidden = box.hidden = true;
    say(text);
  };
  const why = (capture) => (capture.failure ? ` ${capture.failure}.` : "");
  const outcome = (capture) => `${capture.status}: ${capture.analyzed} of ${capture.steps} steps recorded and analyzed${capture.failed ? `, ${capture.failed} failed` : ""}.${why(capture)}`;
  const stepLinks = (steps) => {
    const list = make("span", "", { class: "links" });
    list.append(...steps.map(({ name }) => make("a", name, { href: `${root}steps/${encodeURIComponent(name)}` })));
    return list;
  };
  const follow = async (id) => {
    try {
      const capture = await ask(`captures/${id}`);
      if (running !== id) return;
      box.firstElementChild.value = capture.analyzed / capture.steps;
      if (capture.status === "running") {
        say(`${capture.recorded} of ${capture.steps} steps recorded, ${capture.analyzed} analyzed.${why(capture)}`);
        setTimeout(() => running === id && follow(id), 500);
        return;
      }
      end(outcome(capture));
      if (capture.breakdown) status.append(stepLinks(capture.breakdown.steps));
      onDone();
    } catch (error) {
      if (running === id) end(error.message);
    }
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const fields = new FormData(form);
    const wish = { steps: Number(fields.get("steps")), timeout_s: Number(fields.get("timeout_s")) };
    for (const name of ["phase", "server_id"]) if (fields.get(name)) wish[name] = fields.get(name);
    submit.disabled = true;
    say("asking …");
    try {
      const capture = await ask("captures", { method: "POST", body: JSON.stringify(wish) });
      running = capture.id;
      cancel.hidden = box.hidden = false;
      follow(capture.id);
    } catch (error) {
      end(error.message);
    }
  });
  cancel.addEventListener("click", async () => {
    try {
      end(outcome(await ask(`captures/${running}`, { method: "DELETE" })));
    } catch (error) {
      say(error.message);
    }
  });
}
