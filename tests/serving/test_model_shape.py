"""The walk over a built model, on modules that have the attributes of vLLM's and nothing else."""

from types import SimpleNamespace

import msgspec
import pytest

from taxbreak_vllm.model.shape import AttentionShape, ExpertShape, MatrixShape, ModelShape
from taxbreak_vllm.serving.model_shape import shape_of


class Parameter:
    def __init__(self, elements, size):
        self._elements, self._size = elements, size

    def numel(self):
        return self._elements

    def element_size(self):
        return self._size


class Module:
    """A module of attributes, parameters by name, and modules within."""

    def __init__(self, parameters=None, within=None, **attributes):
        vars(self).update(attributes)
        self._parameters, self._within = parameters or {}, within or {}

    def named_parameters(self, *, recurse):
        assert not recurse
        return self._parameters.items()

    def named_modules(self, *, remove_duplicate, prefix=""):
        assert not remove_duplicate
        yield prefix, self
        for name, module in self._within.items():
            yield from module.named_modules(remove_duplicate=False, prefix=f"{prefix}.{name}" if prefix else name)


class UnquantizedLinearMethod:
    pass


class PackedMethod:
    pass


def linear(inputs, outputs, *, size=2, method=UnquantizedLinearMethod, packed=False):
    parameters = {} if packed else {"weight": Parameter(inputs * outputs, size), "bias": Parameter(outputs, size)}
    return Module(
        parameters,
        input_size=inputs * 2,
        output_size=outputs,
        input_size_per_partition=inputs,
        output_size_per_partition=outputs,
        quant_method=method(),
    )


def embedding(words, size):
    return Module(
        {"weight": Parameter(words * size, 2)},
        num_embeddings_per_partition=words,
        embedding_dim=size,
        input_size=size,
        output_size=words,
        quant_method=UnquantizedLinearMethod(),
    )


def attention(name, **more):
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_size": 32, "head_size_v": 32, "sliding_window": None}
    return Module(**sizes | {"impl": object(), "layer_name": name} | more)


def worker_of(within, *, quantization=None, pages=(("a", 1024, 16),), **parallel):
    groups = [
        SimpleNamespace(layer_names=[name], kv_cache_spec=SimpleNamespace(page_size_bytes=page, block_size=block))
        for name, page, block in pages
    ]
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "data_parallel_size": 1, **parallel}
    return SimpleNamespace(
        model_runner=SimpleNamespace(
            model=Module(within=within), kv_cache_config=SimpleNamespace(kv_cache_groups=groups)
        ),
        vllm_config=SimpleNamespace(
            model_config=SimpleNamespace(dtype="torch.bfloat16", quantization=quantization),
            parallel_config=SimpleNamespace(**sizes),
            compilation_config=SimpleNamespace(cudagraph_capture_sizes=[4, 1, 2]),
        ),
    )


def test_linears_heads_and_embeddings_are_told_apart():
    within = {
        "embed_tokens": embedding(512, 128),
        "o_proj": linear(64, 128),
        "attn": attention("a"),
        "lm_head": embedding(512, 128),
    }
    assert shape_of(worker_of(within)) == ModelShape(
        dtype="bf16",
        product_dtype="bf16",
        linear=MatrixShape(weights=64 * 128, bytes=2 * 64 * 128),
        lm_head=MatrixShape(weights=512 * 128, bytes=2 * 512 * 128),
        attention=(AttentionShape(layers=1, heads=4, kv_heads=2, head_size=32, head_size_v=32, kv_bytes_per_token=64),),
        tensor_parallel=2,
        graph_sizes=(1, 2, 4),
    )


def test_a_head_tied_to_the_embedding_is_still_a_head():
    tied = embedding(512, 128)
    shape = shape_of(worker_of({"embed_tokens": tied, "o_proj": linear(8, 8), "lm_head": tied}))
    assert shape.lm_head.weights == 512 * 128


def test_packed_linears_are_told_by_their_sizes():
    shape = shape_of(worker_of({"o_proj": linear(64, 128, packed=True)}))
    assert shape.linear == MatrixShape(weights=64 * 128, bytes=2 * 64 * 128)
    assert shape.missing == ()


def test_a_linear_that_no_rank_divides_is_taken_whole():
    gate = Module({"weight": Parameter(48, 2)}, input_size=6, output_size=8, quant_method=UnquantizedLinearMethod())
    assert shape_of(worker_of({"gate": gate})).linear.weights == 48


