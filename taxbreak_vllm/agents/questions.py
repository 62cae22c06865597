"""What can be asked, as plain functions of a server and a folder of traces: JSON in, an answer of bounded size out.

A server answers as its version does, so its JSON is handed on by the names it has, never decoded into ours; what a
server does not advise on itself is advised on here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import msgspec

from taxbreak_vllm.agents.answers import (
    Analysis,
    Comparison,
    HardwareLimit,
    Loops,
    Predictions,
    Reasoning,
    Slowness,
    Status,
    Steps,
    Turns,
    Waterfalls,
)
from taxbreak_vllm.agents.bounds import Tree, bounded
from taxbreak_vllm.agents.traces import Traces
from taxbreak_vllm.insight.advice import advise
from taxbreak_vllm.insight.diff import diff
from taxbreak_vllm.model.breakdown import Breakdown
from taxbreak_vllm.model.errors import SettingsError, TaxbreakError
from taxbreak_vllm.model.step import Phase
from taxbreak_vllm.taxes.add import add_steps
from taxbreak_vllm.whatif.asked import asked

_LISTED_STEPS = 50  # of a window: enough to advise on
_IN_SHORT = (
    *("rule", "component", "phase", "change", "predicted", "unpredicted", "at_most_ns", "at_most_ratio", "per"),
    "if_plain_above_ns",
)
_OF_STEPS = {"top", "families", "notes"}  # told once, for all of them

Param = str | int | float | bool | Sequence[str] | None
T = TypeVar("T")


class Server(Protocol):
    """Who asks a server: `/v1/taxbreak/PATH` in, its JSON out; TaxbreakError where it does not answer so.

    `replay` asks `whatif`, and waits for as long as that may take.
    """

    def get(self, path: str, **params: Param) -> Tree: ...
    def replay(self, **params: Param) -> Tree: ...
    def capture(self, report: Callable[[int, int], None], **wish: object) -> tuple[Tree, str]: ...


class Questions:
    """Every question, asked of one server and one folder of traces."""

    def __init__(self, server: Server, traces: Traces) -> None:
        self._server = server
        self._traces = traces

    def status(self, most: int) -> Status:
        return _answer(Status, self._server.get("status"), most)

    def slowness(
        self, *, trace: str | None, phase: Phase | None, window_s: int | None, server_id: str | None, most: int
    ) -> Slowness:
        whole, advice = self._whole(trace, phase=phase, window_s=window_s, server_id=server_id)
        if trace is None:
            wanted = {"window_s": window_s, "server_id": server_id, "limit": 0}
            asked = (self._server.get("breakdown", phase=each, **wanted) for each in ([phase] if phase else Phase))
            phases = [found["total"] for found in asked if found["total"]["window_ns"]]
        else:
            steps = Breakdown.from_builtins(whole).steps
            by_phase = [[step for step in steps if step.phase is each] for each in (*Phase, None)]
            phases = [msgspec.to_builtins(add_steps(found)) for found in by_phase if found]
        in_short = {
            name: [{key: each[key] for key in _IN_SHORT if key in each} for each in advice.get(name, ())]
            for name in ("advice", "conditional")
        }
        tree = (
            whole
            | {"serving": None}
            | advice
            | in_short
            | {"phases": list(map(_bare, phases)), "top": whole["total"]["top"]}
        )
        return _answer(Slowness, tree, most)

    def reasoning(
        self, *, trace: str | None, phase: Phase | None, window_s: int | None, server_id: str | None, most: int
    ) -> Reasoning:
        whole, advice = self._whole(trace, phase=phase, window_s=window_s, server_id=server_id)
        absent: Tree = {"conditional": [], "settled_by": None, "serving": None, "outcomes": []}
        return _answer(Reasoning, whole | absent | advice, most)

    def steps(self, *, phase: Phase | None, limit: int, cursor: str | None) -> Steps:
        return _answer(Steps, self._server.get("steps", phase=phase, limit=limit, cursor=cursor), limit)

    def step(self, step_id: str, most: int) -> Analysis:
        return _analysis(*_advised(self._server.get(f"steps/{_name(step_id)}")), most)

    def loops(self, most: int) -> Loops:
        return _answer(Loops, self._server.get("iterations"), most)

    def waterfalls(self, *, sort: str, most: int) -> Waterfalls:
        found = self._server.get("requests", limit=most, sort=sort)
        return _answer(Waterfalls, {"waterfalls": None, "reason": None} | found, most)

    def limit(
        self, *, trace: str | None, phase: Phase | None, window_s: int | None, server_id: str | None, most: int
    ) -> HardwareLimit:
        """Tell the hardware limit of the server's window, or of a trace's recorded shapes."""
        if trace is None:
            wanted = {"phase": phase, "window_s": window_s, "server_id": server_id}
            return _answer(HardwareLimit, self._server.get("limit", **wanted), most)
        if window_s is not None or server_id is not None:
            raise SettingsError("window_s and server_id are of a server; a trace has neither")
        phases, found = self._traces.limit(trace, phase=phase)
        told = {name or "all": msgspec.to_builtins(each, str_keys=True) for name, each in phases.items()}
        of_trace = None if isinstance(found, str) else found.to_builtins()
        reason = found if isinstance(found, str) else None
        return _answer(HardwareLimit, {"phases": told, "trace": of_trace, "reason": reason, "notes": []}, most)

    def transitions(self, *, phase: Phase | None, window_s: int | None, server_id: str | None, most: int) -> Turns:
        found = self._server.get("transition", phase=phase, window_s=window_s, server_id=server_id)
        return _answer(Turns, found, most)

    def analysis(self, trace: str, *, most: int, **choice: Any) -> Analysis:  # noqa: ANN401 - those of Traces.read
        breakdown, advice = self._traces.read(trace, **choice)
        return _analysis(breakdown.to_builtins(), advice.to_builtins(), most)

    def predictions(
        self,
        trace: str | None,
        change: Mapping[str, Any],
        *,
        rank: int | None,
        step_id: str | None,
        phase: Phase | None,
        server_id: str | None,
        most: int,
    ) -> Predictions:
        """Replay a trace, or recorded steps of the server; `change` has the words of `asked`."""
        if trace is None:
            if rank is not None:
                raise SettingsError("rank is of a trace; a server's step has one")
            words = {name.removeprefix("is_"): value for name, value in change.items() if value}
            which = {"step_id": step_id, "phase": phase, "server_id": server_id}
            found = self._server.replay(**words, **which)["answers"]
        else:
            if (step_id, phase, server_id) != (None, None, None):
                raise SettingsError("step_id, phase and server_id are of a server; a trace has none")
            found = [self._traces.predict(trace, asked(**change), rank=rank).to_builtins()]
        answers = [{name: value for name, value in one.items() if name != "timeline"} for one in found]
        return _answer(Predictions, {"answers": answers}, most)

    def comparison(self, a: str, b: str, most: int) -> Comparison:
        tree = diff(self._side(a), self._side(b)).to_builtins()
        for section in tree["sections"]:
            section["figures"] = [figure for figure in section["figures"] if figure["absolute"]]
        return _answer(Comparison, tree, most)

    def capture(self, report: Callable[[int, int], None], *, most: int, **wish: object) -> Analysis:
        found, gap = self._server.capture(report, **wish)
        tree, advice = _advised(found)
        return _analysis(tree | {"gap": gap}, advice, most)

    def _whole(
        self, trace: str | None, *, phase: Phase | None, window_s: int | None, server_id: str | None
    ) -> tuple[Tree, Tree]:
        """Return the breakdown of a trace or of a server's window, and the advice on it."""
        if trace is not None:
            if window_s is not None or server_id is not None:
                raise SettingsError("window_s and server_id are of a server; a trace has neither")
            breakdown, advice = self._traces.read(trace, phase=phase)
            return breakdown.to_builtins(), advice.to_builtins()
        wanted = {"phase": phase, "window_s": window_s, "server_id": server_id}
        return _advised(self._server.get("breakdown", limit=_LISTED_STEPS, **wanted))

    def _side(self, name: str) -> Breakdown:
        kind, _, wanted = name.partition(":")
        if kind == "step":
            return Breakdown.from_builtins(self._server.get(f"steps/{_name(wanted)}"))
        if kind == "capture":
            found = self._server.get(f"captures/{_name(wanted)}").get("breakdown")
            if found is None:
                raise TaxbreakError(f"capture {wanted}: none of its steps is analyzed")
            return Breakdown.from_builtins(found)
        return self._traces.read(name)[0]


def _advised(whole: Tree) -> tuple[Tree, Tree]:
    """Return a breakdown and the advice in it; an older server's has none."""
    return whole, whole.get("advice") or advise([Breakdown.from_builtins(whole)]).to_builtins()


def _analysis(whole: Tree, advice: Tree, most: int) -> Analysis:
    total = {name: value for name, value in whole["total"].items() if name != "top"}
    tree = whole | advice | {"steps": list(map(_bare, whole["steps"])), "total": total, "top": whole["total"]["top"]}
    return _answer(Analysis, tree, most)


def _bare(step: Mapping[str, Any]) -> Tree:
    return {name: value for name, value in step.items() if name not in _OF_STEPS}


def _answer(kind: type[T], tree: Tree, most: int) -> T:
    """Make an answer of the members of a tree that it has, cut to size."""
    return cast(T, bounded({name: tree[name] for name in kind.__annotations__ if name in tree}, most))


def _name(text: str) -> str:
    """Refuse what would lead to another route."""
    if not text or "/" in text or text.startswith(".") or "?" in text or "#" in text:
        raise SettingsError(f"{text!r}: no id of a step or capture")
    return text
