"""Options of a prediction are read, and one that is none is refused by name."""

from pathlib import Path

import pytest

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.model.sweep import Aim
from taxbreak_vllm.workload.asked import predict_task, sweep_task
from taxbreak_vllm.workload.task import Search


def test_options_become_a_task():
    task = predict_task(
        Path("spool"),
        load="2.5x",
        arrivals="gamma:0.3",
        settings=["max_num_seqs=32", "enable_chunked_prefill=false", "num_gpu_blocks=64", "policy=priority"],
        replicas=2,
        slo="ttft=500ms,tpot=0.05s",
    )

    assert (task.load, task.file, task.arrivals) == (2.5, None, 0.3)
    assert task.change.settings == {"max_num_seqs": 32, "enable_chunked_prefill": False, "policy": "priority"}
    assert (task.change.num_blocks, task.change.replicas) == (64, 2)
    assert task.change.slo == pytest.approx({"ttft": 0.5, "tpot": 0.05})
    assert task.change.changes_anything
    assert predict_task(Path("spool"), load="azure.csv").file == "azure.csv"
    assert not predict_task(Path("spool"), slo="ttft=1s").change.changes_anything


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"load": "0x"}, "--load 0x"),
        ({"arrivals": "poisson"}, "--arrivals poisson"),
        ({"arrivals": "gamma:0"}, "--arrivals gamma:0"),
        ({"settings": ["max_num_seqs"]}, "--set max_num_seqs"),
        ({"settings": ["num_gpu_blocks=0"]}, "--set num_gpu_blocks=0"),
        ({"settings": ["max_num_seqs=8,16"]}, "--set max_num_seqs: one value"),
        ({"load": "1x,2x"}, "--load 1x,2x: one load"),
        ({"slo": "latency=5"}, "--slo latency=5"),
        ({"slo": "ttft=5m"}, "--slo ttft=5m"),
    ],
)
def test_what_is_no_option_is_named(options, says):
    with pytest.raises(WorkloadError, match=says):
        predict_task(Path("spool"), **options)


def test_lists_become_every_combination():
    task = sweep_task(
        Path("spool"),
        settings=["max_num_seqs=8,16", "num_gpu_blocks=64"],
        load="0.5x,2x",
        replicas="1,2",
        host="1,1.3",
        slo="ttft=500ms",
    )

    assert len(task.cells) == len(set(map(repr, task.cells))) == 16
    assert task.search is None
    first, last = task.cells[0], task.cells[-1]
    assert (first.change.settings, first.change.replicas, first.load) == ({"max_num_seqs": 8}, 1, 0.5)
    assert (last.change.settings, last.change.replicas, last.change.host) == ({"max_num_seqs": 16}, 2, 1.3)
    assert {cell.change.num_blocks for cell in task.cells} == {64}
    assert all(cell.change.slo == task.slo == {"ttft": 0.5} for cell in task.cells)


def test_a_search_is_between_two_ends_that_need_not_be_named():
    greatest = sweep_task(Path("spool"), slo="ttft=1s", aim=Aim.THROUGHPUT, load="0.5x,8x", replicas="1,2")
    fewest = sweep_task(Path("spool"), slo="ttft=1s", aim=Aim.REPLICAS, load="1x,2x")

    assert (greatest.search, len(greatest.cells)) == (Search(Aim.THROUGHPUT, 0.5, 8.0), 2)
    assert (fewest.search, [cell.load for cell in fewest.cells]) == (Search(Aim.REPLICAS, 1, 64), [1.0, 2.0])
    of_file = sweep_task(Path("spool"), slo="ttft=1s", aim=Aim.THROUGHPUT, load="azure.csv")
    assert (of_file.file, of_file.search) == ("azure.csv", Search(Aim.THROUGHPUT, 1 / 16, 16.0))


SEVERAL = {"settings": ["max_num_seqs=8,16"]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing to sweep"),
        ({"settings": ["max_num_seqs=8,8"]}, "nothing to sweep"),
        ({"settings": ["max_num_seqs=8,"]}, "--set max_num_seqs=8,: NAME=VALUE"),
        ({"settings": ["max_num_seqs=8", "max_num_seqs=16"]}, "max_num_seqs is given twice"),
        ({"settings": ["num_gpu_blocks=8,x"]}, "--set num_gpu_blocks=x: a number of blocks"),
        ({"load": "1x,2"}, "--load 1x,2: factors are expected"),
        ({"load": "1x,0x"}, "--load 1x,0x: nothing would come"),
        ({"replicas": "1,2.5"}, "--replicas 1,2.5: whole numbers of 1 to 1024"),
        ({"replicas": "0,1"}, "--replicas 0,1"),
        ({"host": "1,-2"}, "--host -2: a factor of 0.01 to 100 or a time"),
        ({"device": "1,1e9"}, "--device 1,1e9"),
        (SEVERAL | {"slo": "ttft=1s,ttft=2s"}, "ttft is given twice"),
        (SEVERAL | {"slo": "ttft=0s"}, "--slo ttft=0s"),
        (SEVERAL | {"max_points": 1}, "2 points are more than 1: name fewer values, or raise --max-points"),
        ({"aim": Aim.THROUGHPUT}, "--for throughput: an --slo to keep is expected"),
        ({"aim": Aim.THROUGHPUT, "slo": "ttft=1s", "load": "2x"}, "--load 2x: the two ends"),
        ({"aim": Aim.REPLICAS, "slo": "ttft=1s", "replicas": "8,2"}, "--replicas 8,2: the two ends"),
    ],
)
def test_what_is_no_sweep_is_named(options, says):
    with pytest.raises(WorkloadError, match=says):
        sweep_task(Path("spool"), **options)


@pytest.mark.parametrize(
    ("word", "host"), [("1.3", (1.3, 0.0)), ("-1ms", (1.0, -1e6)), ("+250us", (1.0, 250e3)), ("0.5", (0.5, 0.0))]
)
def test_a_host_takes_times_as_long_or_so_much_longer(word, host):
    change = predict_task("spool", host=word).change

    assert (change.host, change.host_added_ns) == pytest.approx(host)
    assert "host" in change.said()


@pytest.mark.parametrize("word", ["1ms", "-1", "0", "101", "-ms", "fast"])
def test_a_host_that_is_neither_is_refused(word):
    with pytest.raises(WorkloadError, match="--host"):
        predict_task("spool", host=word)
