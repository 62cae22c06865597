"""The dashboards in the repository: made by their script, in vLLM's manner, and about metrics that there are."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from taxbreak_vllm.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dashboards"
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
PANELS = {
    f"{board['uid']}: {panel['title']}": panel
    for board in BOARDS.values()
    for panel in board["panels"]
    if panel["type"] != "row"
}
VARIABLES = ["datasource", "job", "model_name", "instance", "engine", "phase", "window"]
ONLY_ON_GPUS = ("taxbreak_launches_total", "taxbreak_tklqt_seconds_total")
RECORDED = re.compile(
    r"taxbreak_((exposed_)?orchestration_seconds|device_(idle|active)_seconds|sampled_\w+|withheld_steps|tklqt_seconds"
    r"|limit_\w+_seconds"
    r"|launches|kernels|samples_dropped)_total"
)

READ_AND_WRITE = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
print(json.dumps([Dashboard.from_json(board) for board in json.load(sys.stdin)], cls=JSONEncoder))
"""

all_boards = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
all_panels = pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
needs_sdk = pytest.mark.skipif(
    find_spec("grafana_foundation_sdk") is None, reason="grafana-foundation-sdk is not installed: pip install '.[dev]'"
)


@needs_sdk
def test_the_files_are_what_the_script_writes(tmp_path):
    subprocess.run([sys.executable, FOLDER / "generate.py", tmp_path], check=True, timeout=60)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: (FOLDER / name).read_text() for name in BOARDS
    }


@needs_sdk
def test_the_models_of_grafana_s_schema_read_every_field():
    boards = list(BOARDS.values())

    done = subprocess.run(
        [sys.executable, "-c", READ_AND_WRITE], input=json.dumps(boards), capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout, object_hook=_without_added) == boards


def _without_added(found):
    """Leave out the defaults that reading puts on every link and variable."""
    added = {"placement": "inControlsMenu", "auto": False, "auto_min": "10s", "auto_count": 30}
    return {key: value for key, value in found.items() if added.get(key, ...) != value}


@all_boards
def test_they_sit_in_vllm_s_menu(board):
    assert board["schemaVersion"] == 39
    assert "vllm" in board["tags"]
    assert board["title"].startswith("vLLM / TaxBreak ")
    assert [variable["name"] for variable in board["templating"]["list"]] == VARIABLES
    assert 8 <= len(board["uid"]) <= 40


@all_boards
def test_every_variable_of_labels_offers_all_and_is_read_anew(board):
    for variable in board["templating"]["list"][1:-1]:
        assert variable["multi"]
        assert variable["includeAll"]
        assert variable["refresh"] in (1, 2)
        assert re.fullmatch(r"label_values\(taxbreak_\w+.*, " + variable["name"] + r"\)", variable["query"]["query"])


@all_boards
def test_each_leads_to_the_others_with_variables_and_time(board):
    (link,) = board["links"]

    assert (link["type"], link["includeVars"], link["keepTime"]) == ("dashboards", True, True)
    assert set(link["tags"]) <= set(board["tags"])


def test_what_a_panel_links_to_is_a_dashboard_of_ours():
    urls = [link["url"] for panel in PANELS.values() for link in panel["fieldConfig"]["defaults"].get("links", ())]

    assert urls
    assert {re.match(r"/d/([\w-]+)\?", url)[1] for url in urls} <= {board["uid"] for board in BOARDS.values()}


@all_boards
def test_panels_do_not_overlap_and_fill_whole_rows(board):
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(cells) == len(set(cells))
    assert len(cells) == 24 * (1 + max(y for _, y in cells))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@all_panels
def test_every_panel_has_a_title_a_unit_and_a_description(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


@all_panels
def test_every_query_has_an_id_of_its_own_and_the_chosen_data_source(panel):
    targets = panel["targets"]

    assert len({target["refId"] for target in targets}) == len(targets) > 0
    assert all(target["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for target in targets)


@all_boards
def test_the_window_of_recorded_steps_is_at_first_the_one_of_the_hdbi_gauge(board):
    window = board["templating"]["list"][-1]

    assert window["type"] == "custom"
    assert [option["value"] for option in window["options"]] == window["query"].split(",")
    assert window["current"]["value"] == f"{Settings().window_s // 60}m" == window["options"][0]["value"]


@all_panels
def test_rates_of_all_steps_follow_the_scrape_interval_and_those_of_the_few_recorded_ones_the_window(panel):
    for target in panel["targets"]:
        windows = set(re.findall(r"\[(.*?)\]", target["expr"]))
        if RECORDED.search(target["expr"]):
            assert windows == {"$window"}
        elif "$window" not in windows:
            assert windows <= {"$__rate_interval"}


@all_panels
def test_nothing_is_divided_by_nothing(panel):
    for target in panel["targets"]:
        if "/ " in target["expr"]:
            assert re.search(r"/ .*> 0\)$", target["expr"])
        if "histogram_quantile" in target["expr"]:
            assert target["expr"].endswith(">= 0")  # no steps give NaN, and NaN is not >= 0


@all_panels
def test_a_panel_that_is_empty_on_a_cpu_says_so(panel):
    told = panel["fieldConfig"]["defaults"].get("noValue", "")
    is_gpu_only = any(name in target["expr"] for target in panel["targets"] for name in ONLY_ON_GPUS)

    assert ("device is the CPU" in told) == is_gpu_only == panel["title"].endswith(" (GPU)")


@all_panels
def test_a_panel_over_time_without_a_recorded_step_says_so(panel):
    if panel["type"] == "timeseries" and any("$window" in target["expr"] for target in panel["targets"]):
        assert "recorded" in panel["fieldConfig"]["defaults"]["noValue"]


def test_every_metric_named_is_one_that_the_code_exposes():
    service = "".join(path.read_text() for path in sorted((ROOT / "taxbreak_vllm" / "service").rglob("*.py")))
    declared = set(re.findall(r'"(?:taxbreak_)?([a-z_]+)"', service))
    texts = [
        *(path.read_text() for path in FOLDER.glob("*.json")),
        (ROOT / "deploy" / "prometheus" / "rules" / "taxbreak.yml").read_text(),
    ]

    named = {name for text in texts for name in re.findall(r"\btaxbreak_(\w+?)(?:_total|_bucket|_info)?\b[{)\[]", text)}

    assert named
    assert named - declared == set()
