"""A spool into an archive, that analyzed and reported, by the commands that a user would type: the table, the page."""

import sys
from pathlib import Path

from taxbreak_vllm.demo.processes import ProcessError, Processes
from taxbreak_vllm.demo.progress import Stages
from taxbreak_vllm.demo.servers import plain_environment
from taxbreak_vllm.output.text.printed import print_text

_FLEET_S = 120.0


def show_fleet(processes: Processes, spool: Path, page: Path, stages: Stages) -> None:
    """Archive what a spool holds, analyze it and print the report; raises ProcessError where a command fails."""
    folder = processes.folder / "archive"
    folder.mkdir(parents=True)
    url = folder.as_uri()
    commands = {
        "archive": ("archive", str(spool), url),
        "fleet-analyze": ("fleet", "analyze", url),
        "fleet-report": ("fleet", "report", url, "--by", "model,phase", "--html", str(page)),
    }
    with stages.stage("the fleet: archive, analysis, report", at_most_s=_FLEET_S) as watch:
        for name, words in commands.items():
            command = [sys.executable, "-m", "taxbreak_vllm.cli", *words]
            process = processes.start(name, command, env=plain_environment())
            watch(process)
            process.wait_until(lambda: not process.is_alive, "done", timeout_s=_FLEET_S)  # noqa: B023 - called here
            if status := process.stop():
                raise ProcessError(f"{' '.join(words[:2])} ended with {status}", process)
    sys.stdout.write(process.log.read_text())
    print_text(f"The page of the fleet: {page}")
