"""A calibration is graded by what is unexplained, alike for steps that took too long and for those too quick."""

from dataclasses import replace

import msgspec
import pytest

from taxbreak_vllm.model.calibration import Calibration, Grade


@pytest.mark.parametrize(
    ("dilation", "residual", "grade"),
    [
        (1.8, 0.09, Grade.GOOD),
        (1.0, -0.08, Grade.GOOD),
        (1.8, 0.12, Grade.USABLE),
        (1.8, -0.12, Grade.USABLE),
        (2.3, 0.99, Grade.USABLE),
        (0.7, -0.49, Grade.USABLE),
        (2.3, 1.01, Grade.POOR),
        (0.9, -0.51, Grade.POOR),
        (6.9, 5.8, Grade.POOR),
        (0.46, -0.54, Grade.POOR),
    ],
)
def test_what_is_unexplained_decides(dilation, residual, grade):
    assert Calibration(dilation=dilation, residual=residual, state="calibrated").grade is grade


@pytest.mark.parametrize("unknown", [{}, {"dilation": 1.2}, {"dilation": 1.2, "residual": 0.1}])
def test_what_is_not_calibrated_has_no_grade(unknown):
    assert Calibration(**unknown).grade is None


def test_the_grade_follows_from_the_figures_whatever_was_said_of_it():
    good = Calibration(dilation=1.2, residual=0.05, state="calibrated")
    older = b'{"dilation": 6.9, "residual": 5.8, "state": "calibrated"}'

    assert replace(good, residual=1.5).grade is Grade.POOR
    assert msgspec.json.decode(msgspec.json.encode(good), type=Calibration) == good
    assert msgspec.json.decode(older, type=Calibration).grade is Grade.POOR
