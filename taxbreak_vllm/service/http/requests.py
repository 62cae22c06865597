"""What the API takes, as models that FastAPI checks; their bounds are those of the settings."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StringConstraints

from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.whatif import HOST_CLASSES
from taxbreak_vllm.settings import CaptureSteps, OverheadBudget, SampleEvery
from taxbreak_vllm.spool.layout import NAME
from taxbreak_vllm.trace.kernels import Family


def _is_number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("this should be a number")
    return value


NUMBER = BeforeValidator(_is_number)  # 5.0 is an integer in JSON; "5" and true are none
ServerId = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
StepId = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]

_NUMBER = r"(?:1000|[0-9]{1,3}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})"
_MAX_WORDS, _MAX_STEPS = 32, 8


def _factor(names: Iterable[str]) -> str:
    """Return the pattern of a factor, or a range of factors, of everything or of one of these names."""
    return rf"^(?:(?:{'|'.join(names)})=)?{_NUMBER}(?:\.\.{_NUMBER})?$"


HostFactor = Annotated[str, StringConstraints(pattern=_factor(HOST_CLASSES))]
KernelFactor = Annotated[
    str, StringConstraints(pattern=_factor(family for family in Family if family is not Family.COLLECTIVE))
]
Chain = Annotated[str, StringConstraints(pattern=r"^[^,]*[^,\s][^,]*(?:,[^,]*[^,\s][^,]*)+$", max_length=2000)]
CallName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class CaptureBody(BaseModel):
    """The wish for the next `steps` steps of one server."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"steps": 4, "phase": "decode", "timeout_s": 30}]}
    )

    steps: Annotated[CaptureSteps, NUMBER] = Field(
        default=defaults.CAPTURE_STEPS, description="how many steps to record, on each rank"
    )
    phase: Phase | None = Field(default=None, description="only steps of this phase; by default any but idle")
    timeout_s: Annotated[float, NUMBER] = Field(
        default=defaults.CAPTURE_TIMEOUT_S,
        ge=1,
        le=defaults.MAX_CAPTURE_TIMEOUT_S,
        description="give up after this many seconds",
    )
    stacks: StrictBool = Field(default=False, description="with Python stacks, which slows the steps 4-8 times")
    max_stall_ms: Annotated[float, Field(gt=0, le=60_000), NUMBER] | None = Field(
        default=None,
        description="what stopping one recording may hold up the server; TAXBREAK_MAX_STALL_MS by default",
    )
    server_id: ServerId | None = Field(default=None, description="which server, where several are running")


class ControlBody(BaseModel):
    """How a server shall record from now on; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"enabled": True, "sample_every": 500}]})

    enabled: StrictBool | None = Field(default=None, description="record steps; also turns on what turned itself off")
    sample_every: Annotated[SampleEvery, NUMBER] | None = Field(
        default=None, description="record one step in this many of each kind"
    )
    overhead_budget_ratio: Annotated[OverheadBudget, NUMBER] | None = Field(
        default=None, description="share of the time with steps that recording may take"
    )
    server_id: ServerId | None = Field(default=None, description="which server, where several are running")


class WhatIfQuery(BaseModel):
    """A change in the words of `taxbreak whatif`, and the recorded steps it is asked of."""

    model_config = ConfigDict(extra="forbid")

    host: list[HostFactor] = Field(
        default=[],
        max_length=_MAX_WORDS,
        description="times that host work takes: 1.3, 0.5..0.7, or of one class (python=2)",
        examples=[["0.7"]],
    )
    kernels: list[KernelFactor] = Field(
        default=[],
        max_length=_MAX_WORDS,
        description="times that kernels take: 0.8, or of one family (gemm=0.6)",
        examples=[["gemm=0.6"]],
    )
    graph: Literal["full", "piecewise"] | None = Field(default=None, description="the launches of a step as one graph")
    fuse: list[Chain] = Field(
        default=[], max_length=_MAX_WORDS, description="kernels that follow one another as one launch: NAME,NAME…"
    )
    floor_us: float | None = Field(default=None, ge=0, le=1e6, description="another launch floor, in µs")
    no_sync: list[CallName] = Field(
        default=[], max_length=_MAX_WORDS, description="calls with this in their name do not wait"
    )
    is_async: bool = Field(default=False, alias="async", description="tokens are waited for one step later")
    compiled: bool = Field(default=False, description="torch.compile: refused, with the reason")
    timeline: bool = Field(default=False, description="with the recording and the prediction on one axis of time")
    step_id: list[StepId] = Field(
        default=[], max_length=_MAX_STEPS, description="these recorded steps; by default the newest of each phase"
    )
    phase: Annotated[Phase, Field(strict=False)] | None = Field(
        default=None, description="only the newest step of this phase; by default of each but idle"
    )
    server_id: ServerId | None = Field(default=None, description="only steps of this server")
    capture_id: str | None = Field(default=None, max_length=200, description="only the steps of this request")


class WhatIfBody(WhatIfQuery):
    """The same as JSON."""

    model_config = ConfigDict(strict=True, json_schema_extra={"examples": [{"host": ["0.7"], "phase": "decode"}]})
