"""Options of a prediction are read, and one that is none is refused by name."""

from pathlib import Path

import pytest

from taxbreak_vllm.model.errors import WorkloadError
from taxbreak_vllm.workload.asked import predict_task


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
        ({"slo": "latency=5"}, "--slo latency=5"),
        ({"slo": "ttft=5m"}, "--slo ttft=5m"),
    ],
)
def test_what_is_no_option_is_named(options, says):
    with pytest.raises(WorkloadError, match=says):
        predict_task(Path("spool"), **options)
