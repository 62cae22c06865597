"""What leaves the sidecar compressed, over real HTTP: long answers to whoever takes gzip, each of them once."""

import gzip
import json
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from taxbreak_vllm.service.http.compression import MIN_BYTES

SERVING = Path(__file__).parents[1] / "data" / "serving.json"


@pytest.fixture
def get(filled, start_sidecar):
    """Ask a sidecar, and take the bytes as they came."""
    url = start_sidecar()

    def get(path, accept="gzip", **headers):
        with httpx.stream("GET", f"{url}{path}", headers={"Accept-Encoding": accept} | headers, timeout=60) as response:
            return response, b"".join(response.iter_raw())

    return get


def test_a_long_answer_is_compressed_for_whoever_takes_gzip_and_means_the_same(get):
    for path in ("/", "/v1/taxbreak/breakdown", "/metrics", "/openapi.json"):
        response, packed = get(path)
        plain, data = get(path, "identity")

        assert response.headers["content-encoding"] == "gzip", path
        assert int(response.headers["content-length"]) == len(packed) < len(data) / 2, path
        assert response.headers["vary"] == plain.headers["vary"] == "Accept-Encoding", path
        assert response.headers["content-type"] == plain.headers["content-type"], path
        assert len(gzip.decompress(packed)) == pytest.approx(len(data), rel=0.05), path
        assert "content-encoding" not in plain.headers, path
        assert len(data) >= MIN_BYTES, path


def test_metrics_are_scraped_compressed_in_both_formats(get):
    for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
        response, packed = get("/metrics", Accept=accept)

        text = gzip.decompress(packed).decode()
        assert response.headers["content-type"].startswith(accept.partition(";")[0])
        assert any(family.name.startswith("taxbreak_") for family in parse(text.replace("# EOF\n", "")))


def test_a_short_answer_is_not(get):
    for path in ("/healthz", "/v1/taxbreak/captures", "/none"):
        response, data = get(path)

        assert "content-encoding" not in response.headers, path
        assert int(response.headers["content-length"]) == len(data) < MIN_BYTES, path


def test_a_trace_that_is_gzip_already_goes_out_as_it_is(get, spool):
    capture = spool.captures()[0]
    stored = gzip.compress(SERVING.read_bytes(), 0)
    capture.trace_path.write_bytes(stored)

    response, data = get(f"/v1/taxbreak/steps/{capture.step_id}/trace")

    assert data == stored
    assert "content-encoding" not in response.headers


def test_whoever_does_not_take_gzip_gets_none(get):
    for accept in ("", "br", "gzip;q=0", "gzip; q=0.000", "identity, gzip;q=0", "x-gzipped", "*;q=0"):
        response, data = get("/v1/taxbreak/breakdown", accept)

        assert "content-encoding" not in response.headers, accept
        assert json.loads(data)["schema"], accept


def test_whoever_takes_gzip_among_others_gets_it(get):
    for accept in ("deflate, gzip", "GZIP;q=0.5", "br;q=1.0,gzip; q=0.001"):
        response, _ = get("/v1/taxbreak/breakdown", accept)

        assert response.headers["content-encoding"] == "gzip", accept
