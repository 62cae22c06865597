"""The methodology (sections 2-4 and 8) in the plainest way: lists of dicts, sets of instants, no numpy, any cost.

An event is a dict with kind, name, start, end (ns), thread, correlation, device and stream; `op`, `call`, `kernel`,
`memcpy`, `memset` and `step` make them, `to_json` writes them as Kineto does. Not for use beside tests.
"""

import json
from collections import Counter
from itertools import pairwise
from statistics import median

import portion

PRIORITY = ("blocked", "launch", "runtime", "library", "dispatch")  # python is what is left
CATEGORY = {
    "op": "cpu_op",
    "call": "cuda_runtime",
    "kernel": "kernel",
    "memcpy": "gpu_memcpy",
    "memset": "gpu_memset",
    "step": "user_annotation",
}


def op(name, start, end, *, thread=1):
    return _event("op", name, start, end, thread=thread)


def call(name, start, end, correlation=None, *, thread=1):
    return _event("call", name, start, end, thread=thread, correlation=correlation)


def kernel(name, start, end, correlation=None, *, device=0, stream=7):
    return _event("kernel", name, start, end, thread=None, correlation=correlation, device=device, stream=stream)


def memcpy(name, start, end, correlation=None, *, device=0, stream=7):
    return _event("memcpy", name, start, end, thread=None, correlation=correlation, device=device, stream=stream)


def memset(start, end, correlation=None, *, device=0, stream=7):
    name = "Memset (Device)"
    return _event("memset", name, start, end, thread=None, correlation=correlation, device=device, stream=stream)


def step(name, start, end, *, thread=1):
    return _event("step", "taxbreak.step:" + name, start, end, thread=thread)


def neighbour(where, start, end, *, thread=1):
    """A step recorded `before` or `after` the one that counts."""
    return _event("step", f"taxbreak.neighbour:{where}", start, end, thread=thread)


def engine(start, end, *, thread=1):
    """What of a step is the engine's time."""
    return _event("step", "taxbreak.engine", start, end, thread=thread)


def _event(kind, name, start, end, *, thread, correlation=None, device=None, stream=None):
    return {
        "kind": kind,
        "name": name,
        "start": start,
        "end": end,
        "thread": thread,
        "correlation": correlation,
        "device": device,
        "stream": stream,
    }


def shifted(events, by):
    """The same events, `by` ns later."""
    return [event | {"start": event["start"] + by, "end": event["end"] + by} for event in events]


def to_json(events, **around):
    """Write a Kineto trace, its times as exact decimal µs."""
    texts = []
    for event in events:
        on_device = event["device"] is not None
        fields = {
            "ph": "X",
            "cat": CATEGORY[event["kind"]],
            "name": event["name"],
            "pid": event["device"] if on_device else 4000,
            "tid": event["stream"] if on_device else event["thread"],
            "args": {key: event[key] for key in ("correlation", "device", "stream") if event[key] is not None},
        }
        times = f'"ts": {_us(event["start"])}, "dur": {_us(event["end"] - event["start"])}'
        texts.append(json.dumps(fields)[:-1] + ", " + times + "}")
    text = json.dumps({"schemaVersion": 1, **around})[:-1]
    return text + ', "traceEvents": [\n' + ",\n".join(texts) + '\n], "traceName": "made-up.json"}\n'


def _us(ns):
    whole, rest = divmod(ns, 1000)
    return f"{whole}.{rest:03d}" if rest else str(whole)


def breakdown(events, classify, floor_ns=None):
    """Decompose as `taxes.decompose` should: {"coverage", "steps", "total", "devices", "threads"}."""
    trace = _Trace(events, classify, floor_ns)
    total = _figures(trace, trace.whole, trace.dispatches, trace.activities, trace.without_activity)
    steps = [
        _figures(
            trace,
            window,
            [d for d in trace.dispatches if window["start"] <= d["start"] < window["end"]],
            [a for a in trace.activities if window["start"] <= (a["dispatch"] or a)["start"] < window["end"]],
            [c for c in trace.without_activity if window["start"] <= c["start"] < window["end"]],
        )
        for window in trace.steps
    ]
    return {
        "coverage": _coverage(trace),
        "steps": steps or [total | {"name": "trace"}],
        "total": total,
        "devices": _devices(trace),
        "threads": _threads(trace),
    }


