"""The shipped Prometheus configuration, rules and alerts, judged by promtool."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from taxbreak_vllm.cli.app import app
from taxbreak_vllm.settings import Settings

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules" / "taxbreak.yml"
TESTS = sorted((ROOT / "tests" / "deploy" / "rules").glob("*.yml"))

BOARDS = {json.loads(path.read_text())["uid"] for path in (ROOT / "dashboards").glob("*.json")}
COMMANDS = {command.callback.__name__ for command in app.registered_commands}
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule]


@pytest.fixture
def promtool():
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not there: apt-get install prometheus")

    def run(*arguments):
        return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)

    return run


def test_the_configuration_and_its_rules_are_valid(promtool):
    done = promtool("check", "config", "--lint-fatal", PROMETHEUS / "prometheus.yml")

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_each_alert_fires_where_it_must_and_nowhere_else(promtool, path):
    done = promtool("test", "rules", path)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("tested", "page"), [("dcgm", "metrics"), ("rollout", "kubernetes")])
def test_a_documented_query_is_the_one_that_is_tested(tested, page):
    (case,) = yaml.safe_load((ROOT / "tests" / "deploy" / "rules" / f"{tested}.yml").read_text())["tests"]
    (check,) = case["promql_expr_test"]

    assert f"```\n{check['expr']}```" in (ROOT / "docs" / f"{page}.md").read_text()


@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_each_alert_is_shown_firing_and_not_firing(alert):
    query = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
    checks = [
        check
        for path in TESTS
        for case in yaml.safe_load(path.read_text())["tests"]
        for check in case["promql_expr_test"]
        if check["expr"] == query
    ]

    assert {bool(check.get("exp_samples")) for check in checks} == {True, False}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_says_what_it_means_what_to_do_and_where_to_look(alert):
    texts = alert["annotations"]
    (board,) = re.findall(r"^http://127\.0\.0\.1:3000/d/([\w-]+)\?var-", texts["dashboard_url"])

    assert {"summary", "description", "runbook", "runbook_url", "dashboard_url"} == set(texts)
    assert re.match(r"Meaning: .* Do: ", texts["runbook"])
    assert texts["runbook_url"] == f"{{{{ $externalURL }}}}/alerts?search={alert['alert']}"
    assert board in BOARDS
    assert alert["labels"]["severity"] in ("info", "warning")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_runbook_names_the_flag_command_or_setting_that_helps(alert):
    """Of vLLM, of taxbreak, or of the chart; each that is ours is one that there is."""
    text = alert["annotations"]["runbook"].partition("Do: ")[2]
    ours = re.findall(r"`taxbreak (\w+)", text)
    settings = re.findall(r"\bTAXBREAK_(\w+)", text)

    assert ours or settings or re.search(r"--[a-z-]+|resources\.limits", text)
    assert set(ours) <= COMMANDS
    assert {name.lower() for name in settings} <= set(Settings.model_fields)


def test_links_of_an_alert_are_filled_in_where_it_fires(promtool, tmp_path):
    """With names as they come: a model's has slashes, an instance's a port."""
    overhead = 'taxbreak_capture_overhead_ratio{job="t",instance="a:9797",model_name="q/w",rank="0"}'
    nothing = {"exp_labels": {}, "exp_annotations": {}}
    check = {"alertname": "TaxBreakOverheadAboveBudget", "eval_time": "20m", "exp_alerts": [nothing]}
    case = {
        "interval": "1m",
        "external_url": "https://prometheus.example",
        "input_series": [{"series": overhead, "values": "0.01x30"}],
        "alert_rule_test": [check],
    }
    (path := tmp_path / "links.yml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [case]}))

    done = promtool("test", "rules", path)
    said = done.stdout + done.stderr  # what it got instead of nothing

    assert "https://prometheus.example/alerts?search=TaxBreakOverheadAboveBudget" in said
    assert "/d/vllm-taxbreak-health?var-model_name=q%2Fw&var-instance=a%3A9797" in said
