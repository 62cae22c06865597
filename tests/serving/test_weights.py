"""The bytes of packed weights and the type they multiply in, from modules with the attributes of vLLM's."""

from types import SimpleNamespace

import pytest

from taxbreak_vllm.serving.weights import Weights, weights_of

COUNT = 1024 * 512


class Parameter:
    def __init__(self, elements, size):
        self._elements, self._size = elements, size

    def numel(self):
        return self._elements

    def element_size(self):
        return self._size


def module_of(method, parameters=(), **own):
    """A module whose quantization method has that class name, and its parameters by name: elements, bytes of one."""
    named = {name: Parameter(*sizes) for name, sizes in dict(parameters).items()}
    own["quant_method"] = type(method, (), {})()
    return SimpleNamespace(**own, named_parameters=lambda *, recurse: named.items())


def told(module, *, dtype="bf16", quantization="compressed-tensors"):
    return weights_of(module, vars(module), COUNT, dtype, quantization)


def scheme(name, **kernel):
    return type(name, (), {"kernel": SimpleNamespace(**kernel)})()


def test_weights_that_are_not_quantized_are_their_parameters_without_the_bias():
    parameters = {"weight": (COUNT, 2), "bias": (512, 2)}
    assert told(module_of("UnquantizedLinearMethod", parameters)) == Weights(2 * COUNT, "bf16")


@pytest.mark.parametrize(("dtype", "size"), [("bf16", 2), ("fp16", 2), ("fp32", 4), ("tf32", 4), ("novel", None)])
@pytest.mark.parametrize(("method", "quantization"), [("UnquantizedFusedMoEMethod", "fp8"), ("AnyMethod", None)])
def test_weights_that_are_packed_away_are_told_by_their_type(dtype, size, method, quantization):
    module = module_of(method, {"bias": (512, 4)})
    told_of = told(module, dtype=dtype, quantization=quantization)
    assert told_of == Weights(None if size is None else size * COUNT, dtype)


def test_four_bits_are_half_a_byte_each_and_their_scales_and_zero_points():
    parameters = {"qweight": (COUNT // 8, 4), "scales": (COUNT // 32, 2), "qzeros": (COUNT // 256, 4)}
    module = module_of("AutoGPTQLinearMethod", parameters, use_w4a8=False)
    assert told(module, quantization="auto_gptq") == Weights(COUNT // 2 + COUNT // 16 + COUNT // 64, "bf16")


def test_four_bits_on_a_cpu_with_a_matrix_engine_multiply_in_int8():
    module = module_of("AutoAWQMarlinLinearMethod", {"qweight": (COUNT // 8, 4)}, use_w4a8=True)
    assert told(module, quantization="auto_awq") == Weights(COUNT // 2, "int8")


LEFT = {"weight_scale": (512, 4), "azp_adj": (512, 4)}  # what oneDNN leaves of a layer


def test_int8_behind_a_handle_of_onednn_is_a_byte_each_beside_what_is_left_of_the_layer():
    kernel = scheme("CompressedTensorsW8A8Int8", dnnl_handler=SimpleNamespace(n=512, k=1024))
    module = module_of("CompressedTensorsLinearMethod", LEFT, scheme=kernel)
    assert told(module) == Weights(COUNT + 2 * 4 * 512, "int8")


@pytest.mark.parametrize("kernel", [{}, {"dnnl_handler": SimpleNamespace(n=512, k=1)}])
def test_scales_alone_are_not_taken_for_weights(kernel):
    module = module_of("CompressedTensorsLinearMethod", LEFT, scheme=scheme("CompressedTensorsW8A8Int8", **kernel))
    assert told(module) == Weights(None, "int8")


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("CompressedTensorsWNA16", "bf16"),
        ("CompressedTensorsW8A16Fp8", "bf16"),
        ("CompressedTensorsW8A8Fp8", "fp8"),
        ("CompressedTensorsW8A8Mxfp8", "fp8"),
        ("CompressedTensorsW4A8Int", "int8"),
        ("CompressedTensorsWNA8O8Int", "int8"),
        ("CompressedTensorsW4A4Fp4", "fp4"),
        ("CompressedTensorsWNA4Int", "int4"),
        ("SomethingNovel", None),
    ],
)
def test_a_scheme_has_the_bits_of_activations_in_its_name(name, product):
    module = module_of("CompressedTensorsLinearMethod", {"weight": (COUNT, 1)}, scheme=scheme(name))
    assert told(module) == Weights(COUNT, product)


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("CompressedTensorsW8A8Int8MoEMethod", "int8"),
        ("CompressedTensorsWNA16MoEMethod", "bf16"),
        ("QuarkW8A8Fp8MoEMethod", "fp8"),
        ("NovelMoEMethod", None),
    ],
)
def test_experts_have_them_in_the_name_of_their_method(name, product):
    assert told(module_of(name, {"w13_weight": (COUNT, 1)})).product == product


@pytest.mark.parametrize(("quantization", "product"), [("fp8", "fp8"), ("auto_awq", "bf16"), ("novel", None)])
def test_else_it_is_told_by_the_name_of_the_quantization(quantization, product):
    assert told(module_of("SomeLinearMethod", {"weight": (COUNT, 1)}), quantization=quantization).product == product
