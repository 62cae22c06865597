"""The shipped Prometheus configuration, rules and alerts, judged by promtool."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules" / "taxbreak.yml"
TESTS = sorted((ROOT / "tests" / "deploy" / "rules").glob("*.yml"))

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


def test_the_documented_join_with_dcgm_is_the_one_that_is_tested():
    (case,) = yaml.safe_load((ROOT / "tests" / "deploy" / "rules" / "dcgm.yml").read_text())["tests"]
    (check,) = case["promql_expr_test"]

    assert f"```\n{check['expr']}```" in (ROOT / "docs" / "metrics.md").read_text()


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
def test_each_alert_says_what_it_means_and_what_to_do(alert):
    texts = alert["annotations"]

    assert {"summary", "description", "runbook"} == set(texts)
    assert re.match(r"Meaning: .* Do: ", texts["runbook"])
    assert alert["labels"]["severity"] in ("info", "warning")
