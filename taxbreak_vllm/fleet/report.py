"""What the rows of a fleet tell together: groups, hosts apart, what changed at deploys, what one change would bring.

In: `Steps`. Out: a `FleetReport`. The statistics are `insight.changes`, `insight.shifts` and `insight.apart`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from taxbreak_vllm.fleet.steps import Bool, Int, Steps
from taxbreak_vllm.insight.apart import MIN_LIKE, differences, host_levels, is_apart, scores
from taxbreak_vllm.insight.changes import (
    Move,
    Observations,
    medians,
    move_over_time,
    moves_at_deploys,
)
from taxbreak_vllm.insight.shifts import Float, is_change
from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.model.fleet import (
    Broken,
    Change,
    FleetReport,
    FleetWin,
    GroupRow,
    Outlier,
    StepKind,
)

GROUPS = ("model", "vllm", "gpu", "host", "server", "settings", "torch", "phase", "graph_mode")
BY = ("model", "vllm", "gpu")
FIGURES = ("plain_ns", "delta_ft_ns", "delta_ct_ns", "active_ns", "engine_ns", "hdbi")  # what is held against itself

MAX_SHOWN = 200  # of changes, hosts apart and captures set aside

_KIND = ("model", "gpu", "phase", "graph_mode")
_LIKE = ("model", "gpu", "vllm", "settings")
_TAXES = ("delta_ft_ns", "delta_ct_ns", "delta_kt_ns")
_ALONE_RATIO = 1.5  # a host that is so much farther off with one version than with all is told of that one
_TELLING_RATIO = 0.9  # of a server's time must be in phases of which it is known what a change wins


def checked_groups(by: str) -> tuple[str, ...]:
    """Read what groups are told by: names with commas between; raises SettingsError for one that is no column."""
    names = tuple(name.strip() for name in by.split(",") if name.strip())
    wrong = next((name for name in names if name not in GROUPS), None)
    if wrong is not None or not names or len(set(names)) < len(names):
        raise SettingsError(f"--by {by}: choose among {', '.join(GROUPS)}, each once")
    return names


def report(
    steps: Steps, *, archive: str, version: str, by: Sequence[str] = BY, broken: Sequence[Broken] = ()
) -> FleetReport:
    """Tell all of it."""
    changes, num_comparisons = _changes(steps)
    outliers, num_compared = _outliers(steps)
    at_ns = steps.started_unix_ns
    notes = [] if steps.every == 1 else [f"one capture in {steps.every} was taken, by chance, to fit into memory"]
    notes += _why_few(steps)
    return FleetReport(
        archive=archive,
        version=version,
        num_captures=len(steps),
        num_hosts=len(steps.words["host"].texts),
        num_servers=len(steps.words["server"].texts),
        from_unix_ns=int(at_ns.min()) if len(steps) else None,
        to_unix_ns=int(at_ns.max()) if len(steps) else None,
        by=tuple(by),
        groups=tuple(_groups(steps, by)),
        changes=tuple(changes[:MAX_SHOWN]),
        num_comparisons=num_comparisons,
        outliers=tuple(outliers[:MAX_SHOWN]),
        num_compared=num_compared,
        wins=tuple(_wins(steps)),
        broken=tuple(broken[:MAX_SHOWN]),
        num_broken=len(broken),
        notes=tuple(notes),
    )


def _groups(steps: Steps, by: Sequence[str]) -> Iterator[GroupRow]:
    code, names = steps.codes(*by)
    num = len(names)
    n = steps.numbers

    def middle(values: Float) -> list[float | None]:
        known = np.isfinite(values)
        return [None if np.isnan(value) else float(value) for value in medians(code[known], values[known], num)[0]]

    columns = {name: middle(n[name]) for name in ("hdbi", "step_ns", *_TAXES)}
    shares = {name: middle(n[name] / n["step_ns"]) for name in ("exposed_ns", "engine_ns", "limit_ns")}
    count = np.bincount(code, minlength=num)
    hosts = np.bincount(np.unique(np.stack([code, steps.words["host"].code]), axis=1)[0], minlength=num)
    for at, texts in enumerate(names if len(steps) else []):
        yield GroupRow(
            by=dict(zip(by, texts, strict=True)),
            num_captures=int(count[at]),
            num_hosts=int(hosts[at]),
            hdbi=columns["hdbi"][at],
            step_ns=columns["step_ns"][at],
            taxes_ns={name.removesuffix("_ns"): columns[name][at] for name in _TAXES},
            exposed_ratio=shares["exposed_ns"][at],
            engine_ratio=shares["engine_ns"][at],
            limit_ratio=shares["limit_ns"][at],
        )


@dataclass(frozen=True, slots=True)
class _Kinds:
    """The kinds of steps that are compared with one another, and which each step is of."""

    code: Int
    kinds: tuple[StepKind, ...]

    @classmethod
    def of(cls, steps: Steps) -> "_Kinds":
        code, names = steps.codes(*_KIND)
        bucket = _buckets(steps.numbers["tokens"])
        found, own = np.unique(np.stack([code, bucket]), axis=1, return_inverse=True)
        kinds = tuple(
            StepKind(
                model=names[at][0],
                gpu=names[at][1],
                phase=names[at][2],
                graph_mode=names[at][3],
                tokens=None if size < 0 else (2**size // 2, 2**size - 1),
            )
            for at, size in found.T.tolist()
        )
        return cls(own.astype(np.int64).reshape(-1), kinds)


def _buckets(tokens: Float) -> Int:
    """Return the number of binary digits of each number of tokens, -1 where that is not known."""
    known = np.isfinite(tokens)
    digits = np.zeros(len(tokens))
    digits[known] = np.frexp(tokens[known])[1]
    return np.where(known, digits, -1).astype(np.int64)


def _sizes(tokens: Float) -> Float:
    sizes: Float = np.log2(np.maximum(1.0, np.nan_to_num(tokens, nan=1.0)))
    return sizes


def _figure(steps: Steps, name: str) -> Float:
    """Return a figure as it is compared: the logarithm of a time, an HDBI as it is."""
    values = steps.numbers[name]
    if name == "hdbi":
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), np.nan)


def _changes(steps: Steps) -> tuple[list[Change], int]:
    """Return what changed, the largest first, and how many comparisons were made."""
    if not len(steps):
        return [], 0
    kinds = _Kinds.of(steps)
    version, versions = steps.codes("vllm", "torch", "settings")
    size = _sizes(steps.numbers["tokens"])
    order = np.argsort(kinds.code, kind="stable")
    bounds = np.searchsorted(kinds.code[order], np.arange(len(kinds.kinds) + 1))
    found: list[Change] = []
    num_comparisons = 0
    for name in FIGURES:
        value, is_ratio = _figure(steps, name), name != "hdbi"
        for at, kind in enumerate(kinds.kinds):
            rows = order[bounds[at] : bounds[at + 1]]
            seen = Observations(
                host=steps.words["host"].code[rows],
                place=steps.words["place"].code[rows],
                version=version[rows],
                at_ns=steps.started_unix_ns[rows],
                size=size[rows],
                value=value[rows],
            )
            moves = list(moves_at_deploys(seen, is_ratio=is_ratio))
            over_time = move_over_time(seen, is_ratio=is_ratio)
            num_comparisons += 1 + sum(move.shift.change is not None for move in moves)
            moves += [] if over_time is None else [over_time]
            found += [_change(kind, name, move, versions) for move in moves]
    return sorted(found, key=_by_size), num_comparisons


def _change(kind: StepKind, name: str, move: Move, versions: Sequence[tuple[str, ...]]) -> Change:
    was, is_now = (None if np.isnan(level) else float(level) for level in move.levels)
    if name != "hdbi":
        was, is_now = (None if level is None else float(np.exp(level)) for level in (was, is_now))
    before, after = (None if code is None else versions[code] for code in (move.before, move.after))
    return Change(
        kind=kind,
        figure=name,
        before=None if before is None else _named(before, after),
        after=None if after is None else _named(after, before),
        from_unix_ns=move.from_ns,
        to_unix_ns=move.to_ns,
        was=was,
        is_now=is_now,
        shift=move.shift,
        is_found=is_change(move.shift),
    )


def _named(version: tuple[str, ...], other: tuple[str, ...] | None) -> str:
    """Name a version by what is different about it."""
    words = ("vLLM", "torch", "settings")
    parts = [
        f"{word} {own or 'unknown'}"
        for word, own, theirs in zip(words, version, other or ("",) * len(words), strict=True)
        if own != theirs
    ]
    return ", ".join(parts)


def _by_size(change: Change) -> tuple[bool, float]:
    return (not change.is_found, -abs(change.shift.change or 0.0))


def _outliers(steps: Steps) -> tuple[list[Outlier], int]:
    """Return the hosts that are apart from like ones, the farthest first, and how many were looked at.

    Steps are held against those of the same version and settings; a host is judged by what they tell of it together,
    and by each version alone, which finds one that is slow since a deploy. It is told once.
    """
    found: dict[tuple[str, str, str, str], Outlier] = {}
    num_compared = 0
    served, names = steps.codes("model", "gpu")
    like, versions = steps.codes(*_LIKE)
    kinds = _Kinds.of(steps)
    kind = kinds.code * len(versions) + like
    for at, (model, gpu) in enumerate(names if len(steps) else []):
        own = np.flatnonzero(served == at)
        each = np.unique(like[own]).tolist()
        alone = [(versions[code][2], own[like[own] == code]) for code in each] if len(each) > 1 else []
        only = {versions[code][2] for code in each}
        together = (only.pop() if len(only) == 1 else None, own)
        for vllm, rows in (together, *alone):
            outliers, num = _apart(steps, rows, kind[rows], model=model, gpu=gpu, vllm=vllm)
            num_compared += num
            for one in outliers:
                key = (model, gpu, one.host, one.figure)
                if key not in found or abs(one.ratio) > _ALONE_RATIO * abs(found[key].ratio):
                    found[key] = one
    return sorted(found.values(), key=lambda one: -abs(one.score)), num_compared


def _apart(steps: Steps, rows: Int, kind: Int, *, model: str, gpu: str, vllm: str | None) -> tuple[list[Outlier], int]:
    """Return the hosts apart among those of some steps, and how many were looked at."""
    found: list[Outlier] = []
    num_compared = 0
    hosts, host = np.unique(steps.words["host"].code[rows], return_inverse=True)
    if len(hosts) < MIN_LIKE:
        return found, num_compared
    facts = _Facts.of(steps, rows, host, len(hosts))
    count = np.bincount(host, minlength=len(hosts))
    size, start = _sizes(steps.numbers["tokens"][rows]), steps.words["server"].code[rows]
    for name in FIGURES[:-1]:
        told = host_levels(_figure(steps, name)[rows], size, kind, start, host, len(hosts))
        level = told.level
        num_compared += int(np.isfinite(level).sum())
        score = scores(level, told.error)
        for place in np.flatnonzero(is_apart(*told)).tolist():
            found.append(
                Outlier(
                    model=model,
                    gpu=gpu,
                    vllm=vllm,
                    host=steps.words["host"].texts[hosts[place]],
                    figure=name,
                    ratio=float(np.expm1(level[place] - np.nanmedian(level))),
                    score=float(score[place]),
                    num_like=int(np.isfinite(level).sum()) - 1,
                    num_captures=int(count[place]),
                    differences=tuple(differences(facts.words, facts.numbers, place)),
                )
            )
    return found, num_compared


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of each of several hosts besides their times."""

    words: dict[str, list[str | None]]
    numbers: dict[str, list[float | None]]

    @classmethod
    def of(cls, steps: Steps, rows: Int, host: Int, num: int) -> "_Facts":
        words: dict[str, list[str | None]] = {}
        for name, word in (("CPU", "cpu"), ("governor", "governor")):
            column = steps.words[word]
            usual = _most_common(column.code[rows], host, num)
            words[name] = [None if code is None else column.texts[code] or None for code in usual]
        for name, number in (("processors allowed", "num_allowed"), ("CPU quota", "cpu_limit")):
            middle = medians_known(steps.numbers[number][rows], host, num)
            words[name] = [None if value is None else f"{value:g}" for value in middle]
        ratios = (("throttled", "throttled_ratio"), ("run-queue wait", "runqueue_wait_ratio"))
        numbers = {name: medians_known(steps.numbers[column][rows], host, num) for name, column in ratios}
        return cls(words, numbers)


