"""The login in front of the page, as browsers use it and as whoever has no key might try to get around it."""

import logging
from urllib.parse import unquote, urljoin, urlsplit

import anyio
import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from pydantic import SecretStr

from taxbreak_vllm.model.breakdown import Breakdown, Source
from taxbreak_vllm.service.app import create_app
from taxbreak_vllm.service.http.keys import Keys
from taxbreak_vllm.service.http.login import login_route
from taxbreak_vllm.service.http.sessions import (
    MAX_SESSIONS,
    SESSION_S,
    WRONG_PER_MINUTE,
    WRONG_PER_MINUTE_IN_ALL,
    Sessions,
    WrongKeys,
)

CONTROL, READ = "control-key", "read-key"
OURS = {"Sec-Fetch-Site": "same-origin"}
CAPTURES = "/v1/taxbreak/captures"


@pytest.fixture
def app(settings, clock, spool, make_state):
    """A sidecar with both keys, beside a running server."""
    spool.put_state(make_state(updated_unix_ns=2**62))
    keys = {"api_key": SecretStr(CONTROL), "read_key": SecretStr(READ)}
    return create_app(settings.model_copy(update=keys), now_ns=clock)


@pytest.fixture
def browser(app):
    """A browser: it keeps cookies, and follows no redirect by itself."""
    return lambda base="http://sidecar:9797", **options: TestClient(
        app, base_url=base, follow_redirects=False, **options
    )


def log_in(client, key=CONTROL, path="/", headers=OURS):
    return client.post(path, data={"key": key}, headers=headers)


def is_form(response):
    return 'autocomplete="current-password"' in response.text


def test_the_page_is_a_form_for_whoever_brings_no_key_and_tells_nothing_else(browser):
    response = browser().get("/")

    assert response.status_code == 200
    assert is_form(response)
    assert "www-authenticate" not in response.headers
    assert "data-article" not in response.text
    assert response.headers["cache-control"] == "no-store"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "form-action 'self'; frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


def test_a_step_s_page_is_behind_the_same_form_and_the_key_leads_to_it(browser, results, make_info, make_step, clock):
    results.add_step("a", make_info("a"), Breakdown(source=Source(), steps=(make_step(),)), now_ns=clock())
    client = browser()

    before = client.get("/steps/a")
    answer = log_in(client, path="/steps/a")

    assert is_form(before)
    assert "data-article" not in before.text
    assert urljoin("http://sidecar:9797/steps/a", answer.headers["location"]) == "http://sidecar:9797/steps/a"
    assert "decode step" in client.get("/steps/a").text
    assert client.get("/steps/never").status_code == 404


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"])
def test_no_other_method_gets_past_the_form(browser, method):
    response = browser().request(method, "/")

    assert response.status_code == 405
    assert "data-article" not in response.text


def test_the_key_opens_page_and_api_and_is_in_no_cookie(browser):
    client = browser()

    response = log_in(client)

    assert (response.status_code, response.headers["location"]) == (303, "./")
    cookie = response.headers["set-cookie"]
    assert CONTROL not in cookie
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={SESSION_S}"):
        assert attribute in cookie
    assert "Secure" not in cookie
    assert "data-article" in client.get("/").text
    assert client.get("/v1/taxbreak/status").status_code == 200
    assert client.post(CAPTURES, json={}, headers=OURS).status_code == 202


