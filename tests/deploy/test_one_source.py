"""Rules, dashboards, versions and settings are written down once; what is deployed refers to them."""

import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from taxbreak_vllm.cli.app import app
from taxbreak_vllm.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "taxbreak-vllm"
COMPOSE = (DEPLOY / "docker-compose.yml", DEPLOY / "docker-compose.cpu.yml")
DEPLOYED = (DEPLOY / "Dockerfile", *COMPOSE, *sorted((CHART / "templates").iterdir()))

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


class _Loader(yaml.SafeLoader):
    """Reads compose's own tags, such as !reset, as what stands behind them."""


_Loader.add_multi_constructor("!", lambda loader, _tag, node: loader.construct_scalar(node))


def services(path):
    return yaml.load(path.read_text(), Loader=_Loader)["services"]


def test_the_chart_s_rules_are_the_shipped_ones():
    assert (CHART / "files" / "rules.yml").resolve() == DEPLOY / "prometheus" / "rules" / "taxbreak.yml"


def test_the_chart_s_dashboards_are_all_the_generated_ones():
    linked = {path.name: path.resolve() for path in (CHART / "files" / "dashboards").iterdir()}

    assert linked == {path.name: path for path in (ROOT / "dashboards").glob("*.json")}


def test_the_chart_and_the_compose_file_deploy_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    images = {service["image"] for service in services(COMPOSE[0]).values() if "taxbreak" in service["image"]}

    assert chart["appVersion"] == VERSION
    assert images == {f"taxbreak-vllm:{VERSION}"}


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_every_image_has_a_version(path):
    images = [service["image"] for service in services(path).values()]

    assert all(re.fullmatch(r".+:v?\d+\.\d+\.\d+", image) for image in images), images


def test_every_base_image_has_a_version():
    bases = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)

    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases), bases


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_ports_are_open_on_this_machine_only(path):
    ports = [port for service in services(path).values() for port in service.get("ports", ())]

    assert all(port.startswith("127.0.0.1:") for port in ports), ports


@pytest.mark.parametrize("path", DEPLOYED, ids=lambda path: path.name)
def test_settings_named_are_settings_there_are(path):
    named = set(re.findall(rf"\b{PREFIX}\w+", path.read_text()))

    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", ["deployment.yaml", "patch.yaml"])
def test_no_service_of_the_namespace_can_set_a_setting_in_our_pods(name):
    """One named taxbreak would set TAXBREAK_PORT=tcp://…, which workers and sidecar refuse."""
    assert "\n      enableServiceLinks: false" in (CHART / "templates" / name).read_text()


def test_vllm_and_the_sidecar_share_user_spool_and_plugin_in_the_compose_file():
    vllm, sidecar = (services(COMPOSE[0])[name] for name in ("vllm", "sidecar"))
    dockerfile = (DEPLOY / "Dockerfile").read_text()

    assert f"USER {vllm['user']}" in dockerfile
    assert "spool:/spool" in vllm["volumes"]
    assert "spool:/spool" in sidecar["volumes"]
    assert vllm["environment"]["TAXBREAK_SPOOL"] == "/spool"
    assert "TAXBREAK_SPOOL=/spool" in dockerfile


def test_the_chart_s_port_is_the_sidecar_s_own_and_its_bounds_are_the_settings_defaults():
    values, settings = yaml.safe_load((CHART / "values.yaml").read_text()), Settings()

    assert values["port"] == settings.port
    assert values["spool"]["maxBytes"] == settings.spool_max_bytes
    assert values["results"]["maxBytes"] == settings.results_max_bytes
    assert values["settings"]["overheadBudgetRatio"] == settings.overhead_budget_ratio
    assert values["settings"]["sampleEvery"] == settings.sample_every
    assert values["archive"]["bytesPerSecond"] == settings.archive_bytes_per_second
    assert values["archive"]["bytesPerDay"] == settings.archive_bytes_per_day
    assert values["archive"]["batchSeconds"] == settings.archive_batch_s


def test_spool_and_results_fit_the_volume_that_a_pod_is_evicted_for_exceeding():
    """With a quarter to spare, for the results' log and what is being written."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    assert values["spool"]["sizeLimit"] == "1Gi"
    assert 1.25 * (values["spool"]["maxBytes"] + values["results"]["maxBytes"]) <= 2**30


def test_nothing_in_a_pod_of_vllm_s_can_fill_a_disk_that_the_pod_is_evicted_for():
    parts = (CHART / "templates" / "_parts.tpl").read_text()

    assert re.search(r"name: taxbreak-tmp\n  emptyDir: \{medium: Memory, sizeLimit: \w+\}", parts)


def test_the_chart_leaves_vllm_s_user_alone_unless_it_is_told_otherwise():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    patch = (CHART / "templates" / "patch.yaml").read_text()

    assert values["user"]["podWide"] is False
    assert patch.count("taxbreak.podSecurity") == len(
        re.findall(
            r"if \.Values\.user\.podWide \}\}\n +securityContext:\n +\{\{- include \"taxbreak\.podSecurity", patch
        )
    )


def test_the_report_runs_commands_and_options_that_there_are():
    group = typer.main.get_command(app)
    lines = re.findall(r"^ +taxbreak (.*)$", (CHART / "templates" / "report.yaml").read_text(), flags=re.MULTILINE)
    words = [line.replace("{{ .Values.archive.report.since }}", "7d").split() for line in lines]

    assert [found[:2] for found in words] == [["fleet", "analyze"], ["fleet", "report"]]
    for name, command, *rest in words:
        known = {option for p in group.commands[name].commands[command].params for option in p.opts}
        assert {word for word in rest if word.startswith("--")} <= known
