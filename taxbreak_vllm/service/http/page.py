"""The pages for people: `/`, the window of one server, and `/steps/ID`, one recorded step.

Rendered on the server by `output.page`; `/` refreshes itself. A step's instants and chains are fetched when they are
looked at (`timelines`). Out: documents, with the policy that lets only their own parts run.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from taxbreak_vllm.output.page.render import render
from taxbreak_vllm.output.page.view import Article
from taxbreak_vllm.service.http.article import read_article, read_step_article
from taxbreak_vllm.service.http.openapi import errors
from taxbreak_vllm.service.http.problems import Problem, check_token, problem_response
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool

_ERRORS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.SERVICE_UNAVAILABLE)
_NO_STEP: dict[int | str, dict[str, Any]] = {
    404: {"description": "a page that says why there is no such step", "content": {"text/html": {}}}
}


def create_page_router(settings: Settings, spool: Spool, *, now_ns: Callable[[], int]) -> APIRouter:
    """Build the router of the pages; a browser gives the key as the password of HTTP Basic."""
    router = APIRouter()
    has_key = settings.api_key is not None

    def answer(request: Request, read: Callable[[Results], Article], *, root: str = "") -> Response:
        try:
            check_token(request, settings.api_key, with_basic=True)
            with Results(settings.results_path) as results:
                document, headers = page(read(results), root=root)
            return Response(document, media_type="text/html", headers=headers)
        except Problem as error:
            if error.status is not HTTPStatus.NOT_FOUND:
                return problem_response(error, challenge="Basic")
            document, headers = page(root=root, message=error.detail)
            return Response(document, status_code=HTTPStatus.NOT_FOUND, media_type="text/html", headers=headers)

    @router.get("/", response_class=HTMLResponse, responses=errors(*_ERRORS))
    def show(request: Request, model: str | None = None, server: str | None = None) -> Response:
        """The page of one server; of several that none is named of, the one that was started last."""

        def read(results: Results) -> Article:
            return read_article(
                *(results, spool),
                window_s=settings.window_s,
                has_key=has_key,
                now_ns=now_ns(),
                model_name=model,
                server_id=server,
            )

        return answer(request, read)

    @router.get("/steps/{step_id}", response_class=HTMLResponse, responses=errors(*_ERRORS) | _NO_STEP)
    def show_step(request: Request, step_id: str) -> Response:
        """The page of one recorded step."""
        return answer(request, lambda results: read_step_article(results, spool, step_id, has_key=has_key), root="../")

    return router


def page(*articles: Article, root: str = "", message: str = "") -> tuple[str, dict[str, str]]:
    """Return the document and the headers it needs; `root` leads from its address to that of `/`."""
    document, policy = render(articles, root=root, message=message)
    return document, {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
