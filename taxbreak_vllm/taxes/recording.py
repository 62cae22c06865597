"""A trace or a capture on given terms: the one front door from a path to whatever can be said of what is in it.

Columns, breakdown and signatures are worked out when first asked for, and once. A trace too large for memory stays on
disk while the recording is open, and is measured part by part.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taxbreak_vllm.model import cupti
from taxbreak_vllm.model.breakdown import Breakdown, Calibration, Source, StepBreakdown
from taxbreak_vllm.model.evidence import Evidence, Figure
from taxbreak_vllm.model.step import StepInfo
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.spool.layout import STEP
from taxbreak_vllm.taxes.decompose import add_up, measure, measure_large
from taxbreak_vllm.taxes.evidence import without
from taxbreak_vllm.taxes.measured import Measured, group_by_time
from taxbreak_vllm.taxes.surroundings import WholeTrace
from taxbreak_vllm.taxes.terms import Terms
from taxbreak_vllm.trace.backend import Backend, backend_of
from taxbreak_vllm.trace.dispatches import Activities, Dispatches, Host, link, require
from taxbreak_vllm.trace.events import EventKind, Events
from taxbreak_vllm.trace.large.bins import FindRoom, TemporaryRoom
from taxbreak_vllm.trace.large.spill import SpilledEvents, open_trace
from taxbreak_vllm.trace.parts import Part
from taxbreak_vllm.trace.processes import of_process
from taxbreak_vllm.trace.read.kineto import read_events
from taxbreak_vllm.trace.steps import StepWindow, engine_spans
from taxbreak_vllm.trace.survey import TraceSurvey

if TYPE_CHECKING:
    from taxbreak_vllm.baselines.store import View
    from taxbreak_vllm.trace.signatures import Signature

MIN_PLAIN_STEPS = 8  # fewer plain steps of a bucket are no median to compare with

# What a step alone does not tell of a device that works behind its host.
_ALONE = Evidence(
    withheld=dict.fromkeys(
        (Figure.HDBI, Figure.IDLE, Figure.CAUSES),
        "recorded without the step before it or the start of the one after, on a server whose device works behind its"
        " host: what the device did meanwhile is not known, so idle time, exposed tax and HDBI are null",
    )
)


class Recording:
    """The events of a trace, on terms; `info` is what the worker knew of a captured step."""

    def __init__(
        self, trace: Events | SpilledEvents, terms: Terms | None = None, *, info: StepInfo | None = None, path: str = ""
    ) -> None:
        self.terms = terms or Terms()
        self.info = info
        self.head = trace.head
        self.path = path or self.head.path
        self._trace = trace

    @classmethod
    @contextmanager
    def open(
        cls,
        path: str | Path,
        terms: Terms | None = None,
        *,
        with_calls: bool = False,
        with_frames: bool = False,
        find_room: FindRoom = TemporaryRoom,
    ) -> Iterator["Recording"]:
        """Read a trace (.json, .json.gz, .json.zst) or a capture (its folder).

        `with_calls` reads what ops were called with too, which baselines need, `with_frames` the Python functions of a
        trace with stacks. What is too large for memory waits
        where `find_room` says, by default in the temporary folder. Raises TraceFormatError for a file that
        is missing, damaged or not a trace, SpoolError for a capture without its StepInfo.
        """
        path, terms = Path(path), terms or Terms()
        with_calls = with_calls or terms.baselines is not None
        if (path / STEP).is_file():
            capture = Capture(path)
            info = capture.read_info()
            events = read_events(capture.trace_path, with_calls=with_calls, with_frames=with_frames)
            yield cls(events, terms, info=info, path=str(path))
        elif with_calls or terms.needs_whole:
            events = read_events(path, with_calls=with_calls, with_frames=with_frames)
            yield cls(events if terms.rank is None else of_process(events, terms.rank), terms)
        else:
            with open_trace(path, find_room=find_room, with_frames=with_frames) as trace:
                yield cls(trace, terms)

    @cached_property
    def events(self) -> Events:
        """All events, in memory."""
        return self._trace if isinstance(self._trace, Events) else self._trace.load()

    @cached_property
    def survey(self) -> TraceSurvey:
        """What the trace is as a whole: its steps, its threads, how much there is of everything."""
        return TraceSurvey.of(self.head, self._trace.chunks())

    @property
    def windows(self) -> tuple[StepWindow, ...]:
        """The steps; none where the trace names none."""
        windows, info = self.survey.windows, self.info
        if self._needs_before:
            windows = tuple(w if w.has_before else replace(w, next_ns=None) for w in windows)
        return tuple(replace(w, phase=info.phase, batch=info.batch) for w in windows) if info else windows

    @property
    def is_live(self) -> bool:
        """Whether a worker recorded it beside its work."""
        return self.info is not None or self.survey.is_live

    @property
    def _needs_before(self) -> bool:
        """Whether the device may still be busy with a step before the sample, so that this must be in the recording.

        A step of a server without asynchronous output ends with its tokens, and where ops compute on the host nothing
        runs behind it.
        """
        return self.is_live and self.backend.has_launches and (self.info is None or self.info.async_output)

    @property
    def shown_windows(self) -> tuple[StepWindow, ...]:
        """The steps, or the one that a trace without steps is."""
        return self.windows or (self.survey.whole,)

    @cached_property
    def backend(self) -> Backend:
        """The kind of device."""
        return backend_of(
            calls=self.survey.calls,
            num_activities=self.survey.num_activities,
            metadata=self.head.metadata,
            device_type=self.info.server.device_type if self.info else "",
            unread=self.head.oddities.unread,
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the recording tells of where it was made, as `Environment.fits` takes it; empty what it does not."""
        server = self.info.server if self.info else None
        return {
            "device_type": self.backend.device_type,
            "device_name": (server.device_name if server else "") or self.head.device_name,
            "torch": server.torch if server else "",
            "driver": str(self.head.metadata.get("cuda_driver_version", "")),
        }

    @cached_property
    def view(self) -> "View | None":
        """The baselines of the place the recording was made in; None without a store, or where it has none of them."""
        return None if self.terms.baselines is None else self.terms.baselines.view(self.environment)

    @property
    def op_cost_ns(self) -> int:
        """What the profiler added to each op, to be taken off ΔFT."""
        if self.terms.op_cost_ns is not None:
            return self.terms.op_cost_ns
        return (self.info.op_cost_ns or 0) if self.info and _is_calibrated(self.info) else 0

    @property
    def measured(self) -> Measured:
        """Every dispatch and activity with its spans and taxes."""
        return self._measurement[0]

    @cached_property
    def breakdown(self) -> Breakdown:
        """ΔFT, ΔCT, ΔKT, device time and HDBI, per step and in total; raises TraceFormatError where there is none."""
        survey, trace = self.survey, self._trace
        require(self.head.path, survey.num_ops + survey.num_activities)
        if isinstance(trace, Events):
            parts = iter([(Part.all_of(trace, self.windows), *self._measurement)])
        else:
            parts = measure_large(trace, survey, self.terms, self.backend, self.op_cost_ns)
        found = add_up(parts, self.head, survey, self._source())
        found = replace(found, notes=(*found.notes, *self._baseline_notes(), *self._profiler_notes()))
        if self._needs_before:
            alone = [window.next_ns is None for window in self.shown_windows]
            steps = (without(s, _ALONE) if is_alone else s for s, is_alone in zip(found.steps, alone, strict=True))
            known = _ALONE.withheld if any(alone) else {}
            evidence = replace(found.evidence, withheld={**known, **found.evidence.withheld})
            found = replace(found, evidence=evidence, steps=tuple(steps))
        if self.is_live and self.backend.has_launches and len(self.windows) == 1 and found.coverage.launches:
            from taxbreak_vllm.taxes.doubt import doubt_of, doubted  # what most traces need not load

            found = doubted(found, doubt_of(self.measured, self.windows[0]))
        if survey.is_live and len(found.steps) == 1:
            found = replace(found, total=replace(found.steps[0], name=None, number=None))
        elif self._needs_before:
            found = replace(found, total=without(found.total, _ALONE))
        if self.info is None:
            return found
        calibration = _calibration(self.info, self._num_ops)
        return replace(
            found,
            steps=tuple(_labelled(step, self.info) for step in found.steps),
            total=_labelled(found.total, self.info),
            calibration=calibration,
            notes=(*found.notes, *calibration.notes),
        )

    @property
    def _num_ops(self) -> int:
        """How many ops began in the steps, those recorded beside them left out."""
        start_ns = self.events.start_ns[self.events.rows(EventKind.OP)]
        return int((group_by_time(self.windows, start_ns) >= 0).sum()) if self.windows else len(start_ns)

    @property
    def linked(self) -> tuple[Host, Activities, Dispatches]:
        """Calls, activities and dispatches, joined; without the taxes where nobody has asked for those."""
        if "_measurement" in vars(self):
            return self.measured.host, self.measured.activities, self.measured.dispatches
        return link(self.events)

    def signatures(self) -> "list[tuple[Signature, int]]":
        """Return the distinct signatures and how many dispatches have each; it must have been opened with calls."""
        from taxbreak_vllm.trace.cpu import link_cpu
        from taxbreak_vllm.trace.signatures import sign, sign_ops

        if self.backend.has_launches:
            host, activities, dispatches = self.linked
            signed = sign(self.events, host, activities, dispatches)
            distinct, index = signed.distinct, signed.of_dispatch[signed.of_dispatch >= 0].astype(np.intp)
        else:
            _, _, dispatches, _ = link_cpu(self.events, self.terms.rules.is_metadata_op)
            distinct, index = sign_ops(self.events, dispatches.row)
        return list(zip(distinct, np.bincount(index, minlength=len(distinct)).tolist(), strict=True))

    @cached_property
    def around(self) -> WholeTrace:
        """What the measurement is told of the trace as a whole."""
        engine = [
            (window.thread, *span)
            for window in self.windows
            if self.is_live
            for span in engine_spans(self.events, window)
        ]
        return WholeTrace(self.backend, self.shown_windows, engine, self.is_live)

    @cached_property
    def _measurement(self) -> tuple[Measured, list[str]]:
        return measure(self.events, self.terms, self.around, view=self.view, op_cost_ns=self.op_cost_ns)

    def _source(self) -> Source:
        version = self.head.metadata.get("vllm_version")
        source = Source(
            path=self.path,
            device_name=self.head.device_name,
            vllm=version if isinstance(version, str) else "",
            rank=self.terms.rank,
        )
        if self.info is None:
            return source
        server = self.info.server
        return replace(
            source,
            capture_id=self.info.capture_id,
            device_type=server.device_type,
            device_name=server.device_name or source.device_name,
            torch=server.torch,
            vllm=server.vllm,
            model_name=server.model_name,
            dtype=server.dtype,
            server_id=server.server_id,
            engine=server.engine,
            rank=server.rank,
        )

    def _baseline_notes(self) -> tuple[str, ...]:
        if self.terms.baselines is None:
            return ()
        if self.view is None:
            place = ", ".join(f"{name} {value!r}" for name, value in self.environment.items() if value)
            return (f"{self.terms.baselines.path.name} holds no baselines of one place with {place}: none used",)
        env = self.view.environment
        parts = (env.device_name, f"torch {env.torch}", env.driver and f"driver {env.driver}")
        return (f"baselines replayed on {', '.join(part for part in parts if part)}",)

    def _profiler_notes(self) -> tuple[str, ...]:
        metadata = self.head.metadata
        version = metadata.get("cupti_version")
        notes = [cupti.faults(version) if isinstance(version, int) else None]
        if self.info and self.view and not metadata.get("record_shapes"):
            notes.append("recorded without shapes, so no replayed baseline could be looked up for its ops")
        return tuple(note for note in notes if note)


