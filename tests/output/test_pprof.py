"""Profiles as pprof reads them: decoded by protobuf from the public profile.proto, and by `go tool pprof` if here."""

import gzip
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from taxbreak_vllm.insight.findings import Findings
from taxbreak_vllm.model.errors import TaxbreakError
from taxbreak_vllm.output.pprof import Pprof
from taxbreak_vllm.taxes.analyze import choose
from taxbreak_vllm.taxes.recording import Recording

SERVING = Path(__file__).parents[1] / "data" / "serving.json"

# google/pprof, proto/profile.proto: name, type (a message of its own, or a scalar), number; * is repeated.
PROFILE_PROTO = {
    "ValueType": "type int64 1, unit int64 2",
    "Label": "key int64 1, str int64 2, num int64 3, num_unit int64 4",
    "Sample": "location_id* uint64 1, value* int64 2, label* Label 3",
    "Line": "function_id uint64 1, line int64 2, column int64 3",
    "Location": "id uint64 1, mapping_id uint64 2, address uint64 3, line* Line 4, is_folded bool 5",
    "Function": "id uint64 1, name int64 2, system_name int64 3, filename int64 4, start_line int64 5",
    "Profile": "sample_type* ValueType 1, sample* Sample 2, location* Location 4, function* Function 5,"
    " string_table* string 6, drop_frames int64 7, keep_frames int64 8, time_nanos int64 9, duration_nanos int64 10,"
    " period_type ValueType 11, period int64 12, comment* int64 13, default_sample_type int64 14, doc_url int64 15",
}


def _profile_class():
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="perftools", syntax="proto3")
    for message_name, text in PROFILE_PROTO.items():
        message = file.message_type.add(name=message_name)
        for words in text.split(","):
            name, kind, number = words.split()
            is_message = kind in PROFILE_PROTO
            message.field.add(
                name=name.rstrip("*"),
                number=int(number),
                label=field.LABEL_REPEATED if name.endswith("*") else field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if is_message else getattr(field, f"TYPE_{kind.upper()}"),
                type_name=f".perftools.{kind}" if is_message else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("perftools.Profile"))


PROFILE = _profile_class()


class Profile:
    """A profile as a reader sees it; every reference in it is checked."""

    def __init__(self, data):
        self.message = PROFILE.FromString(gzip.decompress(data))
        self.texts = list(self.message.string_table)
        assert self.texts[0] == ""
        assert len(set(self.texts)) == len(self.texts)
        self.types = [(self.texts[t.type], self.texts[t.unit]) for t in self.message.sample_type]
        functions = {function.id: function for function in self.message.function}
        self.function_of = {place.id: functions[place.line[0].function_id] for place in self.message.location}
        assert 0 not in self.function_of
        self.samples = [
            (
                tuple(self.texts[self.function_of[place].name] for place in sample.location_id),
                tuple(sample.value),
                {self.texts[label.key]: self.texts[label.str] or label.num for label in sample.label},
            )
            for sample in self.message.sample
        ]
        assert {len(values) for _, values, _ in self.samples} <= {len(self.types)}

    def sums(self):
        return [sum(column) for column in zip(*(values for _, values, _ in self.samples), strict=True)]


def findings(recording, **chosen):
    return Findings(recording, choose(recording.breakdown, **chosen))


@pytest.fixture
def made(real_trace):
    """Make the profile of a trace, or of steps chosen of it; gives it and the breakdown."""

    def made(name, **chosen):
        path = name if isinstance(name, Path) else real_trace(name)
        file = Pprof()
        with Recording.open(path, with_frames=True) as recording:
            file.add(findings(recording, **chosen))
            return Profile(file.to_bytes()), recording.breakdown

    return made


def test_both_sample_types_sum_to_the_breakdown(made):
    profile, breakdown = made("h100_hf_bert-small_infer")

    assert profile.types == [("delta_ft", "nanoseconds"), ("delta_ft_exposed", "nanoseconds")]
    assert profile.sums() == [breakdown.total.taxes.delta_ft_ns, breakdown.total.exposed.delta_ft_ns]
    assert profile.texts[profile.message.default_sample_type] == "delta_ft"


def test_a_function_has_its_file_and_line(made):
    profile, _ = made("h100_hf_bert-small_infer")
    functions = {profile.texts[function.name]: function for function in profile.message.function}

    call = functions["torch/nn/modules/module.py(1743): _call_impl"]
    assert (profile.texts[call.filename], call.start_line) == ("torch/nn/modules/module.py", 1743)
    assert profile.texts[functions["aten::addmm"].filename] == ""


def test_samples_are_labelled_by_phase_and_number_of_steps(made):
    profile, breakdown = made(SERVING)
    ft_ns = Counter()
    for stack, values, labels in profile.samples:
        assert stack[-1] == labels["phase"]
        ft_ns[labels["phase"], labels["steps"]] += values[0]

    expected = Counter()
    for step in breakdown.steps:
        expected[step.phase.value] += step.taxes.delta_ft_ns
    assert ft_ns == {("prefill", 1): expected["prefill"], ("decode", 3): expected["decode"]}


def test_only_the_steps_that_are_shown_are_in_it(made):
    profile, breakdown = made(SERVING, step="1")

    assert profile.sums()[0] == breakdown.steps[1].taxes.delta_ft_ns
    assert {labels["steps"] for _, _, labels in profile.samples} == {1}


def test_several_recordings_tell_which_is_which(real_trace):
    file = Pprof()
    for path in (SERVING, real_trace("h100_hf_bert-small_infer")):
        with Recording.open(path) as recording:
            file.add(findings(recording))

    profile = Profile(file.to_bytes())

    assert {labels["recording"] for _, _, labels in profile.samples} == {
        "serving.json",
        "h100_hf_bert-small_infer.json.gz",
    }


def test_what_is_not_known_is_no_sample_and_the_reason_is_a_comment(made, reference, tmp_path):
    path = tmp_path / "lost.json"
    calls = [reference.call("cudaLaunchKernel", at, at + 5, at) for at in range(10, 90, 10)]
    path.write_text(reference.to_json([reference.op("a", 0, 100), *calls, reference.kernel("k", 15, 20, 10)]))

    profile, _ = made(path)

    assert profile.samples == []
    assert "left no activity" in profile.texts[profile.message.comment[0]]


def test_a_disk_that_refuses_is_one_error(tmp_path):
    with pytest.raises(TaxbreakError, match="cannot write"):
        Pprof().write(tmp_path / "none" / "profile.pb.gz")


@pytest.mark.skipif(shutil.which("go") is None, reason="no go here, so no go tool pprof")
def test_go_tool_pprof_reads_it(taxbreak, real_trace, tmp_path):
    target = tmp_path / "profile.pb.gz"
    taxbreak("analyze", real_trace("h100_hf_bert-small_infer"), "--pprof", target)

    done = subprocess.run(["go", "tool", "pprof", "-top", str(target)], capture_output=True, text=True, check=True)

    assert "Total samples = 2472.74us" in done.stdout
    assert "torch/nn/modules/module.py(1743): _call_impl" in done.stdout
