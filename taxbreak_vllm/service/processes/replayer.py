"""The replayer: measures, in the background, what the spool's captures need and the store of baselines lacks.

`supervisor.replayer_command` starts it, and it runs until its standard input closes. It and the children that replay
take at most their share of one core, never in a serving process, and go on where they were broken off. Of several on
one spool one works. Captures of a GPU are replayed only where `--device` names it.
"""

import argparse
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.errors import BaselineError, TaxbreakError
from taxbreak_vllm.replay.command import accept, is_done
from taxbreak_vllm.replay.plan import Plan, plans
from taxbreak_vllm.replay.runner import Limits, Measured, Pace, measure_floors, run
from taxbreak_vllm.replay.task import Options
from taxbreak_vllm.service.processes.claim import StopEvent, begin, claimed, spool_of, spool_parser
from taxbreak_vllm.spool.spool import Spool

logger = logging.getLogger("taxbreak.replayer")

MAX_CAPTURES_PER_TURN = 16  # planned together, since a child's start costs more than most of what it replays

_POLL_S = 10.0
_NICENESS = 19


class Replayer:
    """Replays what new captures hold; remembers nothing but the ids of captures it has seen."""

    def __init__(
        self,
        spool: Spool,
        store: Baselines,
        options: Options,
        pace: Pace,
        *,
        replay: Callable[..., int] = run,
        measure: Callable[..., Measured] = measure_floors,
    ) -> None:
        self._spool = spool
        self._store = store
        self._options = options
        self._pace = pace
        self._replay = replay
        self._measure = measure
        self._seen: set[str] = set()

    def run(self, stop: StopEvent) -> None:
        """Do one turn after the other until `stop` is set, resting in between."""
        while not stop.is_set():
            self.turn(stop)
            stop.wait(_POLL_S)

    def turn(self, stop: StopEvent) -> None:
        """Replay what the newest captures not seen before need, and measure the floors where they are missing."""
        captures = self._spool.captures()
        self._seen &= {capture.step_id for capture in captures}
        fresh = [capture for capture in captures if capture.step_id not in self._seen][-MAX_CAPTURES_PER_TURN:]
        self._seen |= {capture.step_id for capture in fresh}
        for found in plans((capture.path for capture in fresh), on_damaged=logger.debug):
            if not self._is_ours(found):
                continue
            try:
                self._provide(found, stop)
            except BaselineError as error:  # made by another torch, or the store is busy: the next ones may do
                logger.warning("some signatures are not replayed here: %s", error)

    def _provide(self, found: Plan, stop: StopEvent) -> None:
        if not is_done(found, self._store):
            self._replay(
                found.tasks,
                self._store,
                replace(self._options, dtype=found.dtype),
                Limits(),
                pace=self._pace,
                check=lambda environment: accept(environment, found, self._store),
                sleep=stop.wait,
            )
        view = self._store.view(found.place)
        if view is not None and view.floors is None:
            stop.wait(self._pace.due_s())
            measured = self._measure(self._options, pace=self._pace)
            self._store.put_floors(measured.environment, measured.floors)

    def _is_ours(self, found: Plan) -> bool:
        return (found.place["device_type"] == "cpu") == (self._options.device == "cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process."""
    options = _parse(arguments)
    begin(_NICENESS)
    stop = threading.Event()
    spool = spool_of(options)
    pace = Pace(options.core_ratio)
    try:
        with claimed(spool, stop, role="replayer"), Baselines(options.baselines) as store:
            Replayer(spool, store, Options(device=options.device), pace).run(stop)
    except TaxbreakError as error:
        # As where torch is missing, or its device: trying again won't help.
        logger.warning("signatures are not replayed here: %s", error)
        stop.wait()
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = spool_parser("python -m taxbreak_vllm.service.processes.replayer", __doc__)
    parser.add_argument("--baselines", type=Path, required=True)
    parser.add_argument("--core-ratio", type=float, required=True)
    parser.add_argument("--device", required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
