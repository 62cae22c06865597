"""Chains are counted as a plain reading of SKIP's definition counts them, and never pass a boundary."""

import json
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.insight.fusion import KernelOrder, find_chains, fusion
from taxbreak_vllm.model.errors import SettingsError, TraceFormatError

SERVING = Path(__file__).parents[1] / "data" / "serving.json"


def order_of(text: str, launches: list[int] | None = None) -> KernelOrder:
    """Kernels named by letters, one launch each unless told; a blank ends a segment."""
    segments = [number for number, part in enumerate(text.split(" ")) for _ in part]
    letters = text.replace(" ", "")
    return KernelOrder(
        kernel=np.array([string.ascii_uppercase.index(letter) for letter in letters], dtype=np.int64),
        segment=np.array(segments, dtype=np.int64),
        launch=np.array(range(len(letters)) if launches is None else launches, dtype=np.intp),
        names=tuple(string.ascii_uppercase),
    )


def chains_of(report):
    return {"".join(chain.kernels): (chain.count, chain.first_count) for chain in report.chains}


def test_a_chain_scores_its_count_over_that_of_its_first_kernel():
    # A is followed by B each of 3 times, by BC twice; C begins nothing that happens twice.
    report = find_chains(order_of("ABCABCABD"), lengths=[2, 3], min_score=0.5)

    assert chains_of(report) == {"AB": (3, 3), "BC": (2, 3), "CA": (2, 2), "ABC": (2, 3), "BCA": (2, 3), "CAB": (2, 2)}
    assert {"".join(chain.kernels): chain.score for chain in report.chains}["BCA"] == 2 / 3


def test_only_what_always_and_repeatedly_follows_is_a_candidate():
    report = find_chains(order_of("ABCABCABD"), lengths=[2, 3])

    assert chains_of(report) == {"AB": (3, 3), "CA": (2, 2), "CAB": (2, 2)}
    assert [row.distinct for row in report.by_length] == [4, 4]
    assert [row.occurrences for row in report.by_length] == [8, 7]


def test_a_chain_inside_another_as_frequent_one_is_not_maximal():
    report = find_chains(order_of("ABCABCABD"), lengths=[2, 3])

    # CA occurs twice as CAB does; AB once more.
    assert {"".join(chain.kernels) for chain in report.chains if chain.is_maximal} == {"AB", "CAB"}


def test_fusion_goes_from_left_to_right_without_overlap():
    # Length 2: AB AB AB and CA twice share kernels; AB goes first at 0, CA at 2 is free, then B C, A B…
    # A B C A B C A B D -> [AB] [CA] B [CA] B D: 9 kernels become 6.
    report = find_chains(order_of("ABCABCABD"), lengths=[2])

    assert (report.kernels, report.kernels_after, report.launches_after) == (9, 6, 6)
    assert report.by_length[0].fused == 3
    assert report.ideal_speedup == 9 / 6


def test_the_longest_candidates_are_fused_first():
    # CAB at 2 and 5, then AB at 0: [AB] [CAB] [CAB] D = 4 left, where pairs alone leave 6.
    report = find_chains(order_of("ABCABCABD"), lengths=[2, 3])

    assert (report.kernels_after, report.ideal_speedup) == (4, 9 / 4)
    assert [row.kernels_after for row in report.by_length] == [6, 5]


def test_no_chain_passes_the_end_of_a_segment():
    report = find_chains(order_of("AB AB A"), lengths=[2, 3])

    assert chains_of(report) == {}  # A is followed by B twice of three times
    assert [row.occurrences for row in report.by_length] == [2, 0]


def test_fusing_within_one_graph_saves_kernels_but_no_launch():
    # Two graph launches of ABC each, and one kernel D before each.
    report = find_chains(order_of("DABCDABC", launches=[0, 1, 1, 1, 2, 3, 3, 3]), lengths=[3])

    assert chains_of(report) == {"DAB": (2, 2), "ABC": (2, 2)}
    # DAB is fused: launches 0 and 2 hold it, 1 and 3 still hold C.
    assert (report.kernels_after, report.launches, report.launches_after) == (4, 4, 4)


def test_a_launch_is_saved_once_all_its_kernels_are_fused_into_an_earlier_one():
    report = find_chains(order_of("DABCDABC", launches=[0, 1, 1, 1, 2, 3, 3, 3]), lengths=[4])

    assert (report.kernels_after, report.launches, report.launches_after, report.ideal_speedup) == (2, 4, 2, 2.0)


