"""Scheduler outputs as vLLM builds them, vLLM's source in parts, and a profile that profiles nothing."""

import __future__

import ast
import importlib.util
import os
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from taxbreak_vllm.model.step import GraphMode, Server
from taxbreak_vllm.serving.recorder import Recorder, Torch
from taxbreak_vllm.serving.sampling.stalls import Detail
from taxbreak_vllm.serving.steps import GraphModes
from taxbreak_vllm.serving.watch import Watch
from taxbreak_vllm.settings import Settings


def _scheduling(vllm):
    def schedule(tokens, *, new=(), cached=(), resumed=(), drafts=None, encoder=None):
        output = vllm.SchedulerOutput.make_empty()
        output.scheduled_new_reqs = [
            vllm.NewRequestData(
                req_id=req_id,
                prompt_token_ids=None if prompt is None else [7] * prompt,
                mm_features=[],
                sampling_params=None,
                pooling_params=None,
                block_ids=([],),
                num_computed_tokens=computed,
                lora_request=None,
            )
            for req_id, prompt, computed in new
        ]
        output.scheduled_cached_reqs = vllm.CachedRequestData(
            req_ids=[req_id for req_id, _ in cached],
            resumed_req_ids=set(resumed),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=[None for _ in cached],
            num_computed_tokens=[100 for _ in cached],
            num_output_tokens=[outputs for _, outputs in cached],
        )
        output.num_scheduled_tokens = dict(tokens)
        output.total_num_scheduled_tokens = sum(tokens.values())
        output.scheduled_spec_decode_tokens = {req_id: [7] * n for req_id, n in (drafts or {}).items()}
        output.scheduled_encoder_inputs = encoder or {}
        return output

    return schedule


@pytest.fixture(scope="session")
def schedule(vllm_source):
    """Build a SchedulerOutput of vLLM's own classes from new requests (id, prompt, computed) and cached ones.

    The classes are run from their source, as to import them takes seconds.
    """
    path = "v1/core/sched/output.py"
    names = ["NewRequestData", "CachedRequestData", "ScheduledEncoderInputStats", "SchedulerOutput"]
    names = [name for name in names if name in vllm_source.definitions(path)]
    given = {"dataclass": dataclass, "field": field, "cached_property": cached_property}
    return _scheduling(vllm_source.load(path, *names, **given))


class VllmSource:
    """The source of some vLLM, read and run in parts: most of it cannot be imported without its GPU libraries."""

    def __init__(self, root):
        self.root = root

    def has(self, path):
        return (self.root / path).exists()

    def text(self, path):
        return (self.root / path).read_text()

    @cache  # noqa: B019 - there is one, for the session
    def definitions(self, path):
        """Return the classes and functions of a module, by name."""
        return {node.name: node for node in ast.parse(self.text(path)).body if hasattr(node, "name")}

    def methods(self, path, cls):
        return {node.name: node for node in self.definitions(path)[cls].body if isinstance(node, ast.FunctionDef)}

    def fields(self, path, cls):
        """Return the names that the body of a class declares."""
        body = self.definitions(path)[cls].body
        return {node.target.id for node in body if isinstance(node, ast.AnnAssign)}

    def attributes(self, path, cls):
        """Return the names of what the methods of a class set on `self`."""
        return {
            node.attr
            for node in ast.walk(self.definitions(path)[cls])
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
        }

    def bases(self, path, cls):
        return [ast.unparse(base) for base in self.definitions(path)[cls].bases]

    def load(self, path, *names, **namespace):
        """Run the definitions of these names alone; what they use is given, annotations are not looked at."""
        return self._run(path, [self.definitions(path)[name] for name in names], namespace)

    def load_method(self, path, cls, name, **namespace):
        """Run one method alone, as a function whose first argument stands for its object."""
        return getattr(self._run(path, [self.methods(path, cls)[name]], namespace), name)

    def _run(self, path, body, namespace):
        flags = __future__.annotations.compiler_flag
        code = compile(ast.Module(body, type_ignores=[]), str(self.root / path), "exec", flags, dont_inherit=True)
        scope = {"__name__": "types", **namespace}  # dataclasses wants the name of a module that there is
        exec(code, scope)
        return SimpleNamespace(**scope)


