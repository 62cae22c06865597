"""Recordings of real GPUs with records dropped, doubled, altered and spoiled at random: analyzed, or refused in a line.

Whatever is shown adds up, nothing is negative or no number, and what is null has a reason.
"""

import gzip
import math
from dataclasses import astuple
from random import Random

import msgspec
import pytest

from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.taxes.analyze import analyze

MAX_BYTES = 400_000  # of a compressed trace, so that many variants of it take seconds
ODD = (None, True, -1, 0, 1, "", "x", "7", 1e300, -1e18, 2**63, [], {})


@pytest.fixture(scope="module")
def events(trace_path):
    if trace_path.stat().st_size > MAX_BYTES:
        pytest.skip(f"{trace_path.name} is too large for many variants")
    return msgspec.json.decode(gzip.decompress(trace_path.read_bytes()))


def drop(event, random):
    return ()


def double(event, random):
    return event, event


def move(event, random):
    by_us = random.choice((-1, 1)) * 10 ** random.uniform(-2, 12)
    return (event | {"ts": event["ts"] + by_us},) if isinstance(event.get("ts"), float | int) else (event,)


def stretch(event, random):
    return (event | {"dur": 10 ** random.uniform(-3, 12)},)


def spoil(event, random):
    return (event | {random.choice(("ts", "dur", "pid", "tid", "cat", "name", "ph", "args")): random.choice(ODD)},)


def spoil_argument(event, random):
    args = event.get("args")
    if not isinstance(args, dict) or not args:
        return (event,)
    return (event | {"args": args | {random.choice(list(args)): random.choice(ODD)}},)


def rename(event, random):
    names = ("cudaGraphLaunch", "cudaMemcpyAsync", "cudaDeviceSynchronize", "cudaStreamBeginCapture", "ProfilerStep#3")
    return (event | {"name": random.choice(names)},)


CHANGES = (drop, double, move, stretch, spoil, spoil_argument, rename)


def variant(events, random):
    """Change some of the events, from one to all, in one way or in several."""
    ratio, changes = 10 ** random.uniform(-4, 0), random.sample(CHANGES, random.randint(1, 3))
    least = random.randrange(len(events))
    changed = [
        one
        for place, event in enumerate(events)
        for one in (random.choice(changes)(event, random) if place == least or random.random() < ratio else (event,))
    ]
    if random.random() < 0.2:
        random.shuffle(changed)
    return changed


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 60), marks=pytest.mark.nightly)], ids=str)
def test_spoiled_recordings_are_refused_in_a_line_or_add_up(events, seeds, tmp_path):
    wrong = {seed: faults for seed in seeds if (faults := faults_of(events, Random(seed), tmp_path))}

    assert wrong == {}


def faults_of(events, random, folder):
    """What is wrong with the analysis of a variant."""
    path = folder / "trace.json"
    changed = msgspec.json.encode(events | {"traceEvents": variant(events["traceEvents"], random)})
    path.write_bytes(msgspec.json.format(changed, indent=0))
    try:
        found = analyze(path, floor_ns=random.choice((None, 5_000)))
    except TaxbreakError as error:
        return [] if str(error).startswith(f"{path}: ") and "\n" not in str(error) else [str(error)]
    faults = [fault for step in (*found.steps, found.total) for fault in faults_of_step(step)]
    is_told = all(step.hdbi is not None or step.notes or found.notes for step in (*found.steps, found.total))
    return faults if is_told else [*faults, "null without a reason"]


def faults_of_step(step):
    device = step.device
    sums = {"host": (sum(astuple(step.host)), step.window_ns)}
    if device.idle_ns is not None:
        sums["device"] = (device.active_ns + device.other_active_ns + device.idle_ns, device.window_ns)
    if device.idle.host_ns is not None:
        sums["idle"] = (sum(astuple(device.idle)), device.idle_ns)
        sums["exposed"] = (sum(astuple(step.exposed)), device.idle.host_ns)
    yield from (f"{name}: {parts} for {whole}" for name, (parts, whole) in sums.items() if parts != whole)
    if step.hdbi is not None and step.hdbi > 1:
        yield f"HDBI {step.hdbi}"
    tree = msgspec.to_builtins(step)
    yield from (f"{value}" for value in numbers(tree) if not (math.isfinite(value) and value >= 0))


def numbers(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [number for part in tree for number in numbers(part)]
    return [tree] if isinstance(tree, float | int) else []
