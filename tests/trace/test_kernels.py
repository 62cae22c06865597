"""Kernel names as profilers write them, against the families and I_lib they stand for."""

import gzip
import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from taxbreak_vllm.model.errors import SettingsError
from taxbreak_vllm.trace.kernels import Family, KernelRules

LLM_TRACES = ("vllm", "sglang", "deepseek", "bert")

# Family, "+" where the kernel is reached through a vendor library, and the name; "@" stands for "at::native::".
KERNEL_TABLE = r"""
# the runtime's copies
copy          Memcpy HtoD (Pinned -> Device)
copy          Memcpy DtoD (Device -> Device)
copy          Memset (Device)
copy          CopyDeviceToHost
copy          __amd_rocclr_fillBufferAligned
# Inductor
attention     triton_tem_fused__scaled_dot_product_flex_attention_3
attention     triton_flex_attention
gemm          triton_tem_fused_addmm_relu_12
gemm          triton_mm_17
norm          triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_5
norm          triton_per_fused_add_native_layer_norm_2
norm          triton_red_fused__to_copy_add_embedding_mean_mul_pow_rsqrt_0
rope          triton_poi_fused__to_copy_add_cat_mul_neg_slice_unsqueeze_4
rope          triton_poi_fused_cos_mul_sin_1
sampling      triton_red_fused_argmax_3
activation    triton_poi_fused_mul_silu_slice_1
activation    triton_poi_fused_mul_silu_split_with_sizes_2
activation    triton_poi_fused_gelu_3
embedding     triton_poi_fused_embedding_0
embedding     triton_poi_fused_bitwise_and_embedding_ge_lt_masked_fill_0
quantization  triton_poi_fused_clamp_mul_static_scaled_fp8_quant_7
reduction     triton_red_fused_sum_0
reduction     triton_per_fused__softmax_4
reduction     triton_per_fused_1
elementwise   triton_poi_fused_add_bitwise_and_bitwise_not_bitwise_or_ge_lt_mul_sub_0
elementwise   triton_poi_fused_add_convolution_9
copy          triton_poi_fused_constant_pad_nd_moe_forward_0
copy          triton_poi_fused__to_copy_1
copy          triton_poi_fused_cat_view_6
elementwise   triton_poi_fused_0
elementwise   triton_for_fused_3
# PyTorch
copy          @(anonymous namespace)::multi_tensor_apply_kernel<@TensorListMetadata<2>, @CopyFunctor<int, long, 2> >
elementwise   @(anonymous namespace)::multi_tensor_apply_kernel<@TensorListMetadata<4>, @FusedAdamMathFunctor<float, 4>
norm          @(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>
norm          @(anonymous namespace)::RowwiseMomentsCUDAKernel<float, float, c10::BFloat16>
norm          @batch_norm_transform_input_kernel<float, float, float, true, int>
activation    @vectorized_elementwise_kernel<4, @GeluCUDAKernelImpl(at::TensorIteratorBase&, @GeluType)::{lambda()#2}
activation    @vectorized_elementwise_kernel<4, @(anonymous namespace)::silu_kernel(at::TensorIteratorBase&)::{lambda()#
activation    @vectorized_elementwise_kernel<4, @threshold_kernel_impl<float>(at::TensorIteratorBase&, float, float)
activation    _ZN2at6native29vectorized_elementwise_kernelILi4EZZZNS0_12_GLOBAL__N_111silu_kernelERNS_18TensorIteratorBa
embedding     @(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long, unsigned int, 2, 2, -2, true>
embedding     @vectorized_gather_kernel<16, long>(char*, char*, long*, int, long, long, long, long, bool)
sampling      @reduce_kernel<512, 1, @ReduceOp<float, @ArgMaxOps<float>, unsigned int, long, 4, 4> >
sampling      @(anonymous namespace)::distribution_elementwise_grid_stride_kernel<float, 4, @exponential_kernel<
copy          @elementwise_kernel<128, 4, @gpu_kernel_impl_nocast<@direct_copy_kernel_cuda(at::TensorIteratorBase&)::{la
copy          @vectorized_elementwise_kernel<4, @FillFunctor<float>, std::array<char*, 1ul> >
copy          @(anonymous namespace)::CatArrayBatchedCopy_contig<@(anonymous namespace)::OpaqueType<2u>, 3, 128>
copy          @index_elementwise_kernel<128, 4, @gpu_index_kernel<@index_put_kernel_impl<
reduction     @(anonymous namespace)::cunn_SoftMaxForward<8, c10::BFloat16, float, c10::BFloat16>
reduction     @sbtopk::gatherTopK<float, unsigned int, 2, false>
reduction     @reduce_kernel<512, 1, @ReduceOp<float, @NormTwoOps<float, float>, unsigned int> >
reduction     @(anonymous namespace)::max_pool_forward_nchw<float, float>
elementwise   @vectorized_elementwise_kernel<4, @CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul> >
elementwise   @(anonymous namespace)::fused_dropout_kernel_vec<float, float, unsigned int, 1, 4, bool>
elementwise   @(anonymous namespace)::upsample_nearest1d_out_frame<c10::BFloat16>
elementwise   void (anonymous namespace)::elementwise_kernel_with_index<int, at::native::arange_cuda_out
# collectives
collective    ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)
collective    ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)
collective    void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*)
collective    void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16, 16>
collective    void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<(AllReduceFusionPattern)
collective    void deep_ep::internode_ll::dispatch<false, false, 7168>
# position, cache
rope          void vllm::rotary_embedding_kernel<c10::BFloat16, true>(long const*, c10::BFloat16*)
rope          void flashinfer::BatchQKApplyRotaryPosIdsCosSinCacheHeadParallelismKernel<false, 128u, 8u, 16u>
rope          void (anonymous namespace)::fused_rope_store_kernel<true, 128l, true, __nv_bfloat16, long, 16u>
rope          _fused_qk_norm_rope_kernel
kv-cache      void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, unsigned char, (vllm::Fp8KVCacheDataType)1>
kv-cache      void vllm::concat_and_cache_mla_kernel<__nv_bfloat16, __nv_bfloat16, (vllm::Fp8KVCacheDataType)0>
kv-cache      create_flashinfer_kv_indices_triton
kv-cache      _copy_page_indices_kernel
kv-cache      alloc_decode_kernel
# attention
attention+    cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0
attention     void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, 128, 4, false, false>
attention     void flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4>
attention     void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::CollectiveMainloopF
attention     void flashinfer::BatchPrefillWithPagedKVCacheKernel<flashinfer::KernelTraits<(flashinfer::MaskMode)1
attention     void flashinfer::PersistentVariableLengthMergeStatesKernel<8u, 16u, 8u, 4u, __nv_bfloat16>
attention     fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t
attention     fmhaSm100aKernel_QkvE4m3OBfloat16H64PagedKvCausalP16VarSeqQ128Kv128PersistentContext
attention     void vllm::paged_attention_v2_kernel<unsigned short, unsigned short, 128, 16, 128, (vllm::Fp8KVCacheDataTy
attention     void flash_fwd_splitkv_mla_kernel<Flash_fwd_kernel_traits_mla<576, 64, 64, 8, cutlass::bfloat16_t>
attention     void deep_gemm::sm90_fp8_mqa_logits<64u, 128u>
attention     kernel_unified_attention_2d
attention     _qsa_mqa_paged_prefill_kernel
attention     _fwd_grouped_kernel_stage1
attention     _fwd_kernel
attention     _ZN5aiter42pa_bf16_pertokenFp8_gqa10_1tg_4w_mtp3_msk1E
attention     chunk_gated_delta_rule_fwd_kernel_h_blockdim64
attention     _selective_scan_update_kernel
# mixture of experts
moe           _fwd_kernel_ep_scatter_1
moe+          void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tu
moe+          _ZN2ck15kernel_moe_gemmINS_25GridwiseMoeGemmBlockScaleINS_13tensor_layout4gemm
moe           bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x16x256u2_s3_et128x16_tma_tmaOpt_clmp_swiGlu_dynBatch_sm100f
moe           void deep_gemm::sm90_fp8_gemm_1d2d_impl<0u, 4096u, 7168u, 1u, 64u, 128u, 128u, (deep_gemm::GemmType)2>
moe           fused_moe_kernel
moe           void vllm::moe::topkGatingSoftmax<8, 128, 4, 16, 32, int>
moe           void vllm::moe::moe_align_block_size_kernel<int>(int const*, int*)
moe           void moe::dev::finalize::finalizeKernel<moe::dev::finalize::KernelParams<cutlass::bfloat16_t, 4, true> >
moe           void marlin_moe_wna16::Marlin<1125899906909960l, 1125899907892224l>
moe           _ZN5aiter50fmoe_bf16_pertokenMXfp4_g1u1_flat_novs_silu_16x128E
moe           _matmul_ogs_NNT_bf16xbf16xmxfp4_128x128x128x1_swiglu
moe           kernel_cutlass_kernel_b12xmoe_sharedkernelsw4a16kernelW4A16TopKSumKernel_object_at__tensorptrf1
moe           cuda::expand_to_fused_with_scales_impl(int4 const*, int4*, float const*)
# library GEMMs and convolutions
gemm+         nvjet_tst_64x64_64x16_2x1_2cta_v_bz_bias_TNT
gemm+         nvjet_sm103_tst_32x64_64x16_4x1_v_bz_splitK_TNN
norm+         void cudnn::bn_fw_tr_1C11_singleread<float, 512, true, 1, 2, 0>(cudnnTensorStruct, float const*)
norm+         MIOpenBatchNormFwdTrainSpatial
copy+         void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>
reduction+    void cudnn::pooling_fw_4d_kernel<float, float, cudnn::averpooling_func<float>, 1, false>
elementwise+  void cudnn::ops::scalePackedTensor_kernel<float, float>(cudnnTensor4dStruct, float*, float)
gemm+         void cudnn::cnn::wgrad_alg0_engine<float, 128, 6, 7, 3, 3, 5, false, 512>(int, int, int, float const*)
gemm+         sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x32
gemm+         void implicit_convolve_sgemm<float, float, 1024, 6, 7, 3, 3, 5, 1, false, true, true>
gemm+         miopenSp3AsmConv_v30_3_1_gfx94x_fp32_f2x3_stride1
gemm+         sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_warpgroupsize1x1x1_execute_segment_k_off_kernel_
gemm+         ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn
gemm+         volta_fp16_s884gemm_fp16_128x128_ldg8_f2f_tn
gemm+         void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, false>
gemm+         std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, __nv_bfloat16>
gemm+         void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 2, 2, false, false>
gemm+         Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT256x192x64_MI16x16x1_SN_LDSB1
gemm+         void ck::kernel_gemm_xdl_cshuffle_v3<ck::GridwiseGemmMultiD_ABScale_xdl_cshuffle_v3<ck::tensor_layout
gemm+         void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_32x32_128x2_tn_align8>
gemm+         void cutlass::device_kernel<vllm::enable_sm90_or_later<cutlass::gemm::kernel::GemmUniversal<cute::tuple<in
copy          void dpsk::grouped_gemm::cuda::utils::transpose<512, 128, 4, 4>(unsigned char const*)
gemm          void cutlass::device_kernel<dpsk::grouped_gemm::cuda::fp8_ptp128c::GemmKernel>
gemm          void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 2112u, 7168u, (deep_gemm::GemmType)0>
# lists of tensors, outside at::native
reduction     void multi_tensor_apply_kernel<TensorListMetadata<1>, L2NormFunctor<float>, float*, float*, bool, int>
elementwise   void multi_tensor_apply_kernel<TensorListMetadata<4>, AdamFunctor<float>, float, float, float>
# GEMMs by hand
embedding     void fbgemm_gpu::permute_2D_data_kernel<false, int, int, decltype(nullptr)>
activation    _silu_mul_fp8_quant_deep_gemm
gemm          void marlin::Marlin<1125899906909960l, 1125899907892224l, 1125899906909960l>
gemm          awq_gemm_kernel
gemm          _ZN4vllm4gptq33gemm_half_q_half_gptq_4bit_kernelILb1ELi1EEEvPK6__halfPKj
gemm          void kgemm_4bit_inference_naive<__nv_bfloat16, 128, 16>
gemm          _w8a8_triton_block_scaled_mm
gemm          _lora_shrink_kernel
gemm          void wvSplitK_hf_sml_<__hip_bfloat16, 64, 4, 16, 8, 1, 1>
gemm          @(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float, int>
# layers
norm          void vllm::rms_norm_kernel<c10::BFloat16, 8, 2>(c10::BFloat16*, c10::BFloat16 const*)
norm          std::enable_if<(((8)>(0)))&&true, void>::type vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>
norm          void vllm::rms_norm_static_fp8_quant_kernel<c10::BFloat16, c10::Float8_e4m3fn, 8>
norm          kernel_cutlass_kernel_flashinfernormkernelsfused_add_rmsnormFusedAddRMSNormKernel_object_at__tensorptrbf16
norm          _ZN7ck_tile6kentryILi1ENS_12Rmsnorm2dFwdINS_27Rmsnorm2dFwdPipelineOnePassINS_27
norm          void flashinfer::norm::GemmaFusedAddRMSNormKernel<8u, __nv_bfloat16>
norm          _gemma_rmsnorm_kernel
norm          void (anonymous namespace)::fused_qknorm_warp<128l, true, __nv_bfloat16>
activation    void vllm::act_and_mul_kernel<c10::BFloat16, &(c10::BFloat16 vllm::silu_kernel<c10::BFloat16>)>
activation    void cuda::swiglu_forward_with_weight_and_per_token_cast_to_fp8_with_channels_impl<__nv_bfloat16>
quantization  void vllm::scaled_fp8_quant_kernel_strided<c10::BFloat16, c10::Float8_e4m3fn>
quantization  per_token_group_quant_8bit_kernel
quantization  void vllm::cvt_fp16_to_fp4<__nv_bfloat16, false>
quantization  awq_dequantize_kernel
# tokens in, tokens out
embedding     split_embedding_codegen_forward_unweighted_kernel<float, float, float, false, long, 1ul, 16ul>
sampling      void flashinfer::sampling::TopKTopPSamplingFromProbKernel<1024u, (cub::BlockScanAlgorithm)2>
sampling      _gumbel_sample_kernel
sampling      rejection_greedy_sample_kernel
sampling      apply_token_bitmask_inplace_kernel
sampling      void vllm::apply_repetition_penalties_kernel<float>
# the rest
copy          _copy_tensor_kernel
copy          void cuda::batched_transpose<512, 128, 1, 1>(unsigned char const*)
elementwise   void thrust::cuda_cub::core::_kernel_agent<thrust::cuda_cub::__parallel_for::ParallelForAgent<thrust::cuda
reduction     void cub::DeviceRadixSortOnesweepKernel<cub::DeviceRadixSortPolicy<long, int, int>::Policy800, false>
reduction     void (anonymous namespace)::softmax_warp_forward<c10::BFloat16, c10::BFloat16, float, 3, false, false>
elementwise   mhc_fused_tilelang_kernel
elementwise   _post_update_kernel
elementwise   void (anonymous namespace)::clamp_position_kernel<long>(long*, long const*, unsigned long)
# nothing to go by
other         triton__0d1d2d3d
other         my_kernel
"""

