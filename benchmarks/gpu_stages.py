"""The stages of `gpu_check.py`: each asks the book for its cases, then prints its table.

Every figure comes from a trace decomposed by the package, or from a clock beside it where the two are compared.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_book import Book, is_recovered, knee, rise, spread, table
from gpu_lab import Lab, conservation, figures
from gpu_models import SHAPES, Decoder, tiny
from gpu_sessions import sessions

from taxbreak_vllm.baselines.store import Baselines
from taxbreak_vllm.model.baseline import Floor, FloorKind
from taxbreak_vllm.replay.runner import measure_floors

HERE = Path(__file__).resolve().parent
_FLOOR_RUNS = 3
_PROMPT = 64  # tokens of a prompt, and what a decode step finds in the cache
_STEPS = 4
_LAYERS = {"llama-1b": 16, "qwen3-moe": 1}  # of the expert loop: one block is 3000 launches a step
_WAITS_US = (0, 5, 20, 100)
# torch hands this on as one option of Kineto; what follows on a line of its own is another
_SMALL_BUFFER = "none\nACTIVITIES_MAX_GPU_BUFFER_SIZE_MB=8"


def floors(book: Book, lab: Lab) -> None:
    """T_sys, graph floors, ε and empty dispatch, three times, each in a process of its own."""
    runs = [book.case("floors", f"run {n}", partial(_floors, lab)) for n in range(_FLOOR_RUNS)]
    known = [run for run in runs if run]
    if known:
        kinds = [kind for kind in known[0]["median_ns"] if all(kind in run["median_ns"] for run in known)]
        rows = {kind: spread([run["median_ns"][kind] for run in known]) for kind in kinds}
        book.note("floors", "spread", rows)
        table(
            f"floors, {len(known)} runs on {known[-1]['device']}",
            [
                {"floor": kind, "median_ns": row["median"], "min_ns": row["min"], "max_ns": row["max"]}
                | {"mad_ns": known[-1]["mad_ns"][kind]}
                for kind, row in rows.items()
            ],
        )


def _floors(lab: Lab) -> dict[str, Any]:
    environment, found, _ = measure_floors(lab.options)
    with Baselines(lab.store) as store:
        store.put_floors(environment, found)
    line = found.graph_line()
    return {
        "device": environment.device_name,
        "driver": environment.driver,
        "torch": environment.torch,
        "host_cpu": found.host_cpu,
        "governor": found.governor,
        "clock": found.clock,
        "kernel_source": found.kernel_source,
        "median_ns": {_floor_name(floor): floor.spread.median_ns for floor in found.floors},
        "mad_ns": {_floor_name(floor): floor.spread.mad_ns for floor in found.floors},
        "graph_line_ns": None if line is None else {"per_launch": line[0], "per_node": line[1]},
        "notes": list(found.notes),
    }


def _floor_name(floor: Floor) -> str:
    return f"{floor.kind}({floor.nodes})" if floor.kind is FloorKind.GRAPH else str(floor.kind)


def _probe(lab: Lab, env: dict[str, str]) -> dict[str, float]:
    """In a process that has never profiled: only there is CUPTI not attached yet."""
    done = subprocess.run(
        [sys.executable, str(HERE / "gpu_probe.py"), lab.device],
        env=os.environ | env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the probe failed"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def replay(book: Book, lab: Lab) -> None:
    """An eager dense and an eager mixture-of-experts block: what is replayed, and what the split then rests on."""
    rows = []
    for key in ("llama-1b", "qwen3-moe"):
        found = book.case("replay", key, partial(_replay, lab, key))
        if found:
            rows += [
                {"model": found["model"], "phase": phase} | _shown(found[phase]) for phase in ("prefill", "decode")
            ]
    table("replayed: share of orchestration time by tier, and the taxes (medians of a step)", rows)


def _replay(lab: Lab, key: str) -> dict[str, Any]:
    decoder = _decoder(lab, key, layers=min(4, _LAYERS[key]))
    paths = {
        phase: lab.record(f"{key}-{phase}", _repeated(lab, decoder, phase, batch, phase))
        for phase, batch in (("prefill", 1), ("decode", 8))
    }
    account = lab.replay(list(paths.values()), seconds=120)
    found: dict[str, Any] = {
        "model": decoder.shape.name,
        "signatures": account.signatures,
        "outcomes": account.outcomes,
        "left": account.left,
        "trouble": sorted({f"{entry.op}: {entry.reason}" for entry in account.trouble})[:20],
    }
    for phase, path in paths.items():
        breakdown = lab.analyze(path)
        found[phase] = figures(breakdown.steps[1:]) | {
            "replay": {str(tier): share for tier, share in breakdown.coverage.replay.items()},
            "denied": breakdown.coverage.denied,
            "conservation": conservation(breakdown),
            "unlinked": breakdown.coverage.unlinked,
            "notes": list(breakdown.notes),
            "kept": lab.keep(path) if phase == "decode" else None,
        }
    return found


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    tiers = {f"{tier}": found["replay"].get(tier, 0.0) for tier in ("replayed", "family", "trace", "floor")}
    return tiers | {"denied": found["denied"]} | {
        name: found[name] for name in ("ft_ns", "ct_ns", "kt_ns", "excess_ns", "device_ns", "hdbi")
    }  # fmt: skip


def decompose(book: Book, lab: Lab) -> None:
    """Batch 1 to 64, prefill and decode, both models: the whole decomposition beside the plain step's time."""
    batches = (1, 2) if lab.is_tiny else (1, 2, 4, 8, 16, 32, 64)
    rows = []
    for key, layers in _LAYERS.items():
        names = {f"{key} {phase} {batch}": (phase, batch) for phase in ("prefill", "decode") for batch in batches}
        known = book.stages.get("decompose", {})
        missing = {name: case for name, case in names.items() if name not in known}
        # all are recorded before any is replayed, as a process that replays takes seconds to start
        recorded: dict[str, tuple[Path, float]] = {}
        if missing and not book.is_over():
            decoder = _decoder(lab, key, layers)
            recorded = {name: _recorded(lab, decoder, *case, name) for name, case in missing.items()}
            del decoder
            lab.replay([path for path, _ in recorded.values()], seconds=60)
        for name, (_, batch) in names.items():
            found = book.case("decompose", name, partial(_decompose, lab, recorded.get(name), batch))
            rows.append({"case": name} | _row(found))
    table("full decomposition, medians of a step (µs); plain is the step without a profiler", rows)


