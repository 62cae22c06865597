"""Calibration, coverage and notes in plain words."""

import pytest

from taxbreak_vllm.model.breakdown import Breakdown, Calibration, Coverage, Source, Tier
from taxbreak_vllm.output.page.view import calibration_words, coverage_words, facts_of, once


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (Calibration(), ["Uncalibrated: no plain step", "upper bounds"]),
        (Calibration(dilation=1.5), ["1.50× as long", "Uncalibrated: too few plain steps"]),
        (Calibration(dilation=1.5, residual=0.2), ["Not every step is calibrated", "+20% of a plain step"]),
        (
            Calibration(dilation=1.5, op_cost_ns=527, residual=-0.03, state="calibrated"),
            ["1.50× as long", "527 ns an op are taken off ΔFT", "-3% of a plain step remains unexplained"],
        ),
    ],
)
def test_calibration_is_said_in_words(calibration, words):
    said = " ".join(calibration_words(calibration))

    assert all(word in said for word in words)


def test_coverage_is_said_in_words():
    coverage = Coverage(
        kernels=1000, linked=990, unlinked=10, kernel_launches=700, graph_launches=3, launches_without_activity=2,
        events=5000, dropped_events=1, replay={Tier.TRACE: 0.25, Tier.REPLAYED: 0.75},
    )  # fmt: skip

    assert list(coverage_words(coverage)) == [
        "990 of 1,000 kernels are joined to the launch that made them.",
        "10 have no launch event: their time is the device's, but nobody's on the host.",
        "3 of 700 kernel launches replayed a CUDA graph.",
        "2 launches left nothing on the device that was recorded.",
        "5,000 events were read, 1 of them unreadable.",
        "25% of the orchestration time stands on estimates from the trace itself.",
        "75% of the orchestration time stands on isolated replay.",
    ]


def test_only_what_is_known_is_named():
    assert facts_of(Breakdown(source=Source(device_type="cpu", torch="2.13"))) == (
        "cpu",
        "torch 2.13",
        "exclusive attribution",
    )


def test_notes_that_differ_in_their_figures_alone_stand_once_with_their_number():
    notes = [
        "T_base 20,606 ns is a median",
        "no launches",
        "T_base 31.5 ns is a median",
        "no floor",
        "T_base 7 ns is a median",
    ]

    assert once(notes) == ("T_base 20,606 ns is a median (3 such notes)", "no launches", "no floor")
