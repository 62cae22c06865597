"""Host work as a whole, and the part of it that the device waited for."""

from taxbreak_vllm import analyze
from taxbreak_vllm.insight.host_work import HostWork, host_work
from taxbreak_vllm.model.breakdown import ExposedTax, HostTime, StepBreakdown

HOST = HostTime(python_ns=50, dispatch_ns=10, library_ns=20, launch_ns=10, runtime_ns=10, blocked_ns=900)


def test_layers_sum_to_all_of_it_and_waiting_for_the_device_is_no_work():
    exposed = ExposedTax(delta_ft_ns=30, delta_ct_ns=20, delta_kt_ns=0, other_ns=5)

    whole, *layers = host_work(StepBreakdown(host=HOST, exposed=exposed))

    assert [(one.layer, one.work_ns, one.waited_ns, one.hidden_ns) for one in layers] == [
        ("python", 60, 30, 30),
        ("library", 20, 20, 0),
        ("launch", 10, 0, 10),
        ("runtime", 10, 5, 5),
    ]
    assert (whole.work_ns, whole.waited_ns, whole.waited_ratio) == (100, 55, 0.55)


def test_what_the_device_waited_for_may_be_unknown():
    whole, *_ = host_work(StepBreakdown(host=HOST, exposed=ExposedTax.unknown()))

    assert (whole.work_ns, whole.waited_ns, whole.waited_ratio) == (100, None, None)
    assert HostWork(layer="all", work_ns=0, waited_ns=0).waited_ratio is None


def test_of_a_real_step_the_part_is_never_more_than_the_whole(trace_path):
    for step in analyze(trace_path).steps:
        for one in host_work(step):
            assert one.waited_ns is None or 0 <= one.waited_ns <= one.work_ns, one