OP_TABLE = """
embedding     fbgemm::permute_2D_sparse_data
embedding     fbgemm::asynchronous_complete_cumsum
gemm          fbgemm::jagged_dense_bmm
gemm          fbgemm::f8f8bf16_rowwise
quantization  fbgemm::quantize_fp8_per_row
elementwise   aten::upsample_nearest2d
rope          _C::rotary_embedding
collective    c10d::allreduce_
collective    _C::shm_allreduce
kv-cache      _C::cpu_attn_reshape_and_cache
attention+    aten::scaled_dot_product_attention
attention+    aten::_scaled_dot_product_flash_attention_for_cpu
attention     _C::cpu_attention_with_kv_cache
attention     vllm::unified_attention_with_output
moe           _C::cpu_fused_moe
moe           vllm::moe_forward
gemm+         _C::onednn_mm
gemm+         mkldnn::_linear_pointwise
gemm+         aten::mm
gemm+         aten::addmm
gemm+         aten::bmm
gemm+         aten::linear
gemm+         aten::conv2d
gemm+         aten::mkldnn_convolution
gemm          _C::weight_packed_linear
norm          _C::fused_add_rms_norm
norm          aten::native_layer_norm
activation    _C::silu_and_mul
activation    aten::gelu
quantization  _C::dynamic_scaled_int8_quant
embedding     aten::embedding
embedding     aten::index_select
sampling      aten::argmax
sampling      aten::exponential_
copy          aten::copy_
copy          aten::cat
copy          aten::contiguous
reduction     aten::softmax
reduction     aten::_softmax
reduction     aten::norm
elementwise   aten::add_
elementwise   aten::normal_
norm          graph_0_cpp_fused__to_copy_add_mean_mul_pow_rsqrt_0
activation    cpp_fused_mul_silu_1
other         my::op
"""