def test_what_a_session_opens_is_kept_by_no_cache(browser):
    client = browser()
    log_in(client)

    for path in ("/", "/v1/taxbreak/status", "/v1/taxbreak/steps/none"):
        assert client.get(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("how", [{"base": "https://sidecar"}, {"headers": {"X-Forwarded-Proto": "https"}}])
def test_over_https_the_cookie_is_secure_and_of_this_host_alone(browser, how):
    cookie = log_in(browser(**how)).headers["set-cookie"]

    assert cookie.startswith("__Host-taxbreak")
    assert "; Secure" in cookie
    assert "Domain" not in cookie


def test_with_the_key_that_only_reads_the_page_offers_no_recording_and_the_api_refuses_it(browser, spool):
    client = browser()
    log_in(client, READ)

    document = client.get("/").text

    assert "You are here to look only: the key of TAXBREAK_READ_KEY only reads" in document
    assert 'id="capture"' not in document
    assert client.get("/v1/taxbreak/status").status_code == 200
    assert client.post(CAPTURES, json={}, headers=OURS).status_code == 403
    assert spool.read_request("vllm-a") is None


def test_after_the_login_one_is_where_one_wanted_to_be(browser):
    response = log_in(browser(), path="/?step=a%2Fb&x=1")

    assert response.headers["location"] == "./?step=a%2Fb&x=1"


@pytest.fixture
def log_in_at():
    """Log in at any address below a page of all addresses, written as it stands on the wire; gives the redirect."""
    sessions = Sessions()
    keys = Keys(SecretStr(CONTROL), sessions=sessions)
    router = APIRouter(route_class=login_route(keys, sessions, WrongKeys()))
    router.add_api_route("/{where:path}", lambda where: where)

    def log_in_at(target):
        path, _, query = target.partition("?")
        headers = OURS | {"Content-Type": "application/x-www-form-urlencoded", "Host": "sidecar"}
        scope = {"type": "http", "method": "POST", "path": unquote(path), "raw_path": path.encode(), "scheme": "http"}
        scope |= {
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }
        sent = []

        async def receive():
            return {"type": "http.request", "body": f"key={CONTROL}".encode()}

        async def send(message):
            sent.append(message)

        anyio.run(router, scope, receive, send)
        assert sent[0]["status"] == 303
        return dict(sent[0]["headers"])[b"location"].decode()

    return log_in_at


@pytest.mark.parametrize(
    "target",
    [
        *("/steps/a-1?phase=decode", "/", "//evil.example", "//evil.example/", "/\\evil.example", "/.//evil.example"),
        *("/%2F%2Fevil.example", "/https:evil.example", "/a/javascript:alert(1)", "/%5c%5cevil.example", "/a/..//evil"),
        *("/?next=https://evil.example", "/?//evil.example", "/a/%0dLocation:%20https://evil.example", "/?a\r\nb: c"),
    ],
)
def test_the_login_leads_to_where_it_stands_and_no_address_leads_elsewhere(log_in_at, target):
    location = log_in_at(target)

    assert location.startswith("./")
    assert "\n" not in location
    where = urlsplit(urljoin(f"http://sidecar:9797{target}", location.replace("\\", "/")))
    assert (where.scheme, where.netloc) == ("http", "sidecar:9797")
    if "evil" not in target and "\n" not in target:
        assert urljoin("http://sidecar:9797" + target, location) == "http://sidecar:9797" + target


def test_a_wrong_key_is_one_line_and_opens_nothing(browser):
    client = browser()

    response = log_in(client, "guess")

    assert response.status_code == 403
    assert is_form(response)
    assert "That is not the key." in response.text
    assert "guess" not in response.text
    assert "set-cookie" not in response.headers
    assert is_form(client.get("/"))


def test_after_some_wrong_keys_of_one_address_no_key_is_taken_from_it_for_a_minute(browser, clock):
    guesser, other = browser(), browser(client=("10.0.0.7", 1234))
    for number in range(WRONG_PER_MINUTE):
        assert log_in(guesser, f"guess-{number}").status_code == 403
        clock.sleep_s(1)

    refused = log_in(guesser)

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) == 60 - WRONG_PER_MINUTE
    assert f"Try again in {60 - WRONG_PER_MINUTE} s." in refused.text
    assert log_in(other).status_code == 303
    clock.sleep_s(60 - WRONG_PER_MINUTE)
    assert log_in(guesser).status_code == 303


def test_wrong_keys_of_many_addresses_are_bounded_too(browser, clock):
    for number in range(WRONG_PER_MINUTE_IN_ALL):
        assert log_in(browser(client=(f"10.0.0.{number}", 1)), "guess").status_code == 403

    assert log_in(browser(client=("10.9.9.9", 1))).status_code == 429
    clock.sleep_s(60)
    assert log_in(browser(client=("10.9.9.9", 1))).status_code == 303


def test_a_session_ends_by_itself(browser, clock):
    client = browser()
    log_in(client)
    clock.sleep_s(SESSION_S - 1)
    assert client.get("/v1/taxbreak/status").status_code == 200

    clock.sleep_s(1)

    assert client.get("/v1/taxbreak/status").status_code == 401
    assert is_form(client.get("/"))


def test_logging_out_ends_the_session_wherever_its_cookie_is(browser):
    client = browser()
    log_in(client)
    stolen = dict(client.cookies)

    response = client.post("/", data={"logout": "1"}, headers=OURS)

    assert response.status_code == 303
    assert not client.cookies
    assert browser(cookies=stolen).get("/v1/taxbreak/status").status_code == 401


def test_a_cookie_that_somebody_else_chose_becomes_no_session(browser):
    opened = browser()
    log_in(opened)
    (name,) = opened.cookies
    victim = browser(cookies={name: "chosen-by-somebody"})

    log_in(victim)

    assert browser(cookies={name: "chosen-by-somebody"}).get("/v1/taxbreak/status").status_code == 401


