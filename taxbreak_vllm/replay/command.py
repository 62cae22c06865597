"""The whole of `taxbreak replay`: traces in, a store filled, an account of what was done out."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Baseline, Environment, Outcome
from taxbreak_vllm.model.errors import BaselineError
from taxbreak_vllm.replay.device import idle_check
from taxbreak_vllm.replay.plan import Plan, plan
from taxbreak_vllm.replay.runner import Child, Limits, ReplayProgress, missing, run
from taxbreak_vllm.replay.task import Options, Task
from taxbreak_vllm.spool.layout import recordings
from taxbreak_vllm.trace.calls import signature

_MAX_TROUBLE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the store now holds of the signatures asked for; `left` were not reached within the budget.

    `trouble` are those with an outcome other than measured, commonest first, at most 50.
    """

    baselines: str
    environment: Environment
    signatures: int
    outcomes: dict[str, int]
    left: int
    trouble: tuple[Baseline, ...]


def replay_paths(
    paths: Sequence[Path],
    baselines: Path,
    options: Options,
    limits: Limits,
    *,
    rank: int | None = None,
    retry: bool = False,
    pause_above: float | None = None,
    report: Callable[[ReplayProgress], None] = lambda _: None,
    open_child: Callable[[Options], Child] = Child,
) -> Account:
    """Replay what these traces, captures or spools hold and the store lacks.

    Raises what reading them raises, BaselineError where they were made elsewhere than on this device, ReplayError where
    nothing can be replayed here.
    """
    found = plan([inner for path in paths for inner in recordings(path)], rank=rank)
    here: list[Environment] = []

    def check(environment: Environment) -> None:
        accept(environment, found, store)
        here.append(environment)
        if retry:
            store.forget(environment, [key for task in found.tasks for key in _keys(task)])

    with Baselines(baselines) as store:
        left = run(
            found.tasks,
            store,
            replace(options, dtype=options.dtype or found.dtype),
            limits,
            check=check,
            may_go_on=idle_check(options.device, pause_above),
            report=report,
            open_child=open_child,
        )
        keys = [key for task in (*found.tasks, *(task for task, _ in found.denied)) for key in _keys(task)]
        entries = store.get(here[0], keys)
    ordered = [entries[key] for key in keys if key in entries]
    return Account(
        baselines=str(baselines),
        environment=here[0],
        signatures=len(keys),
        outcomes=dict(Counter(str(entry.outcome) for entry in ordered)),
        left=left,
        trouble=tuple(entry for entry in ordered if entry.outcome is not Outcome.MEASURED)[:_MAX_TROUBLE],
    )


def accept(environment: Environment, found: Plan, store: Baselines) -> None:
    """Note what is never replayed; raises BaselineError where the traces were not made in this environment."""
    if not environment.fits(**found.place):
        raise BaselineError(_elsewhere(environment, found))
    for task, reason in found.denied:
        store.put(environment, task.entries(Outcome.DENIED, reason, now_ns=0))


def is_done(found: Plan, store: Baselines) -> bool:
    """Tell without starting a child whether the store has all that a plan asks for."""
    view = store.view(found.place)
    tasks = [*found.tasks, *(task for task, _ in found.denied)]
    return view is not None and not missing(tasks, store, view.environment)


def _keys(task: Task) -> list[str]:
    return [signature(task.call, kernel) for kernel in task.kernels]


def _elsewhere(environment: Environment, found: Plan) -> str:
    told = ", ".join(f"{name} {value}" for name, value in found.place.items() if value)
    return (
        f"the traces were made on {told}; here is {environment.device_type} {environment.device_name},"
        f" torch {environment.torch}: replay them where they were made"
    )