def medians_known(value: Float, group: Int, num: int) -> list[float | None]:
    """Return the median of what is known in each group, None where nothing is."""
    known = np.isfinite(value)
    return [None if np.isnan(one) else float(one) for one in medians(group[known], value[known], num)[0]]


def _most_common(code: Int, group: Int, num: int) -> list[int | None]:
    counts: list[Counter[int]] = [Counter() for _ in range(num)]
    pairs, many = np.unique(np.stack([group, code]), axis=1, return_counts=True)
    for (at, one), count in zip(pairs.T.tolist(), many.tolist(), strict=True):
        counts[at][one] = count
    return [each.most_common(1)[0][0] if each else None for each in counts]


def _wins(steps: Steps) -> list[FleetWin]:
    """Return what each change would bring, the most first, then those of which that is not known."""
    chosen = ~steps.is_asked & _is_newest_server(steps)
    time_ns = np.where(np.isfinite(steps.numbers["plain_ns"]), steps.numbers["plain_ns"], steps.numbers["step_ns"])
    code, names = steps.codes("model", "gpu", "server", "phase")
    spent: defaultdict[tuple[str, str], dict[str, dict[str, _Phase]]] = defaultdict(dict)
    for at, one in enumerate(code.tolist()):
        if chosen[at]:
            model, gpu, server, phase = names[one]
            place = spent[model, gpu].setdefault(server, {}).setdefault(phase, _Phase())
            place.add(float(time_ns[at]), steps.predicted[at])
    wins = [_win(change, model, gpu, servers) for (model, gpu), servers in spent.items() for change in _asked(servers)]
    return sorted(wins, key=lambda win: (win.servers is None, -(win.servers or 0.0)))


