"""The meter of energy: states in a spool and a GPU's counter in; joules per token, the metric, and reasons out."""

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from taxbreak_vllm.machine.nvml import NoEnergy
from taxbreak_vllm.model.step import Server
from taxbreak_vllm.model.worker import WorkerState
from taxbreak_vllm.service.app import create_app
from taxbreak_vllm.service.metrics.energy import EnergyCollector
from taxbreak_vllm.service.metrics.exposition import Exposition
from taxbreak_vllm.service.processes.energy import EnergyMeter

S = 10**9
WATTS = 700
SERVER = Server(server_id="vllm-a", model_name="tiny", device_type="cuda", device_uuid="GPU-a")


class Gpus:
    """Counters that grow by 700 W with a clock, unless they are told to say something else."""

    def __init__(self, clock):
        self._clock = clock
        self._since_ns = clock()
        self.said = {}

    def energy_mj(self, uuid):
        return self.said.get(uuid, (self._clock() - self._since_ns) * WATTS // 10**6)


class Place:
    """A spool whose workers put out so many tokens a second, and its meter."""

    def __init__(self, spool, clock):
        self.spool, self.clock, self.gpus = spool, clock, Gpus(clock)
        self.meter = EnergyMeter(spool, energy_mj=self.gpus.energy_mj, now_ns=clock)
        self.num_tokens = 0

    def run(self, seconds, *servers, tokens_a_second=100, **fields):
        for _ in range(seconds):
            self.num_tokens += tokens_a_second
            said = {"started_unix_ns": 1, "updated_unix_ns": self.clock(), "num_sampled": self.num_tokens} | fields
            for server in servers or [SERVER]:
                self.spool.put_state(WorkerState(server=server, enabled=True, **said))
            self.clock.sleep_s(0.4)
            self.meter.turn()
            self.clock.sleep_s(0.6)
        return list(self.meter.told())


@pytest.fixture
def place(spool, clock):
    return Place(spool, clock)


def series(meter):
    text, _ = Exposition(EnergyCollector(meter.joules)).write("")
    samples = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    return {sample.labels["rank"]: sample.value for sample in samples if sample.name == "taxbreak_energy_joules_total"}


def test_joules_per_token_are_those_of_the_last_ten_seconds(place):
    (told,) = place.run(14)
    assert (told.server_id, told.engine, told.reason) == ("vllm-a", "0", None)
    assert told.window_ns == 10 * S
    assert told.output_tokens == 1000
    assert told.joules == pytest.approx(10 * WATTS, rel=1e-3)
    assert told.joules_per_token == pytest.approx(7.0, rel=1e-3)


def test_before_ten_seconds_there_is_a_reason(place):
    (told,) = place.run(9)
    assert (told.joules, told.joules_per_token) == (None, None)
    assert "10 s" in told.reason


def test_ranks_of_one_engine_add_up_and_their_tokens_are_the_same(place):
    ranks = [replace(SERVER, rank=rank, device_uuid=f"GPU-{rank}") for rank in range(2)]
    (told,) = place.run(14, *ranks)
    assert told.output_tokens == 1000
    assert told.joules_per_token == pytest.approx(14.0, rel=1e-3)


def test_the_metric_is_what_each_worker_took_since_the_first_reading(place):
    ranks = [replace(SERVER, rank=rank, device_uuid=f"GPU-{rank}") for rank in range(2)]
    place.run(5, *ranks)
    assert series(place.meter) == pytest.approx({"0": 4 * WATTS, "1": 4 * WATTS}, rel=1e-3)


def test_a_gpu_that_two_servers_share_is_of_neither(place):
    told = place.run(14, SERVER, replace(SERVER, server_id="vllm-b"))
    assert [each.joules for each in told] == [None, None]
    assert all("shared by 2" in each.reason for each in told)
    assert series(place.meter) == {}


@pytest.mark.parametrize("reason", ["GPU-a is parted by MIG, and its energy is known as a whole alone", "GPU is lost"])
def test_what_nvml_does_not_tell_is_null_with_its_reason_until_it_does(place, reason):
    place.run(14)
    place.gpus.said["GPU-a"] = NoEnergy(reason)
    (told,) = place.run(1)
    assert (told.joules, told.reason) == (None, reason)
    del place.gpus.said["GPU-a"]
    (told,) = place.run(9)
    assert "10 s" in told.reason
    (told,) = place.run(4)
    assert told.joules_per_token == pytest.approx(7.0, rel=1e-3)


def test_a_counter_that_begins_anew_is_null_and_adds_nothing(place):
    place.run(14)
    before = series(place.meter)
    place.gpus.said["GPU-a"] = 5
    (told,) = place.run(1)
    assert told.reason == "the energy counter of GPU-a began anew"
    assert series(place.meter) == before


def test_drafts_leave_the_tokens_unknown(place):
    (told,) = place.run(14, num_sampled=None)
    assert told.output_tokens is None
    assert "drafts" in told.reason


@pytest.mark.parametrize("uuid", ["", "MIG-1"])
def test_a_device_without_a_counter_has_a_reason(place, uuid):
    (told,) = place.run(1, replace(SERVER, device_uuid=uuid))
    assert "no GPU whose energy NVML tells" in told.reason


def test_a_server_that_went_is_told_no_more(place):
    place.run(14)
    place.clock.sleep_s(60)
    place.meter.turn()
    assert place.meter.told() == []


def test_the_sidecar_tells_it_in_its_status(settings, clock):
    with TestClient(create_app(settings, now_ns=clock)) as client:
        assert client.get("/v1/taxbreak/status").json()["energy"] == []
