"""Kernels' names as a person would say them, on those of all given traces and on what no profiler writes."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxbreak_vllm.output.kernel_names import kernel_name

TRACES = Path(__file__).parents[3] / "shared" / "traces"

NEG = "at::native::neg_kernel_cuda(at::TensorIteratorBase&)::{lambda()#2}::operator()() const::{lambda(float)#1}"
ELEMENTWISE = (
    "void at::native::vectorized_elementwise_kernel<4, {}, std::array<char*, 2ul> >(int, {}, std::array<char*, 2ul>)"
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "std::enable_if<(((8)>(0)))&&vllm::_typeConvert<c10::BFloat16>::exists, void>::type"
            " vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>(c10::BFloat16*, c10::BFloat16*, float, int)",
            "fused_add_rms_norm_kernel",
        ),
        (
            "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>(int, float)",
            "vectorized_layer_norm_kernel",
        ),
        ("void (anonymous namespace)::softmax_warp_forward<float, 10, true>(float*, int)", "softmax_warp_forward"),
        ("cuda::aux_fi_impl(long const*, float*, int)", "aux_fi_impl"),
        (
            ELEMENTWISE.format(
                *["at::native::AUnaryFunctor<float, at::native::binary_internal::MulFunctor<float> >"] * 2
            ),
            "vectorized_elementwise_kernel<MulFunctor>",
        ),
        (
            ELEMENTWISE.format(NEG, NEG),
            "vectorized_elementwise_kernel<neg_kernel_cuda>",
        ),
        (
            "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl<at::native::CUDAFunctor_add<float>"
            " >(at::TensorIteratorBase&, at::native::CUDAFunctor_add<float> const&)::{lambda(int)#2}>(int)",
            "elementwise_kernel<CUDAFunctor_add>",
        ),
        ("void at::native::vectorized_elementwise_kernel<4>", "vectorized_elementwise_kernel"),
        (
            "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_32x1_nn_align1>(Params)",
            "cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_32x1_nn_align1",
        ),
        (
            "void cutlass::device_kernel<flash::FlashAttnBwd<cute::tuple<cute::C<64> > > >(int)",
            "device_kernel<FlashAttnBwd>",
        ),
        (
            "_ZN7ck_tile6kentryILi1ENS_12Rmsnorm2dFwdINS_27Rmsnorm2dFwdPipelineOnePassEEEJEEEvDpT1_",
            "kentry<Rmsnorm2dFwd>",
        ),
        ("_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDF16bLi256EEEvPT_", "add_rmsnorm_quant_kernel"),
        ("_Z12plain_kernelPfi", "plain_kernel"),
        (
            "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT256x48x64_MI16x16x1_SN_LDSB1_ISA942_WG64_4_1",
            "Cijk_Alik_Bljk_BBS MT256x48x64",
        ),
        ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH (Device -> Pinned)"),
        ("triton_poi_fused_add_mul_0", "triton_poi_fused_add_mul_0"),
        ("volta_sgemm_64x64_nn", "volta_sgemm_64x64_nn"),
        ("", ""),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    ],
)
def test_a_name_is_said_as_a_person_would(name, said):
    assert kernel_name(name) == said


def _kernels(path):
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return {event["name"] for event in events if event.get("cat") == "kernel"}


@pytest.mark.skipif(not TRACES.is_dir(), reason="the given traces are not here")
def test_the_kernels_of_all_given_traces_are_said_in_a_word_or_two():
    names = set().union(*(_kernels(path) for path in TRACES.glob("*.json.gz")))
    said = {name: kernel_name(name) for name in names}

    assert len(names) > 250
    odd = {
        name: word for name, word in said.items() if any(mark in word for mark in ("::", "(", "enable_if", "_ZN", ", "))
    }
    assert odd == {}
    assert sorted(map(len, said.values()))[len(said) * 9 // 10] <= 70


@given(st.text(alphabet="<>(){}[]:, _ZNIEabc019&*-", max_size=200))
def test_whatever_a_file_holds_is_said_and_is_never_longer(name):
    said = kernel_name(name)

    assert len(said) <= max(len(name), 1)
    assert bool(said) == bool(name)
