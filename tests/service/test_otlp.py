"""What reaches an OpenTelemetry collector: a real HTTP server that reads the messages by OpenTelemetry's own schema."""

import gzip
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families as parse

from taxbreak_vllm.model.frontend import FrontendState, Stage, Waterfall
from taxbreak_vllm.model.step import Server
from taxbreak_vllm.service.app import create_app
from taxbreak_vllm.service.metrics.collector import TaxbreakCollector
from taxbreak_vllm.service.otlp.exporter import LEAVE_S, OtlpExporter
from taxbreak_vllm.service.processes.analyzer import Analyzer

KINDS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Receiver(ThreadingHTTPServer):
    """Takes what is exported; answers `status`, and while `hold` is set nothing at all."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.received = []
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def messages(self, path):
        return [message for at, message in list(self.received) if at == path]

    def spans(self):
        """Every span with its resource's attributes."""
        return [
            (span, told(group.resource))
            for message in self.messages("/v1/traces")
            for group in message.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def metrics(self):
        """The metrics of the newest message, by name."""
        (group,) = self.messages("/v1/metrics")[-1].resource_metrics
        return {metric.name: metric for metric in group.scope_metrics[0].metrics}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hold.wait(30)
        if self.server.status == 200:
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            self.server.received.append((self.path, KINDS[self.path].FromString(body)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def told(carrier):
    values = {each.key: each.value for each in carrier.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


@pytest.fixture
def receiver():
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()


@pytest.fixture
def make_exporter(settings, spool, results, clock):
    """An exporter whose turns the test takes."""
    made = []

    def make(url, **options):
        collector = TaxbreakCollector(settings.results_path, spool, window_ns=900 * 10**9, now_ns=clock)
        options = {"window_ns": 900 * 10**9, "now_ns": clock} | options
        made.append(OtlpExporter(collector, settings.results_path, spool, url=url, **options))
        return made[-1]

    yield make
    for exporter in made:
        exporter.close()


@pytest.fixture
def turn(spool, results, analyze, clock):
    return Analyzer(spool, results, analyze, retention_ns=86400 * 10**9, now_ns=clock).turn


@pytest.fixture
def serve_request(spool, clock):
    """Publish one request of an API server."""

    def serve_request(number=0xBEEF, **changes):
        stages = {Stage.RECEIVE: 10, Stage.PARSE: 20, Stage.QUEUE: 0, Stage.PREFILL: 300, Stage.SEND: 70}
        waterfall = Waterfall(
            number=number, engine="0", started_unix_ns=clock(), total_ns=400, ttft_ns=350, stages_ns=stages,
            first_token_ns={}, num_prompt_tokens=5, num_output_tokens=2, is_streamed=True,
        )  # fmt: skip
        spool.put_frontend_state(FrontendState(server_id="vllm-a", model_name="tiny", updated_unix_ns=2**62))
        spool.put_waterfalls("vllm-a", "0", [waterfall])
        return waterfall

    return serve_request


def test_a_sidecar_exports_the_families_of_its_page_with_the_same_values(
    start_sidecar, receiver, filled, until, monkeypatch
):
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    url = start_sidecar(otlp=receiver.url)
    until(lambda: len(receiver.messages("/v1/metrics")) > 1, timeout_s=60)

    page = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(httpx.get(f"{url}/metrics", timeout=60).text)
        for sample in family.samples
    }
    exported = {}
    for name, metric in receiver.metrics().items():
        for point in metric.sum.data_points:
            exported[f"{name}_total", *sorted(told(point).items())] = point.as_double
        for point in metric.gauge.data_points:
            exported[name, *sorted(told(point).items())] = point.as_double
        for point in metric.histogram.data_points:
            labels, so_far = told(point), 0
            for bound, count in zip([*point.explicit_bounds, "+Inf"], point.bucket_counts, strict=True):
                so_far += count
                exported[f"{name}_bucket", *sorted((labels | {"le": str(bound)}).items())] = so_far
            exported[f"{name}_count", *sorted(labels.items())] = point.count
            exported[f"{name}_sum", *sorted(labels.items())] = point.sum

    assert len(page) > 100
    assert exported.keys() == page.keys()
    moving = ("taxbreak_analysis_lag_seconds",)
    assert {key: value for key, value in exported.items() if key[0] not in moving} == pytest.approx(
        {key: value for key, value in page.items() if key[0] not in moving}
    )
    assert {metric.unit for metric in receiver.metrics().values()} == {"", "s", "By", "1"}
    assert all(metric.sum.is_monotonic for metric in receiver.metrics().values() if metric.HasField("sum"))


def test_a_recorded_step_is_a_span_of_its_time_with_its_taxes(
    receiver, make_exporter, spool, make_state, put, turn, clock
):
    spool.put_state(make_state())
    put("a", 1000)
    turn()

    make_exporter(receiver.url).turn()

    ((span, resource),) = receiver.spans()
    assert span.name == "step decode"
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (clock(), clock() + 200_000)
    attributes = told(span)
    assert attributes["taxbreak.step_id"] == "a"
    assert attributes["taxbreak.device_active_ns"] == 110_000
    assert [attributes[f"taxbreak.delta_{tax}_ns"] for tax in ("ft", "ct", "kt")] == [60_000, 20_000, 10_000]
    assert resource["service.name"] == "taxbreak"
    assert resource["vllm.model_name"] == "tiny"
    assert resource["service.instance.id"] == "vllm-a"


def test_the_version_of_vllm_is_the_servers_and_the_environment_names_the_service(
    receiver, make_exporter, spool, make_state, serve_request, monkeypatch
):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "checkout")
    spool.put_state(make_state(server=Server(server_id="vllm-a", model_name="tiny", vllm="0.32.0")))
    serve_request()

    make_exporter(receiver.url).turn()

    _, resource = receiver.spans()[0]
    assert (resource["vllm.version"], resource["service.name"]) == ("0.32.0", "checkout")


def test_what_was_not_measured_is_no_attribute(receiver, make_exporter, put, turn):
    put("a", is_cpu=True)
    turn()

    make_exporter(receiver.url).turn()

    ((span, _),) = receiver.spans()
    assert "taxbreak.delta_ct_ns" not in told(span)
    assert told(span)["taxbreak.delta_ft_ns"] == 60


def test_a_request_is_a_span_with_a_child_for_each_stage_without_gaps(receiver, make_exporter, serve_request):
    waterfall = serve_request()

    make_exporter(receiver.url).turn()

    (whole, _), *stages = receiver.spans()
    assert (whole.start_time_unix_nano, whole.end_time_unix_nano) == (
        waterfall.started_unix_ns,
        waterfall.started_unix_ns + 400,
    )
    assert told(whole)["taxbreak.request_number"] == "0000beef"
    assert told(whole)["gen_ai.usage.prompt_tokens"] == 5
    assert whole.events[0].time_unix_nano == waterfall.started_unix_ns + 350
    assert [span.name for span, _ in stages] == ["receive", "parse", "prefill", "send"]
    assert {(span.trace_id, span.parent_span_id) for span, _ in stages} == {(whole.trace_id, whole.span_id)}
    edges = [whole.start_time_unix_nano, *(span.end_time_unix_nano for span, _ in stages)]
    assert [span.start_time_unix_nano for span, _ in stages] == edges[:-1]
    assert edges[-1] == whole.end_time_unix_nano


def test_nothing_is_told_twice_and_who_starts_anew_tells_it_with_the_same_ids(
    receiver, make_exporter, put, turn, serve_request
):
    put("a")
    turn()
    serve_request()
    exporter = make_exporter(receiver.url)

    exporter.turn()
    first = receiver.spans()
    exporter.turn()
    again = receiver.spans()
    make_exporter(receiver.url).turn()

    assert len(first) == len(again) == 6
    assert [(span.trace_id, span.span_id) for span, _ in receiver.spans()[6:]] == [
        (span.trace_id, span.span_id) for span, _ in first
    ]
    assert len({span.span_id for span, _ in first}) == 6


def test_an_exemplar_leads_to_the_span_of_its_step(receiver, make_exporter, spool, make_state, results, put, turn):
    results.put_states([make_state()])
    put("a", 1500)
    turn()

    make_exporter(receiver.url).turn()

    ((span, _),) = receiver.spans()
    points = receiver.metrics()["taxbreak_step_seconds"].histogram.data_points
    (exemplar,) = [exemplar for point in points for exemplar in point.exemplars]
    assert (exemplar.trace_id, exemplar.span_id) == (span.trace_id, span.span_id)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_a_collector_did_not_take_is_counted_and_sent_when_it_does(receiver, make_exporter, put, turn, status):
    put("a")
    turn()
    exporter = make_exporter(receiver.url)
    receiver.status = status

    exporter.turn()
    (family,) = exporter.collect()
    failures = {sample.labels["signal"]: sample.value for sample in family.samples}
    receiver.status = 200
    exporter.turn()

    assert failures == {"metrics": 1, "traces": 1}
    assert len(receiver.spans()) == 1
    (point, _) = receiver.metrics()["taxbreak_otlp_failures"].sum.data_points
    assert point.as_double == 1


def test_a_collector_that_is_not_there_ends_nothing(make_exporter, put, turn, until):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    put("a")
    turn()
    exporter = make_exporter(url, interval_s=0.01)

    exporter.start()
    until(lambda: next(iter(exporter.collect())).samples[1].value >= 1)
    began_s = time.monotonic()
    exporter.close()

    assert time.monotonic() - began_s < LEAVE_S + 2


def test_a_collector_that_hangs_holds_no_end_up(receiver, make_exporter, until):
    receiver.hold.clear()
    exporter = make_exporter(receiver.url, interval_s=0.01)
    exporter.start()

    began_s = time.monotonic()
    exporter.close()

    assert time.monotonic() - began_s < LEAVE_S + 2


def test_a_sidecar_whose_collector_hangs_answers_and_ends(start_sidecar, receiver, filled, until, monkeypatch):
    receiver.hold.clear()
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "10")
    url = start_sidecar(otlp=receiver.url)

    text = httpx.get(f"{url}/metrics", timeout=60).text

    assert 'taxbreak_otlp_failures_total{signal="traces"}' in text


def test_opentelemetrys_own_variables_turn_it_on(start_sidecar, receiver, filled, until, monkeypatch):
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.url}/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{receiver.url}/v1/metrics")

    start_sidecar()

    until(lambda: receiver.messages("/v1/metrics") and receiver.spans(), timeout_s=60)


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--otlp", "collector:4318"], {}, "TAXBREAK_OTLP='collector:4318'"),
        (["--otlp", "http://c"], {"OTEL_METRIC_EXPORT_INTERVAL": "soon"}, "the milliseconds between two exports"),
    ],
)
def test_a_wrong_address_is_one_line_and_exit_2(tmp_path, words, environment, said):
    command = [sys.executable, "-m", "taxbreak_vllm.cli", "serve", "--spool", str(tmp_path / "spool"), "--port", "0"]

    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]


def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    script = (
        "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.metric_exporter'] = None;"
        f"sys.argv[1:] = ['serve', '--spool', {str(tmp_path / 'spool')!r}, '--port', '0', '--otlp', 'http://c'];"
        "from taxbreak_vllm.cli import main; main()"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "pip install 'taxbreak-vllm[otlp]'" in done.stderr


def test_opentelemetrys_variables_alone_need_no_extra(settings, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "taxbreak_vllm.service.otlp.exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")

    create_app(settings)

    assert "pip install 'taxbreak-vllm[otlp]'" in caplog.text
