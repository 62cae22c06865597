"""The two keys: what each opens on every route, on the sidecar and mounted alike."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.service.app import create_app
from taxbreak_vllm.service.http.keys import Keys
from taxbreak_vllm.service.http.sessions import WRONG_PER_MINUTE, Access
from taxbreak_vllm.service.mount import mount
from taxbreak_vllm.settings import load_settings

CONTROL, READ = "control-key", "read-key"
BOTH = {"api_key": SecretStr(CONTROL), "read_key": SecretStr(READ)}


def on_sidecar(settings):
    return create_app(settings)


def on_vllm(settings):
    app = FastAPI()
    mount(app, settings)
    return app


@pytest.fixture(params=[on_sidecar, on_vllm])
def build(request, settings, spool, make_state):
    """An app with other settings, beside a running server."""
    spool.put_state(make_state(updated_unix_ns=2**62))
    return lambda **changes: request.param(settings.model_copy(update=changes))


def routes(app):
    """Yield method and path of each route of the API."""
    for route in app.routes:
        if route.path.startswith("/v1/taxbreak"):
            for method in route.methods:
                yield method, re.sub(r"{\w+}", "some-id", route.path)


def statuses(app, key):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    client = TestClient(app)
    return {(method, path): client.request(method, path, headers=headers).status_code for method, path in routes(app)}


def test_every_route_asks_for_a_key_and_only_that_for_control_opens_what_changes_something(build):
    app = build(**BOTH)
    answers = {key: statuses(app, key) for key in (None, READ, CONTROL, "wrong")}

    assert len(answers[READ]) > 15
    assert set(answers[None].values()) == set(answers["wrong"].values()) == {401}
    for (method, path), status in answers[READ].items():
        assert (status == 403) == (method != "GET"), (method, path, status)
        assert status != 401
    assert not {401, 403} & set(answers[CONTROL].values())


def test_a_key_that_only_reads_asks_for_no_steps_and_is_told_so_in_one_line(build, spool):
    response = TestClient(build(**BOTH)).post(
        "/v1/taxbreak/captures", json={}, headers={"Authorization": f"Bearer {READ}"}
    )

    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["title"], body["status"]) == ("Forbidden", 403)
    assert body["detail"] == "the key of TAXBREAK_READ_KEY only reads; to control is for that of TAXBREAK_API_KEY"
    assert spool.read_request("vllm-a") is None


def test_with_a_key_to_read_alone_nobody_controls(build):
    app = build(read_key=SecretStr(READ))

    assert set(statuses(app, None).values()) == {401}
    assert {status for (method, _), status in statuses(app, READ).items() if method != "GET"} == {403}
    refused = TestClient(app).put("/v1/taxbreak/control", json={}, headers={"Authorization": f"Bearer {READ}"})
    assert refused.json()["detail"].endswith("control needs one to be set in TAXBREAK_API_KEY")


def test_the_refusal_names_the_keys_and_the_challenge_is_a_bearer_token(build):
    for settings, names in ((BOTH, "TAXBREAK_API_KEY or TAXBREAK_READ_KEY"), ({"read_key": SecretStr(READ)}, "READ")):
        response = TestClient(build(**settings)).get("/v1/taxbreak/status")

        assert names in response.json()["detail"]
        assert response.headers["www-authenticate"] == 'Bearer realm="taxbreak"'


@pytest.mark.parametrize("given", ["", "control", "control-key-and-more", "Control-Key", "sécret", "\x00"])
def test_nothing_but_the_key_opens(given):
    assert Keys(SecretStr(CONTROL), SecretStr(READ)).access_by(given) is None


def test_each_key_opens_what_it_is_for():
    keys = Keys(SecretStr(CONTROL), SecretStr(READ))

    assert (keys.access_by(CONTROL), keys.access_by(f" {READ}\n")) == (Access.CONTROL, Access.READ)


def ask(app, key, address):
    client = TestClient(app, client=(address, 1))
    return client.get("/v1/taxbreak/status", headers={"Authorization": f"Bearer {key}"})


def test_wrong_tokens_are_bounded_and_the_right_one_is_not_locked_out_where_it_is_used(build):
    app = build(**BOTH)
    assert ask(app, READ, "10.0.0.1").status_code == 200

    wrong = [ask(app, f"guess-{number}", "10.0.0.2") for number in range(WRONG_PER_MINUTE + 1)]
    beside = [ask(app, f"guess-{number}", "10.0.0.1").status_code for number in range(WRONG_PER_MINUTE + 1)]

    assert [answer.status_code for answer in wrong] == [401] * WRONG_PER_MINUTE + [429]
    assert 0 < int(wrong[-1].headers["Retry-After"]) <= 60
    assert ask(app, CONTROL, "10.0.0.2").status_code == 429
    assert set(beside) == {401}
    assert ask(app, READ, "10.0.0.1").status_code == ask(app, READ, "10.0.0.3").status_code == 200


def test_wrong_tokens_are_forgotten_after_a_minute(settings, clock):
    app = create_app(settings.model_copy(update=BOTH), now_ns=clock)
    for _ in range(WRONG_PER_MINUTE):
        ask(app, "guess", "10.0.0.2")
    assert ask(app, READ, "10.0.0.2").status_code == 429

    clock.sleep_s(61)

    assert ask(app, READ, "10.0.0.2").status_code == 200


def test_the_page_is_no_way_around_the_bound(settings):
    client = TestClient(create_app(settings.model_copy(update=BOTH)))
    guesses = [client.get("/", headers={"Authorization": "Bearer guess"}).text for _ in range(WRONG_PER_MINUTE)]

    assert client.get("/", headers={"Authorization": f"Bearer {READ}"}).text.count("<form") == 1
    assert all("<form" in page for page in guesses)
    assert client.get("/v1/taxbreak/status", headers={"Authorization": f"Bearer {READ}"}).status_code == 429


def test_keys_do_not_show_where_an_object_is_printed():
    keys = Keys(SecretStr(CONTROL), SecretStr(READ))

    assert CONTROL not in repr(vars(keys))


def test_metrics_and_health_ask_for_no_key(settings):
    client = TestClient(create_app(settings.model_copy(update=BOTH)))

    assert client.get("/healthz").text == "ok\n"
    assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize("value", ["", " \n", "schlüssel"])
def test_a_key_to_read_that_is_none_ends_the_start(monkeypatch, value):
    monkeypatch.setenv("TAXBREAK_READ_KEY", value)

    with pytest.raises(SettingsError, match=r"^TAXBREAK_READ_KEY: a key is of printable ASCII characters, not empty"):
        load_settings()


def test_one_key_for_both_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("TAXBREAK_API_KEY", "same-key")
    monkeypatch.setenv("TAXBREAK_READ_KEY", "same-key\n")

    with pytest.raises(SettingsError) as raised:
        load_settings()

    assert str(raised.value).startswith("TAXBREAK_READ_KEY: ")
    assert "same-key" not in str(raised.value)


@pytest.mark.parametrize("query", ["limt=5", "=x", "limit=5&Limit=6", "phase%00=decode"])
def test_a_query_parameter_that_a_route_does_not_have_is_named_beside_those_it_has(build, query):
    response = TestClient(build()).get(f"/v1/taxbreak/steps?{query}")

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    (error,) = response.json()["errors"]
    assert error["loc"][0] == "query"
    assert error["loc"][1] in ("limt", "", "Limit", "phase\x00")
    assert error["msg"] == "no such query parameter; this takes cursor, limit, phase"


def test_no_route_takes_a_query_parameter_it_does_not_describe(build):
    app = build()
    described = {
        (method.upper(), re.sub(r"{\w+}", "some-id", path)): operation
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    client = TestClient(app)

    for method, path in routes(app):
        refused = client.request(method, path, params={"no-such": "1"})
        names = [p["name"] for p in described[method, path].get("parameters", []) if p["in"] == "query"]
        assert refused.status_code == 422, (method, path)
        assert refused.json()["detail"] == "no-such: no such query parameter; " + (
            f"this takes {', '.join(sorted(names))}" if names else "this takes none"
        )
        assert "422" in described[method, path]["responses"]


def test_a_long_name_is_cut_and_whoever_has_no_key_is_told_of_no_parameters(build):
    client = TestClient(build(**BOTH))
    name = "x" * 5000

    refused = client.get(f"/v1/taxbreak/steps?{name}=1", headers={"Authorization": f"Bearer {READ}"})
    unknown = client.get(f"/v1/taxbreak/steps?{name}=1")

    assert refused.status_code == 422
    assert len(refused.content) < 1000
    assert unknown.status_code == 401