def test_nothing_to_fuse_is_no_speed_up_of_zero():
    report = find_chains(order_of(""))

    assert report.ideal_speedup is None
    assert [row.ideal_speedup for row in report.by_length] == [None] * 7
    assert report.chains == ()


@pytest.mark.parametrize("wrong", [{"lengths": [1, 2]}, {"lengths": []}, {"min_score": 0}, {"min_score": 1.1}])
def test_a_senseless_option_is_refused_in_one_line(wrong):
    with pytest.raises(SettingsError, match=r"^[^\n]+ makes? no sense$"):
        find_chains(order_of("AB"), **wrong)


def reference(text: str, launches: list[int], lengths: list[int], min_score: float):
    """The definitions, word for word."""
    parts, at = [], 0
    for part in text.split(" "):
        parts.append([(at + i, letter) for i, letter in enumerate(part)])
        at += len(part)
    first_count = Counter(letter for part in parts for _, letter in part)
    candidates, starts = {}, {}
    for length in lengths:
        windows = [part[i : i + length] for part in parts for i in range(len(part) - length + 1)]
        counts = Counter("".join(letter for _, letter in window) for window in windows)
        chosen = {c: n for c, n in counts.items() if n >= 2 and n / first_count[c[0]] >= min_score}
        candidates |= {c: (n, first_count[c[0]]) for c, n in chosen.items()}
        starts[length] = [window[0][0] for window in windows if "".join(letter for _, letter in window) in chosen]
    taken, dropped = set(), set()
    for length in sorted(lengths, reverse=True):
        for start in starts[length]:
            members = set(range(start, start + length))
            if not members & taken:
                taken |= members
                dropped |= members - {start}
    left = [i for i in range(at) if i not in dropped]
    return candidates, len(left), len({launches[i] for i in left})


@given(
    text=st.lists(st.text("ABCD", max_size=30), max_size=4).map(" ".join),
    repeat=st.integers(1, 3),
    cuts=st.sets(st.integers(0, 200)),
    lengths=st.sets(st.integers(2, 8), min_size=1),
    min_score=st.sampled_from([1.0, 0.75, 0.5, 0.1]),
)
def test_chains_scores_and_fusion_equal_the_slow_reference(text, repeat, cuts, lengths, min_score):
    text = " ".join([text] * repeat)
    launches = np.cumsum([i in cuts for i in range(len(text.replace(" ", "")))]).tolist()

    report = find_chains(order_of(text, launches), lengths=lengths, min_score=min_score)

    found = (chains_of(report), report.kernels_after, report.launches_after)
    assert found == reference(text, launches, sorted(lengths), min_score)


def write_trace(path: Path, events: list[dict]) -> Path:
    path.write_text(json.dumps({"traceEvents": [{"ph": "X", "pid": 1, "tid": 1, **event} for event in events]}))
    return path


