from taxbreak_vllm.model.worker import ControlState, WorkerControl
from taxbreak_vllm.output.text.breakdown import control_lines


def test_what_one_should_know_of_a_worker_stands_below_its_line():
    workers = (
        WorkerControl(engine="0", rank=0, enabled=False, off_reason="disabled", notes=("it has not started yet",)),
        WorkerControl(engine="0", rank=1, enabled=True, sample_every=100),
    )

    assert control_lines(ControlState(server_id="a", applied=True, control=None, workers=workers)) == [
        "a: engine 0 rank 0: recording is off (disabled)",
        "  it has not started yet",
        "a: engine 0 rank 1: recording one step in 100 of each kind",
    ]
