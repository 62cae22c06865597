"""The walk of whoever is on call: an alert, its runbook, the advice, the flag that all three name, and that it held."""

import json
import shutil
import socket
import subprocess
import sys
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
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules" / "taxbreak.yml"
SOONER = {"[15m]": "[30s]", "for: 30m": "for: 5s", "interval: 30s": "interval: 1s", "interval: 1m": "interval: 1s"}
ALERT, PHASE = "TaxBreakHostBound", "decode"
RATIO = f'taxbreak:device_waits_for_host:ratio_rate15m{{phase="{PHASE}"}}'
CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs: [{job_name: taxbreak, static_configs: [{targets: ["%s"]}]}]
"""
FLAG = """--compilation-config '{"mode": 3}'"""
TURNED = ("--no-enforce-eager", "--compilation-config", '{"mode": 3}')
# Wide enough that its device works longer than compiled code's host, and not as long as that of eager code.
WIDTH = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8}
DECODE = Requests(num_requests=8, prompt_tokens=8, output_tokens=64, concurrency=8)
RECORD = {"TAXBREAK_SAMPLE_EVERY": "16", "TAXBREAK_OVERHEAD_BUDGET_RATIO": "0.2", "TAXBREAK_MAX_STALL_MS": "60000"}
MIN_STEPS = 12  # recorded on each side, for an interval


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
            return httpx.get(f"{self.url}/-/ready").is_success
        except httpx.TransportError:
            return False

    def alert(self):
        """The alert of the phase, firing; None where it is not."""
        found = httpx.get(f"{self.url}/api/v1/alerts").raise_for_status().json()["data"]["alerts"]
        mine = [one for one in found if (one["labels"]["alertname"], one["labels"].get("phase")) == (ALERT, PHASE)]
        return next((one for one in mine if one["state"] == "firing"), None)

    def runbook(self):
        """The runbook of the alert, which the page at `runbook_url` shows (Debian's build has no pages)."""
        groups = httpx.get(f"{self.url}/api/v1/rules").raise_for_status().json()["data"]["groups"]
        return next(
            rule["annotations"]["runbook"] for group in groups for rule in group["rules"] if rule["name"] == ALERT
        )

    def ratio(self):
        """What the alert looks at, now; None where nothing was recorded of late."""
        query = {"query": RATIO}
        found = httpx.get(f"{self.url}/api/v1/query", params=query).raise_for_status().json()["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    def advice(self, *options):
        """What `taxbreak advice` prints."""
        command = [sys.executable, "-m", "taxbreak_vllm.cli", "advice", "--url", self.sidecar.url, *options]
        return subprocess.run(command, env=plain_environment(), capture_output=True, text=True, check=True).stdout

    def steps(self):
        """How many steps of the phase are recorded of the server that runs."""
        advice = json.loads(self.advice("--json"))
        return sum(part["num_recorded"] for part in advice["serving"]["phases"] if part["phase"] == PHASE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | WIDTH))
    return folder


@pytest.fixture
def say(pytestconfig):
    """Return what writes a line past pytest's capture: the figures of each station are what the walk is for."""
    return lambda text: pytestconfig.get_terminal_writer().line(f"\n{text}")


def test_from_the_alert_to_the_flag_to_it_held(commands, model, say):
    spool = commands.folder / "spool"
    watch = Watch(commands, start_sidecar(commands, spool).wait())
    seeds = count(1)

    def serve(name, *flags):
        env = RECORD | {"TAXBREAK_SPOOL": str(spool), "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return start_vllm(commands, model, flags=(*WORKER_EXTENSION, *ONE_PROCESS, *flags), env=env, name=name).wait()

    def load_until(server, condition, what):
        def is_so():
            send(server.url, "tiny-llama", seed=next(seeds), rounds=(DECODE,))
            return condition()

        server.process.wait_until(is_so, what, timeout_s=300)

    server = serve("eager")
    load_until(server, lambda: watch.alert() and watch.steps() >= MIN_STEPS, "host-bound")
    alert, before = watch.alert(), watch.ratio()
    say(f"{ALERT} fires: in {PHASE} the device waits for the host {before:.0%} of the time")

    notes = alert["annotations"]
    assert notes["runbook_url"] == f"{watch.url}/alerts?search={ALERT}"
    assert FLAG in watch.runbook()
    say(f"its runbook names {FLAG}")

    advised = watch.advice()
    (card,) = (one for one in json.loads(watch.advice("--json"))["advice"] if one["rule"] == "compilation")
    assert FLAG in card["settings"]
    assert FLAG in advised
    say(f"taxbreak advice names it: at most {card['at_most_ratio']:.0%} of a step")

    server.process.stop()
    server = serve("compiled", *TURNED)
    outcome = {}

    def is_told():
        found = json.loads(watch.advice("--json"))["outcomes"]
        outcome.update(next((one for one in found if "compilation" in one["rules"]), {}))
        is_sure = outcome.get("held") not in (None, "not enough yet")
        return is_sure and watch.ratio() is not None and watch.alert() is None

    load_until(server, is_told, "told and clear")
    after = watch.ratio()
    say(f"with it the device waits {after:.0%} of the time, and the alert is clear")
    say(f"{outcome['held']}: {outcome['words']}")

    assert outcome["held"] == "held", outcome
    assert "held: compilation_mode" in " ".join(watch.advice().split())
    assert after < before
    load_until(server, lambda: watch.steps() >= 3 * MIN_STEPS, "recorded for a while")
    assert watch.alert() is None
