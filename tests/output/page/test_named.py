"""Kernels are called what a person calls them, and the names of the profiler stay beside that."""

from taxbreak_vllm.model.fusion import Chain, FusionReport
from taxbreak_vllm.model.timeline import Lane, StepTimeline
from taxbreak_vllm.output.page.named import NamedChains, NamedTimeline

RAW = "void at::native::vectorized_elementwise_kernel<8, at::native::FillFunctor<c10::BFloat16>>(int, float)"
SHORT = "vectorized_elementwise_kernel<FillFunctor>"


def test_kernels_of_chains_have_a_short_name():
    chain = Chain(kernels=(RAW, "copy"), length=2, count=3, first_count=3, score=1.0, is_maximal=True)
    report = FusionReport(
        min_score=1.0, kernels=6, unlinked=0, launches=6, kernels_after=3, launches_after=3, ideal_speedup=2.0,
        by_length=(), chains=(chain,),
    )  # fmt: skip

    named = NamedChains.of(report)

    assert named.words == {RAW: SHORT, "copy": "copy"}
    assert named.chains == report.chains


def test_kernels_of_a_timeline_have_a_short_name_and_ops_their_own():
    def lane(title, name):
        return Lane(title=title, kinds=("k",), start_ns=(0,), length_ns=(9,), kind=(0,), name=(name,))

    timeline = StepTimeline(
        step="a", device_type="cuda", window_ns=9, device_window_ns=9, drawn_ns=9,
        lanes=(lane("ops", 0), lane("kernels, stream 7", 1), lane("kernels, stream 8", -1)), names=("aten::mm", RAW),
    )  # fmt: skip

    named = NamedTimeline.of(timeline)

    assert named.words == ("aten::mm", SHORT)
    assert named.names == timeline.names