def parse(table: str) -> dict[str, str]:
    rows = (line.split(maxsplit=1) for line in table.strip().splitlines() if not line.startswith("#"))
    return {name.replace("@", "at::native::"): family for family, name in rows}


KERNELS = parse(KERNEL_TABLE)
OPS = parse(OP_TABLE)


@cache
def rules() -> KernelRules:
    return KernelRules.load()


@cache
def device_time(path: Path) -> Counter[str]:
    trace = json.loads(gzip.decompress(path.read_bytes()), strict=False)
    time = Counter()
    for event in trace["traceEvents"]:
        if str(event.get("cat", "")).lower() in ("kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset"):
            time[event["name"]] += event.get("dur", 0)
    return time


def write(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "expected"), KERNELS.items(), ids=[name[:60] for name in KERNELS])
def test_kernel_has_its_family_and_i_lib(name, expected):
    kind = rules().classify(name)

    assert kind.family + "+" * kind.i_lib == expected, kind.reason


@pytest.mark.parametrize(("op", "expected"), OPS.items(), ids=OPS)
def test_op_has_its_family_and_i_lib(op, expected):
    kind = rules().classify_op(op)

    assert kind.family + "+" * kind.i_lib == expected, kind.reason


def test_every_rule_is_the_first_to_match_some_name():
    kernels = {id(rules().classify(name)) for name in KERNELS}
    ops = {id(rules().classify_op(op)) for op in OPS}

    assert [rule for rule in rules().kernels if id(rule.kind) not in kernels] == []
    assert [rule for rule in rules().ops if id(rule.kind) not in ops] == []


