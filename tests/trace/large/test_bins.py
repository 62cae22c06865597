"""Rows on disk come back by bin, in the order they went in."""

import subprocess
import sys

import numpy as np

from taxbreak_vllm.trace.large.bins import Bins


def test_a_bin_returns_its_rows_in_the_order_they_came():
    rows = np.array([(number, number * 0.5) for number in range(10)], dtype=[("number", "i8"), ("half", "f8")])

    with Bins(rows.dtype, 3) as bins:
        bins.add(rows[:6], np.array([2, 0, 2, 0, 0, 2]))
        bins.add(rows[6:], np.array([0, 2, 2, 0]))
        read = [bins.read(number)["number"].tolist() for number in range(3)]
        added = [rows["number"].tolist() for rows in bins.additions()]

    assert read == [[1, 3, 4, 6, 9], [], [0, 2, 5, 7, 8]]
    assert added == [[1, 3, 4, 0, 2, 5], [6, 9, 7, 8]]


def test_nothing_added_is_no_file_and_no_rows():
    with Bins(np.int64, 2) as bins:
        assert bins.read(1).tolist() == []
        assert list(bins.additions()) == []


def test_a_disk_that_takes_no_more_is_one_line_that_names_the_folder_and_what_to_set(tmp_path):
    script = (
        "import numpy as np; from taxbreak_vllm.trace.large.bins import Bins\n"
        "with Bins(np.int64, 1) as bins: bins.add(np.zeros(10**5, dtype=np.int64), np.zeros(10**5, dtype=np.intp))"
    )
    limited = ["sh", "-c", f"ulimit -f 16; TMPDIR={tmp_path} exec {sys.executable} -c '{script}'"]

    done = subprocess.run(limited, capture_output=True, text=True, check=False)

    assert done.stderr.splitlines()[-1].startswith(
        f"taxbreak_vllm.model.errors.TaxbreakError: {tmp_path}: File too large"
    )
    assert "TMPDIR" in done.stderr
