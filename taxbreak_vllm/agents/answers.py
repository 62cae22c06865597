"""What the tools answer: the schema that a model is shown of each. What is ours is JSON as the API says it."""

from typing import Annotated, Any, NotRequired, TypedDict

from pydantic import Field

Members = dict[str, Any]
LeftOut = Annotated[list[str], Field(description="what was cut to keep this short, and how much of it there is")]
Verdict = Annotated[
    str,
    Field(
        description="act: `advice` stands on evidence. no action: nothing is worth a restart. conditional: see"
        " `conditional`. withheld: the evidence does not allow to say; `reasons` say why"
    ),
]
Reasons = Annotated[list[str], Field(description="why nothing else is advised, or nothing at all")]
Serving = Annotated[
    Members | None,
    Field(
        description="what serving time goes to: the share of each phase, of all steps where `is_timed`, else of the few"
        " recorded ones; tokens per second. null: not known"
    ),
]
Source = Annotated[Members, Field(description="what was measured: model, server, device, versions, or the file")]
Calibration = Annotated[
    Members,
    Field(description="what recording did to the steps: `dilation` is recorded over plain duration, null is unknown"),
]
Coverage = Annotated[Members, Field(description="what of the recording could be read and joined")]
Notes = Annotated[list[str], Field(description="what a figure rests on, and why one is null")]
Top = Annotated[
    list[Members],
    Field(description="the dearest pairs of op and kernel, summed over all steps, dearest first; null: not measured"),
]


class Slowness(TypedDict):
    """Where time goes, and the verdict."""

    verdict: Verdict
    advice: Annotated[list[Members], Field(description="the changes in short, what wins most first; `why` tells more")]
    conditional: Annotated[list[Members], Field(description="changes worth it if a plain step is long enough")]
    reasons: Reasons
    phases: Annotated[
        list[Members],
        Field(
            description="the recorded steps of each phase, summed. device.idle.host_ns over device.window_ns is the"
            " share of the time that the device waits for the host; hdbi 0 is host-bound, 1 device-bound"
        ),
    ]
    serving: Serving
    top: Top
    source: Source
    calibration: Calibration
    notes: Notes
    left_out: LeftOut


class Reasoning(TypedDict):
    """The advice in full, and what it stands on."""

    verdict: Verdict
    advice: Annotated[
        list[Members],
        Field(
            description="each: `finding` (what was seen), `change` and `settings` (what to do), `at_most_ns` of one"
            " `per` (the most it can win; most win less), `predicted` (what it wins by a replay, `low_ns` to `high_ns`;"
            " null: `unpredicted` says why), `refuted_by` (what would prove it wrong)"
        ),
    ]
    conditional: Annotated[list[Members], Field(description="the same, where it hangs on how long a plain step takes")]
    settled_by: Annotated[str | None, Field(description="the one measurement that would settle what is conditional")]
    reasons: Reasons
    outcomes: Annotated[list[Members], Field(description="what came of settings changed before the last restart")]
    serving: Serving
    evidence: Annotated[Members, Field(description="how far the recordings can be trusted, and what was withheld")]
    source: Source
    calibration: Calibration
    coverage: Coverage
    notes: Notes
    left_out: LeftOut


class Analysis(TypedDict):
    """A breakdown with its advice: of a trace, a step, or the steps of a capture."""

    verdict: Verdict
    advice: Annotated[list[Members], Field(description="as `why` tells it")]
    reasons: Reasons
    steps: Annotated[list[Members], Field(description="each step; its dearest kernels are in `top` of the whole")]
    total: Annotated[Members, Field(description="all steps as one, with `families` of kernels")]
    top: Top
    source: Source
    calibration: Calibration
    coverage: Coverage
    notes: Notes
    left_out: LeftOut
    gap: NotRequired[Annotated[str, Field(description="of a capture: what is missing of it; empty: nothing")]]


class Steps(TypedDict):
    """Analyzed steps, newest first."""

    steps: Annotated[list[Members], Field(description="one row a step; `step_id` is what get_step and compare take")]
    next: Annotated[str | None, Field(description="`cursor` of the steps that follow, null at the end")]
    left_out: LeftOut


