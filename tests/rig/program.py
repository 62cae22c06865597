"""What a GPU server is made of: what its worker's thread does in each step, and how quick everything is, in ns."""

from dataclasses import dataclass

MAIN, OUTPUT = 4000, 4001  # threads: the worker's own, and the one that waits for tokens
COMPUTE, COPIES = 7, 20  # streams
TOKENS = "tokens"  # the event after a step's copy of its tokens


@dataclass(frozen=True, slots=True)
class Work:
    """Host time outside calls: python, or under an op dispatch, or there the front-end of a vendor library."""

    ns: int
    is_library: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """Launch a kernel of `ns`; one with `peer_ns` is a collective that first waits for a peer.

    The peer arrives `peer_ns` after the step began. A `captured` launch goes into a graph: no device work comes of it.
    """

    ns: int
    call_ns: int
    name: str = "vectorized_elementwise_kernel"
    stream: int = COMPUTE
    peer_ns: int | None = None
    is_captured: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """Replay a graph, its nodes one after the other; on an idle device the first begins `first_ns` after the call."""

    node_ns: tuple[int, ...]
    call_ns: int
    first_ns: int
    graph_id: int = 1
    stream: int = COMPUTE


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy to the device, or to the host; one that `blocks` returns when it is done."""

    ns: int
    call_ns: int
    to_host: bool = False
    blocks: bool = False
    stream: int = COMPUTE


@dataclass(frozen=True, slots=True)
class Record:
    """Record an event on a stream."""

    event: str
    call_ns: int
    stream: int = COMPUTE


@dataclass(frozen=True, slots=True)
class Wait:
    """Let a stream wait for an event."""

    event: str
    call_ns: int
    stream: int = COMPUTE


@dataclass(frozen=True, slots=True)
class Synchronize:
    """Let the host wait for an event, or for all streams."""

    call_ns: int
    event: str | None = None


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask whether an event has passed until it has, with `pause_ns` of python between."""

    call_ns: int
    event: str
    pause_ns: int


@dataclass(frozen=True, slots=True)
class Call:
    """Any other call of the runtime."""

    ns: int
    name: str = "cudaMalloc"


@dataclass(frozen=True, slots=True)
class Op:
    """An op around what it does."""

    name: str
    body: tuple["Item", ...]


Item = Work | Op | Kernel | Graph | Copy | Record | Wait | Synchronize | Poll | Call


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step: `execute_model`, `gap_ns` in which the worker waits for the engine, `sample_tokens`.

    Around it a recorder may start a profiler, for `before_ns`, and stop it (`after`).
    """

    execute: tuple[Item, ...]
    sample: tuple[Item, ...] = ()
    gap_ns: int = 0
    before_ns: int = 0
    after: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server and its steps.

    `steps_ahead` is 0 without async scheduling and 1 with it: how many steps beside the one it is sent after the engine
    sends without having seen their tokens. With an output thread (multiproc) tokens are waited for there and the engine
    is a process of its own; without it (uniproc) the worker's thread does both between two steps.

    A kernel on an idle device begins `latency_ns` after its call's return (a copy `copy_latency_ns`, None: alike), one
    behind another `gap_ns` after that one's end (`node_gap_ns` in a graph). A waiting call returns `return_ns` after
    what it waits for. With `max_launches` launches not yet begun the next launch call waits. `floor_ns` is T_sys.
    With `pause_ns` nobody waits in a call for tokens: they are asked for, with such a pause between.
    """

    steps: tuple[Step, ...]
    steps_ahead: int = 1
    has_output_thread: bool = True
    engine_ns: int = 300_000
    output_ns: int = 50_000
    wait_call_ns: int = 2_000
    pause_ns: int | None = None
    latency_ns: int = 2_000
    copy_latency_ns: int | None = None
    gap_ns: int = 1_000
    node_gap_ns: int = 700
    return_ns: int = 3_000
    max_launches: int = 1021
    floor_ns: int = 6_000