class _Trace:
    """All that holds for the trace as a whole."""

    def __init__(self, events, classify, floor_ns):
        self.thread_order = list(
            dict.fromkeys((e["device"], e["stream"]) if e["thread"] is None else e["thread"] for e in events)
        )
        self.ops = [e for e in events if e["kind"] == "op"]
        self.calls = [e | {"activities": []} for e in events if e["kind"] == "call"]
        in_file = [e | {"call": None, "dispatch": None} for e in events if e["device"] is not None]
        self.activities = sorted(in_file, key=lambda a: a["start"])
        self.steps = _steps(events)
        self.whole = self._whole(events)
        self.roots = {t: _roots([o for o in self.ops if o["thread"] == t]) for t in self.thread_order}

        for activity in self.activities:
            activity["call"] = self._call_of(activity)
            if activity["call"] is not None:
                activity["call"]["activities"].append(activity)
        order = self.thread_order.index
        self.dispatches = sorted(
            (c for c in self.calls if c["activities"]), key=lambda c: (order(c["thread"]), c["start"])
        )
        for dispatch in self.dispatches:
            self._describe(dispatch, classify)
        for activity in self.activities:
            activity["family"], activity["i_lib"] = classify(activity["name"], activity.get("op", ""))
        for call_ in self.calls:
            call_["class"] = self._class_of(call_)
        self.without_activity = [c for c in self.calls if _is_launch(c["name"]) and not c["activities"]]
        self.without_activity = [
            c for c in self.without_activity if not (self._is_inside_dispatch(c) or self._is_around_launch(c))
        ]
        self.lost = [c for c in self.without_activity if "GraphLaunch" in c["name"]]
        self._tax(floor_ns)

    def _whole(self, events):
        start = min(e["start"] for e in events)
        end = max((e["end"] for e in events if e["device"] is None), default=start)
        host = [e for e in events if e["kind"] in ("op", "call")] or [e for e in events if e["kind"] == "step"]
        counts = Counter(e["thread"] for e in host)
        busiest = max(counts, key=lambda t: (counts[t], -self.thread_order.index(t)), default=None)
        return {"name": None, "start": start, "end": end, "thread": busiest}

    def _call_of(self, activity):
        same = [c for c in self.calls if c["correlation"] == activity["correlation"] is not None]
        same = [c for c in same if "Synchronize" not in c["name"]]
        enqueueing = [c for c in same if _is_launch(c["name"]) or _is_copy(c["name"])]
        # Ids begin anew where recordings are joined, so the nearest in time; of those at one instant the last.
        distance = lambda c: (abs(c["start"] - activity["start"]), c["start"])  # noqa: E731
        return min(reversed(enqueueing or same), key=distance, default=None)

    def _describe(self, dispatch, classify):
        around = [o for o in self.ops if o["thread"] == dispatch["thread"]]
        around = [o for o in around if o["start"] <= dispatch["start"] < o["end"]]
        # Of nested ops the last begun; of those begun together the shortest; of identical ones the last in the file.
        leaf = max(enumerate(around), key=lambda item: (item[1]["start"], -item[1]["end"], item[0]), default=None)
        dispatch["op"] = leaf[1]["name"] if leaf else dispatch["name"]
        roots = self.roots[dispatch["thread"]]
        dispatch["root"] = next((r for r in roots if r[0] <= dispatch["start"] < r[1]), None)
        dispatch["is_graph"] = "GraphLaunch" in dispatch["name"]
        dispatch["kernels"] = [a for a in dispatch["activities"] if a["kind"] == "kernel"]
        for activity in dispatch["activities"]:
            activity["dispatch"], activity["op"] = dispatch, dispatch["op"]
        family, i_lib = classify(dispatch["activities"][0]["name"], dispatch["op"])
        dispatch["family"], dispatch["i_lib"] = family, i_lib and not dispatch["is_graph"]

    def _class_of(self, call_):
        name, activities = call_["name"], call_["activities"]
        to_host = [a for a in activities if a["kind"] == "memcpy" and "DtoH" in a["name"]]
        if "Synchronize" in name or ("Memcpy" in name and "Async" not in name):
            return "blocked"
        if not _is_launch(name) and any(call_["end"] >= a["end"] for a in to_host):
            return "blocked"
        if any(a["kind"] == "kernel" for a in activities) or (_is_launch(name) and not activities):
            return "launch"
        return "runtime"

    def _is_inside_dispatch(self, call_):
        return any(
            d["thread"] == call_["thread"] and d["start"] <= call_["start"] and call_["end"] <= d["end"]
            for d in self.dispatches
        )

    def _is_around_launch(self, call_):
        return any(
            d is not call_
            and d["thread"] == call_["thread"]
            and _is_launch(d["name"])
            and call_["start"] <= d["start"] < call_["end"]
            for d in self.dispatches
        )

    def _tax(self, floor_ns):
        self.library = {thread: [] for thread in self.thread_order}
        self._classes = {}
        for index, dispatch in enumerate(self.dispatches):
            earlier = [d for d in self.dispatches[:index] if d["thread"] == dispatch["thread"]]
            self._measure_spans(dispatch, earlier)
        own = [d["t_dispatch"] for d in self.dispatches if d["kernels"] and not d["is_graph"] and d["root"]]
        lib = [d["t_dispatch"] for d in self.dispatches if d["kernels"] and d["root"] and d["i_lib"]]
        for value in lib:
            own.remove(value)
        self.t_base = int(median(own)) if own else None
        self.t_sys = self._floor() if floor_ns is None else floor_ns
        for dispatch in self.dispatches:
            ct = max(dispatch["t_dispatch"] - (self.t_base or 0), 0) if dispatch["i_lib"] else 0
            dispatch["ct"] = None if self.t_base is None else ct
            dispatch["ft"] = dispatch["t_py"] + dispatch["t_dispatch"] - (dispatch["ct"] or 0)
            dispatch["kt"] = None if self.t_sys is None else self.t_sys if dispatch["kernels"] else 0
        places = [(d["thread"], self._front_end(d)) for d in self.dispatches if d["ct"]]
        for thread, place in places:
            self.library[thread].append(place)
        self._classes = {}

    def _measure_spans(self, dispatch, earlier):
        thread, launch, root = dispatch["thread"], dispatch["start"], dispatch["root"]
        under_root = [d for d in earlier if root and d["root"] == root]
        if under_root:
            begin = min(under_root[-1]["end"], launch)
            dispatch["t_py"], dispatch["t_dispatch"] = 0, self.host(thread, begin, launch)["dispatch"]
            return
        t_root = root[0] if root else launch
        windows = self.steps or [self.whole]
        starts = [e["start"] for e in (*self.ops, *self.calls, *windows) if e["thread"] == thread]
        stops = [c for c in self.calls if c["thread"] == thread and c["class"] in ("launch", "blocked")]
        boundaries = [
            min(starts),  # before it nothing is known of the thread
            *(r[1] for r in self.roots[thread]),
            *(c["end"] for c in stops if not c["activities"]),
            *(w["start"] for w in windows if w["start"] >= min(starts)),
        ]
        returned = [min(d["end"], t_root) for d in earlier]
        boundary = max([b for b in boundaries if b <= t_root] + returned)
        dispatch["t_py"] = self.host(thread, boundary, t_root)["python"]
        dispatch["t_dispatch"] = self.host(thread, t_root, launch)["dispatch"] if root else 0

    def _front_end(self, dispatch):
        """The last ΔCT ns of dispatch before the launch."""
        left, end = dispatch["ct"], dispatch["start"]
        for piece in reversed(list(self.classes(dispatch["thread"])["dispatch"] & _interval(0, end))):
            length = piece.upper - piece.lower
            if length >= left:
                return piece.upper - left, end
            left -= length
        raise AssertionError("ΔCT is longer than the dispatch it is part of")

    def classes(self, thread):
        """What each class covers on a thread, the first of PRIORITY winning."""
        if thread in self._classes:
            return self._classes[thread]
        calls = [c for c in self.calls if c["thread"] == thread]
        covers = {name: [(c["start"], c["end"]) for c in calls if c["class"] == name] for name in PRIORITY}
        covers["library"] = self.library.get(thread, [])
        covers["dispatch"] = self.roots.get(thread, [])
        taken, result = portion.empty(), {}
        for name in PRIORITY:
            cover = _union(covers[name])
            result[name] = cover - taken
            taken |= cover
        return self._classes.setdefault(thread, result)

    def host(self, thread, start, end):
        """The ns of each class of a thread in [start, end)."""
        window = _interval(start, end)
        parts = {name: _length(cover & window) for name, cover in self.classes(thread).items()}
        return parts | {"python": max(end - start, 0) - sum(parts.values())}

    def _floor(self):
        latencies = []
        for dispatch in self.dispatches:
            if len(dispatch["activities"]) != 1 or not dispatch["kernels"] or dispatch["is_graph"]:
                continue
            first = dispatch["kernels"][0]
            place = next(i for i, a in enumerate(self.activities) if a is first)
            before = [a for a in self.activities[:place] if _stream(a) == _stream(first)]
            latency = first["start"] - dispatch["start"]
            if latency > 0 and all(a["end"] <= dispatch["start"] for a in before):
                latencies.append(latency)
        return sorted(latencies)[int(0.05 * (len(latencies) - 1))] if latencies else None

    @property
    def device(self):
        counts = Counter(a["device"] for a in self.activities)
        return max(counts, key=lambda device: (counts[device], -device)) if counts else None