class Loops(TypedDict):
    """What the time between a worker's steps went to."""

    engines: Annotated[
        list[Members],
        Field(
            description="since each engine's start: worker_ns + the sum of exposed_ns + the sum of between_ns ="
            " iterations_ns. exposed_ns: the engine's thread, by part, while its worker stood; between_ns: why it stood"
            " otherwise; empty where it is not known (works_ahead)"
        ),
    ]
    left_out: LeftOut


class HardwareLimit(TypedDict):
    """What hardware allows, and where the rest of the device's time goes."""

    phases: Annotated[
        Members,
        Field(
            description="of each phase: `bar` in ns, summed over num_steps, whose parts sum to window_ns: limit_ns (the"
            " least its hardware could take), above_ns (what kernels take above that), exposed_ns (what the device"
            " waited for: delta_ft framework, delta_ct library, delta_kt launch path, other calls, engine loop),"
            " other_idle_ns, unknown_ns. mfu and mbu are shares of the hardware's compute and bandwidth over whole"
            " steps, `bound` the larger; null: `reasons` and `notes` say why"
        ),
    ]
    trace: NotRequired[
        Annotated[
            Members | None,
            Field(
                description="of a trace, from recorded shapes: floor_ns [lowest, highest], above_ns, bound_ns, and"
                " `ops` with most time above their limit; `uncovered` is what is not known. null: `reason` says why"
            ),
        ]
    ]
    reason: Annotated[str | None, Field(description="why there is none")]
    notes: Notes
    left_out: LeftOut


class Waterfalls(TypedDict):
    """What requests went through."""

    api_servers: Annotated[list[Members], Field(description="sums over the requests of each API server")]
    waterfalls: Annotated[
        list[Members] | None,
        Field(description="single requests, one in `followed_every`; stages_ns sum to total_ns. null: see `reason`"),
    ]
    reason: Annotated[str | None, Field(description="why there is none")]
    left_out: LeftOut


class Turns(TypedDict):
    """From which batch on the device decides."""

    transitions: Annotated[
        list[Members],
        Field(
            description="by phase: `between` [a, b]: up to a (in `unit`) the host decides how long a step takes, from"
            " b on the device; null: `reason` says why. `by` is the sign that tells, `turns` both; `buckets` are"
            " medians over the recorded steps of each size"
        ),
    ]
    model_name: str
    server_id: str
    reason: Annotated[str | None, Field(description="why there is none at all")]
    left_out: LeftOut


class Status(TypedDict):
    """Servers, spool and analysis at a glance."""

    version: str
    window_s: Annotated[int, Field(description="the seconds that a question about the server looks back by default")]
    servers: Annotated[list[Members], Field(description="workers; `live` ones run, `enabled` ones record")]
    spool: Members
    results: Members
    analyzer: Members
    left_out: LeftOut


class Predictions(TypedDict):
    """What a change would do to the steps of recordings, or why that can't be said."""

    answers: Annotated[
        list[Members],
        Field(
            description="one for each step of the server that was asked, by phase, or one for the trace. `refused`:"
            " why nothing is predicted; null: it is. `steps` is the mean step of each phase, `window` the whole"
            " recording, both in ns: observed, predicted, low to high (where it may lie), and the bounds that no host"
            " (host_free) and no kernel (kernels_free), however quick, can pass. `gates` are what the recording had to"
            " pass first, each with its number, `command` measures what `refuted_by` says. `dilation` is recorded step"
            " / plain step: the ratios hold for both, the times for the first"
        ),
    ]
    left_out: LeftOut


class Comparison(TypedDict):
    """What moved from a to b."""

    a: Source
    b: Source
    sections: Annotated[
        list[Members],
        Field(
            description="by phase: `figures` that moved (medians over the steps; is_clear: the quartiles do not"
            " overlap, null: too few steps), `rows` of op and kernel and `families`, averages per step"
        ),
    ]
    notes: Annotated[list[str], Field(description="what else differs, so that it is not taken for the change")]
    left_out: LeftOut
