"""The table of `gpu_day.sh`: what each part answers, of `gpu_check.json` and `gpu_serving.json` in a folder.

    python benchmarks/gpu_day.py DIR

Exit status 1 where a part has told nothing.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def rows(check: Found, serving: Found) -> Iterator[tuple[str, str, str | None]]:
    """Yield part, question and answer, None where it was not measured."""
    yield from _live(serving.get("live", {}).get("llama") or {})
    yield from _floors(check, serving)
    yield from _truth(check.get("taxes", {}), serving.get("truth", {}))
    savings = serving.get("modes", {}).get("llama savings") or []
    held = [row["within"] for row in savings if row.get("within") is not None]
    yield "4", "steps with graphs within what was predicted from eager ones", _of(sum(held), held)
    lost = check.get("sessions", {}).get("three steps each") or {}
    yield "5", "recordings whole", _text(lost, "{whole} of {recordings}")
    yield (
        "5",
        "records lost of first steps, of others",
        _text(lost, "{records lost of first steps}, {records lost of the others}"),
    )
    yield (
        "5",
        "host memory after one, after all",
        _text(lost, "{host MiB, after one:.0f}, {host MiB, after all:.0f} MiB"),
    )
    findings = check.get("findings", {})
    flat = [
        row["orchestration_ns"]
        for name, row in findings.items()
        if name.startswith("gpt2 decode") and "orchestration_ns" in row
    ]
    yield (
        "6",
        "orchestration of GPT-2's decode over the batch, most over least",
        f"{max(flat) / min(flat):.2f}" if flat else None,
    )
    ratios = findings.get("kernel ratios") or {}
    yield (
        "6",
        "kernels a token, mixture of experts over dense",
        ", ".join(f"{ratio:.1f}" for ratio in ratios.values()) or None,
    )
    yield "6", "TKLQT leaves its plateau at batch", _text(findings.get("tklqt knee") or {}, "{batch}")
    for row in serving.get("cost", {}).get("summary") or [{}]:
        yield (
            "7",
            f"tokens/s over those without, {row.get('plugin')}, {row.get('load')}",
            _text(row, "{tokens_per_s / off:.3f} ({tokens_per_s range})"),
        )


def _live(live: Found) -> Iterator[tuple[str, str, str | None]]:
    yield "1", "recording is still on; why not", _text(live, "{recording is on}; {off_reason}")
    yield "1", "recordings, whole", _text(live, "{recordings}, {whole}")
    yield "1", "tokens asked for, counted", _text(live, "{tokens asked}, {tokens counted}")
    for phase, row in (live.get("phases") or {"decode": {}}).items():
        yield "1", f"HDBI, {phase}", _text(row, "{hdbi:.3f} of {captures}")
    yield "1", "stall of a recorded step, median", _ms(live.get("stall_ns"))
    before, after = live.get("token before the first recording_ns"), live.get("token after the last_ns")
    yield "1", "a token after recordings over before", f"{after / before:.3f}" if before and after else None


def _floors(check: Found, serving: Found) -> Iterator[tuple[str, str, str | None]]:
    spread = check.get("floors", {}).get("spread") or {}
    yield (
        "2",
        "floors, median µs",
        ", ".join(f"{kind} {row['median'] / 1000:.2f}" for kind, row in spread.items()) or None,
    )
    line = (check.get("floors", {}).get("run 0") or {}).get("graph_line_ns") or {}
    yield "2", "a graph's launch, and each node of it", _text(line, "{per_launch:.0f}, {per_node:.0f} ns")
    ceilings = next(iter(serving.get("floors", {}).values()), {}).get("ceilings") or {}
    sizes = [name for name in ceilings if name.endswith(" bytes")]
    shown = {name: rate for name, rate in ceilings.items() if name not in sizes}
    shown |= {name: ceilings[name] for name in sorted(sizes, key=lambda name: int(name.split()[0]))[-1:]}
    yield "2", "FLOP a second, and bytes", ", ".join(f"{name} {rate:.3g}" for name, rate in shown.items()) or None
    costs = (check.get("sessions", {}).get("profiler") or {}).get("rows") or []
    yield (
        "2",
        "the profiler's start and stop, by launches",
        "; ".join(f"{row['launches']}: {_ms(row['start_ns'])}, {_ms(row['stop_ns'])}" for row in costs) or None,
    )


def _truth(taxes: Found, truth: Found) -> Iterator[tuple[str, str, str | None]]:
    put_in = [row["recovered"] for found in taxes.values() for row in found.get("rows", [])]
    yield "3", "delays recovered within 10 % or 1 µs", _of(sum(put_in), put_in)
    yield (
        "3",
        "a delay of the engine's loop",
        _text(truth.get("engine loop") or {}, "{rose_ns:.0f} of {injected_ns} ns"),
    )
    alike = [row["within 3 %"] for row in (truth.get("long recording") or {}).get("rows", [])]
    yield "3", "figures of three-step recordings within 3 % of a long one's", _of(sum(alike), alike)


def _text(found: Found, form: str) -> str | None:
    try:
        return form.format_map(found)
    except (KeyError, TypeError, ValueError):
        return None


def _of(num: int, all_of_them: list[bool]) -> str | None:
    return f"{num} of {len(all_of_them)}" if all_of_them else None


def _ms(ns: float | None) -> str | None:
    return None if ns is None else f"{ns / 1e6:.2f} ms"


def main(arguments: list[str]) -> int:
    """Print it."""
    (folder,) = map(Path, arguments)
    check, serving = (_read(folder / f"gpu_{name}.json") for name in ("check", "serving"))
    told = list(rows(check, serving))
    width = max(len(question) for _, question, _ in told)
    print("\nthe day")
    for part, question, answer in told:
        print(f"  {part}  {question:{width}}  {answer or '–'}")
    silent = {part for part, _, _ in told} - {part for part, _, answer in told if answer is not None}
    if silent:
        print(f"nothing is told of part {', '.join(sorted(silent))}")
    return 1 if silent else 0


def _read(path: Path) -> Found:
    found: Found = json.loads(path.read_text()) if path.is_file() else {}
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