def _figures(trace, window, dispatches, activities, unanswered):
    start, end = window["start"], window["end"]
    own = [a for a in activities if a["device"] == trace.device]
    kernels = [a for a in own if a["kind"] == "kernel"]
    launches = Counter(d["thread"] for d in dispatches)
    thread = max(launches, key=lambda t: (launches[t], trace.thread_order.index(t)), default=window["thread"])
    host = trace.host(thread, start, end)

    device_end = max([end, *(a["end"] for a in own)])
    window_set = _interval(start, device_end)
    on_device = [a for a in trace.activities if a["device"] == trace.device]
    busy_ns = _length(_union((a["start"], a["end"]) for a in on_device) & window_set)
    active_ns = _length(_union((a["start"], a["end"]) for a in own) & window_set)
    idle, exposed = _idle(trace, on_device, start, device_end)
    idle["edge"] = device_end - start - busy_ns - sum(idle.values())
    kernel_sum = sum(a["end"] - a["start"] for a in kernels)

    ft = sum(d["ft"] for d in dispatches)
    ct = None if trace.t_base is None else sum(d["ct"] for d in dispatches)
    kt = None if trace.t_sys is None else sum(d["kt"] for d in dispatches)
    orchestration = None if kt is None else ft + (ct or 0) + kt
    lost = [c for c in unanswered if c in trace.lost]
    unlinked, all_kernels = (
        sum(1 for a in activities if a["kind"] == "kernel" and not (a["dispatch"] and skip)) for skip in (True, False)
    )
    are_lost = len(unanswered) > 0.05 * (len(dispatches) + len(unanswered))
    is_incomplete = are_lost or not trace.dispatches
    is_known = not (lost or is_incomplete or unlinked > 0.25 * all_kernels) and active_ns and orchestration is not None
    roots = [r[0] for r in trace.roots.get(thread, []) if start <= r[0] < end]
    last = max((a["end"] for a in own), default=None)
    figures = {
        "name": window["name"],
        "window_ns": end - start,
        "host": {f"{name}_ns": host[name] for name in ("python", *PRIORITY)},
        "device": {
            "window_ns": device_end - start,
            "active_ns": active_ns,
            "other_active_ns": busy_ns - active_ns,
            "kernel_sum_ns": kernel_sum,
            "idle_ns": device_end - start - busy_ns,
            "idle": {f"{name}_ns": idle[name] for name in ("host", "blocked", "queue", "edge")},
        },
        "taxes": {
            "delta_ft_ns": ft,
            "delta_ct_ns": ct,
            "delta_kt_ns": kt,
            "delta_kt_excess_ns": None,
            "orchestration_ns": orchestration,
        },
        "exposed": exposed,
        "hdbi": active_ns / (active_ns + orchestration) if is_known else None,
        "tklqt_ns": sum(max(0, d["kernels"][0]["start"] - d["start"]) for d in dispatches if d["kernels"]),
        "tklqt_per_kernel_ns": sum(
            max(0, a["start"] - a["dispatch"]["start"]) for a in activities if a["kind"] == "kernel" and a["dispatch"]
        ),
        "akd_ns": kernel_sum // len(kernels) if kernels else None,
        "inference_latency_ns": last - min(roots) if roots and last is not None and last >= start else None,
        "launches": len(dispatches),
        "kernels": len(kernels),
        "unique_kernels": len({a["name"] for a in kernels}),
        "families": _families(own, dispatches),
        "top": _top(trace, own, dispatches),
    }
    if lost or are_lost or not trace.activities:
        figures["device"]["idle_ns"] = None
    if lost or is_incomplete:
        figures["device"]["idle"] = dict.fromkeys(figures["device"]["idle"])
        figures["exposed"] = dict.fromkeys(exposed)
    if is_incomplete:
        figures["taxes"] = dict.fromkeys(figures["taxes"])
        figures |= {"tklqt_ns": None, "tklqt_per_kernel_ns": None}
    return figures


