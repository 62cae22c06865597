"""The README keeps its promises: two commands first, and a table of settings that is the one in the code."""

import re
from pathlib import Path

import pytest

from taxbreak_vllm import analyze
from taxbreak_vllm.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_first_commands_are_make_demo_and_make_test_and_nothing_else():
    first_block = re.search(r"^```\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)

    assert first_block.group(1).split("\n") == ["make demo", "make test", ""]


def test_every_setting_is_listed_with_its_meaning():
    listed = dict(re.findall(rf"^\| `({PREFIX}\w+)` \| .* \| (.*) \|$", README, flags=re.MULTILINE))

    assert listed == {PREFIX + name.upper(): field.description for name, field in Settings.model_fields.items()}


def test_every_reason_a_sample_is_lost_for_is_listed():
    sources = "".join(path.read_text() for path in (ROOT / "taxbreak_vllm").glob("serv*/*.py"))
    reasons = re.findall(r'(?:drops\.add\(|_lose\(recording, |_set_aside\(capture, )"(\w+)"', sources)
    (listed,) = re.findall(r"^`taxbreak_samples_dropped_total`(.*?)\n\n", README, flags=re.DOTALL | re.MULTILINE)

    assert "outbox" in reasons
    assert [reason for reason in reasons if f"`{reason}`" not in listed] == []


def test_every_make_target_named_exists():
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)

    assert set(re.findall(r"`?make (\w+)", README)) <= set(targets)


@pytest.mark.parametrize(
    "name", ["b200_vllm_eager_infer", "b300_sglang_qwen3-30b-a3b_decode_cudagraph"], ids=lambda name: name[:4]
)
def test_the_worked_example_has_the_figures_of_its_trace(name):
    path = ROOT.parent / "shared" / "traces" / f"{name}.json.gz"
    if not path.exists():
        pytest.skip("the shared traces are not beside the checkout")
    (row,) = [line for line in README.splitlines() if line.startswith("| ") and f"on a {name[:4].upper()}," in line]

    (step,) = analyze(path).steps

    device, taxes = step.device, step.taxes
    times_ns = [device.window_ns, taxes.delta_ft_ns, taxes.delta_ct_ns, taxes.delta_kt_ns, device.idle.host_ns]
    times_ns += [device.active_ns, device.idle_ns]
    told = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert told.pop(1) == f"{step.hdbi:.3f}"
    assert [int(told.pop()), int(told.pop())] == [step.kernels, step.launches]
    assert [float(cell.removesuffix(" ms")) for cell in told] == pytest.approx([t / 1e6 for t in times_ns], rel=1e-2)
    assert f"{(device.active_ns + device.other_active_ns) / device.window_ns:.1%}".replace("%", " %") in README