def launch(at: int, kernel: str, *, thread: int = 1, stream: int = 7, has_call: bool = True, delay: int = 5):
    """One kernel launched at `at` µs, run 5 µs later."""
    args = {"correlation": at, "stream": stream, "device": 0}
    call = {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": at, "dur": 2, "tid": thread, "args": args}
    ran = {"cat": "kernel", "name": kernel, "ts": at + delay, "dur": 3, "pid": 0, "tid": stream, "args": args}
    return [call, ran] if has_call else [ran]


def copy(at: int, *, stream: int = 7):
    """A copy launched at `at` µs, run 5 µs later."""
    call, ran = launch(at, "Memcpy DtoD (Device -> Device)", stream=stream)
    return [call | {"name": "cudaMemcpyAsync"}, ran | {"cat": "gpu_memcpy"}]


def sync(at: int, *, thread: int = 1):
    return [{"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": at, "dur": 2, "tid": thread, "args": {}}]


def step(at: int, duration: int, number: int):
    return [{"cat": "user_annotation", "name": f"ProfilerStep#{number}", "ts": at, "dur": duration, "args": {}}]


def test_in_a_trace_kernels_are_chained_stream_by_stream(tmp_path):
    events = []
    for at in (100, 200, 300):
        events += launch(at, "A") + launch(at + 10, "X", stream=9) + launch(at + 20, "B")

    report = fusion(write_trace(tmp_path / "t.json", events), lengths=[2])

    # A and B alternate on stream 7, X alone on stream 9: AB thrice, BA twice, XX twice of three.
    assert {chain.kernels: chain.count for chain in report.chains} == {("A", "B"): 3}
    assert (report.kernels, report.launches, report.unlinked) == (9, 9, 0)


@pytest.mark.parametrize(
    ("between", "crosses"),
    [
        (sync(115), False),
        (sync(115, thread=2), True),  # another thread waits, not the one that launches
        (step(50, 65, 1) + step(115, 300, 2), False),
        (launch(115, "U", has_call=False, delay=1), False),
        (copy(115), False),
        (copy(115, stream=9), True),
        (launch(115, "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"), False),
        ([], True),
    ],
    ids=[
        "blocking call",
        "blocking call of another thread",
        "step boundary",
        "unlinked kernel",
        "copy",
        "copy on another stream",
        "collective",
        "nothing",
    ],
)
def test_in_a_trace_a_chain_ends_at_a_boundary(tmp_path, between, crosses):
    events = launch(110, "A") + between + launch(120, "B") + launch(210, "A") + launch(220, "B")

    report = fusion(write_trace(tmp_path / "t.json", events), lengths=[2])

    assert bool(report.chains) == crosses


def test_a_chain_stays_on_one_launching_thread(tmp_path):
    events = [event for at in (100, 200) for event in launch(at, "A") + launch(at + 10, "B", thread=2)]

    report = fusion(write_trace(tmp_path / "t.json", events), lengths=[2])

    assert report.by_length[0].occurrences == 0


def test_kernels_without_a_launch_event_are_counted_and_in_no_score(tmp_path):
    events = [event for at in (100, 200) for event in launch(at, "A") + launch(at + 10, "B")]

    report = fusion(write_trace(tmp_path / "t.json", events + launch(300, "A", has_call=False)), lengths=[2])

    assert (report.kernels, report.unlinked) == (4, 1)
    assert [(chain.kernels, chain.score) for chain in report.chains] == [(("A", "B"), 1.0)]
    assert any("1 kernels have no launch event" in note for note in report.notes)


@pytest.mark.parametrize(
    "apart",
    ["ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "void vllm::cross_device_reduce_1stage<half>()", "copy_kernel"],
)
def test_collectives_and_copies_are_in_no_chain_but_among_the_kernels(tmp_path, apart):
    events = [
        event
        for at in (100, 200)
        for event in launch(at, apart) + launch(at + 10, "A") + launch(at + 20, "B") + launch(at + 30, apart)
    ]

    report = fusion(write_trace(tmp_path / "t.json", events), lengths=[2, 3])

    assert {chain.kernels for chain in report.chains} == {("A", "B")}
    assert (report.kernels, report.launches, report.kernels_after, report.launches_after) == (8, 8, 6, 6)
    assert any("4 collectives and copies are in no chain" in note for note in report.notes)


@pytest.mark.parametrize("name", ["a100_hta_negqueue_infer_graph", "h800_deepseek_train", "b200_vllm_eager_infer"])
def test_no_chain_of_a_trace_of_several_devices_holds_what_waits_for_another(real_trace, name):
    kernels = {kernel for chain in fusion(real_trace(name)).chains for kernel in chain.kernels}

    assert kernels
    assert [kernel for kernel in kernels if "nccl" in kernel.lower() or "all_reduce" in kernel] == []


def test_the_made_up_server_fuses_its_layers():
    # A layer has 4 kernels; 3 layers a step, 4 steps; argmax closes each step and is no part of a layer.
    report = fusion(SERVING)

    assert report.path == str(SERVING)
    layer = report.chains[0]
    assert (layer.length, layer.count, layer.score, layer.is_maximal) == (4, 12, 1.0, True)
    # 52 kernels: each of 12 layers one kernel, and 4 times argmax.
    assert (report.kernels, report.kernels_after) == (52, 16)
    # 13 launches of the prefill and 2 for each of 3 decodes: a layer of the prefill becomes one launch of four.
    assert (report.launches, report.launches_after) == (19, 10)


def test_the_report_is_one_json_object():
    report = fusion(SERVING, lengths=[2])

    tree = json.loads(report.to_json())

    assert tree == json.loads(json.dumps(report.to_builtins()))
    assert tree["schema"] == "taxbreak.fusion/1"
    assert [row["length"] for row in tree["by_length"]] == [2]


def test_a_file_that_is_no_trace_is_named(tmp_path):
    with pytest.raises(TraceFormatError, match=r"none\.json"):
        fusion(tmp_path / "none.json")


def test_on_the_cpu_backend_there_is_nothing_to_fuse(tmp_path):
    op = {"cat": "cpu_op", "name": "aten::mm", "ts": 1, "dur": 5, "args": {}}

    report = fusion(write_trace(tmp_path / "t.json", [op]))

    assert (report.kernels, report.ideal_speedup) == (0, None)
    assert "CPU backend" in report.notes[0]
