"""What Prometheus itself says about a scrape of the sidecar: promtool as text, a real server as OpenMetrics."""

import shutil
import socket
import subprocess
import time

import httpx
import pytest

CONFIG = """
global: {scrape_interval: 1s}
scrape_configs: [{job_name: taxbreak, static_configs: [{targets: ["%s"]}]}]
"""


def _needs(program):
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed: it is in Debian's package prometheus"
    )


@pytest.fixture
def prometheus(tmp_path):
    """Start a Prometheus that scrapes this address; gives its own."""
    started = []

    def start(target):
        (tmp_path / "prometheus.yml").write_text(CONFIG % target)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"]
        with open(tmp_path / "prometheus.log", "wb") as log:
            started.append(subprocess.Popen(command, stderr=log))
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill()
        process.wait()


@_needs("promtool")
def test_promtool_has_nothing_to_say(filled, start_sidecar):
    text = httpx.get(f"{start_sidecar()}/metrics", timeout=60).content

    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert text.count(b"\n# TYPE ") > 15


@_needs("prometheus")
def test_prometheus_reads_every_series_and_the_exemplars(filled, start_sidecar, prometheus, until):
    url = start_sidecar()
    server = prometheus(url.removeprefix("http://"))

    def ask(path, **query):
        try:
            return httpx.get(f"{server}/api/v1/{path}", params=query, timeout=60).raise_for_status().json()["data"]
        except (httpx.TransportError, httpx.HTTPStatusError):
            return None

    until(lambda: (found := ask("query", query="up")) and found["result"] and found["result"][0]["value"][1] == "1")
    (target,) = ask("targets")["activeTargets"]
    num_series = int(ask("query", query='count({__name__=~"taxbreak_.+"})')["result"][0]["value"][1])
    now_s = time.time()
    exemplars = ask("query_exemplars", query='{__name__=~"taxbreak_.+"}', start=now_s - 600, end=now_s + 600)

    text = httpx.get(
        f"{url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}, timeout=60
    ).text
    assert target["lastError"] == ""
    assert num_series == sum(not line.startswith("#") for line in text.splitlines())
    names = {found["seriesLabels"]["__name__"] for found in exemplars}
    assert names == {"taxbreak_sampled_steps_total", "taxbreak_step_seconds_bucket"}
    ids = {exemplar["labels"]["step_id"] for found in exemplars for exemplar in found["exemplars"]}
    assert "step-decode" in ids
    assert httpx.get(f"{url}/v1/taxbreak/steps/step-decode", timeout=60).is_success
