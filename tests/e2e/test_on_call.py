"""The walk of whoever is on call: an alert, its runbook, the advice, the flag that all three name, and that it held.

`-s` shows each station with its figures, the time and the machine's load.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import httpx
import pytest

from taxbreak_vllm.demo.load import Requests, send
from taxbreak_vllm.demo.models import write_tiny_llama
from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, plain_environment, start_sidecar, start_vllm

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules" / "taxbreak.yml"
SOONER = {"[15m]": "[1m]", "for: 30m": "for: 5s", "interval: 30s": "interval: 1s", "interval: 1m": "interval: 1s"}
ALERT, PHASE = "TaxBreakHostBound", "prefill"
RATIO = f'taxbreak:device_waits_for_host:ratio_rate15m{{phase="{PHASE}"}}'
RECORDED = f'sum(taxbreak_sampled_steps_total{{phase="{PHASE}"}})'
CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs: [{job_name: taxbreak, static_configs: [{targets: ["%s"]}]}]
"""
RULE, FLAG = "prefill-budget", "--max-num-batched-tokens (larger)"
SMALL, LARGE = ("--max-num-batched-tokens", "8"), ("--max-num-batched-tokens", "256")
# So wide that the device works longer for a large chunk than the host, and not as long for a small one.
SHAPE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8}
PREFILL = Requests(num_requests=8, prompt_tokens=400, output_tokens=1, concurrency=8)
RECORD = {"TAXBREAK_SAMPLE_EVERY": "16", "TAXBREAK_OVERHEAD_BUDGET_RATIO": "0.2", "TAXBREAK_MAX_STALL_MS": "60000"}
WAIT_S = 600  # for each station; others may use the machine too
MIN_STEPS = 12  # recorded before the change; an interval takes seven of one size of batch


class Watch:
    """A sidecar, and a Prometheus with the shipped rules that scrapes it; all that is asked of both."""

    def __init__(self, processes, sidecar):
        folder = processes.folder / "prometheus"
        folder.mkdir()
        rules = RULES.read_text()
        for shipped, sooner in SOONER.items():
            assert shipped in rules
            rules = rules.replace(shipped, sooner)
        (folder / "rules.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(CONFIG % sidecar.url.removeprefix("http://"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        command += [f"--web.listen-address={self.url.removeprefix('http://')}", f"--web.external-url={self.url}"]
        self.process = processes.start("prometheus", command, env=plain_environment())
        self.process.wait_until(lambda: self._is_up(), "up", timeout_s=60)
        self.sidecar = sidecar

    def _is_up(self):
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=60).is_success
        except httpx.TransportError:
            return False

    def alert(self):
        """The alert of the phase, firing; None where it is not."""
        found = httpx.get(f"{self.url}/api/v1/alerts", timeout=60).raise_for_status().json()["data"]["alerts"]
        mine = [one for one in found if (one["labels"]["alertname"], one["labels"].get("phase")) == (ALERT, PHASE)]
        return next((one for one in mine if one["state"] == "firing"), None)

    def query(self, query):
        """The value of a query with one series, now; None where there is none."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=60).raise_for_status()
        found = answer.json()["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    def advice(self):
        """What the sidecar advises."""
        return httpx.get(f"{self.sidecar.url}/v1/taxbreak/advice", timeout=60).raise_for_status().json()

    def num_trusted(self):
        """How many recorded steps of the phase the advice stands on, its bound at most."""
        phases = (self.advice()["serving"] or {"phases": []})["phases"]
        return sum(part["num_recorded"] for part in phases if part["phase"] == PHASE)

    def sure_outcome(self):
        """What came of the change; None where that is not told, or not enough is known yet."""
        of_change = [one for one in self.advice()["outcomes"] if RULE in one["rules"]]
        return next((one for one in of_change if one["held"] != "not enough yet"), None)

    def ratio_without_alert(self):
        """What the alert looks at, where it is known and the alert is not there."""
        return self.query(RATIO) if self.alert() is None else None


def printed(command):
    """What a command prints that starts with `taxbreak`, as a runbook names it."""
    words = [sys.executable, "-m", "taxbreak_vllm.cli", *shlex.split(command)[1:]]
    return subprocess.run(words, env=plain_environment(), capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | SHAPE))
    return folder


@pytest.fixture
def say(pytestconfig):
    """Return what writes a line past pytest's capture: the figures of each station are what the walk is for."""
    terminal = pytestconfig.get_terminal_writer()
    return lambda text: terminal.line(f"\n{time.strftime('%X')}, load {os.getloadavg()[0]:.1f}: {text}")


def test_from_the_alert_to_the_flag_to_it_held(commands, model, say):
    spool = commands.folder / "spool"
    watch = Watch(commands, start_sidecar(commands, spool).wait())
    seeds = count(1)

    def serve(name, *flags):
        env = RECORD | {"TAXBREAK_SPOOL": str(spool), "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        flags = (*WORKER_EXTENSION, *ONE_PROCESS, *flags)
        server = start_vllm(commands, model, flags=flags, env=env, name=name).wait()
        say(f"vLLM serves, {' '.join(flags[-2:])}")
        return server

    def load_until(server, condition, what):
        found = None

        def is_so():
            nonlocal found
            send(server.url, "tiny-llama", seed=next(seeds), rounds=(PREFILL,))
            found = condition()
            return bool(found)

        server.process.wait_until(is_so, what, timeout_s=WAIT_S)
        return found

    server = serve("small", *SMALL)
    load_until(server, watch.alert, "alerted")
    load_until(server, lambda: watch.num_trusted() >= MIN_STEPS, "recorded often enough to be advised on")
    alert = load_until(server, watch.alert, "still alerted")
    before, notes = float(alert["value"]), alert["annotations"]
    say(f"{ALERT} fires: {notes['summary']}. {notes['description']}")
    assert re.search(rf"in {PHASE} the device waits for the host [\d.]+% of the time", notes["summary"])
    assert notes["runbook_url"] == f"{watch.url}/alerts?search={ALERT}"

    runbook = notes["runbook"]
    (command,) = re.findall(r"`(taxbreak advice[^`]*)`", runbook)
    say(f"its runbook: {runbook}")
    assert FLAG in runbook

    advised = printed(command)
    (card,) = (one for one in watch.advice()["advice"] if one["rule"] == RULE)
    say(f"`{command}` prints:\n{advised}")
    assert FLAG in card["settings"]
    assert FLAG in advised

    server.process.stop()
    server = serve("large", *LARGE)
    outcome = load_until(server, watch.sure_outcome, "told of")
    say(f"`{command}` prints:\n{(told := printed(command))}")
    assert outcome["held"] == "held", outcome
    assert "held: " in " ".join(told.split())

    recorded = watch.query(RECORDED)
    load_until(server, lambda: watch.query(RECORDED) >= recorded + MIN_STEPS, "recorded for a while")
    after = load_until(server, watch.ratio_without_alert, "clear of its alert")
    say(f"the alert is clear: in {PHASE} the device waits for the host {after:.0%} of the time, before {before:.0%}")
    assert after < before