def _recorded(lab: Lab, decoder: Decoder, phase: str, batch: int, name: str) -> tuple[Path, float]:
    step = _step(decoder, phase, batch)
    plain_ns = median(lab.plain_ns(step, 3))
    return lab.record(name.replace(" ", "-"), [(f"{name}.{n}", step) for n in range(_STEPS)]), plain_ns


def _decompose(lab: Lab, recorded: tuple[Path, float] | None, batch: int) -> dict[str, Any]:
    if recorded is None:
        raise RuntimeError("not recorded")
    path, plain_ns = recorded
    breakdown = lab.analyze(path)
    found = figures(breakdown.steps[1:], tokens=batch)
    return found | {
        "plain_ns": plain_ns,
        "dilation": found["window_ns"] / plain_ns,
        "replay": {str(tier): share for tier, share in breakdown.coverage.replay.items()},
        "conservation": conservation(breakdown),
        "notes": list(breakdown.notes),
    }


def _row(found: dict[str, Any] | None) -> dict[str, Any]:
    names = (
        "plain_ns",
        "window_ns",
        "device_ns",
        "ft_ns",
        "ct_ns",
        "kt_ns",
        "exposed_ns",
        "tklqt_ns",
        "hdbi",
        "kernels",
    )
    if not found:
        return dict.fromkeys(names)
    return {name: found[name] for name in names} | {
        "replayed": found["replay"].get("replayed", 0.0), "conserved": not found["conservation"],
    }  # fmt: skip


