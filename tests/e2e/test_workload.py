"""vLLM's own scheduler, told what a real server's was told, batches every step as it did, however the server is set."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from rig.knobs import Knobs
from rig.open_client import draw, serve
from rig.plugins import python_path
from rig.varied_client import ask_all

from taxbreak_vllm.demo.servers import ONE_PROCESS, WORKER_EXTENSION, start_sidecar, start_vllm
from taxbreak_vllm.model.sweep import Swept
from taxbreak_vllm.model.workload import Prediction
from taxbreak_vllm.workload.figures import figures, latencies, measured_rows

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(900)]

NUM_REQUESTS = 150
DELAY_NS = 5_000_000
WORKER = "rig.simulated.Worker"
FLAGS = {
    "as_served": (),
    "no_prefix_cache": ("--no-enable-prefix-caching",),
    "small_blocks": ("--block-size", "32"),
    "preemption": ("--block-size", "32", "--num-gpu-blocks-override", "30"),
    "chunked_prefill": ("--max-num-batched-tokens", "64", "--block-size", "32"),
    "priorities": ("--scheduling-policy", "priority", "--num-gpu-blocks-override", "30", "--block-size", "32"),
}
NOBIND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def _environment(folder):
    return NOBIND | {"VLLM_PLUGINS": "taxbreak", "TAXBREAK_SPOOL": str(folder)}


@pytest.mark.parametrize("setting", FLAGS)
def test_every_step_is_batched_alike(processes, tiny_llama, batched_again, setting):
    spool = processes.folder / f"spool-{setting}"
    flags = (*ONE_PROCESS, *FLAGS[setting])
    server = start_vllm(processes, tiny_llama, flags=flags, env=_environment(spool), name=setting).wait()
    ids = ask_all(server.url, "tiny-llama", num=NUM_REQUESTS, num_priorities=3 if setting == "priorities" else 1)

    (engine,) = batched_again(server, spool, len(ids))
    server.process.stop()

    assert engine.is_identical, engine
    assert engine.is_whole
    assert engine.num_steps > 300
    assert (engine.num_hit_tokens > 0) == (setting != "no_prefix_cache")
    assert (engine.num_preemptions > 0) == (setting in {"preemption", "priorities"})


def test_of_two_api_servers_and_a_worker_of_its_own_too(processes, tiny_llama, batched_again):
    spool = processes.folder / "spool-two"
    flags = (*WORKER_EXTENSION, "--api-server-count", "2")
    server = start_vllm(processes, tiny_llama, flags=flags, env=_environment(spool), name="two").wait()
    ids = ask_all(server.url, "tiny-llama", num=NUM_REQUESTS)

    (engine,) = batched_again(server, spool, len(ids))
    server.process.stop()

    assert engine.is_identical, engine
    assert len(list(spool.glob("*/traffic/api-*-00000000.jsonl.gz"))) == 2


def test_an_engine_that_schedules_ahead_of_its_device_too(processes, tiny_llama, batched_again):
    spool, folder = processes.folder / "spool-ahead", processes.folder / "simulated"
    folder.mkdir()
    Knobs(folder / "knobs").turn(device=2_000_000)
    env = _environment(spool) | {
        "PYTHONPATH": python_path(folder / "plugins"),
        "SIMULATED": str(folder),
        "VLLM_PLUGINS": "taxbreak,simulated",
    }
    flags = (*ONE_PROCESS, "--async-scheduling", "--worker-cls", WORKER, "--block-size", "32")
    server = start_vllm(processes, tiny_llama, flags=flags, env=env, name="ahead").wait()
    ids = ask_all(server.url, "tiny-llama", num=NUM_REQUESTS)

    (engine,) = batched_again(server, spool, len(ids))
    server.process.stop()

    assert engine.is_identical, engine
    assert engine.num_hit_tokens > 0


def test_a_server_whose_every_instant_is_known_is_predicted_and_what_cannot_be_is_refused(made_up):
    found = json.loads((made_up / "found.json").read_bytes())
    answered = {name: told for name, told in found.items() if told.get("predicted")}
    assert answered.keys() == {"1.5 times the rate", "half the rate", "max_num_seqs 4", "a faster device"}
    for name, told in answered.items():
        for figure, most in (("tokens_per_s", 0.02), ("tpot_mean", 0.05), ("e2e_mean", 0.05), ("ttft_mean", 0.1)):
            assert told["predicted"][figure] == pytest.approx(told["measured"][figure], rel=most), (name, figure)
    for check in found["cut"]["checks"][1:]:  # what only its API servers kept is compared with nothing
        assert all(abs(check["error_ratio"][figure]) < 0.02 for figure in ("tokens_per_s", "tpot_mean")), check
    assert "does not tell its second half" in found["only early requests"]["reason"]
    assert "does not batch" in found["another prompt"]["reason"]
    assert "stalls take" in found["stalls"]["reason"]
    assert "wait for an answer" in found["closed"]["reason"]


def test_a_step_that_is_repeated_is_the_one_that_vllm_would_have_chosen(run_offline, tmp_path):
    run_offline("offline_repeats.py", tmp_path, tmp_path / "found.json")

    found = json.loads((tmp_path / "found.json").read_bytes())
    assert {name: told["first difference"] for name, told in found.items()} == dict.fromkeys(found)
    is_short = {name: told["preempted"] > 0 for name, told in found.items()}
    assert [name for name in found if is_short[name]] == ["few blocks", "few blocks, ahead", "priorities"]
    assert all(told["repeated"] > (0 if is_short[name] else told["steps"] / 4) for name, told in found.items()), found


GRID = ("--set", "max_num_seqs=4,999", "--load", "1x,1.5x", "--slo", "ttft=50ms,tpot=20ms", "--workers", "2", "--json")


@pytest.fixture(scope="module")
def made_up(run_offline, tmp_path_factory):
    """The folder in which `offline_predict.py` left what it found, and the spool of the server that it made up."""
    folder = tmp_path_factory.mktemp("made-up")
    run_offline("offline_predict.py", folder, folder / "found.json")
    return folder


@pytest.fixture(scope="module")
def swept(taxbreak, made_up):
    done = taxbreak("workload", "sweep", made_up / "made-up", *GRID, "--html", made_up / "sweep.html")
    assert (done.returncode, done.stderr) == (0, "")
    return msgspec.json.decode(done.stdout, type=Swept)


def test_a_sweep_answers_each_point_as_predict_does_and_says_of_one_why_it_has_no_answer(taxbreak, made_up, swept):
    options = ("--set", "max_num_seqs=4", "--load", "1.5x", "--slo", "ttft=50ms,tpot=20ms", "--json")
    done = taxbreak("workload", "predict", made_up / "made-up", *options)

    told = msgspec.json.decode(done.stdout, type=Prediction)
    place = next(at for at, point in enumerate(swept.points) if point.load == 1.5 and point.predicted)
    found = swept.points[place]
    assert (found.changes, found.predicted, found.band, found.bounds) == (
        *(told.changes, told.predicted, told.band, told.bounds),
    )
    assert sum(found.bounds.e2e_ratio.values()) == pytest.approx(1)
    assert swept.checks == told.checks
    refused = [point for point in swept.points if point.predicted is None]
    assert [point.changes for point in refused] == [{"max_num_seqs": "999"}] * 2
    assert all("max_num_batched_tokens 256 is less than max_num_seqs 999" in point.reason for point in refused)
    assert "max_num_seqs=999" in (made_up / "sweep.html").read_text()


def test_on_ray_a_sweep_answers_alike(taxbreak, made_up, swept):
    pytest.importorskip("ray")

    done = taxbreak("workload", "sweep", made_up / "made-up", *GRID, "--ray", "local")

    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout, type=Swept) == swept


def test_the_greatest_load_keeps_the_slo_and_a_little_more_does_not(taxbreak, made_up):
    slo = ("--slo", "tpot=3ms", "--json")
    done = taxbreak("workload", "sweep", made_up / "made-up", "--for", "throughput", *slo)

    (found,) = msgspec.json.decode(done.stdout, type=Swept).points
    assert found.meets_slo
    assert found.limit == "slo"
    for load, keeps in ((found.load, True), (found.load * 1.03, False)):
        done = taxbreak("workload", "predict", made_up / "made-up", "--load", f"{load:.4g}x", *slo)
        told = msgspec.json.decode(done.stdout, type=Prediction)
        assert (told.predicted.slo_ratio >= 0.9) == keeps


def _in_group(group):
    """The processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of, *_ = path.read_text().rpartition(")")[2].split()
            found += [int(path.parent.name)] * (int(of) == group and state != "Z")
    return found


