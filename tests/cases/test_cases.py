"""Situations met in the wild, one input each (`../shared/cases` beside the checkout): what is right of each is told.

`README.md` there says where each comes from. The kinds they stand for are in `test_kinds.py`, made up and always run.
"""

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from taxbreak_vllm.cli import main
from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.model.advice import Verdict
from taxbreak_vllm.taxes.analyze import analyze

CASES = Path(__file__).parents[3] / "shared" / "cases"


@pytest.fixture
def case():
    """Analyze the input of a name; the test is skipped where it is not beside the checkout."""

    def case(name):
        (path,) = list(CASES.glob(f"{name}.json*")) or [None]
        if path is None:
            pytest.skip(f"{name} is not beside this checkout (../shared/cases)")
        return analyze(path)

    return case


def said(breakdown):
    return "\n".join(breakdown.notes)


def assert_unknown(step):
    """Taxes, the causes of idle time, exposed tax and HDBI are null, all of them."""
    tree = msgspec.to_builtins(step)
    assert {*tree["taxes"].values(), *tree["exposed"].values(), *tree["device"]["idle"].values()} == {None}
    assert (step.hdbi, step.tklqt_ns) == (None, None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("f2_h100_one_kernel_in_four", "116 of 155 launches left no activity"),
        ("d07b_three_quarters_unlinked", "15 of 20 launches left no activity"),
        ("d02_roctracer100_corr0", "3 of 8 launches left no activity"),
        ("d02b_roctracer100_corr0_with_a_call0", "3 of 8 launches left no activity"),
        ("d01_merged_two_ranks_two_devices", "2 processes"),
        ("d03b_xpu3985_no_kernels", "8 launches left no activity"),
        ("d04_cupti_denied_cpu_ops_only", "no activity of it was recorded"),
        ("d05_kineto996_no_kernels", "5 launches left no activity"),
        ("d06_device_only", "none of 5 device activities could be joined"),
        ("d07_rocm2854_ids_never_match", "none of 20 device activities could be joined"),
        ("d08_mtia", "5 mtia_ccp_events"),
        ("d08c_privateuse1_nokernel", "no activity of it was recorded"),
        ("e06_ascend133_trace_view", "20 enqueue"),
    ],
)
def test_what_lacks_half_of_the_truth_has_no_verdict_and_says_why(case, name, reason):
    found = case(name)

    for step in (*found.steps, found.total):
        assert_unknown(step)
    assert reason in said(found)
    assert reason in found.evidence.withheld["hdbi"]
    report = advise([with_plain_step(found, max(1, found.total.window_ns - 1))])
    assert (report.verdict, report.advice) == (Verdict.WITHHELD, ())


@pytest.mark.parametrize(
    ("name", "device_type"),
    [
        ("d03_xpu5284", "xpu"),
        ("d03b_xpu3985_no_kernels", "xpu"),
        ("d04_cupti_denied_cpu_ops_only", "cuda"),
        ("d08_mtia", "unknown"),
        ("d08c_privateuse1_nokernel", "unknown"),
        ("e06_ascend133_trace_view", "unknown"),
    ],
)
def test_a_device_that_is_not_understood_is_never_the_cpu(case, name, device_type):
    assert case(name).source.device_type == device_type


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_of_a_joined_file_can_be_told_alone(case, rank):
    found = analyze(case("d01_merged_two_ranks_two_devices").source.path, rank=rank)

    assert (found.coverage.launches, found.coverage.linked, found.coverage.unlinked) == (5, 5, 0)
    assert found.coverage.launches_without_activity == 0
    assert found.devices[0].device == rank
    assert found.total.hdbi is not None


def test_waits_of_an_xpu_are_blocked_time(case):
    assert case("d03_xpu5284").total.host.blocked_ns == 40_000


@pytest.mark.parametrize(
    "name", ["c02_rocprofiler84_kernel_before_program", "c02b_kernel_an_hour_early", "e33_op_at_ts0"]
)
def test_a_record_far_from_all_others_is_set_aside_and_counted(case, name):
    found = case(name)

    assert found.evidence.out_of_range == 1
    assert "far from all others in time: 1" in said(found)
    assert found.total.window_ns < 1_000_000
    assert found.total.tklqt_ns is None or found.total.tklqt_ns >= 0


def test_a_kernel_that_runs_over_its_successors_is_cut_at_the_next(case):
    found = case("c05_tracelens669_impossible_dur")

    assert (found.evidence.clipped, found.total.device.active_ns) == (1, 515_000)
    assert "cut where the next of their stream begins" in said(found)


def test_a_replay_that_lacks_nodes_has_no_hdbi_and_the_others_keep_theirs(case):
    found = case("c11c_replay_with_16_of_64_nodes")

    assert [step.hdbi is None for step in found.steps] == [False, False, True, False]
    assert "48 graph nodes that other replays of the same graph have are missing in 1" in said(found)


def test_steps_of_a_second_thread_are_counted(case):
    assert "second thread, and count as part of that one: 3" in said(case("g03_two_threads_overlapping_steps"))


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("g02_vllm_sampler_outside_annotation", "15 of 39 launches lie outside all steps"),
        ("mi300_sglang_dsr1_decode", "20 of 34 launches lie outside all steps"),
    ],
)
def test_launches_outside_all_steps_are_counted(case, name, outside):
    assert outside in said(case(name))


def test_the_profilers_own_work_is_told(case):
    assert "the profiler's own work took 9.00 ms of 9.19 ms" in said(case("g08_kineto1020_buffer_request"))


def test_launches_of_milliseconds_are_no_floor(case):
    found = case("hta_et_simple_add")

    assert (found.total.taxes.delta_kt_ns, found.total.hdbi) == (None, None)
    assert "no floor of a launch" in said(found)


def test_fbgemms_lookups_are_embeddings(case):
    assert {share: family.kernels for share, family in case("g12_fbgemm_ops").total.families.items()} == {
        "embedding": 3,
        "gemm": 1,
    }


@pytest.mark.parametrize("name", ["d13c_two_docs", "d13_gz_trailing_garbage"])
def test_what_stands_behind_the_end_of_a_file_is_left_and_told(case, name):
    found = case(name)

    assert (found.total.launches, found.total.hdbi) == (5, pytest.approx(0.217, abs=0.001))
    assert "the file goes on after its end" in said(found)


@pytest.mark.parametrize("command", [("analyze",), ("fusion",), ("diff", "again")])
def test_a_terminal_is_shown_no_control_characters_of_a_file(case, capfd, monkeypatch, command):
    path = case("e09_odd_names").source.path
    monkeypatch.setattr("sys.argv", ["taxbreak", command[0], path, *([path] if "again" in command else [])])

    with suppress(SystemExit):
        main()

    shown = capfd.readouterr().out
    assert shown
    assert not {char for char in shown if char in "\x1b\x00\x07\x08\u202e" or (char < " " and char != "\n")}


@pytest.mark.parametrize("name", ["e02_async_op_crossing", "e05_trtllm13872_two_scopes"])
def test_what_is_unclear_is_analyzed_without_a_fault(case, name):
    assert case(name).total.hdbi is not None