def taxes(book: Book, lab: Lab) -> None:
    """Delays that we put into each part of the way to the device, and what the decomposition makes of them."""
    rows = []
    for kind in ("python", "dispatch", "library", "launch"):
        if kind in ("library", "launch") and not lab.is_gpu:
            print(f"  taxes/{kind}: skipped, only a GPU has a launch behind it")
            continue
        found = book.case("taxes", kind, partial(_taxes, lab, kind))
        rows += found["rows"] if found else []
    table("injected delays: the rise of each figure (per op), and whether it is within 10 % or 1 µs", rows)
    if lab.is_gpu:
        from cublaslt import direct

        rows = [
            {"gemm": f"{m}x{n}x{k}"}
            | (book.case("taxes", f"cublaslt {m}x{n}x{k}", partial(direct, lab, m, n, k)) or {})
            for m, n, k in ((1, 2048, 2048), (8, 8192, 2048), (64, 2048, 8192), (1024, 8192, 2048))
        ]
        table("ΔCT of a GEMM beside what cublasLt takes when called directly", rows)
    else:
        print("  taxes/cublaslt: skipped, needs a GPU")


# What should rise by what was injected, and what should not move, by kind: python glue, an op's own work before its
# launch, a vendor library's front-end, the way from a launch call to the kernel's start.
_EXPECTED = {
    "python": ("python_ns", ("dispatch_ns", "launch_ns", "ct_ns")),
    "dispatch": ("dispatch_ns", ("python_ns", "launch_ns", "ct_ns")),
    "library": ("ct_ns", ("python_ns", "ft_ns", "launch_ns")),
    "launch": ("excess_ns", ("python_ns", "ct_ns")),
}
_OPS = 20


def _taxes(lab: Lab, kind: str) -> dict[str, Any]:
    import gpu_ops  # registers the ops

    ops = torch.ops.taxbreak_check
    x = torch.ones(256, 256, device=lab.device, dtype=torch.bfloat16 if lab.is_gpu else torch.float32)
    cycles = _cycles_per_us(lab) if kind == "launch" else 0
    waits = (50, 100, 200) if kind == "launch" else _WAITS_US  # below, the host's own way hides the side stream

    waited_ns: dict[int, list[int]] = {us: [] for us in waits}

    def step(us: int) -> Callable[[], object]:
        def run() -> None:
            before_ns = gpu_ops.Waited.total_ns
            for _ in range(_OPS):
                if kind == "python":
                    torch.neg(x)
                    gpu_ops.spin(us * 1000)
                elif kind == "launch":
                    ops.launch(x, us * cycles)
                else:
                    torch.neg(x)  # what T_base is taken from
                    getattr(ops, kind)(x, us)
                lab.synchronize()
            waited_ns[us].append(gpu_ops.Waited.total_ns - before_ns)

        return run

    steps = [(f"{us}us.{n}", step(us)) for n in range(12) for us in waits]
    path = lab.record(f"taxes-{kind}", steps)
    account = lab.replay([path], seconds=60)
    breakdown = lab.analyze(path)
    warm = breakdown.steps[len(waits) :]
    by_name = {us: figures([step for step in warm if (step.name or "").startswith(f"{us}us.")]) for us in waits}
    wanted, still = _EXPECTED[kind]
    rows = []
    for us in waits[1:]:
        injected_ns = (us - waits[0]) * 1000.0 if kind == "launch" else rise(waited_ns, us) / _OPS
        risen = {name: rise({u: [(by_name[u][name] or 0) / _OPS] for u in waits}, us) for name in (wanted, *still)}
        rows.append(
            {"delay": kind, "injected_ns": injected_ns, "figure": wanted.removesuffix("_ns"), "rose_ns": risen[wanted]}
            | {"recovered": is_recovered(risen[wanted], injected_ns)}
            | {"others at most_ns": max(risen[name] for name in still)}
        )
    return {
        "rows": rows,
        "figures": {str(us): found for us, found in by_name.items()},
        "outcomes": account.outcomes,
        "trouble": sorted({f"{entry.op}: {entry.reason}" for entry in account.trouble}),
        "conservation": conservation(breakdown),
        "kept": lab.keep(path) if kind == "library" else None,
    }