def test_a_new_login_ends_the_session_before_it(browser):
    client = browser()
    log_in(client)
    before = dict(client.cookies)

    log_in(client, READ)

    assert browser(cookies=before).get("/v1/taxbreak/status").status_code == 401


def test_sessions_are_bounded_and_the_oldest_end(browser):
    first = browser()
    log_in(first)
    for _ in range(MAX_SESSIONS):
        log_in(browser())

    assert first.get("/v1/taxbreak/status").status_code == 401


def test_sessions_of_two_sidecars_on_one_host_have_cookies_of_their_own(browser):
    names = [log_in(browser(f"http://127.0.0.1:{port}")).headers["set-cookie"].split("=")[0] for port in (9797, 9798)]

    assert names == ["taxbreak-9797", "taxbreak-9798"]


ELSEWHERE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://sidecar:8000"},  # another port of this host has the cookie
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://sidecar:8000"},
    {"Origin": "null"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://sidecar:9797.evil.example"},
    {},
]


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_another_site_s_page_can_neither_control_with_a_session_nor_log_in_or_out(browser, spool, headers):
    client = browser()
    log_in(client)

    for method, path in (("POST", CAPTURES), ("DELETE", f"{CAPTURES}/a"), ("PUT", "/v1/taxbreak/control")):
        refused = client.request(method, path, json={}, headers=headers)
        assert refused.status_code == 403
        assert "a session controls from its own page only" in refused.json()["detail"]
    assert spool.read_request("vllm-a") is None
    assert client.post("/", data={"logout": "1"}, headers=headers).status_code == 403
    assert client.get("/v1/taxbreak/status").status_code == 200
    assert log_in(browser(), headers=headers).status_code == 403


def test_where_a_browser_tells_no_site_its_origin_is_enough(browser):
    client = browser()
    own = {"Origin": "http://sidecar:9797"}

    assert log_in(client, headers=own).status_code == 303
    assert client.post(CAPTURES, json={}, headers=own).status_code == 202


def test_the_key_as_a_bearer_token_needs_no_page_and_counts_before_a_session(browser):
    client = browser()

    assert client.get("/", headers={"Authorization": f"Bearer {READ}"}).text.count("data-article") > 0
    assert client.post(CAPTURES, json={}, headers={"Authorization": f"Bearer {CONTROL}"}).status_code == 202
    log_in(client)
    assert client.get("/v1/taxbreak/status", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert (
        client.get("/v1/taxbreak/status", headers={"Authorization": "Basic b3BzOnB3"}).status_code == 200
    )  # a proxy's


def test_no_answer_lets_other_sites_read_it(browser):
    client = browser()
    log_in(client)

    for path in ("/", "/v1/taxbreak/status", "/metrics", "/openapi.json"):
        answer = client.get(path, headers={"Origin": "https://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        asked = client.options(
            path, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        )
        assert asked.status_code == 405


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"key=" + CONTROL.encode(), "text/plain"),
        (b'{"key": "control-key"}', "application/json"),
        (b"key=" + b"x" * 100_000, "application/x-www-form-urlencoded"),
        (b"key=%ff%fe&key=control-key", "application/x-www-form-urlencoded"),
        (b"\xff\x00&&==", "application/x-www-form-urlencoded"),
        (b"", "application/x-www-form-urlencoded"),
    ],
)
def test_what_is_no_form_with_a_key_is_a_wrong_key(browser, content, kind):
    response = browser().post("/", content=content, headers=OURS | {"Content-Type": kind})

    assert response.status_code == 403
    assert is_form(response)


@pytest.mark.parametrize("host", ["sidecar:x", "[::1]:9797", "[", "sidecar:9797;a=b", "", "sidecar:٣"])
def test_an_odd_host_names_an_ordinary_cookie(browser, host):
    response = log_in(browser(), headers=OURS | {"Host": host.encode()})

    assert response.headers["set-cookie"].split("=")[0] in ("taxbreak", "taxbreak-9797")


def test_without_a_key_there_is_no_login(settings):
    client = TestClient(create_app(settings))

    assert "data-article" in client.get("/").text
    assert client.post("/", data={"key": "x"}, headers=OURS).status_code == 405


def test_no_key_is_logged(browser, caplog):
    caplog.set_level(logging.DEBUG)
    client = browser()
    log_in(client, "guess-of-a-key")
    log_in(client)
    client.get("/v1/taxbreak/status", headers={"Authorization": "Bearer guess-of-a-key"})

    assert "guess-of-a-key" not in caplog.text
    assert CONTROL not in caplog.text
