"""The energy of the GPUs of this machine's servers, read once a second on a thread of the sidecar.

In: the states of workers in the spool, and NVML. Out: joules per output token of each engine over windows of at least
10 s, and joules of each worker since the sidecar began to read. What several servers share is told of none.
"""

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence

from taxbreak_vllm.insight.energy import Point, Reading, energy_at, was_reset, window_of
from taxbreak_vllm.machine.nvml import NoEnergy, Nvml
from taxbreak_vllm.model.energy import EngineEnergy
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.results.live import live
from taxbreak_vllm.spool.spool import Spool

logger = logging.getLogger("taxbreak.energy")

PERIOD_S = 1.0
_NUM_READINGS = 30  # a state is as old as its heartbeat, at the most
_NUM_POINTS = 64

Engine = tuple[str, str]  # server id, engine
Worker = tuple[str, str, int]  # model name, engine, rank


class EnergyMeter:
    """Reads energy from its start to its end; what it knows may be asked for on any thread."""

    def __init__(
        self,
        spool: Spool,
        *,
        energy_mj: Callable[[str], int | NoEnergy] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._spool = spool
        self._energy_mj = energy_mj or Nvml().energy_mj
        self._now_ns = now_ns
        self._readings: defaultdict[str, deque[Reading]] = defaultdict(lambda: deque(maxlen=_NUM_READINGS))
        self._points: defaultdict[Engine, deque[Point]] = defaultdict(lambda: deque(maxlen=_NUM_POINTS))
        self._joules: defaultdict[Worker, float] = defaultdict(float)
        self._told: Sequence[EngineEnergy] = ()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read, unless that was begun before."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="taxbreak-energy", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def told(self) -> Sequence[EngineEnergy]:
        """Return what is known of each engine that runs."""
        return self._told

    def joules(self) -> dict[Worker, float]:
        """Return what the GPU of each worker, if it is its own, took since it was read first."""
        return dict(self._joules)

    def turn(self) -> None:
        """Read once and tell what follows."""
        workers = live(self._spool.states(), now_ns=self._now_ns())
        by_engine: defaultdict[Engine, list[WorkerState]] = defaultdict(list)
        for state in workers:
            by_engine[state.server.server_id, state.server.engine].append(state)
        num_users = Counter(state.server.device_uuid for state in workers)
        failures = self._read(workers, num_users)
        self._told = [self._energy_of(engine, states, failures) for engine, states in sorted(by_engine.items())]
        for engine in self._points.keys() - by_engine.keys():
            del self._points[engine]

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self.turn()
            except Exception as error:
                logger.warning("taxbreak: energy is not told for a moment: %r", error)

    def _read(self, workers: Sequence[WorkerState], num_users: Mapping[str, int]) -> dict[str, str]:
        """Read each GPU once; return why some are not known, by UUID."""
        failures = {}
        for state in {state.server.device_uuid: state for state in workers}.values():
            uuid = state.server.device_uuid
            if not uuid.startswith("GPU-"):
                failures[uuid] = f"{uuid or state.server.device_type} is no GPU whose energy NVML tells"
            elif num_users[uuid] > 1:
                failures[uuid] = (
                    f"{uuid} is shared by {num_users[uuid]} workers, and its energy is known as a whole alone"
                )
            elif isinstance(energy_mj := self._energy_mj(uuid), NoEnergy):
                failures[uuid] = energy_mj.reason
            else:
                worker = (state.server.model_name, state.server.engine, state.server.rank)
                self._take(worker, self._readings[uuid], Reading(self._now_ns(), energy_mj))
                if was_reset(self._readings[uuid]):
                    failures[uuid] = f"the energy counter of {uuid} began anew"
                    del self._readings[uuid]
        for uuid in failures.keys() | (self._readings.keys() - num_users.keys()):
            self._readings.pop(uuid, None)
        return failures

    def _take(self, worker: Worker, readings: deque[Reading], reading: Reading) -> None:
        added_mj = reading.energy_mj - readings[-1].energy_mj if readings else 0
        self._joules[worker] += max(0, added_mj) / 1000
        readings.append(reading)

    def _energy_of(self, engine: Engine, states: Sequence[WorkerState], failures: Mapping[str, str]) -> EngineEnergy:
        server_id, name = engine
        reasons = [failures[uuid] for state in states if (uuid := state.server.device_uuid) in failures]
        first = min(states, key=lambda state: state.server.rank)
        if first.num_sampled is None:
            reasons.append("how many of its drafts were accepted is not known, and so not its output tokens")
        points = self._points[engine]
        if reasons:
            points.clear()
            return EngineEnergy(server_id=server_id, engine=name, reason=reasons[0])
        self._add_point(points, first, states)
        window = window_of(points)
        if window is None:
            return EngineEnergy(server_id=server_id, engine=name, reason="it was not read for 10 s yet")
        return EngineEnergy(
            server_id=server_id,
            engine=name,
            window_ns=window.window_ns,
            joules=window.joules,
            output_tokens=window.num_tokens,
            joules_per_token=window.joules_per_token,
        )

    def _add_point(self, points: deque[Point], first: WorkerState, states: Sequence[WorkerState]) -> None:
        at_ns = first.updated_unix_ns
        if first.num_sampled is None or (points and points[-1].unix_ns >= at_ns):
            return
        energies = [energy_at(self._readings[state.server.device_uuid], at_ns) for state in states]
        if None not in energies:
            points.append(Point(at_ns, sum(energy for energy in energies if energy is not None), first.num_sampled))
