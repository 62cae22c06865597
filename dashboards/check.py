"""Run every query of every dashboard against a real Prometheus: `python dashboards/check.py [--url SIDECAR] [--json]`.

Prometheus runs with the shipped configuration and scrapes a sidecar. Without --url one is started here and fed by a
real vLLM with a tiny model, by GPU traces where `../shared/traces` is there, and by one damaged capture; with --url it
is one that runs already, as that of `make demo`. Prints each panel with its values; exits with 1 where a query finds
nothing although the sidecar has all its metrics, or finds what is no number.
"""

import argparse
import json
import math
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import yaml
from feed import Feed

from taxbreak_vllm.demo.processes import Processes
from taxbreak_vllm.demo.servers import HOST, RunningServer
from taxbreak_vllm.model.errors import TaxbreakError

ROOT = Path(__file__).parents[1]
BOARDS = ("taxbreak-overview.json", "taxbreak-breakdown.json", "taxbreak-health.json")

SCRAPE_S = 5  # as in deploy/prometheus/prometheus.yml
RATE_INTERVAL = f"{60 + SCRAPE_S}s"  # what Grafana makes of a panel's least interval of a minute
WINDOW = "15m"  # as the dashboards have it at first
ROUNDS = 2  # a rate needs more than one scrape, and counts that rise between two
DATA_S = 90.0
SLOW_RULES = {"taxbreak-builds"}  # of builds that have run for an hour: promtool tests those
MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel, or of a variable, as Prometheus gets it; `values` is what came back."""

    dashboard: str
    panel: str
    unit: str
    expr: str
    values: tuple[tuple[str, float | str], ...] = ()

    def is_lacking(self, exposed: set[str]) -> bool:
        """Whether it found nothing although all its metrics are exposed; of a rule that is some metric of ours."""
        wanted = set(re.findall(r"\btaxbreak_\w+", self.expr)) or {"taxbreak_hdbi"}
        return not self.values and wanted <= exposed

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(isinstance(value, str) or math.isfinite(value) for _, value in self.values)


def panel_queries() -> Iterator[Query]:
    """Yield the queries of all panels, Grafana's variables replaced by what it puts there for All."""
    for name in BOARDS:
        board = json.loads((ROOT / "dashboards" / name).read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"].replace("$__rate_interval", RATE_INTERVAL)
                expr = expr.replace("$window", WINDOW)
                expr = re.sub(r"\$(job|model_name|instance|engine|phase)\b", ".*", expr)
                yield Query(board["title"], panel["title"], panel["fieldConfig"]["defaults"]["unit"], expr)


def variable_queries() -> Iterator[Query]:
    """Yield the queries of all variables as `label_values(SERIES, LABEL)`."""
    for name in BOARDS:
        board = json.loads((ROOT / "dashboards" / name).read_text())
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                expr = re.sub(r"\$\w+", ".*", variable["query"]["query"])
                yield Query(board["title"], f"${variable['name']}", "", expr)


def rule_queries() -> Iterator[Query]:
    """Yield what the shipped recording rules record within minutes."""
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules" / "taxbreak.yml").read_text())["groups"]:
        if group["name"] not in SLOW_RULES:
            yield from (
                Query("Recording rules", rule["record"], "", rule["record"])
                for rule in group["rules"]
                if "record" in rule
            )


class Prometheus:
    """Debian's Prometheus with the shipped configuration; only the targets are this run's."""

    def __init__(self, processes: Processes, sidecar_url: str) -> None:
        config = processes.folder / "prometheus"
        shutil.copytree(ROOT / "deploy" / "prometheus", config)
        target = sidecar_url.partition("//")[2].rstrip("/")
        (config / "targets" / "sidecars.yml").write_text(json.dumps([{"targets": [target]}]))
        port = _free_port()
        command = ["prometheus", f"--config.file={config / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={processes.folder / 'tsdb'}", f"--web.listen-address={HOST}:{port}"]
        process = processes.start("prometheus", command, env={"PATH": "/usr/bin:/bin:/usr/local/bin"})
        self.server = RunningServer(process, f"http://{HOST}:{port}", "/-/ready", 60.0).wait()

    def ask(self, query: Query) -> Query:
        """Return the query with its values; raises HTTPStatusError where it does not parse."""
        if found := re.fullmatch(r"label_values\((.*), (\w+)\)", query.expr):
            answer = self._get(f"/api/v1/label/{found[2]}/values", {"match[]": found[1]})
            return replace(query, values=tuple(("", value) for value in answer))
        rows = self._get("/api/v1/query", {"query": query.expr})["result"]
        return replace(query, values=tuple((_name(row["metric"]), float(row["value"][1])) for row in rows))

    def total(self, expr: str) -> float:
        """Return the sum of an expression, 0 for nothing."""
        rows = self._get("/api/v1/query", {"query": expr})["result"]
        return sum(float(row["value"][1]) for row in rows)

    def faulty_rules(self) -> list[str]:
        """Return the names of rules and alerts whose last evaluation failed."""
        groups = self._get("/api/v1/rules", {})["groups"]
        return [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]

    def _get(self, path: str, params: dict[str, str]):  # noqa: ANN202 - JSON
        return httpx.get(self.server.url + path, params=params, timeout=30.0).raise_for_status().json()["data"]


def collect(processes: Processes, url: str | None, say: Callable[[str], None]) -> tuple[list[Query], set[str]]:
    """Return all queries with their values once each has some, and the names that the sidecar exposes."""
    say("Prometheus starts" if url else "Prometheus, a sidecar and vLLM with a tiny model start")
    feed = None if url else Feed(processes)
    prometheus = Prometheus(processes, url or feed.sidecar.url)
    if feed:
        feed.vllm.wait()
        for number in range(1, ROUNDS + 1):
            say(f"load, round {number} of {ROUNDS}: {', '.join(feed.models)}")
            _send_and_see(feed, prometheus)
    say("every query is asked until it finds data")
    metrics_url = f"{url or feed.sidecar.url}/metrics"
    deadline_s = time.monotonic() + DATA_S
    while True:
        exposed = set(re.findall(r"^(taxbreak_\w+)", httpx.get(metrics_url, timeout=30.0).text, flags=re.MULTILINE))
        asked = [prometheus.ask(query) for query in (*panel_queries(), *variable_queries(), *rule_queries())]
        if not any(query.is_lacking(exposed) for query in asked) or time.monotonic() > deadline_s:
            if faulty := prometheus.faulty_rules():
                raise TaxbreakError(f"rules that cannot be evaluated: {', '.join(faulty)}")
            return asked, exposed
        time.sleep(1)


def _send_and_see(feed: Feed, prometheus: Prometheus) -> None:
    """Send load until more steps of every model were recorded, analyzed and scraped than before."""

    def num_sampled(model: str) -> float:
        return prometheus.total(f'taxbreak_sampled_steps_total{{model_name="{model}"}}')

    before = {model: num_sampled(model) for model in feed.models}

    def is_more() -> bool:
        feed.send()
        return all(num_sampled(model) > before[model] for model in feed.models)

    feed.sidecar.process.wait_until(is_more, "analyzed and scraped", timeout_s=DATA_S)


def _name(labels: dict[str, str]) -> str:
    return ", ".join(value for label, value in sorted(labels.items()) if label not in ("__name__", "job", "instance"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _show(asked: Sequence[Query], exposed: set[str]) -> None:
    board = ""
    for query in asked:
        if query.dashboard != board:
            board = query.dashboard
            print(board)
        shown = [f"{name}{'=' if name else ''}{_rounded(value)}" for name, value in query.values[:MAX_SHOWN]]
        more = f" … {len(query.values)} series" if len(query.values) > MAX_SHOWN else ""
        empty = "NO DATA" if query.is_lacking(exposed) else "absent here"
        print(f"  {query.panel}{f' [{query.unit}]' * bool(query.unit)}: {'  '.join(shown) or empty}{more}")


def _rounded(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def main() -> int:
    """Run the check and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="address of a sidecar that runs; without it one is started and fed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the list")
    options = parser.parse_args()
    started_s = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started_s:4.0f} s  {line}", file=sys.stderr, flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="taxbreak-", ignore_cleanup_errors=True) as folder,
        Processes(Path(folder)) as processes,
    ):
        try:
            asked, exposed = collect(processes, options.url, say)
        except (TaxbreakError, httpx.HTTPError, FileNotFoundError) as error:
            print(error, file=sys.stderr)
            return 1
    if options.json:
        print(json.dumps({"queries": [asdict(query) for query in asked], "exposed": sorted(exposed)}))
    else:
        _show(asked, exposed)
    bad = [query for query in asked if query.is_lacking(exposed) or not query.is_finite]
    for query in bad:
        print(f"{query.dashboard}: {query.panel}: no data, or no number: {query.expr}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