def test_layers_that_are_alike_are_one_group_and_a_window_makes_another():
    within = {
        "o_proj": linear(8, 8),
        "first": attention("a"),
        "second": attention("b"),
        "near": attention("c", sliding_window=512),
    }
    shape = shape_of(worker_of(within, pages=[(name, 1024, 16) for name in "abc"]))
    assert [(group.layers, group.window) for group in shape.attention] == [(2, None), (1, 512)]
    assert shape.windows == (512,)


def latent_of(threshold=None, **more):
    """The attention group of a model with MLA; `threshold` is that of what builds its metadata."""
    sizes = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_head_dim": 192, "v_head_dim": 128}
    latent = attention("a", num_kv_heads=1, head_size=576, **sizes, **more)
    worker = worker_of({"o_proj": linear(8, 8), "attn": latent}, pages=[("a", 18432, 16)])
    builder = SimpleNamespace(reorder_batch_threshold=threshold)
    worker.model_runner.attn_groups = [[SimpleNamespace(layer_names=["a"], metadata_builders=[builder])]]
    shape = shape_of(worker)
    return shape, shape.attention[0]


def test_a_latent_cache_is_told_by_its_rank():
    shape, group = latent_of()
    assert (group.latent, group.rope, group.kv_bytes_per_token) == (512, 64, 1152)
    assert (group.unpacked_size, group.absorbed_queries, shape.missing) == (192 + 128, 1, ())


def test_how_many_queries_are_absorbed_is_asked_of_what_builds_the_metadata():
    assert latent_of(threshold=128)[0].absorbed_queries == 128


def test_latent_attention_of_a_cpu_with_a_matrix_engine_is_always_absorbed():
    shape, group = latent_of(is_amx_bmm_enabled=True)
    assert (group.unpacked_size, group.absorbed_queries, shape.absorbed_queries) == (0, None, None)


def test_sparse_latent_attention_reads_the_keys_that_were_chosen_at_the_most():
    chosen = SimpleNamespace(topk_indices_buffer=SimpleNamespace(shape=(8192, 2048)))
    shape, group = latent_of(use_sparse=True, impl=chosen)
    assert (group.window, group.absorbed_queries) == (2048, None)
    assert "sparse attention" in shape.missing[0]


def test_experts_are_told_by_rank_and_by_what_one_of_them_weighs():
    experts = Module(
        {"w13_weight": Parameter(4 * 2 * 64 * 128, 2), "w2_weight": Parameter(4 * 64 * 128, 2)},
        local_num_experts=4,
        global_num_experts=8,
        top_k=2,
        hidden_size=128,
        intermediate_size_per_partition=64,
        moe_config=SimpleNamespace(is_act_and_mul=True),
    )
    worker = worker_of({"o_proj": linear(8, 8), "experts": experts}, enable_expert_parallel=True)
    shape = shape_of(worker)
    an_expert = 3 * 64 * 128
    assert shape.experts == (
        ExpertShape(layers=1, experts=8, local_experts=4, top_k=2, weights=an_expert, bytes=2 * an_expert),
    )
    assert shape.expert_parallel == 2


def test_packed_weights_of_an_unknown_quantization_have_no_size_and_one_reason():
    within = {"o_proj": linear(64, 128, packed=True, method=PackedMethod), "gate": linear(8, 8)}
    shape = shape_of(worker_of(within, quantization="novel"))
    assert shape.linear == MatrixShape(weights=64 * 128 + 64, bytes=None)
    assert shape.product_dtype is None
    assert shape.missing == (
        "how many bytes the weights of its linear layers take, and what novel multiplies in is not known",
    )


def test_a_quantized_model_multiplies_in_the_type_of_most_of_its_weights():
    within = {"o_proj": linear(64, 128, size=1, method=PackedMethod), "gate": linear(8, 8)}
    shape = shape_of(worker_of(within, quantization="fp8"))
    assert (shape.product_dtype, shape.missing) == ("fp8", ())
    assert shape.linear.bytes == 64 * 128 + 2 * 64


@pytest.mark.parametrize(
    "worker", [SimpleNamespace(), worker_of({}), SimpleNamespace(model_runner=SimpleNamespace(model=None))]
)
def test_a_model_that_cannot_be_walked_gives_one_reason(worker):
    assert "its model" in shape_of(worker)


def test_a_shape_is_read_as_it_was_written():
    shape = shape_of(worker_of({"o_proj": linear(8, 8), "attn": attention("a")}))
    assert msgspec.json.decode(msgspec.json.encode(shape), type=ModelShape) == shape
