"""What the API takes, as models that FastAPI checks; their bounds are those of the settings."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.settings import CaptureSteps, OverheadBudget, SampleEvery
from taxbreak_vllm.spool.layout import NAME


def _is_number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("this should be a number")
    return value


NUMBER = BeforeValidator(_is_number)  # 5.0 is an integer in JSON; "5" and true are none
ServerId = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


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
    max_stall_ms: Annotated[float, NUMBER] | None = Field(
        default=None,
        gt=0,
        le=60_000,
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