def _is_newest_server(steps: Steps) -> Bool:
    """Tell the steps of the server that each place ran last: earlier ones are gone, and are no servers to win from."""
    place, server = steps.words["place"].code, steps.words["server"].code
    newest = np.full(len(steps.words["place"].texts), -1, dtype=np.int64)
    order = np.argsort(steps.started_unix_ns, kind="stable")
    newest[place[order]] = server[order]  # of several the last stays
    found: Bool = newest[place] == server
    return found


class _Phase:
    """The recorded steps of one phase of one server: how long plain ones like them took, and what changes would win."""

    def __init__(self) -> None:
        self.time_ns = 0.0
        self.num = 0
        self.known: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
        self.refused: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, time_ns: float, predicted: Sequence[dict[str, object]]) -> None:
        self.time_ns += time_ns
        self.num += 1
        for each in predicted:
            change = str(each["change"])
            if each["win_ratio"] is None:
                self.refused[change][str(each["refused"] or "no reason was kept")] += 1
            else:
                win, low, high = (float(str(each[name])) for name in ("win_ratio", "low_ratio", "high_ratio"))
                self.known[change].append((win, low, high))

    def win(self, change: str) -> tuple[float, float, float] | None:
        """Return the mean win and its ends over its steps; those of which nothing was asked win nothing.

        None where more than half of them do not tell.
        """
        told = self.num - sum(self.refused[change].values())
        if 2 * told < self.num:
            return None
        low, middle, high = (sum(each[at] for each in self.known[change]) / max(1, told) for at in (1, 0, 2))
        return middle, low, high