def _cycles_per_us(lab: Lab) -> int:
    """How many cycles of `torch.cuda._sleep` take a microsecond, by the clock of the events."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    rates = []
    for _ in range(5):
        begin.record()
        torch.cuda._sleep(20_000_000)
        end.record()
        torch.cuda.synchronize()
        rates.append(20_000_000 / (begin.elapsed_time(end) * 1000))
    return round(median(rates))


def _decoder(lab: Lab, key: str, layers: int = 1000) -> Decoder:
    shape = tiny(SHAPES[key]) if lab.is_tiny else SHAPES[key].cut(layers)
    return Decoder(shape, device=lab.device)


def _step(decoder: Decoder, phase: str, batch: int, length: int = _PROMPT) -> Callable[[], object]:
    """One step that ends, as a generation loop's does, with the token on the host."""
    if phase == "prefill":
        tokens = decoder.tokens(batch, length)
        return lambda: decoder.step(tokens).tolist()
    tokens, past = decoder.tokens(batch, 1), decoder.caches(batch, length)
    return lambda: decoder.step(tokens, past).tolist()


def _repeated(lab: Lab, decoder: Decoder, phase: str, batch: int, label: str) -> list[tuple[str, Callable[[], object]]]:
    step = _step(decoder, phase, batch)
    lab.plain_ns(step, 3)
    return [(f"{label}.{n}", step) for n in range(_STEPS)]


def findings(book: Book, lab: Lab) -> None:
    """What the papers found, on the same shapes."""
    batches = (1, 2, 4) if lab.is_tiny else (1, 2, 4, 8, 16, 32, 64, 128)
    length = 16 if lab.is_tiny else 512
    names = {f"gpt2 {phase} {batch}": (phase, batch) for phase in ("prefill", "decode") for batch in batches}
    known = book.stages.get("findings", {})
    decoder = _decoder(lab, "gpt2") if any(name not in known for name in names) else None
    rows = {
        name: book.case("findings", name, partial(_finding, lab, decoder, phase, batch, length))
        for name, (phase, batch) in names.items()
    }
    shown = ("plain_ns", "window_ns", "orchestration_ns", "device_ns", "hdbi", "tklqt_ns", "queue_ns", "kernels")
    table(
        "GPT-2: host and device over the batch",
        [{"case": n} | {k: (r or {}).get(k) for k in shown} for n, r in rows.items()],
    )
    knees = {
        phase: knee(
            [
                (batch, rows[name]["tklqt_ns"] or 0.0)
                for name, (own, batch) in names.items()
                if own == phase and rows[name]
            ]
        )
        for phase in ("prefill", "decode")
    }
    book.note("findings", "tklqt knee", {"batch": knees})
    print(f"  TKLQT leaves its plateau (twice its least) at batch: {knees}")

    models = []
    for key in ("llama-1b", "llama-3b", "olmoe", "qwen1.5-moe", "qwen3-moe"):
        found = book.case("findings", f"kernels {key}", partial(_kernels, lab, key))
        models.append(
            {"model": key} | {k: (found or {}).get(k) for k in ("kernels_per_token", "launches", "unique", *shown)}
        )
    table("one decode step of one sequence: kernels per output token", models)
    per_token = {row["model"]: row["kernels_per_token"] for row in models}
    ratios = {
        f"{moe} / {dense}": per_token[moe] / per_token[dense]
        for moe in ("olmoe", "qwen1.5-moe", "qwen3-moe")
        for dense in ("llama-1b", "llama-3b")
        if per_token[moe] and per_token[dense]
    }
    book.note("findings", "kernel ratios", ratios)
    print("  " + ", ".join(f"{name} {ratio:.1f}x" for name, ratio in ratios.items()))


def _finding(lab: Lab, decoder: Decoder, phase: str, batch: int, length: int) -> dict[str, Any]:
    step = _step(decoder, phase, batch, length)
    plain_ns = median(lab.plain_ns(step, 5))
    path = lab.record("finding", [(f"{phase}.{n}", step) for n in range(_STEPS)])
    breakdown = lab.analyze(path)
    return figures(breakdown.steps[1:], tokens=batch) | {"plain_ns": plain_ns, "conservation": conservation(breakdown)}


