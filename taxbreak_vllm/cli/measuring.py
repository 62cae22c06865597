"""Commands that measure on this machine, or keep what was measured: floor, replay, baselines."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from taxbreak_vllm.cli.options import Json, Rank
from taxbreak_vllm.cli.printing import print_json
from taxbreak_vllm.model.errors import BaselineError
from taxbreak_vllm.output.text.printed import print_text

Store = Annotated[
    Path, typer.Option("--baselines", help="SQLite file of floors and replayed baselines, made on first use")
]
Device = Annotated[
    str, typer.Option(help="where to measure: cpu, cuda, cuda:1, …; by default the GPU where torch sees one")
]


def floor(
    *,
    baselines: Annotated[
        Path | None, typer.Option(help="store the floors in this SQLite file, made on first use")
    ] = None,
    device: Device = "",
    ceilings_s: Annotated[
        float,
        typer.Option(min=0, max=3600, help="also measure the most the device reaches, for so long; 0: not at all"),
    ] = 20.0,
    json: Json = False,
) -> None:
    """Measure the least that a launch, a graph and a dispatch cost here, and the most a device reaches; needs torch."""
    from taxbreak_vllm.baselines.store import Baselines
    from taxbreak_vllm.replay.device import choose_device
    from taxbreak_vllm.replay.runner import measure_floors
    from taxbreak_vllm.replay.task import Options

    environment, floors, ceilings = measure_floors(Options(device=choose_device(device), ceilings_s=ceilings_s))
    if baselines:
        with Baselines(baselines) as store:
            store.put_floors(environment, floors)
            if ceilings:
                ceilings = store.raise_ceilings(environment, ceilings)
    if json:
        from msgspec.json import encode

        found = {"environment": environment, "floors": floors, "ceilings": ceilings}
        print_json(encode({"schema": "taxbreak.floors/1", **found}))
        return
    from taxbreak_vllm.output.text.replay import ceiling_tables, floor_lines, floor_table

    print_text(*floor_lines(environment, floors), floor_table(floors), *(ceiling_tables(ceilings) if ceilings else ()))


def replay(
    paths: Annotated[list[Path], typer.Argument(help="traces, captures or whole spools (folders)")],
    *,
    baselines: Store = Path("baselines.sqlite3"),
    device: Device = "",
    budget_s: Annotated[float | None, typer.Option(min=1, max=1e7, help="stop after this long (seconds)")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=1e5, help="longest one signature may take (seconds)")] = 30.0,
    memory_gib: Annotated[float, typer.Option(min=0.1, max=1e6, help="most memory one signature may take (GiB)")] = 4.0,
    runs: Annotated[int, typer.Option(min=5, help="measured runs a signature, after the warm-ups")] = 30,
    retry: Annotated[bool, typer.Option("--retry", help="try again what failed, crashed or timed out before")] = False,
    pause_above: Annotated[
        float | None, typer.Option(min=0, max=1, help="wait while the device is busier than this share")
    ] = None,
    module: Annotated[
        list[str] | None, typer.Option("--import", help="module that registers ops of your own; may be repeated")
    ] = None,
    rank: Rank = None,
    json: Json = False,
) -> None:
    """Replay the ops of traces or captures alone and keep what they cost; resumable, needs torch."""
    from taxbreak_vllm.output.text.replay import progress_bar, replay_lines, trouble_table
    from taxbreak_vllm.replay.command import replay_paths
    from taxbreak_vllm.replay.device import choose_device
    from taxbreak_vllm.replay.runner import Limits
    from taxbreak_vllm.replay.task import Options

    options = Options(
        device=choose_device(device), runs=runs, max_bytes=round(memory_gib * 2**30), modules=tuple(module or ())
    )
    with progress_bar() as report:
        found = replay_paths(
            paths,
            baselines,
            options,
            Limits(task_s=timeout_s, total_s=budget_s),
            rank=rank,
            retry=retry,
            pause_above=pause_above,
            report=report,
        )
    if json:
        from msgspec.json import encode

        print_json(encode(found))
        return
    print_text(*replay_lines(found), *([trouble_table(found)] if found.trouble else []))


def baselines(
    action: Annotated[Literal["list", "export", "import", "sync"], typer.Argument(help="what to do with the store")],
    target: Annotated[
        str | None,
        typer.Argument(help="the file to write or read: JSON lines, one an entry; of sync the archive's URL"),
    ] = None,
    *,
    store: Annotated[Path, typer.Option("--baselines", help="the SQLite file")] = Path("baselines.sqlite3"),
    json: Json = False,
) -> None:
    """List what a store holds, write it to a file, take one in, or share it by an archive: a fleet measures once."""
    from taxbreak_vllm.baselines.store import Baselines
    from taxbreak_vllm.output.text.replay import environment_table, summaries

    if (action == "list") != (target is None):
        takes = {"list": "no file", "sync": "the URL of an archive"}.get(action, "a file")
        raise BaselineError(f"baselines {action} takes {takes}")
    if action in ("list", "export") and not store.is_file():
        raise BaselineError(f"{store}: no such file")
    synced = None
    with Baselines(store) as opened:
        if action == "export" and target:
            count = opened.export(Path(target))
        elif action == "import" and target:
            count = opened.take(Path(target))
        elif action == "sync" and target:
            from taxbreak_vllm.archive.baselines import sync
            from taxbreak_vllm.archive.store import Store

            synced = sync(opened, Store(target))
            count = synced.taken + synced.given
        else:
            count = sum(summary.entries for summary in summaries(opened))
        found = summaries(opened)
    if json:
        from msgspec.json import encode

        about = {} if synced is None else {"taken": synced.taken, "given": synced.given, "damaged": synced.damaged}
        print_json(encode({"action": action, "entries": count, "environments": found} | about))
        return
    if synced is None:
        print_text(f"{count} entries", environment_table(found))
    else:
        print_text(f"{synced.taken} entries taken, {synced.given} given", *synced.damaged, environment_table(found))
