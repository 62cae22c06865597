"""The parts all dashboards are made of: variables, queries, panels and the links from one dashboard to the next.

A dashboard is a title and rows of panels; a panel is a function of its title, what it means, its unit and its queries.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import units

SCHEMA_VERSION = 39
TAGS = ["vllm", "taxbreak"]
DATASOURCE = common_model.DataSourceRef(type_val="prometheus", uid="${datasource}")

SCRAPED = 'job=~"$job",instance=~"$instance"'
MODEL = f'{SCRAPED},model_name=~"$model_name"'
SERVER = f'{MODEL},engine=~"$engine"'
STEP = f'{SERVER},phase=~"$phase"'

SECONDS, RATIO, BYTES, NUMBER = units.Seconds, units.PercentUnit, units.BytesIEC, units.Short
PER_SECOND = units.CountsPerSecond

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
_LEAST_INTERVAL = "1m"
# Of a kind of step one in a thousand is recorded: 20 s apart at 50 steps a second, minutes apart at 5. What Grafana
# would choose, about a minute, often holds none; the hdbi gauge and the alerts look back 15 minutes too. A quiet server
# takes a longer one.
_WINDOWS = ("15m", "1h", "6h")
_GAP_MS = 900_000  # between two samples a line goes on for as long
NONE_RECORDED = "No step was recorded in this window: choose a longer one above, or open Health"
ONLY_ON_GPUS = "Only where work is launched to a device: this server's device is the CPU, or nothing was recorded"

# Each variable is narrowed by those before it.
_CHAIN = ("job", "model_name", "instance", "engine", "phase")
_LABELS = {"job": "Job", "model_name": "Model", "instance": "Instance", "engine": "Engine", "phase": "Phase"}


Panel = TypeVar("Panel", stat.Panel, bargauge.Panel, timeseries.Panel)
Panels = Sequence[stat.Panel | bargauge.Panel | timeseries.Panel]


class Query(NamedTuple):
    """PromQL and the name of its series."""

    expr: str
    legend: str


class Threshold(NamedTuple):
    """From this value on, this colour; None is where the scale begins."""

    value: float | None
    color: str


def rate(metric: str, by: str, labels: str = STEP, *, window: str = "$__rate_interval") -> str:
    """Return how fast a counter grows, added up by some labels ("" for one series)."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}[{window}]))"


def recorded(metric: str, by: str, labels: str = STEP) -> str:
    """Return the same of a counter that only recorded steps raise, over the window chosen."""
    return rate(metric, by, labels, window="$window")


def share(part: str, whole: str, *, one_side: str = "") -> str:
    """Return part over whole, nothing where the whole is 0; `one_side` are labels that only the part has."""
    match = f" ignoring ({one_side}) group_left ()" if one_side else ""
    return f"{part} /{match} ({whole} > 0)"


def steps_that_know(figure: str, by: str) -> str:
    """Return the sampled steps of which a figure is known: sums hold no others."""
    sampled = recorded("taxbreak_sampled_steps_total", by)
    withheld = recorded("taxbreak_withheld_steps_total", by, f'{STEP},figure="{figure}"')
    return f"({sampled} - ({withheld} or 0 * {sampled}))"


def window(by: str) -> str:
    """Return the time of the device that sampled steps span: active or idle."""
    active = recorded("taxbreak_device_active_seconds_total", by)
    return f"({active} + {recorded('taxbreak_device_idle_seconds_total', by)})"


def tile(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int,
    thresholds: Sequence[Threshold] = (Threshold(None, BLUE),),
    decimals: int | None = None,
    opens: str = "",
) -> stat.Panel:
    """Build a panel of the latest numbers; a click opens the dashboard of this uid."""
    panel = (
        stat.Panel()
        .height(5)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .color_mode(common_model.BigValueColorMode.VALUE)
        .text_mode(common_model.BigValueTextMode.VALUE_AND_NAME)
        .orientation(common_model.VizOrientation.VERTICAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    if opens:
        panel = panel.data_links([_open(opens)])
    return _finish(panel, title, description, unit, queries, width, thresholds)


def bars(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int,
    height: int = 5,
    thresholds: Sequence[Threshold] = (Threshold(None, BLUE),),
    names: Mapping[str, str] | None = None,
    opens: str = "",
) -> bargauge.Panel:
    """Build a panel of bars, one for each series, of the latest numbers."""
    panel = (
        bargauge.Panel()
        .height(height)
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .display_mode(common_model.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .min(0)
        .no_value("–")
    )
    if unit == RATIO:
        panel = panel.max(1)
    if opens:
        panel = panel.data_links([_open(opens)])
    return _finish(_named(panel, names), title, description, unit, queries, width, thresholds)


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int = 12,
    stacked: bool = False,
    thresholds: Sequence[Threshold] = (Threshold(None, BLUE),),
    limit: bool = False,
    names: Mapping[str, str] | None = None,
    top: float | None = None,
    empty: str = "",
) -> timeseries.Panel:
    """Build a panel over time; with `limit` its thresholds are drawn as lines, `top` ends the axis.

    `empty` is shown where there is nothing to; by default, of recorded steps, that none was.
    """
    panel = (
        timeseries.Panel()
        .height(8)
        .line_width(1)
        .fill_opacity(40 if stacked else 0)
        .span_nulls(_GAP_MS)
        .show_points(common_model.VisibilityMode.AUTO)
        .min(0)
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI).sort(_SORTED))
        .legend(
            common.VizLegendOptions()
            .display_mode(common_model.LegendDisplayMode.TABLE)
            .placement(common_model.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "mean", "max"])
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL).group("A"))
    if limit:
        style = common_model.GraphThresholdsStyleMode.DASHED
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
    if top is not None:
        panel = panel.max(top)
    if not empty and any("$window" in query.expr for query in queries):
        empty = NONE_RECORDED
    if empty:
        panel = panel.no_value(empty)
    return _finish(_named(panel, names), title, description, unit, queries, width, thresholds)


