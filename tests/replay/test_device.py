"""Whether the device is idle enough to replay on."""

import multiprocessing
import shutil
import time

import pytest

from taxbreak_vllm.model.errors import ReplayError
from taxbreak_vllm.replay.device import choose_device, idle_check


def test_without_a_threshold_nobody_is_asked():
    assert idle_check("cuda", None)()


def test_the_cpus_share_is_of_all_cores_since_the_last_question():
    never, always = idle_check("cpu", -0.001), idle_check("cpu", 1.0)
    process = multiprocessing.get_context("spawn").Process(target=sum, args=(range(10**7),))
    process.start()
    process.join()

    assert always()
    assert not never()


def test_a_busy_core_shows():
    check = idle_check("cpu", 0.0)
    until_s = time.monotonic() + 0.2
    while time.monotonic() < until_s:
        pass

    assert not check()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="nvidia-smi is here")
def test_a_gpu_that_cannot_be_asked_is_one_clear_line():
    assert choose_device() == "cpu" or shutil.which("rocm-smi")
    with pytest.raises(ReplayError, match="nvidia-smi does not tell"):
        idle_check("cuda", 0.5)