def _asked(servers: dict[str, dict[str, _Phase]]) -> list[str]:
    phases = [phase for server in servers.values() for phase in server.values()]
    return sorted({change for phase in phases for change in (*phase.known, *phase.refused)})


def _win(change: str, model: str, gpu: str, servers: dict[str, dict[str, _Phase]]) -> FleetWin:
    sums, num_known, reasons = np.zeros(3), 0, Counter[str]()
    for phases in servers.values():
        whole_ns = sum(phase.time_ns for phase in phases.values())
        told = [(phase.time_ns / whole_ns, phase.win(change)) for phase in phases.values() if whole_ns]
        if not told or sum(share for share, win in told if win is not None) < _TELLING_RATIO:
            for phase in phases.values():
                reasons += phase.refused[change]
            continue
        num_known += 1
        sums += sum((share * np.array(win) for share, win in told if win is not None), np.zeros(3))
    if not num_known:
        reason = reasons.most_common(1)[0][0] if reasons else "no recorded step tells"
        return FleetWin(change=change, model=model, gpu=gpu, num_unknown=len(servers), reason=reason)
    middle, low, high = sums.tolist()
    return FleetWin(
        change=change,
        model=model,
        gpu=gpu,
        servers=middle,
        low=low,
        high=high,
        num_servers=num_known,
        num_unknown=len(servers) - num_known,
        reason=reasons.most_common(1)[0][0] if reasons else None,
    )


def _why_few(steps: Steps) -> Iterator[str]:
    """Say which hosts could not be held against like ones."""
    like, names = steps.codes(*_LIKE)
    few = []
    for at in range(len(names) if len(steps) else 0):
        hosts = len(np.unique(steps.words["host"].code[like == at]))
        if hosts < MIN_LIKE:
            few.append(hosts)
    if few:
        yield (
            f"{sum(few)} hosts in {len(few)} groups of fewer than {MIN_LIKE} like ones (model, GPU, vLLM, settings)"
            " are not held against one another: so few tell no spread"
        )