def build(
    uid: str,
    title: str,
    description: str,
    rows: Mapping[str, Panels],
) -> model.Dashboard:
    """Put rows of panels under the variables and links that every dashboard has."""
    board = (
        dashboard.Dashboard(f"vLLM / TaxBreak {title}")
        .uid(uid)
        .description(description)
        .tags(TAGS)
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .editable()
        .link(_others())
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for number, name in enumerate(_CHAIN):
        board = board.with_variable(_variable(name, _CHAIN[:number]))
    board = board.with_variable(_window())
    for row, panels in rows.items():
        board = board.with_row(dashboard.Row(row))
        for panel in panels:
            board = board.with_panel(panel)
    built = board.build()
    built.schema_version = SCHEMA_VERSION
    for number, panel in enumerate(built.panels or (), start=1):
        panel.id_val = number
    for link in built.links or ():
        _keep_in_sight(link)
    for variable in built.templating.list_val or ():
        variable.auto = variable.auto_min = variable.auto_count = None  # of interval variables, but the SDK sets them
    return built


_SORTED = common_model.SortOrder.DESCENDING


def _variable(name: str, narrowed_by: Sequence[str]) -> dashboard.QueryVariable:
    selector = ",".join(f'{label}=~"${label}"' for label in narrowed_by)
    metric = f"taxbreak_steps_total{{{selector}}}" if selector else "taxbreak_steps_total"
    query = f"label_values({metric}, {name})"
    return (
        dashboard.QueryVariable(name)
        .label(_LABELS[name])
        .datasource(DATASOURCE)
        .query({"query": query, "refId": f"{name}-values"})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _window() -> dashboard.CustomVariable:
    return (
        dashboard.CustomVariable("window")
        .label("Window of recorded steps")
        .values(",".join(_WINDOWS))
        .current(model.VariableOption(selected=True, text=_WINDOWS[0], value=_WINDOWS[0]))
        .options([model.VariableOption(selected=w == _WINDOWS[0], text=w, value=w) for w in _WINDOWS])
    )


def _others() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("TaxBreak")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags(["taxbreak"])
        .include_vars(True)
        .keep_time(True)
    )


def _keep_in_sight(link: model.DashboardLink) -> model.DashboardLink:
    link.placement = None  # the SDK's default hides it in a menu, and links of panels know no such thing
    return link


def _open(uid: str) -> dashboard.DashboardLink:
    name = uid.rpartition("-")[2].capitalize()
    link = dashboard.DashboardLink(f"Open {name}").url(f"/d/{uid}?${{__url_time_range}}&${{__all_variables}}")
    _keep_in_sight(link._internal)
    return link


def _named(panel: Panel, names: Mapping[str, str] | None) -> Panel:
    for label, name in (names or {}).items():
        panel = panel.override_by_name(label, [model.DynamicConfigValue(id_val="displayName", value=name)])
    return panel


def _finish(
    panel: Panel,
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    width: int,
    thresholds: Sequence[Threshold],
) -> Panel:
    steps = [model.Threshold(value=step.value, color=step.color) for step in thresholds]
    panel = (
        panel.title(title)
        .description(description)
        .unit(unit)
        .span(width)
        .interval(_LEAST_INTERVAL)
        .datasource(DATASOURCE)
        .thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    )
    for ref_id, query in zip("ABCDEF", queries, strict=False):
        target = (
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref_id).datasource(DATASOURCE)
        )
        panel = panel.with_target(target.range())
    return panel