@contextmanager
def opened(
    source: "Recording | str | Path", terms: Terms | None = None, *, with_frames: bool = False
) -> Iterator[Recording]:
    """Open a path, or give a recording that is open already, on its own terms."""
    if isinstance(source, Recording):
        yield source
    else:
        with Recording.open(source, terms, with_frames=with_frames) as recording:
            yield recording


def _labelled(step: StepBreakdown, info: StepInfo) -> StepBreakdown:
    tokens = info.batch.output_tokens
    return replace(
        step,
        phase=info.phase,
        graph_mode=info.graph_mode,
        batch=info.batch,
        kernels_per_output_token=step.kernels / tokens if tokens else None,
    )


def _is_calibrated(info: StepInfo) -> bool:
    return info.op_cost_ns is not None and bool(info.compared_ns[1]) and info.num_plain >= MIN_PLAIN_STEPS


def _calibration(info: StepInfo, num_ops: int) -> Calibration:
    recorded_ns, plain_ns = info.compared_ns
    if not plain_ns:
        return Calibration(op_cost_ns=info.op_cost_ns)
    dilation = recorded_ns / plain_ns
    if info.op_cost_ns is None or not _is_calibrated(info):
        return Calibration(dilation=dilation, op_cost_ns=info.op_cost_ns, plain_ns=plain_ns)
    residual = (recorded_ns - num_ops * info.op_cost_ns) / plain_ns - 1
    return Calibration(
        dilation=dilation, op_cost_ns=info.op_cost_ns, residual=residual, state="calibrated", plain_ns=plain_ns
    )
