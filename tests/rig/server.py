"""A GPU server runs: what its worker's thread does, and what that makes its device do.

In: a `Server`, with nothing left to chance. Out: a `Run`: every op, call and activity, and each instant of the worker's
thread with what it was. Device work never changes what was launched before it, so one pass in the order of the program,
with a clock for each thread and each stream, is the whole simulation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rig.program import (
    MAIN,
    OUTPUT,
    TOKENS,
    Call,
    Copy,
    Graph,
    Item,
    Kernel,
    Op,
    Poll,
    Record,
    Server,
    Step,
    Synchronize,
    Wait,
    Work,
)
from rig.records import ENGINE, STEP, Activity, Orchestration, Run, Segment, Span, Sync


def run(server: Server) -> Run:
    """Run all steps of a server."""
    machine = _Machine(server)
    windows, output_ns, sent_ns = [], [], 0
    for number, step in enumerate(server.steps):
        windows.append(machine.step(step))
        waited_for = number - server.steps_ahead
        if server.has_output_thread:
            output_ns.append(machine.output(number) if server.steps_ahead else machine.now_ns)
            seen_ns = output_ns[waited_for] if waited_for >= 0 else 0
            sent_ns = max(sent_ns, seen_ns) + server.engine_ns
            if number + 1 < len(server.steps):
                machine.wait_until(sent_ns, "waiting")
        else:
            if server.steps_ahead and waited_for >= 0:
                machine.get_output(waited_for)
            machine.work(server.engine_ns, "engine")
    end_ns = max(span.end_ns for span in machine.spans)
    machine.wait_until(end_ns, "waiting")
    return Run(
        server=server,
        windows=tuple(windows),
        spans=tuple(machine.spans),
        activities=tuple(machine.activities),
        syncs=tuple(machine.syncs),
        segments=tuple(machine.segments),
        orchestration=tuple(machine.orchestration),
        end_ns=end_ns,
    )


class _Event(NamedTuple):
    """When it passes, which call recorded it, on which stream."""

    at_ns: int = 0
    record: int = -1
    stream: int = -1


@dataclass(slots=True)
class _Machine:
    """The clocks of the worker's thread, of the output thread and of each stream, and what they left behind."""

    server: Server
    now_ns: int = 0
    output_free_ns: int = 0
    place: str = ""
    number: int = -1
    spans: list[Span] = field(default_factory=list)
    activities: list[Activity] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    orchestration: list[Orchestration] = field(default_factory=list)
    _busy_until: dict[int, int] = field(default_factory=dict)  # of each stream
    _held_until: dict[int, int] = field(default_factory=dict)  # by events it waits for
    _events: dict[str, _Event] = field(default_factory=dict)
    _tokens: dict[int, _Event] = field(default_factory=dict)
    _begun: list[int] = field(default_factory=list)  # by when each launch and those before it have begun
    _step_ns: int = 0
    _correlation: int = 0
    _external: int = 0
    _ops: list[int] = field(default_factory=list)  # those around the thread now
    _python_ns: int = 0  # since the last boundary
    _dispatch_ns: int = 0  # since the root op or the last launch under it
    _library_ns: int = 0  # of that

    def step(self, step: Step) -> tuple[int, int]:
        """Do one step; return its start and end."""
        self.number += 1
        self.orchestration.append(Orchestration())
        self.work(step.before_ns, "profiler")
        self._step_ns, self._python_ns = self.now_ns, 0
        self._all(step.execute, "execute")
        self._gap(step.gap_ns)
        self._all(step.sample, "sample")
        window = self._step_ns, self.now_ns
        self.spans.append(Span("step", f"{STEP}{self.number}", *window))
        self._all(step.after, "profiler")
        return window

    def _gap(self, ns: int) -> None:
        """Let the worker's thread wait for the engine between its two calls: no part of T_py."""
        self.place = "gap"
        if ns:
            self.spans.append(Span("engine", ENGINE, self.now_ns, self.now_ns + ns))
            self._pass(ns, "python")

    def output(self, number: int) -> int:
        """Wait for a step's tokens on the output thread and make lists of them; return when that is done."""
        start_ns = max(self.now_ns, self.output_free_ns)
        end_ns = start_ns
        if number in self._tokens:
            event, correlation = self._tokens[number], self._next_correlation()
            if self.server.pause_ns is not None:
                end_ns = self._ask(event, start_ns, self.server.wait_call_ns, self.server.pause_ns)
                self.output_free_ns = end_ns + self.server.output_ns
                return self.output_free_ns
            end_ns = max(start_ns + self.server.wait_call_ns, event.at_ns + self.server.return_ns)
            self.spans.append(Span("call", "cudaEventSynchronize", start_ns, end_ns, OUTPUT, correlation))
            self._tell("Event Sync", start_ns, end_ns, correlation, event)
        self.output_free_ns = end_ns + self.server.output_ns
        return self.output_free_ns

    def get_output(self, number: int) -> None:
        """Wait for a step's tokens on the worker's own thread and make lists of them."""
        self.place = "get_output"
        if number in self._tokens:
            event, call_ns, pause_ns = self._tokens[number], self.server.wait_call_ns, self.server.pause_ns
            if pause_ns is None:
                self._await(event, call_ns)
            else:
                self._poll(event, call_ns, pause_ns)
        self.work(self.server.output_ns, "get_output")

    def work(self, ns: int, place: str) -> None:
        """Let the worker's thread do something outside ops."""
        self.place = place
        self._python_ns += ns
        self._pass(ns, "python")

    def wait_until(self, at_ns: int, place: str) -> None:
        """Let the worker's thread wait for what is no device."""
        self.work(max(at_ns - self.now_ns, 0), place)

    def _all(self, items: Sequence[Item], place: str = "") -> None:
        self.place = place or self.place
        for item in items:
            _DO[type(item)](self, item)

    def _work(self, item: Work) -> None:
        if not self._ops:
            self._python_ns += item.ns
            self._pass(item.ns, "python")
            return
        self._dispatch_ns += item.ns
        self._library_ns += item.ns * item.is_library
        self._pass(item.ns, "library" if item.is_library else "dispatch")

    def _op(self, item: Op) -> None:
        start_ns = self.now_ns
        if not self._ops:
            self._dispatch_ns = self._library_ns = 0
        self._external += 1
        self._ops.append(self._external)
        self._all(item.body)
        external = self._ops.pop()
        if not self._ops:
            self._python_ns = 0
        self.spans.append(Span("op", item.name, start_ns, self.now_ns, external=external))

    def _kernel(self, item: Kernel) -> None:
        start_ns, correlation = self._launch("cudaLaunchKernel", item.call_ns)
        if item.is_captured:
            self._bound()
            return
        begin_ns = self._ready(item.stream, self.now_ns + self.server.latency_ns)
        peer_ns = begin_ns if item.peer_ns is None else self._step_ns + item.peer_ns
        self._put(item.name, begin_ns, max(begin_ns, peer_ns) + item.ns, item.stream, correlation, start_ns)
        self._charge(begin_ns, is_kernel=True)

    def _graph(self, item: Graph) -> None:
        start_ns, correlation = self._launch("cudaGraphLaunch", item.call_ns)
        begin_ns = first_ns = self._ready(item.stream, self.now_ns - item.call_ns + item.first_ns)
        for node, ns in enumerate(item.node_ns):
            self._put(
                f"graph_kernel_{node % 8}",
                begin_ns,
                begin_ns + ns,
                item.stream,
                correlation,
                start_ns,
                graph_id=item.graph_id,
                node=node,
            )
            begin_ns += ns + self.server.node_gap_ns
        self._charge(first_ns, is_kernel=True)

    def _copy(self, item: Copy) -> None:
        start_ns, correlation = self.now_ns, self._next_correlation()
        own_ns = self.server.copy_latency_ns
        latency_ns = self.server.latency_ns if own_ns is None else own_ns
        begin_ns = self._ready(item.stream, start_ns + item.call_ns + latency_ns)
        name = "Memcpy DtoH (Device -> Pinned)" if item.to_host else "Memcpy HtoD (Pinned -> Device)"
        self._put(name, begin_ns, begin_ns + item.ns, item.stream, correlation, start_ns)
        self._charge(begin_ns, is_kernel=False)
        if item.blocks:
            self._block("cudaMemcpyAsync", item.call_ns, begin_ns + item.ns, correlation)
        else:
            self._call("cudaMemcpyAsync", item.call_ns, "runtime", correlation)

    def _record(self, item: Record) -> None:
        correlation = self._call("cudaEventRecord", item.call_ns, "runtime")
        done_ns = max(self._busy_until.get(item.stream, 0), self._held_until.get(item.stream, 0))
        self._events[item.event] = _Event(done_ns, correlation, item.stream)
        if item.event == TOKENS:
            self._tokens[self.number] = self._events[item.event]

    def _wait(self, item: Wait) -> None:
        start_ns, event = self.now_ns, self._events.get(item.event, _Event())
        correlation = self._call("cudaStreamWaitEvent", item.call_ns, "runtime")
        self._held_until[item.stream] = max(self._held_until.get(item.stream, 0), event.at_ns)
        self._tell("Stream Wait Event", start_ns, self.now_ns, correlation, event, stream=item.stream)

    def _synchronize(self, item: Synchronize) -> None:
        if item.event is not None:
            self._await(self._events.get(item.event, _Event()), item.call_ns)
            return
        start_ns = self.now_ns
        busy_until = max((*self._busy_until.values(), *self._held_until.values()), default=0)
        correlation = self._block("cudaDeviceSynchronize", item.call_ns, busy_until)
        self._tell("Context Sync", start_ns, self.now_ns, correlation)

    def _await(self, event: _Event, call_ns: int) -> None:
        """Wait in a call for an event."""
        start_ns = self.now_ns
        correlation = self._block("cudaEventSynchronize", call_ns, event.at_ns)
        self._tell("Event Sync", start_ns, self.now_ns, correlation, event)

    def _ask(self, event: _Event, at_ns: int, call_ns: int, pause_ns: int) -> int:
        """Ask for an event on the output thread from an instant on; return when it has passed."""
        while True:
            end_ns = at_ns + call_ns
            self.spans.append(Span("call", "cudaEventQuery", at_ns, end_ns, OUTPUT, self._next_correlation()))
            if event.at_ns <= end_ns:
                return end_ns
            at_ns = end_ns + pause_ns

    def _poll(self, event: _Event, call_ns: int, pause_ns: int) -> None:
        """Ask for an event on the worker's own thread."""
        while True:
            self._call("cudaEventQuery", call_ns, "runtime")
            if event.at_ns <= self.now_ns:
                return
            self._work(Work(pause_ns))

    def _poll_for(self, item: Poll) -> None:
        self._poll(self._events.get(item.event, _Event()), item.call_ns, item.pause_ns)

    def _tell(
        self, name: str, start_ns: int, end_ns: int, correlation: int, event: _Event | None = None, *, stream: int = -1
    ) -> None:
        record, on = (event.record, event.stream) if event else (-1, -1)
        self.syncs.append(Sync(name, start_ns, end_ns, correlation, stream, record, on))

    def _other(self, item: Call) -> None:
        self._call(item.name, item.ns, "runtime")

    def _launch(self, name: str, call_ns: int) -> tuple[int, int]:
        """Make a launch call, waiting in it for room in the queue; return its start and its correlation id."""
        start_ns, correlation = self.now_ns, self._next_correlation()
        oldest = len(self._begun) - self.server.max_launches
        if oldest >= 0:
            self._pass(max(self._begun[oldest] - self.now_ns, 0), "blocked")
        self._pass(call_ns, "launch")
        self._see(name, start_ns, correlation)
        return start_ns, correlation

    def _call(self, name: str, ns: int, cls: str, correlation: int | None = None) -> int:
        start_ns = self.now_ns
        self._pass(ns, cls)
        correlation = self._next_correlation() if correlation is None else correlation
        self._see(name, start_ns, correlation)
        return correlation

    def _block(self, name: str, call_ns: int, done_ns: int, correlation: int | None = None) -> int:
        """Wait in a call for the device."""
        length_ns = max(call_ns, done_ns + self.server.return_ns - self.now_ns)
        correlation = self._call(name, length_ns, "blocked", correlation)
        self._bound()
        return correlation

    def _bound(self) -> None:
        """Begin T_py anew; under a root op it has ended with that op's start."""
        if not self._ops:
            self._python_ns = 0

    def _see(self, name: str, start_ns: int, correlation: int) -> None:
        external = self._ops[-1] if self._ops else -1
        self.spans.append(Span("call", name, start_ns, self.now_ns, MAIN, correlation, external))

    def _ready(self, stream: int, earliest_ns: int) -> int:
        """Return when the next work of a stream begins that the device has from `earliest_ns` on."""
        behind_ns = self._busy_until[stream] + self.server.gap_ns if stream in self._busy_until else 0
        return max(earliest_ns, behind_ns, self._held_until.get(stream, 0))

    def _put(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        stream: int,
        correlation: int,
        launch_ns: int,
        *,
        graph_id: int = 0,
        node: int = 0,
    ) -> None:
        external = self._ops[-1] if self._ops else -1
        self.activities.append(
            Activity(name, start_ns, end_ns, stream, correlation, launch_ns, self.number, external, graph_id, node)
        )
        self._busy_until[stream] = end_ns

    def _charge(self, begin_ns: int, *, is_kernel: bool) -> None:
        """Charge a launch with the host time that led to it (methodology, sections 2 and 3)."""
        self._begun.append(max(begin_ns, self._begun[-1] if self._begun else 0))
        step = self.orchestration[-1]
        ct_ns = self._library_ns if self._ops else 0
        step.ft_ns += self._python_ns + (self._dispatch_ns if self._ops else 0) - ct_ns
        step.ct_ns += ct_ns
        step.launches += 1
        step.kernel_launches += is_kernel
        self._python_ns = self._dispatch_ns = self._library_ns = 0

    def _pass(self, ns: int, cls: str) -> None:
        if ns > 0:
            self.segments.append(Segment(self.now_ns, self.now_ns + ns, cls, self.place))
            self.now_ns += ns

    def _next_correlation(self) -> int:
        self._correlation += 1
        return self._correlation


_DO: dict[type, Callable[..., None]] = {
    Work: _Machine._work,
    Op: _Machine._op,
    Kernel: _Machine._kernel,
    Graph: _Machine._graph,
    Copy: _Machine._copy,
    Record: _Machine._record,
    Wait: _Machine._wait,
    Synchronize: _Machine._synchronize,
    Poll: _Machine._poll_for,
    Call: _Machine._other,
}
