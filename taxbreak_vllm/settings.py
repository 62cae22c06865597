"""Every `TAXBREAK_*` setting with its unit, default and bounds.

Read at the edges only (serving install, service start, command line) and passed down. A wrong value raises
SettingsError with one line; inside a vLLM server the caller catches it, logs once and leaves the server alone.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from taxbreak_vllm.model import defaults
from taxbreak_vllm.model.errors import SettingsError

PREFIX = "TAXBREAK_"
YEAR_S = 366 * 86400  # nobody means more, and far more does not fit 64 bits of ns


def _default_spool() -> Path:
    return Path(tempfile.gettempdir()) / f"taxbreak-{os.getuid()}"


def checked_key(key: str, name: str = "api_key") -> str:
    """Strip the newline a Secret ends in; raises SettingsError for a key that fits no header or lets everyone in."""
    stripped = key.strip()
    if not (stripped and stripped.isascii() and stripped.isprintable()):
        raise SettingsError(
            f"{PREFIX}{name.upper()}: a key is of printable ASCII characters, not empty; for none, unset it"
        )
    return stripped


def _checked_secret(key: SecretStr, info: ValidationInfo) -> SecretStr:
    return SecretStr(checked_key(key.get_secret_value(), str(info.field_name)))


def checked_archive(url: str) -> str:
    """Raise SettingsError for what names no archive; it may hold a key, and is not shown."""
    if not re.fullmatch(defaults.ARCHIVE_URL, url):
        raise SettingsError(f"{PREFIX}ARCHIVE: {defaults.ARCHIVE_URL_WORDS}")
    return url


# What a request may change or choose is bounded as the setting is.
SampleEvery = Annotated[int, Field(ge=defaults.MIN_SAMPLE_EVERY, le=defaults.MAX_SAMPLE_EVERY)]
OverheadBudget = Annotated[float, Field(gt=0, le=1)]
CaptureSteps = Annotated[int, Field(ge=1, le=defaults.MAX_CAPTURE_STEPS)]
WindowS = Annotated[int, Field(ge=1, le=YEAR_S)]


class Settings(BaseSettings):
    """All settings; the environment variable of `x` is `TAXBREAK_X`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    spool: Path = Field(default_factory=_default_spool, description="folder that workers write and the sidecar reads")
    spool_max_bytes: int = Field(
        default=256 * 2**20, ge=2**20, description="bound of the spool in bytes; oldest captures go first"
    )
    spool_max_captures: int = Field(default=512, ge=1, description="bound of the spool in captures; oldest go first")

    enabled: bool = Field(default=True, description="record steps; false still times every step")
    sample_every: SampleEvery = Field(
        default=1000,
        description="record one step in this many of each kind, rare kinds more often (steps)",
    )
    overhead_budget_ratio: OverheadBudget = Field(
        default=0.005,
        description="share of the time in which steps run that recording may take; sampling slows down to keep it",
    )
    record_all_ranks: bool = Field(
        default=False, description="record on every rank (of a pipeline's last stage); false: on the first"
    )
    device_events: bool = Field(
        default=True,
        description="have a GPU tell, in bursts of steps, how long it was idle between them; false: it is not asked",
    )
    max_capture_steps: CaptureSteps = Field(
        default=defaults.MAX_CAPTURE_STEPS, description="bound of one request for steps (steps)"
    )
    max_step_s: float = Field(
        default=10, gt=0, le=YEAR_S, description="a step that takes longer is not recorded (seconds)"
    )
    max_stall_ms: float = Field(
        default=20,
        gt=0,
        le=60_000,
        description="bound of what stopping one recording may hold up the server; dearer ones are not made (ms)",
    )
    max_trace_bytes: int = Field(
        default=32 * 2**20, ge=2**16, description="a compressed trace above this is dropped (bytes)"
    )

    traffic_max_bytes: int = Field(
        default=64 * 2**20,
        ge=0,
        description="bound of what is kept of an engine's or an API server's requests and steps, without content, in "
        "bytes; oldest go first, 0 keeps none",
    )
    traffic_hashes: bool = Field(
        default=True, description="keep salted hashes of prefix-cache blocks with them; false: none"
    )

    host: str = Field(default=defaults.HOST, description="address the sidecar binds to")
    port: int = Field(
        default=defaults.PORT, ge=0, le=65535, description="port the sidecar binds to; 0 takes a free one"
    )
    results: Path | None = Field(default=None, description="SQLite file of results; by default in the spool")
    results_max_bytes: int = Field(
        default=512 * 2**20, ge=2**22, description="bound of the results in bytes; oldest steps go first, counters stay"
    )
    retention_s: int = Field(
        default=7 * 86400, ge=60, le=YEAR_S, description="how long analyzed steps are kept (seconds)"
    )
    window_s: WindowS = Field(default=900, description="window of the hdbi gauge and of the page (seconds)")
    baselines: Path | None = Field(
        default=None, description="SQLite file of floors and replayed baselines; by default in the spool"
    )
    replay: bool = Field(default=True, description="let the sidecar replay new signatures in the background")
    replay_core_ratio: float = Field(
        default=0.02, gt=0, le=1, description="most of one core that background replay may take (share of 1)"
    )
    replay_device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="device to replay on in the background: cpu, cuda or cuda:N; a GPU only when named",
    )
    otlp: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+",
        description="address of an OpenTelemetry collector that takes OTLP over HTTP, such as http://collector:4318",
    )
    archive: Annotated[str, AfterValidator(checked_archive)] | None = Field(
        default=None,
        description="object store or folder that the sidecar copies captures and tables to: s3://, gs://, az:// or file://",
    )
    archive_bytes_per_second: int = Field(
        default=4 * 2**20,
        ge=2**12,
        description="most that is sent to the archive, an object at a time (bytes a second)",
    )
    archive_bytes_per_day: int = Field(
        default=8 * 2**30, ge=2**24, description="most that is sent to the archive from 0 to 24 h UTC (bytes)"
    )
    archive_batch_s: int = Field(
        default=300,
        ge=1,
        le=86400,
        description="how often rows of tables, a window of each engine and the newest requests are archived (seconds)",
    )
    captures_per_minute: int = Field(
        default=20, ge=1, le=10_000, description="requests for steps that are taken a minute, in all; others get a 429"
    )
    api_key: Annotated[SecretStr, AfterValidator(_checked_secret)] | None = Field(
        default=None, description="bearer token asked for on /v1/taxbreak"
    )
    read_key: Annotated[SecretStr, AfterValidator(_checked_secret)] | None = Field(
        default=None, description="another that only reads; without TAXBREAK_API_KEY nobody may control"
    )

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        if self.api_key is not None and self.api_key == self.read_key:
            raise SettingsError(f"{PREFIX}READ_KEY: a key that only reads is another than that of {PREFIX}API_KEY")
        return self

    @property
    def results_path(self) -> Path:
        """The SQLite file, wherever it was set."""
        return self.results or self.spool / "results.sqlite3"

    @property
    def baselines_path(self) -> Path:
        """The SQLite file of baselines, wherever it was set."""
        return self.baselines or self.spool / "baselines.sqlite3"


def load_settings(**options: Any) -> Settings:  # noqa: ANN401 - validated below
    """Read the settings from the environment, overridden by the options that are not None.

    Raises SettingsError, in one line, for an unknown `TAXBREAK_` name or a value out of bounds.
    """
    names = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in names)
    if unknown:
        raise SettingsError(f"{unknown[0]}: no such setting; the settings are {', '.join(sorted(names))}")
    try:
        given = {name: value for name, value in options.items() if value is not None}
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + ".".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name}={first['input']!r}: {first['msg']}") from None