def test_every_rule_gives_a_reason_of_its_own():
    reasons = [rule.kind.reason for rule in (*rules().kernels, *rules().ops)]

    assert all(len(reason) > 10 and "\n" not in reason for reason in reasons)
    assert Counter(reasons).most_common(1)[0][1] == 1


def test_every_family_has_a_rule_but_other():
    assert {rule.kind.family for rule in rules().kernels} == set(Family) - {Family.OTHER}


def test_the_paper_takes_only_nvjet_for_the_frameworks_own():
    differing = [rule.pattern.texts for rule in rules().kernels if rule.kind.i_lib != rule.kind.i_lib_paper]

    assert differing == [("nvjet",)]
    assert not rules().classify("nvjet_tst_192x8_64x8_4x1_v_bz_TNT").i_lib_paper


def test_classify_all_answers_in_order():
    names = list(KERNELS)

    assert rules().classify_all(names) == [rules().classify(name) for name in names]


def test_an_opaque_kernel_takes_the_family_of_its_op_but_not_its_library():
    kind = rules().classify("triton__0d1d2d", op="aten::addmm")

    assert (kind.family, kind.i_lib) == (Family.GEMM, False)
    assert "aten::addmm" in kind.reason


def test_a_name_that_speaks_is_not_overruled_by_its_op():
    assert rules().classify("Memset (Device)", op="aten::mm").family == Family.COPY


