import pytest

from taxbreak_vllm.model.cupti import MAX_RECORDS, faults, leaks


@pytest.mark.parametrize("version", [None, 13, 22, 23, 130101, 130200, 130402, 140000])
def test_a_cupti_of_which_nothing_is_known_is_not_accused(version):
    assert faults(version) is None
    assert not leaks(version)


@pytest.mark.parametrize("version", [24, 26, 28])
def test_cuda_12_from_12_6_on_loses_heads_and_needs_a_torch_for_cuda_13(version):
    fault = faults(version)

    assert fault.startswith(f"CUPTI {version} (CUDA 12): kernels at the start of every recording")
    assert "graph" not in fault
    assert "a torch for CUDA 13" in fault
    assert not leaks(version)


@pytest.mark.parametrize("version", [130000, 130001])
def test_cuda_13_0_loses_heads_and_mistakes_graphs_and_may_not_record_for_ever(version):
    fault = faults(version)

    assert fault.startswith(f"CUPTI 13.0 ({version}): kernels at the start")
    assert "another launch of a CUDA graph" in fault
    assert fault.endswith("install nvidia-cuda-cupti of CUDA 13.1 Update 1 or later")
    assert leaks(version)
    assert MAX_RECORDS < 25_000_000


def test_cuda_13_1_without_its_update_mistakes_graphs_alone():
    assert faults(130100).startswith("CUPTI 13.1 (130100): kernels may stand under another launch")
    assert leaks(130100)