def test_ctrl_c_ends_all_processes_of_a_sweep_with_one_line(made_up):
    words = ("workload", "sweep", made_up / "made-up", "--load", ",".join(f"1.{n}x" for n in range(1, 60)))
    process = subprocess.Popen(
        [sys.executable, "-m", "taxbreak_vllm.cli", *map(str, words), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(_in_group(process.pid)) < 6:  # the command, vLLM's, what forks, its tracker, and two that simulate
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err) == (130, "", "taxbreak: interrupted\n")
    deadline = time.monotonic() + 60
    while _in_group(process.pid):
        assert time.monotonic() < deadline, _in_group(process.pid)
        time.sleep(0.05)


def test_a_sidecar_stands_for_its_spool(processes, tiny_llama, batched_again, taxbreak):
    spool = processes.folder / "spool-sidecar"
    flags = (*ONE_PROCESS, "--block-size", "32")
    server = start_vllm(processes, tiny_llama, flags=flags, env=_environment(spool), name="followed").wait()
    sidecar = start_sidecar(processes, spool).wait()
    ids = ask_all(server.url, "tiny-llama", num=NUM_REQUESTS)
    (engine,) = batched_again(server, spool, len(ids))
    server.process.stop()

    for command in ("check", "fit"):
        told, there = (taxbreak("workload", command, source, "--json") for source in (sidecar.url, spool))
        assert (told.returncode, there.returncode) == (0, 0), (told.stderr, there.stderr)
        told, there = (re.sub(r'"elapsed_ns":\d+', "", done.stdout) for done in (told, there))
        assert told == there
    assert engine.is_identical


def test_a_delay_in_the_engines_loop_is_predicted_away(processes, tiny_llama):
    folder = processes.folder / "delayed"
    folder.mkdir()
    spool, knobs = folder / "spool", Knobs(folder / "knobs")
    knobs.turn(schedule=DELAY_NS)
    env = _environment(spool) | {
        "PYTHONPATH": python_path(folder / "plugins"),
        "SIMULATED": str(folder),
        "VLLM_PLUGINS": "taxbreak,simulated",
        "TAXBREAK_ENABLED": "false",
    }
    flags = (*ONE_PROCESS, "--no-async-scheduling", "--worker-cls", "rig.timed.Worker", "--max-num-seqs", "16")
    server = start_vllm(processes, tiny_llama, flags=flags, env=env, name="delayed").wait()
    ask_all(server.url, "tiny-llama", num=16, concurrency=2)  # what is slow the first time
    serve([(server, spool)], "tiny-llama", draw(seconds=25, rate=5, seed=1), seed="with")
    shutil.copytree(spool, folder / "recording")
    knobs.turn()
    plan = draw(seconds=15, rate=5, seed=2)
    measured = figures(latencies(measured_rows(serve([(server, spool)], "tiny-llama", plan, seed="without"))))
    server.process.stop()
    at_s, prompts, outputs = zip(*plan, strict=True)
    (folder / "load.json").write_text(json.dumps({"input_lens": prompts, "output_lens": outputs, "start_times": at_s}))
    command = (sys.executable, "-m", "taxbreak_vllm.cli", "workload", "predict", folder / "recording", "--json")
    command = (*command, "--load", folder / "load.json")

    with_it, without = (
        json.loads(subprocess.run([*command, *more], capture_output=True).stdout)
        for more in ((), (f"--host=-{DELAY_NS // 1000}us",))
    )

    for answer in (with_it, without):
        assert answer["predicted"], answer
    for part in ("tpot", "e2e"):
        told, before = (answer["predicted"][f"{part}_s"]["mean"] for answer in (without, with_it))
        assert told == pytest.approx(measured[f"{part}_mean"], rel=0.1)
        assert before > 1.25 * told
