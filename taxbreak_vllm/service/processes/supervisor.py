"""Keeps one process of ours, such as the analyzer, running beside a server, and ends it with the server.

Its standard input is a pipe of ours: closing it, or dying in any way, is what tells it to leave.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from taxbreak_vllm.settings import Settings

logger = logging.getLogger("taxbreak.supervisor")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_LEAVE_S = 1.5
# One thread is enough, and more would take from the serving process the very cores whose use is measured.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def analyzer_command(settings: Settings) -> list[str]:
    """Return the command line of the analyzer of these settings."""
    bounds = {"--retention-s": settings.retention_s, "--results-max-bytes": settings.results_max_bytes}
    return _command("analyzer", settings, {"--results": settings.results_path, **bounds})


def replayer_command(settings: Settings) -> list[str]:
    """Return the command line of the replayer of these settings."""
    options = {"--core-ratio": settings.replay_core_ratio, "--device": settings.replay_device}
    return _command("replayer", settings, options)


def archiver_command(settings: Settings) -> list[str]:
    """Return the command line of the archiver of these settings, which name an archive."""
    options = {
        "--results": settings.results_path,
        "--archive": settings.archive,
        "--bytes-per-second": settings.archive_bytes_per_second,
        "--bytes-per-day": settings.archive_bytes_per_day,
        "--batch-s": settings.archive_batch_s,
    }
    return _command("archiver", settings, options)


def _command(module: str, settings: Settings, options: Mapping[str, object]) -> list[str]:
    shared = {
        "--spool": settings.spool,
        "--spool-max-bytes": settings.spool_max_bytes,
        "--spool-max-captures": settings.spool_max_captures,
        "--baselines": settings.baselines_path,
    }
    words = [str(word) for option in {**shared, **options}.items() for word in option]
    return [sys.executable, "-m", f"taxbreak_vllm.service.processes.{module}", *words]


class Supervisor:
    """Starts a process and, with growing pauses, starts it again whenever it ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.num_restarts = 0

    def start(self) -> None:
        """Start it, unless it was started before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="taxbreak-supervisor", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the process and wait for that; it is killed where it does not leave by itself."""
        self._stop.set()
        with self._lock:
            process = self._process
        if process is not None:
            _end(process)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            started_s = time.monotonic()
            outcome = self._run_once()
            if time.monotonic() - started_s > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            if not self._stop.is_set():
                command = " ".join(self._command[:3])
                logger.warning("%s ended (%s) and is started again in %.1f s", command, outcome, pause_s)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                self.num_restarts += not self._stop.is_set()

    def _run_once(self) -> str:
        with self._lock:
            if self._stop.is_set():
                return "stopped"
            try:
                # In a session of its own, so that Ctrl-C reaches only us, who end it in order.
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    env=os.environ | _ONE_THREAD,
                    start_new_session=True,
                )
            except OSError as error:
                return str(error)
        return f"exit status {self._process.wait()}"


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