@pytest.fixture(scope="session")
def vllm_source():
    """The source of the installed vLLM, or of the one in the folder that CONTRACT_SOURCE names."""
    if folder := os.environ.get("CONTRACT_SOURCE"):
        (package,) = (place for place in (Path(folder), Path(folder) / "vllm") if (place / "v1").is_dir())
        return VllmSource(package)
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("no vLLM here: install one, or name the folder of its source in CONTRACT_SOURCE")
    return VllmSource(Path(spec.origin).parent)


@pytest.fixture(scope="session")
def decode(schedule):
    """A step of two requests that generate."""
    return schedule({"a": 1, "b": 1}, cached=[("a", 3), ("b", 9)])


class Clock:
    """A clock that goes on by itself, one step of it per reading."""

    def __init__(self, step_ns=1):
        self.now_ns = 0
        self.step_ns = step_ns

    def __call__(self):
        self.now_ns += self.step_ns
        return self.now_ns


class FakeProfile:
    """Stands for torch.profiler; fails where told to."""

    def __init__(
        self, step_id="", *, detail=Detail.SHAPES, device_type="", fails_at=(), stop_ns=0, num_device_records=1
    ):
        self.step_id = step_id
        self.detail = detail
        self.device_type = device_type
        self.fails_at = fails_at
        self.stop_ns = stop_ns
        self._num_device_records = num_device_records
        self.calls = []
        self.spans = [step_id]

    def start(self):
        self._call("start")

    def enter(self, name):
        self.spans.append(name)
        if "enter" in self.fails_at:
            raise RuntimeError("enter failed")

    def leave(self):
        pass

    def stop(self):
        self._call("stop")

    def num_device_records(self):
        return self._num_device_records

    def export(self, path):
        self._call("export")
        path.write_text(f'{{"step": "{self.step_id}"}}')

    def _call(self, name):
        self.calls.append(name)
        if name in self.fails_at:
            raise RuntimeError(f"{name} failed")


@pytest.fixture
def profiles():
    """Every profile opened around a step in this test."""
    return []


@pytest.fixture
def warm_ups():
    """Every profile opened around no step."""
    return []


@pytest.fixture
def open_recorder(profiles, warm_ups):
    def open_recorder(
        drops,
        *,
        fails_at=(),
        is_taken=lambda worker: False,
        time_op=lambda: 0,
        injected=None,
        cupti_version=None,
        num_device_records=1,
        stop_ns=lambda detail: 0,
    ):
        def open_profile(step_id, *, detail, device_type, is_read=False):
            profile = FakeProfile(
                step_id,
                detail=detail,
                device_type=device_type,
                fails_at=fails_at,
                stop_ns=stop_ns(detail),
                num_device_records=num_device_records,
            )
            (warm_ups if step_id == "warm-up" else profiles).append(profile)
            return profile

        torch = Torch(
            open_profile=open_profile,
            is_taken=is_taken,
            time_op=time_op,
            load=lambda: None,
            launch_kernel=lambda worker: warm_ups[-1].calls.append("kernel"),
            has_cupti=lambda kind: kind == "cuda",
            cupti_version=lambda: cupti_version,
        )
        return Recorder(drops, torch=torch, find_injected=lambda: injected)

    return open_recorder


class EveryNth(NamedTuple):
    """Picks the last step of each block."""

    seed: str
    sample_every: int

    def next(self, first, level=0):
        length = self.sample_every << max(0, level)
        return first + (-first - 1) % length


@pytest.fixture
def open_watch(tmp_path, open_recorder):
    """Build a watch whose thread does not run: a test turns its outbox by hand."""

    def open_watch(
        *,
        fails_at=(),
        is_taken=lambda worker: False,
        records=True,
        off_reason=None,
        works_ahead=False,
        modes=("none", "none"),
        turn_ns=0,
        device_type="",
        recorder=None,
        model="its model was not looked at",
        **settings,
    ):
        settings = {"spool": tmp_path / "spool", "sample_every": 2, "overhead_budget_ratio": 1.0, **settings}
        return Watch(
            Server(server_id="server", rank=0, device_type=device_type),
            Settings(**settings),
            graph_modes=GraphModes(decode=GraphMode(modes[0]), mixed=GraphMode(modes[1]), max_tokens=64),
            records=records,
            off_reason=off_reason,
            works_ahead=works_ahead,
            model=model,
            open_recorder=lambda drops: open_recorder(drops, fails_at=fails_at, is_taken=is_taken, **(recorder or {})),
            now_ns=Clock(1000),
            unix_ns=Clock(),
            cpu_ns=Clock(turn_ns),
            draw=EveryNth,
        )

    return open_watch
