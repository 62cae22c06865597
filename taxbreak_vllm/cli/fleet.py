"""The commands that ask one question of all servers whose captures lie in an archive: fleet analyze, fleet report."""

import os
import re
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taxbreak_vllm.cli.options import Json
from taxbreak_vllm.cli.printing import print_json, say
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.output.text.printed import print_text

if TYPE_CHECKING:
    from taxbreak_vllm.fleet.analyze import Count

fleet = typer.Typer(name="fleet", help="All servers at once: what their captures in an archive tell together.")

_DAYS = {"d": 1, "w": 7}
_EVERY_S = 2.0  # between two lines of progress

Url = Annotated[str, typer.Argument(help="an archive: s3://…, gs://…, az://…, file:///…")]
Since = Annotated[
    str | None, typer.Option(help="only of the last days or weeks (7d, 2w), or from a day on (2026-11-01, UTC)")
]
Model = Annotated[str | None, typer.Option(help="only this model, by the name that it is served under")]
By = Annotated[str, typer.Option(help="what groups are told by, with commas between")]
Version = Annotated[str | None, typer.Option(help="rows of this version of taxbreak-vllm; else of the one installed")]


@fleet.command()
def analyze(
    url: Url,
    *,
    since: Since = None,
    model: Model = None,
    by: By = "model,vllm,gpu",
    jobs: Annotated[int | None, typer.Option(min=1, max=1024, help="processes; else one a processor")] = None,
    ray: Annotated[str | None, typer.Option(help="address of a Ray cluster, or local: its tasks do it")] = None,
    json: Json = False,
) -> None:
    """Analyze every capture that this version has not, once each, and show the groups; goes on where it was stopped."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of each process; none of them asks for more
    from taxbreak_vllm.archive.store import Store
    from taxbreak_vllm.fleet.analyze import analyze as analyze_all
    from taxbreak_vllm.fleet.analyze import plan
    from taxbreak_vllm.fleet.report import checked_groups
    from taxbreak_vllm.fleet.table import require_arrow
    from taxbreak_vllm.model.version import package_version

    groups, day = checked_groups(by), _day(since)
    require_arrow()
    found = plan(Store(url), package_version(), since=day, model=model)
    count, broken = analyze_all(found, jobs=jobs or _num_processors(), ray=ray, progress=_Progress())
    for each in broken:
        say(f"{each.key} is set aside: {each.reason}")
    say(
        f"{count.num_found:,} captures: {count.num_analyzed:,} analyzed, {count.num_known:,} before, "
        f"{count.num_broken:,} set aside"
    )
    _show(url, package_version(), day, model, groups, json=json, is_short=True)


@fleet.command()
def report(
    url: Url,
    *,
    since: Since = None,
    model: Model = None,
    by: By = "model,vllm,gpu",
    version: Version = None,
    html: Annotated[Path | None, typer.Option(help="write one self-contained HTML page")] = None,
    json: Json = False,
) -> None:
    """Tell what captures tell together: groups, hosts apart, changes at deploys, what one change would bring."""
    from taxbreak_vllm.fleet.report import checked_groups
    from taxbreak_vllm.fleet.table import require_arrow
    from taxbreak_vllm.model.version import package_version

    groups, day = checked_groups(by), _day(since)
    require_arrow()
    _show(url, version or package_version(), day, model, groups, json=json, html=html)


def _show(
    url: str,
    version: str,
    since: date | None,
    model: str | None,
    by: tuple[str, ...],
    *,
    json: bool,
    html: Path | None = None,
    is_short: bool = False,
) -> None:
    from taxbreak_vllm.archive.store import Store
    from taxbreak_vllm.fleet.analyze import set_aside_by
    from taxbreak_vllm.fleet.report import report as report_on
    from taxbreak_vllm.fleet.steps import read_steps

    store = Store(url)
    steps = read_steps(store, version, since=since, model=model)
    broken = list(set_aside_by(store, version, since=since, model=model))
    found = report_on(steps, archive=url, version=version, by=by, broken=broken)
    if html is not None:
        from taxbreak_vllm.output.page.fleet import write_fleet_html

        write_fleet_html(found, html)
    if json:
        print_json(found.to_json())
        return
    from taxbreak_vllm.output.text.fleet import fleet_text, group_table, lead

    print_text(*((lead(found), group_table(found)) if is_short else fleet_text(found)))


def _day(since: str | None) -> date | None:
    """Read how far back to look, as the first day in UTC; raises SettingsError."""
    if since is None:
        return None
    today = datetime.now(UTC)
    try:
        if found := re.fullmatch(r"(\d{1,4})([dw])", since):
            return (today - timedelta(days=int(found[1]) * _DAYS[found[2]])).date()
        return date.fromisoformat(since)
    except ValueError:
        raise SettingsError(f"--since {since}: say 7d, 2w, or a day as 2026-11-01") from None


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Progress:
    """Says how far it is, every few seconds."""

    def __init__(self) -> None:
        self._begun_s = self._said_s = time.monotonic()

    def __call__(self, count: "Count") -> None:
        now_s, done = time.monotonic(), count.num_analyzed + count.num_broken
        if now_s - self._said_s < _EVERY_S or not done:
            return
        self._said_s = now_s
        rate = done / (now_s - self._begun_s)
        left_s = (count.num_found - count.num_done) / rate
        say(
            f"{count.num_done:,} of {count.num_found:,} captures, {count.num_broken:,} set aside, {rate:.1f}/s, "
            f"{left_s:.0f} s left"
        )
