"""What `analyze` does once its words are read: each path opened, measured, handed to exporters, and printed.

Nothing here loads typer, as the shortest of runs is over before that is.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from taxbreak_vllm.cli.opening import opened
from taxbreak_vllm.cli.printing import TOP_ROWS, print_breakdown, print_iterations, print_json, with_advice
from taxbreak_vllm.insight.evidence import with_plain_step
from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.iterations.report import report
from taxbreak_vllm.iterations.window import holds_windows, read_windows
from taxbreak_vllm.model.advice import AdviceReport
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.engine import IterationReport
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.limit import Limit
from taxbreak_vllm.model.shape import ModelShape
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.output.exporter import Exporter
from taxbreak_vllm.spool.capture import Capture
from taxbreak_vllm.taxes.analyze import choose
from taxbreak_vllm.taxes.recording import Recording
from taxbreak_vllm.taxes.terms import Terms

Exports = Sequence[tuple[Path, Exporter]]


def analyze_paths(
    paths: Iterable[Path],
    terms: Terms,
    exports: Exports,
    *,
    json: bool,
    top: int = TOP_ROWS,
    phase: Phase | None = None,
    step: str | None = None,
    with_limit: bool = False,
    model: ModelShape | None = None,
    plain_ns: int | None = None,
) -> None:
    """Read each path once, write what is to be exported and print the rest, of the steps chosen alone.

    Printed is one JSON object, or a table each with `top` rows of its dearest kernels; `with_limit` also what the
    hardware allows, of `model` where that is described. A path may hold windows of an engine's turns as well: these are
    an account of its iterations.
    """
    found: list[tuple[Breakdown, AdviceReport, Limit | str | None]] = []
    loops: list[IterationReport] = []
    for path in paths:
        if holds_windows(path):
            if exports or step is not None:
                raise SettingsError(
                    f"{path}: an engine's iterations are exported to no file, and none of them has a name"
                )
            loops.append(report(read_windows(path), path=path, phase=phase))
            continue
        with opened(path, terms, with_calls=with_limit, with_frames=bool(exports)) as recording:
            shown = choose(whole(recording, model), phase=phase, step=step)
            findings = Findings(recording, shown if plain_ns is None else with_plain_step(shown, plain_ns))
            for _, exporter in exports:
                exporter.add(findings)
            limit = _limit(recording, shown, model) if with_limit else None
            found.append((findings.breakdown, findings.advice, limit))
    for target, exporter in exports:
        exporter.write(target)
    if json:
        print_json(
            _object(
                [with_advice(shown, advice, limit=limit) for shown, advice, limit in found],
                [each.to_json() for each in loops],
            )
        )
        return
    for breakdown, advice, limit in found:
        print_breakdown(breakdown, advice, top, limit=limit)
    for loop in loops:
        print_iterations(loop)


def whole(recording: Recording, model: ModelShape | None = None) -> Breakdown:
    """Return the breakdown of a recording, of a capture or a known model with what hardware allows its steps."""
    if recording.info is None and model is None:
        return recording.breakdown
    from taxbreak_vllm.limit.live import limited  # what an analysis of a bare trace need not load

    return limited(recording, model=model)


def _state(recording: Recording) -> WorkerState | None:
    return Capture(Path(recording.path)).read_state()


def _limit(recording: Recording, shown: Breakdown, model: ModelShape | None) -> Limit | str:
    from taxbreak_vllm.limit.trace import limit_of  # what an analysis that is not asked for it need not load

    is_all = len(shown.steps) == len(recording.breakdown.steps)
    state = None if recording.info is None else _state(recording)
    return limit_of(
        recording,
        steps=None if is_all else [step.number or 0 for step in shown.steps],
        properties=None if state is None else state.device,
        model=model,
    )


def _object(breakdowns: Sequence[bytes], iterations: Sequence[bytes]) -> bytes:
    if len(breakdowns) + len(iterations) == 1:
        return (*breakdowns, *iterations)[0]
    kinds = {b"breakdowns": breakdowns, b"iterations": iterations}
    return b"{" + b",".join(b'"%b":[%b]' % (name, b",".join(parts)) for name, parts in kinds.items() if parts) + b"}"


def exports_to(targets: Mapping[str, Path], *, sources: Iterable[Path]) -> Exports:
    """Make the exporters asked for, each with where it writes; what loads pyarrow or Jinja is loaded for them alone.

    Raises SettingsError where a file would be written over one of `sources`, or two into one place.
    """
    taken = [source.resolve() for source in sources]
    exports: list[tuple[Path, Exporter]] = []
    for name, target in targets.items():
        if name != "parquet" and target.resolve() in taken:
            raise SettingsError(f"{target}: is read or written already; give another name to write to")
        taken.append(target.resolve())
        exports.append((target, _exporter(name)))
    return exports


def _exporter(name: str) -> Exporter:
    if name == "html":
        from taxbreak_vllm.output.html import HtmlPage

        return HtmlPage()
    if name == "speedscope":
        from taxbreak_vllm.output.speedscope import Speedscope

        return Speedscope()
    if name == "pprof":
        from taxbreak_vllm.output.pprof import Pprof

        return Pprof()
    from taxbreak_vllm.output.parquet import ParquetTables

    return ParquetTables()
