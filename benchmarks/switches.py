"""The switches that a server's advice can name, each with a load under which a server needs it.

A case is a server and a load; its switches are other ways to start that server, or to share that load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from streams import Load

from taxbreak_vllm.demo.servers import ONE_PROCESS

NO_FLAGS: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a server is started: flags, environment, and the CPUs that it may use (None: all).

    With `simulated`, times in ns by knob (`rig.knobs`), its device is a clock.
    """

    flags: tuple[str, ...] = ONE_PROCESS
    env: Mapping[str, str] = field(default_factory=dict)
    cpus: frozenset[int] | None = None
    simulated: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One change that a rule asks for; `rules` are all that name it. `load` is another share of the load."""

    name: str
    rules: tuple[str, ...]
    setup: Setup
    load: Load | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A server that needs a change, and the load that shows it."""

    name: str
    condition: str
    before: Setup
    load: Load
    switches: tuple[Switch, ...]


def _with(*flags: str, simulated: Mapping[str, int] | None = None) -> Setup:
    return Setup(flags=(*ONE_PROCESS, *flags), simulated=simulated)


def _many(*flags: str) -> Setup:
    return _with("--max-num-seqs", "64", *flags)


def _many_at_once(*flags: str) -> Setup:
    room = ("--max-num-seqs", "256", "--kv-cache-memory-bytes", str(256 * 2**20))
    return _with(*room, *flags, simulated=_FAST)


_US = 1000
_FAST = {"device": 20 * _US, "launch": 5 * _US}
_BUSY_HOST = {"device": 9000 * _US, "launch": 50 * _US, "schedule": 1500 * _US, "update": 1500 * _US}
_MANY_STREAMS = Load(clients=64, output_tokens=16)
_LONG_STREAMS = Load(clients=256, output_tokens=128)
_LONG_TEXTS = Load(clients=4, prompt_chars=200_000, truncated=64, output_tokens=4)
_SOME = Load(clients=8, output_tokens=64, is_streamed=False)
_RARE = Load(rate=1.5, output_tokens=32, is_streamed=False)

CASES = (
    Case(
        name="worker-process",
        condition="one worker in a process of its own",
        before=Setup(flags=("--distributed-executor-backend", "mp")),
        load=_SOME,
        switches=(Switch(name=" ".join(ONE_PROCESS), rules=("one-process",), setup=Setup()),),
    ),
    Case(
        name="many-streams",
        condition="64 streams at a time, each token sent alone",
        before=_many(),
        load=_MANY_STREAMS,
        switches=(
            Switch(name="--stream-interval 8", rules=("delivery",), setup=_many("--stream-interval", "8")),
            Switch(name="--api-server-count 2", rules=("delivery",), setup=_many("--api-server-count", "2")),
        ),
    ),
    Case(
        name="fast-streams",
        condition="256 streams from a simulated device of 20 µs a step, so that the API server is behind the engine",
        before=_many_at_once(),
        load=_LONG_STREAMS,
        switches=(
            Switch(name="--stream-interval 4", rules=("delivery",), setup=_many_at_once("--stream-interval", "4")),
            Switch(name="--api-server-count 2", rules=("delivery",), setup=_many_at_once("--api-server-count", "2")),
        ),
    ),
    Case(
        name="one-after-another",
        condition="a simulated device of 9 ms a step that waits for 3 ms of scheduling and taking in tokens",
        before=_with("--no-async-scheduling", simulated=_BUSY_HOST),
        load=_SOME,
        switches=(
            Switch(
                name="--async-scheduling",
                rules=("work-ahead",),
                setup=_with("--async-scheduling", simulated=_BUSY_HOST),
            ),
        ),
    ),
    Case(
        name="long-texts",
        condition="prompts of 200,000 characters cut to 64 tokens, one API server with one tokenizer thread",
        before=Setup(),
        load=_LONG_TEXTS,
        switches=(
            Switch(
                name="--renderer-num-workers 2",
                rules=("before-the-engine", "api-servers"),
                setup=_with("--renderer-num-workers", "2"),
            ),
            Switch(
                name="--api-server-count 2",
                rules=("before-the-engine", "api-servers"),
                setup=_with("--api-server-count", "2"),
            ),
        ),
    ),
    Case(
        name="eager",
        condition="every op dispatched from Python",
        before=Setup(),
        load=_SOME,
        switches=(
            Switch(
                name="--compilation-config '{\"mode\": 3}', no --enforce-eager",
                rules=("compilation",),
                setup=_with("--no-enforce-eager", "--compilation-config", '{"mode": 3}'),
            ),
        ),
    ),
    Case(
        name="few-seqs",
        condition="--max-num-seqs 2 under 8 clients",
        before=_with("--max-num-seqs", "2"),
        load=_SOME,
        switches=(Switch(name="--max-num-seqs 8", rules=("queue", "batch-size"), setup=Setup()),),
    ),
    Case(
        name="one-cpu",
        condition="all of the server on one CPU, 8 streams",
        before=Setup(cpus=frozenset({0})),
        load=replace(_SOME, is_streamed=True),
        switches=(Switch(name="2 CPUs", rules=("more-cpu", "more-cpu-for-api"), setup=Setup(cpus=frozenset({0, 1}))),),
    ),
    Case(
        name="two-servers",
        condition="one of two servers that share a small load",
        before=Setup(),
        load=_RARE,
        switches=(
            Switch(
                name="one server for both loads",
                rules=("fewer-servers",),
                setup=Setup(),
                load=replace(_RARE, rate=2 * (_RARE.rate or 0)),
            ),
        ),
    ),
)