def _kernels(lab: Lab, key: str) -> dict[str, Any]:
    # a step of 48 layers and 128 experts each has some 100 000 kernels: a twelfth of them, counted for all
    decoder = _decoder(lab, key, layers=4 if key == "qwen3-moe" else 1000)
    step = _step(decoder, "decode", 1)
    plain_ns = median(lab.plain_ns(step, 2))
    path = lab.record("kernels", [(f"decode.{n}", step) for n in range(2)])
    breakdown = lab.analyze(path)
    found = figures(breakdown.steps[1:], tokens=1)
    layers, of = decoder.shape.layers, (decoder.shape if lab.is_tiny else SHAPES[key]).layers
    return found | {
        "model": decoder.shape.name,
        "plain_ns": plain_ns,
        "layers": layers,
        "kernels_per_token": found["kernels_per_token"] * of / layers,
        "unique": breakdown.total.unique_kernels,
        "conservation": conservation(breakdown),
    }


def graphs(book: Book, lab: Lab) -> None:
    """Does a recorded graph replay hold every node, does the guard speak up if not, and what does a profile leave?"""
    if not lab.is_gpu:
        print("  graphs: skipped, CUDA graphs need a GPU")
        return
    rows = [
        {"graph": name} | (book.case("graphs", name, partial(_graph, lab, nodes, replays, config)) or {})
        for name, nodes, replays, config in (
            ("512 nodes", 512, 20, ""),
            ("4096 nodes", 4096, 10, ""),
            ("buffer of 8 MB", 512, 400, _SMALL_BUFFER),
        )
    ]
    found = book.case("graphs", "llama-1b decode", partial(_decode_graph, lab))
    rows.append({"graph": "llama-1b decode"} | (found or {}))
    table("graph launches and the nodes recorded for them", rows)
    settings: dict[str, dict[str, str]] = {"default": {}}
    settings |= {f"TEARDOWN_CUPTI={value}": {"TEARDOWN_CUPTI": value} for value in ("0", "1")}
    rows = [
        {"setting": name} | (book.case("graphs", f"left attached, {name}", partial(_probe, lab, env)) or {})
        for name, env in settings.items()
    ]
    table("a launch before, during and after a profile, per launch", rows)


def _graph(lab: Lab, nodes: int, replays: int, config: str) -> dict[str, Any]:
    x = torch.ones(1, device=lab.device)
    graph = torch.cuda.CUDAGraph()
    torch.neg(x)
    with torch.inference_mode(), torch.cuda.graph(graph):
        for _ in range(nodes):
            torch.neg(x)
    graph.replay()
    path = lab.record("graph", [(f"graph.{n}", graph.replay) for n in range(replays)], config=config)
    return _nodes(lab, path, nodes) | {"kept": lab.keep(path) if nodes == 512 and not config else None}


def _decode_graph(lab: Lab) -> dict[str, Any]:
    decoder = _decoder(lab, "llama-1b", layers=4)
    tokens, past = decoder.tokens(8, 1), decoder.caches(8, _PROMPT)
    eager = lab.record("eager", [(f"eager.{n}", lambda: decoder.step(tokens, past)) for n in range(3)])
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        decoder.step(tokens, past)
    plain_ns = median(lab.plain_ns(graph.replay))
    path = lab.record("graph-decode", [(f"graph.{n}", graph.replay) for n in range(_STEPS)])
    wanted = lab.analyze(eager).steps[-1]
    found = figures(lab.analyze(path).steps[1:])
    return _nodes(lab, path, wanted.kernels) | {
        "eager hdbi": wanted.hdbi, "hdbi": found["hdbi"], "kt_ns": found["kt_ns"], "plain_ns": plain_ns,
        "window_ns": found["window_ns"], "kept": lab.keep(path),
    }  # fmt: skip


def _nodes(lab: Lab, path: Path, nodes: int) -> dict[str, Any]:
    breakdown = lab.analyze(path)
    kernels = [step.kernels for step in breakdown.steps]
    return {
        "nodes": nodes,
        "replays": len(kernels),
        "whole": sum(count >= nodes for count in kernels),
        "in part": sum(0 < count < nodes for count in kernels),
        "lost": sum(count == 0 for count in kernels),
        "hdbi null": sum(step.hdbi is None for step in breakdown.steps),
        "guard": any("left no recorded node" in note for note in breakdown.notes),
    }


STAGES: dict[str, Callable[[Book, Lab], None]] = {
    "floors": floors,
    "replay": replay,
    "decompose": decompose,
    "taxes": taxes,
    "findings": findings,
    "graphs": graphs,
    "sessions": sessions,
}