def _idle(trace, on_device, start, end):
    """Cut the gaps between what the device did in [start, end) by cause; only a length of its own makes a gap end."""
    stretches = []
    for activity in on_device:
        if stretches and activity["start"] <= stretches[-1]["end"]:
            stretches[-1]["end"] = max(stretches[-1]["end"], activity["end"])
        else:
            stretches.append({"start": activity["start"], "end": activity["end"], "first": activity})
    inside = [s for s in stretches if s["end"] > start and s["start"] < end]
    cause, by_class = Counter(), Counter()
    for before, after in pairwise(inside):
        fell_idle, resumed, dispatch = before["end"], after["start"], after["first"]["dispatch"]
        launched = min(max(dispatch["start"], fell_idle), resumed) if dispatch else fell_idle
        if dispatch:
            by_class.update(trace.host(dispatch["thread"], fell_idle, launched))
        cause["queue"] += resumed - launched
    cause["blocked"] = by_class.pop("blocked", 0)
    cause["host"] = sum(by_class.values())
    return cause, {
        "delta_ft_ns": by_class["python"] + by_class["dispatch"],
        "delta_ct_ns": by_class["library"],
        "delta_kt_ns": by_class["launch"],
        "other_ns": by_class["runtime"],
    }


def _families(own, dispatches):
    families = {}
    for family in {a["family"] for a in own} | {d["family"] for d in dispatches}:
        members = [a for a in own if a["family"] == family]
        share = {
            "kernels": sum(a["kind"] == "kernel" for a in members),
            "active_ns": _length(_union((a["start"], a["end"]) for a in members)),
            "launches": sum(d["family"] == family for d in dispatches),
        }
        if any(share.values()):
            families[family] = share
    return families


