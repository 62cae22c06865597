"""Costs that are known because we put them there: each shows where the methodology says, and nowhere else."""

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import median

import pytest

torch = pytest.importorskip("torch", reason="replay needs torch")

from taxbreak_vllm.baselines.store import Baselines  # noqa: E402
from taxbreak_vllm.model.baseline import Outcome  # noqa: E402
from taxbreak_vllm.replay.plan import plan  # noqa: E402
from taxbreak_vllm.replay.runner import Limits, run  # noqa: E402
from taxbreak_vllm.replay.task import Options, Task  # noqa: E402
from taxbreak_vllm.taxes.analyze import analyze  # noqa: E402 - after the check for torch
from taxbreak_vllm.trace.calls import Call, Input, Kernel  # noqa: E402
from taxbreak_vllm.trace.kernels import KernelRules  # noqa: E402

pytestmark = pytest.mark.timeout(300)

NUM_STEPS = 60
# On a GPU the one kernel that a replay shows is the one wanted, whatever it is called.
KERNELS = {"cpu": (Kernel(),), "cuda": (Kernel("neg_kernel"),)}
PATIENCE_S = 120
RULES = """
metadata_ops = ""
[[op]]
pattern = "slow::library"
family = "gemm"
i_lib = true
reason = "pays a front-end"
[[op]]
pattern = "slow::"
family = "other"
reason = "the others"
[[kernel]]
pattern = "exp_kernel"
family = "gemm"
i_lib = true
reason = "what slow::library launches"
[[kernel]]
pattern = "kernel"
family = "elementwise"
reason = "the others"
"""


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees")],
        ),
    ]
)
def device(request):
    return request.param


@dataclass(frozen=True, slots=True)
class Waits:
    """What an op waits, none first, and how far what does not wait may move."""

    each_us: tuple[int, ...]
    others_ns: int


@pytest.fixture(
    params=[
        pytest.param(Waits((0, 100), 10_000), id="100 µs, on any machine"),
        pytest.param(Waits((0, 5, 20, 100), 1_000), id="from 5 µs on", marks=pytest.mark.nightly),
    ]
)
def waits(request):
    return request.param


@pytest.fixture
def own_rules(tmp_path):
    (tmp_path / "rules.toml").write_text(RULES)
    return KernelRules.load(tmp_path / "rules.toml")


@dataclass(frozen=True)
class Samples:
    """What was seen at each wait, ns, in rounds that took each wait once."""

    by_wait: dict[int, list[int]]

    def rise(self, us):
        """Compare within each round, so that a machine that slowly changes its pace cancels out."""
        return median(v - without for v, without in zip(self.by_wait[us], self.by_wait[0], strict=True))


def assert_only(samples, field, waits):
    """One field rises by the wait, within 10 % or 1 µs, and all others stay."""
    for us in waits.each_us[1:]:
        for name, found in samples.items():
            wanted, bound_ns = (us * 1000, max(100 * us, 1000)) if name == field else (0, waits.others_ns)
            assert found.rise(us) == pytest.approx(wanted, abs=bound_ns), name


def holds(sample, check):
    """Sample again where the check fails: other load comes and goes, what we measure wrongly is wrong every time."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        with suppress(AssertionError):
            return check(sample())
    return check(sample())


def test_the_replayed_dispatch_rises_by_what_the_op_waits_before_its_work(children, device, waits):
    child = children(device)

    def sample():
        found = {us: [] for us in waits.each_us}
        for _ in range(7):
            for us in waits.each_us:
                call = Call("slow::wait", (Input("float", (1024,), (1,)), Input("Scalar", value=str(us))))
                (entry,) = child.serve(Task(call=call, kernels=KERNELS[device]), 30).entries
                assert entry.outcome is Outcome.MEASURED, entry.reason
                found[us].append(entry.dispatch.median_ns)
        return {"dispatch": Samples(found)}

    holds(sample, lambda samples: assert_only(samples, "dispatch", waits))


@pytest.fixture
def figures(slow_ops, device, own_rules, waits, tmp_path):
    """Record steps that take turns at each wait; return the figures of a step, by wait, through `read`."""

    def figures(step, read, **analyzed):
        names = [(us, f"{us}us.{number}") for number in range(NUM_STEPS) for us in waits.each_us]
        path = tmp_path / "trace.json"
        slow_ops.record(path, [(name, lambda us=us: step(us)) for us, name in names], device)
        store = analyzed.pop("store", lambda _: None)(path)
        steps = {found.name: read(found) for found in analyze(path, rules=own_rules, baselines=store).steps}
        fields = next(iter(steps.values()))
        return {
            field: Samples({us: [steps[name][field] for at, name in names if at == us] for us in waits.each_us})
            for field in fields
        }

    return figures


def host(step):
    return {name: getattr(step.host, f"{name}_ns") for name in ("python", "dispatch", "library", "launch", "runtime")}


def test_python_between_ops_is_python_time_and_nothing_else(slow_ops, device, figures, waits):
    x = torch.ones(1024, device=device)

    def step(us):
        torch.neg(x, out=x)
        slow_ops.busy(us)
        torch.neg(x, out=x)

    holds(lambda: figures(step, host), lambda samples: assert_only(samples, "python", waits))


def test_a_wait_around_another_op_is_dispatch_in_the_trace_too(slow_ops, device, figures, waits):
    x = torch.ones(1024, device=device)

    step = partial(torch.ops.slow.nested, x)

    holds(lambda: figures(step, host), lambda samples: assert_only(samples, "dispatch", waits))


def test_a_librarys_front_end_is_delta_ct_and_not_delta_ft(
    request, children, device, figures, own_rules, waits, tmp_path
):
    x = torch.ones(1024, device=device)

    def step(us):
        torch.ops.slow.wait(x, 0)
        torch.ops.slow.library(x, us)

    def replayed(path):
        store = Baselines(tmp_path / f"{path.stat().st_mtime_ns}.sqlite3")
        request.addfinalizer(lambda: store.__exit__(None, None, None))
        options = Options(device=device, modules=("slow_ops",))
        tasks = plan([path], rules=own_rules).tasks
        assert run(tasks, store, options, Limits(), open_child=lambda _: children(device)) == 0
        return store

    def read(step):
        return {"ft": step.taxes.delta_ft_ns, "ct": step.taxes.delta_ct_ns, "library": step.host.library_ns}

    def check(samples):
        assert_only({name: samples[name] for name in ("ft", "ct")}, "ct", waits)
        assert_only({"library": samples["library"]}, "library", waits)

    holds(lambda: figures(step, read, store=replayed), check)
