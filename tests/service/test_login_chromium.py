"""The login in a real Chromium: by keyboard, to where one wanted to be, and not from another site's page."""

import gzip
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from tests.output.page.test_page_js import CONTRASTS, LOOKS, UNNAMED, WIDTHS

CONTROL, READ = "control-key", "read-key"
SERVING = Path(__file__).parents[1] / "data" / "serving.json"


@pytest.fixture
def sidecar(filled, spool, start_sidecar):
    """The address of a sidecar with both keys, beside a running server."""
    for capture in spool.captures():
        capture.trace_path.write_bytes(gzip.compress(SERVING.read_bytes()))
    return start_sidecar(api_key=CONTROL, read_key=READ)


def log_in(page, key=CONTROL):
    page.locator("input[name=key]:focus").wait_for()
    page.keyboard.type(key)
    page.keyboard.press("Enter")


def test_one_logs_in_by_keyboard_and_is_where_one_wanted_to_be(visit, sidecar):
    with visit(f"{sidecar}/?from=mail&x=1#a0-steps") as page:
        log_in(page)
        page.get_by_role("heading", name="Newest steps").wait_for()

        assert page.url == f"{sidecar}/?from=mail&x=1#a0-steps"
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
        assert page.evaluate("document.cookie") == ""
        page.reload()
        page.get_by_role("heading", name="Newest steps").wait_for()


@pytest.mark.nightly
def test_a_wrong_key_is_said_and_the_next_one_may_be_right(visit, sidecar):
    with visit(sidecar, expected_log=("403",)) as page:
        log_in(page, "wrong")
        page.get_by_role("alert").get_by_text("That is not the key.").wait_for()
        log_in(page)

        page.get_by_role("heading", name="Newest steps").wait_for()


def test_with_the_session_steps_are_recorded_and_taken_apart_until_one_logs_out(visit, sidecar, spool):
    with visit(sidecar) as page:
        log_in(page)
        page.get_by_role("button", name="Record").click()
        page.get_by_text("0 of 4 steps recorded").wait_for()
        assert spool.read_request("vllm-a").steps == 4
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("cancelled: 0 of 4 steps").wait_for()
        page.locator("[data-timeline]").scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()

        page.get_by_role("button", name="Log out").click()
        page.get_by_role("button", name="Log in").wait_for()
        assert page.context.cookies() == []
        page.reload()
        page.get_by_role("button", name="Log in").wait_for()


@pytest.mark.nightly
def test_the_key_that_only_reads_shows_all_and_says_why_it_cannot_record(visit, sidecar):
    with visit(sidecar) as page:
        log_in(page, READ)

        page.get_by_text("You are here to look only").wait_for()
        assert page.get_by_role("button", name="Record").count() == 0
        page.locator("[data-timeline]").scroll_into_view_if_needed()
        page.locator("[data-timeline] tbody button").first.wait_for()


@pytest.mark.nightly
def test_a_page_whose_session_has_ended_becomes_the_login_by_itself(visit, sidecar):
    with visit(sidecar, expected_log=("401",)) as page:
        log_in(page)
        page.get_by_role("heading", name="Newest steps").wait_for()
        page.context.clear_cookies()

        page.get_by_role("button", name="Log in").wait_for()


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_the_form_can_be_read_and_filled_in_by_a_password_manager(visit, shoot, sidecar, scheme, width):
    with visit(sidecar, scheme=scheme, width=width, expected_log=("403",)) as page:
        log_in(page, "wrong")
        page.get_by_role("alert").wait_for()
        shoot(page, f"login-{scheme}-{width}")

        scroll, client = page.evaluate(WIDTHS)
        assert scroll <= client
        least, where = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, where
        assert page.evaluate(UNNAMED) == []
        field = page.get_by_label("key")
        assert (field.get_attribute("type"), field.get_attribute("autocomplete")) == ("password", "current-password")
        assert page.evaluate("document.activeElement.name") == "key"


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def other_port():
    """The port of another server of this host, whose pages are empty."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def elsewhere(chromium, sidecar, other_port):
    """A page of another site (its host is written otherwise) in a browser that is logged in to the sidecar."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(sidecar)
    log_in(page)
    page.get_by_role("heading", name="Newest steps").wait_for()
    page.goto(f"http://localhost:{other_port}")
    yield page
    context.close()


@pytest.mark.nightly
def test_a_link_from_another_site_leads_to_the_page_whoever_is_logged_in(elsewhere, sidecar):
    elsewhere.set_content(f'<a href="{sidecar}/?phase=decode">the alert</a>')
    elsewhere.get_by_text("the alert").click()

    elsewhere.get_by_role("heading", name="Newest steps").wait_for()
    assert elsewhere.url == f"{sidecar}/?phase=decode"


@pytest.mark.nightly
def test_a_link_from_another_site_leads_to_the_form_whoever_is_not(elsewhere, sidecar):
    elsewhere.context.clear_cookies()
    asked = []
    elsewhere.on("request", lambda request: asked.append(request.url))
    elsewhere.set_content(f'<a href="{sidecar}">the alert</a>')
    elsewhere.get_by_text("the alert").click()

    elsewhere.wait_for_load_state("networkidle")
    assert elsewhere.get_by_role("button", name="Log in").is_visible()
    assert len([url for url in asked if urlsplit(url).scheme == "http"]) == 2


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_another_page_asks_for_nothing_with_one_s_session_even_from_another_port(
    elsewhere, sidecar, spool, other_port, host
):
    elsewhere.goto(f"http://{host}:{other_port}")
    forge = "url => fetch(url, {method: 'POST', body: '{\"steps\": 1}', credentials: 'include', mode: 'no-cors'})"

    with elsewhere.expect_response("**/captures") as answered:
        elsewhere.evaluate(forge, f"{sidecar}/v1/taxbreak/captures")
    assert answered.value.status == (403 if host == "127.0.0.1" else 401)  # with the cookie, and without
    elsewhere.set_content(f'<form method="post" action="{sidecar}/"><button name="logout" value="1">go</button></form>')
    elsewhere.get_by_text("go").click()
    elsewhere.get_by_role("alert").get_by_text("That was sent by another page.").wait_for()

    assert spool.read_request("vllm-a") is None
    elsewhere.goto(sidecar)
    elsewhere.get_by_role("heading", name="Newest steps").wait_for()


@pytest.mark.nightly
def test_the_page_cannot_be_framed_by_another(elsewhere, sidecar):
    elsewhere.set_content(f'<iframe src="{sidecar}"></iframe>')
    elsewhere.wait_for_load_state("networkidle")

    assert elsewhere.frames[1].url.startswith("chrome-error:")
