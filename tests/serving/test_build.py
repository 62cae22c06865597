"""What a server is built of is told in strings that two starts share, two settings do not, and no fault can stop."""

import dataclasses
import enum
import re
import sys
from types import SimpleNamespace

import pytest

from taxbreak_vllm.serving import build


class Mode(enum.Enum):
    EAGER = 0
    GRAPHS = 1


@dataclasses.dataclass
class Passes:
    fuse: bool = True


class Scheduler:
    pass


def config(**changes):
    """Stand for a VllmConfig, `section__field` changed; every call makes new objects, as another start does."""
    sections = {
        "model_config": {"model": "/home/user/model", "dtype": "float16", "quantization": None},
        "cache_config": {"block_size": 16, "num_gpu_blocks": 1000},
        "parallel_config": {"rank": 0, "master_port": 1234, "distributed_executor_backend": Scheduler},
        "scheduler_config": {"max_num_seqs": 8, "async_scheduling": True, "scheduler_cls": Scheduler()},
        "compilation_config": {"cudagraph_mode": Mode.GRAPHS, "pass_config": Passes(), "custom_ops": ["none"]},
        "additional_config": {"key": "secret"},
    }
    for change, value in changes.items():
        section, _, field = change.partition("__")
        sections[section][field] = value
    return SimpleNamespace(
        instance_id=str(id(sections)), **{name: SimpleNamespace(**fields) for name, fields in sections.items()}
    )


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)


def test_two_starts_with_the_same_settings_have_one_hash():
    assert build.settings_hash(config()) == build.settings_hash(config())
    assert len(build.settings_hash(config())) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"scheduler_config__async_scheduling": False},
        {"scheduler_config__max_num_seqs": 16},
        {"compilation_config__cudagraph_mode": Mode.EAGER},
        {"compilation_config__pass_config": Passes(fuse=False)},
        {"parallel_config__distributed_executor_backend": "mp"},
        {"cache_config__block_size": 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_that_steps_depend_on_is_another_hash(change):
    assert build.settings_hash(config(**change)) != build.settings_hash(config())


def test_a_variable_that_steps_depend_on_is_another_hash(monkeypatch):
    before = build.settings_hash(config())
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")

    assert build.settings_hash(config()) != before


@pytest.mark.parametrize(
    "change",
    [
        {"model_config__model": "/mnt/elsewhere"},
        {"parallel_config__rank": 3},
        {"parallel_config__master_port": 4321},
        {"cache_config__num_gpu_blocks": 999},
        {"additional_config__key": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_paths_keys_ports_ranks_and_what_free_memory_decides_are_no_part_of_it(change):
    assert build.settings_hash(config(**change)) == build.settings_hash(config())


def test_a_configuration_that_cannot_be_read_is_not_known_and_raises_nothing():
    class Broken:
        @property
        def model_config(self):
            raise RuntimeError("no")

    assert build.settings_hash(Broken()) == ""


@pytest.mark.parametrize("section", build._SECTIONS)
def test_every_setting_named_is_one_of_vllm_s(vllm_source, section):
    text = vllm_source.text(f"config/{section.removesuffix('_config')}.py")

    assert set(build._SECTIONS[section]) <= set(re.findall(r"^    (\w+): ", text, flags=re.MULTILINE))


@pytest.fixture
def torch(monkeypatch):
    """Stands for a torch built for CUDA, whose GPU has a UUID."""
    properties = SimpleNamespace(uuid="0f1e2d3c-0000-1111-2222-333344445555")
    stand_in = SimpleNamespace(
        version=SimpleNamespace(cuda="12.9", hip=None),
        cuda=SimpleNamespace(get_device_properties=lambda device: properties),
    )
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    return stand_in


def test_a_gpu_is_named_as_dcgm_names_it(torch):
    assert build.device_uuid(SimpleNamespace(type="cuda")) == "GPU-0f1e2d3c-0000-1111-2222-333344445555"
    assert build.device_uuid(SimpleNamespace(type="cpu")) == ""
    assert build.device_uuid(None) == ""


def test_a_torch_that_knows_no_uuid_or_fails_over_it_leaves_it_unknown(torch):
    torch.cuda.get_device_properties = lambda device: SimpleNamespace()
    assert build.device_uuid(SimpleNamespace(type="cuda")) == ""

    torch.cuda = None
    assert build.device_uuid(SimpleNamespace(type="cuda")) == ""


def test_the_runtime_is_cuda_s_version_or_hip_s_or_not_known(torch):
    assert build.runtime_version() == "12.9"

    torch.version = SimpleNamespace(cuda=None, hip="6.4.1")
    assert build.runtime_version() == "hip 6.4.1"
    assert build.device_uuid(SimpleNamespace(type="cuda")) == ""

    torch.version = SimpleNamespace(cuda=None, hip=None)
    assert build.runtime_version() == ""


def test_the_host_of_a_pod_is_its_node(monkeypatch):
    monkeypatch.delenv("NODE_NAME", raising=False)
    own = build.host_name()
    monkeypatch.setenv("NODE_NAME", "gpu-node-7")

    assert own
    assert build.host_name() == "gpu-node-7"
