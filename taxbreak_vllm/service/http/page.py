"""The pages for people: `/`, the window of one server, and `/steps/ID`, one recorded step.

Rendered on the server by `output.page`; `/` refreshes itself. A step's instants and chains are fetched when they are
looked at (`timelines`). Out: documents, with the policy that lets only their own parts run.
"""

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from taxbreak_vllm.output.page.render import render
from taxbreak_vllm.output.page.view import Article
from taxbreak_vllm.service.http.article import read_article, read_step_article
from taxbreak_vllm.service.http.keys import Keys
from taxbreak_vllm.service.http.login import login_route
from taxbreak_vllm.service.http.problems import Problem
from taxbreak_vllm.service.http.sessions import Access, Sessions, WrongKeys, origin
from taxbreak_vllm.service.results.store import Results
from taxbreak_vllm.settings import Settings
from taxbreak_vllm.spool.spool import Spool


def create_page_router(
    settings: Settings, spool: Spool, *, keys: Keys, sessions: Sessions, now_ns: Callable[[], int]
) -> APIRouter:
    """Build the router of the pages; where there are keys, a form asks for one first."""
    route_class = login_route(keys, sessions, WrongKeys(now_ns))
    router = APIRouter(route_class=route_class, include_in_schema=False)  # what is for people is no API

    @router.get("/", response_class=HTMLResponse)
    def show(request: Request, model: str | None = None, server: str | None = None) -> Response:
        """The page of one server; of several that none is named of, the one that was started last."""
        with Results(settings.results_path) as results:
            article = read_article(
                *(results, spool),
                window_s=settings.window_s,
                url=origin(request),
                has_key=keys.are_set,
                now_ns=now_ns(),
                model_name=model,
                server_id=server,
            )
        if article.live is not None and keys.access_of(request) == Access.READ:
            article = replace(article, live=replace(article.live, why_read_only=keys.why_read_only))
        return _answer(article)

    @router.get("/steps/{step_id}", response_class=HTMLResponse)
    def show_step(step_id: str) -> Response:
        """The page of one recorded step, or why there is none."""
        try:
            with Results(settings.results_path) as results:
                return _answer(read_step_article(results, spool, step_id), root="../")
        except Problem as error:
            return _answer(root="../", message=error.detail, status=error.status)

    return router


def _answer(*articles: Article, root: str = "", message: str = "", status: HTTPStatus = HTTPStatus.OK) -> Response:
    document, headers = page(*articles, root=root, message=message)
    return Response(document, status_code=status, media_type="text/html", headers=headers)


def page(*articles: Article, root: str = "", message: str = "") -> tuple[str, dict[str, str]]:
    """Return the document and the headers it needs; `root` leads from its address to that of `/`."""
    document, policy = render(articles, root=root, message=message)
    return document, {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