@pytest.mark.parametrize(
    "op", ["aten::view", "aten::t", "aten::as_strided", "aten::empty_like", "aten::split", "detach"]
)
def test_metadata_ops_never_compute(op):
    assert rules().is_metadata_op(op)


@pytest.mark.parametrize("op", ["aten::mm", "aten::clone", "aten::zeros", "_C::rms_norm", "aten::topk"])
def test_ops_that_compute_are_not_metadata(op):
    assert not rules().is_metadata_op(op)


def test_few_kernels_of_a_real_trace_are_other_and_all_of_them_nameless_triton(trace_path):
    time = device_time(trace_path)

    other = {name: ns for name, ns in time.items() if rules().classify(name).family == Family.OTHER}

    assert {name for name in other if not name.startswith("triton__0d")} == set()
    if any(word in trace_path.name for word in LLM_TRACES):
        assert sum(other.values()) < 0.005 * sum(time.values())


GOOD = '[[kernel]]\npattern = "gemm"\nfamily = "gemm"\nreason = "it says so"\n'


def test_rules_of_ones_own_are_ordered_and_lowercased(tmp_path):
    first = '[[kernel]]\npattern = "^fused \\\\bgemm$"\nfamily = "other"\nreason = "first"\n'
    own = KernelRules.load(write(tmp_path, first + GOOD))

    kinds = own.classify_all(["void Fused_GEMM_x", "my GEMM", "SGEMM", "gem"])

    assert [kind.reason for kind in kinds] == ["first", "first", "it says so", "no rule knows this name"]