def _top(trace, own, dispatches):
    def row(activity):
        key = activity.get("op", "(no launch event)"), activity["name"]
        return rows.setdefault(key, {"count": 0, "active_ns": 0, "dispatches": []})

    rows = {}
    for activity in own:
        row(activity)["count"] += 1
        row(activity)["active_ns"] += activity["end"] - activity["start"]
    for dispatch in dispatches:  # also where what it launched first is on a device not shown
        row(dispatch["activities"][0])["dispatches"].append(dispatch)
    known = {"ft": True, "ct": trace.t_base is not None, "kt": trace.t_sys is not None}
    return {
        key: (
            row["count"],
            row["active_ns"],
            *(sum(d[tax] for d in row["dispatches"]) if known[tax] else None for tax in ("ft", "ct", "kt")),
        )
        for key, row in rows.items()
    }


def _coverage(trace):
    kernels = [a for a in trace.activities if a["kind"] == "kernel"]
    linked = [a for a in kernels if a["dispatch"]]
    return {
        "activities": len(trace.activities),
        "kernels": len(kernels),
        "linked": len(linked),
        "unlinked": len(kernels) - len(linked),
        "launches": len(trace.dispatches),
        "kernel_launches": sum(bool(d["kernels"]) for d in trace.dispatches),
        "graph_launches": sum(d["is_graph"] for d in trace.dispatches) + len(trace.lost),
        "launches_without_activity": len(trace.without_activity),
    }


def _devices(trace):
    return [
        {
            "device": device,
            "activities": sum(a["device"] == device for a in trace.activities),
            "active_ns": _length(_union((a["start"], a["end"]) for a in trace.activities if a["device"] == device)),
        }
        for device in sorted({a["device"] for a in trace.activities})
    ]


def _threads(trace):
    launches = Counter(d["thread"] for d in trace.dispatches)
    return {
        f"4000:{thread}": (
            count,
            sum(d["ft"] + (d["ct"] or 0) for d in trace.dispatches if d["thread"] == thread),
        )
        for thread, count in launches.items()
    }


def _steps(events):
    steps = []
    for event in sorted((e for e in events if e["kind"] == "step"), key=lambda e: (e["start"], -e["end"])):
        if not steps or event["start"] >= steps[-1]["end"]:
            steps.append(event | {"name": event["name"].removeprefix("taxbreak.step:")})
    return steps


def _roots(ops):
    """The outermost ops of a thread as (start, end); ops that cross are one, ops that touch are two."""
    roots = []
    for start, end in sorted(((o["start"], o["end"]) for o in ops), key=lambda span: (span[0], -span[1])):
        if roots and start < roots[-1][1]:
            roots[-1] = roots[-1][0], max(roots[-1][1], end)
        else:
            roots.append((start, end))
    return roots


def _is_launch(name):
    return name.startswith(("cuda", "cu", "hip")) and "Launch" in name and not name.endswith("LaunchHostFunc")


def _is_copy(name):
    return name.startswith(("cuda", "cu", "hip")) and ("Memcpy" in name or "Memset" in name)


def _stream(activity):
    return activity["device"], activity["stream"]


def _interval(start, end):
    return portion.closedopen(start, end) if start < end else portion.empty()


def _union(spans):
    return portion.Interval(*(_interval(start, end) for start, end in spans))


def _length(interval):
    return sum(piece.upper - piece.lower for piece in interval) if not interval.empty else 0
