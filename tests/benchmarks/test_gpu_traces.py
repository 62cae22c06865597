"""What the benchmarks read off traces of a GPU, on made-up ones."""

import pytest

pytest.importorskip("torch", reason="the check needs torch")

import cublaslt
import gpu_stages
from gpu_lab import Lab


@pytest.fixture
def written(reference, tmp_path):
    def written(events):
        path = tmp_path / "trace.json"
        path.write_text(reference.to_json(events))
        return path

    return written


def test_a_front_end_is_what_lies_before_the_last_launch_without_other_runtime_calls(reference, written):
    path = written(
        [
            reference.step("direct.0", 100, 400),
            reference.call("cudaMemsetAsync", 150, 170),
            reference.call("cudaLaunchKernel", 250, 270, 1),
            reference.kernel("nvjet", 300, 390, 1),
            reference.step("neg.0", 500, 700),
            reference.call("cudaLaunchKernel", 510, 520, 2),
            reference.kernel("neg", 560, 600, 2),
        ]
    )

    assert cublaslt._before_launch(path) == {"direct": 130, "neg": 10}


def test_graph_replays_are_counted_whole_in_part_and_lost(reference, written, tmp_path):
    # a launch beside the graphs, which tells the floor
    events = [reference.call("cudaLaunchKernel", 100, 110, 9), reference.kernel("alone", 140, 150, 9)]
    for number, nodes in enumerate((3, 2, 0)):
        at = 1000 * (number + 1)
        events += [
            reference.step(f"graph.{number}", at, at + 200),
            reference.call("cudaGraphLaunch", at + 10, at + 30, number + 1),
            *(reference.kernel("node", at + 50 + 10 * n, at + 55 + 10 * n, number + 1) for n in range(nodes)),
        ]
    lab = Lab("cuda", tmp_path, tmp_path)

    found = gpu_stages._nodes(lab, written(events), nodes=3)

    assert found == {
        "nodes": 3, "replays": 3, "whole": 1, "in part": 1, "lost": 1, "hdbi null": 1, "guard": True,
    }  # fmt: skip