def test_within_limits_a_rule_to_names_that_contain_it(tmp_path):
    own = KernelRules.load(write(tmp_path, GOOD + 'within = "^my:: yours"\n'))

    families = [own.classify(name).family for name in ("my::gemm", "not_my::gemm", "is_yours_gemm", "my::other")]

    assert families == ["gemm", "other", "gemm", "other"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[kernel]\n", "not valid TOML"),
        ("[[kernels]]\n", "unknown key 'kernels'"),
        ("kernel = 3\n", "kernel rules must be an array of tables"),
        ("metadata_ops = 3\n", "metadata_ops must be one string"),
        (GOOD + GOOD.replace("it says so", " "), "kernel rule 2: reason is missing or empty"),
        (GOOD + GOOD.replace('pattern = "gemm"', ""), "kernel rule 2: pattern is missing or empty"),
        (GOOD.replace('family = "gemm"', 'family = "gem"'), "kernel rule 1: family 'gem' is none of gemm, attention"),
        (GOOD + "i_lib = 1\n", "kernel rule 1: i_lib must be true or false"),
        (GOOD + "ilib = true\n", "kernel rule 1: unknown key 'ilib'"),
        (GOOD + 'within = "a+"\n', "kernel rule 1: within takes plain text only"),
        (GOOD.replace('"gemm"', '"GEMM"', 1), "kernel rule 1: 'GEMM' can never match"),
        (GOOD.replace('"gemm"', '"ge(mm"', 1), r"kernel rule 1: .* is not a regular expression"),
    ],
)
def test_a_wrong_rule_is_named_by_file_and_number(tmp_path, text, message):
    path = write(tmp_path, text)

    with pytest.raises(SettingsError, match=rf"rules\.toml: {message}"):
        KernelRules.load(path)


def test_a_wrong_rule_for_ops_is_named_when_first_used(tmp_path):
    own = KernelRules.load(write(tmp_path, GOOD + GOOD.replace("kernel", "op").replace("says so", "")))
    broken = KernelRules.load(write(tmp_path, GOOD.replace("kernel", "op").replace('"it says so"', '""')))

    assert own.classify_op("gemm").family == Family.GEMM
    with pytest.raises(SettingsError, match="op rule 1: reason is missing"):
        broken.classify_op("gemm")


def test_a_missing_rule_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml: No such file"):
        KernelRules.load(tmp_path / "nowhere.toml")
