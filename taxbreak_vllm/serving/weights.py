"""What the weights of a module take, and the type in which they are multiplied.

In: a module that vLLM quantized and packed, or left as it was (vllm 0.26 to 0.33). Out: bytes and a type, None for what
is not known. Packed weights may be no parameters at all: oneDNN keeps them behind a handle.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_SIZES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
# What a quantization multiplies in; "" is the activations' own type, as its weights are unpacked before.
_PRODUCTS: Mapping[str, str] = {
    "fp8": "fp8",
    "modelopt": "fp8",
    "ptpc_fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "modelopt_fp4": "fp4",
    "awq": "",
    "auto_awq": "",
    "awq_marlin": "",
    "gptq": "",
    "auto_gptq": "",
    "gptq_marlin": "",
    "bitsandbytes": "",
    "gguf": "",
}
# A scheme of compressed-tensors or Quark has the bits of weights and of activations in its name.
_SCHEME = re.compile(r"W(?:\d+|N)A(16|8|4)(?:O\d+)?(\w*)")
_LEAST_BITS = 2  # of a weight, in any format


class Weights(NamedTuple):
    """Bytes of a module's weights, and what they multiply in."""

    num_bytes: int | None
    product: str | None


def weights_of(module: Any, own: Mapping[str, Any], count: int, dtype: str, quantization: str | None) -> Weights:  # noqa: ANN401
    """Look at a module of so many weights; `dtype` is the type of activations, `own` the attributes set on it."""
    method = type(own.get("quant_method")).__name__
    if quantization is None or method.startswith("Unquantized"):
        return Weights(_held(module) or _sized(count, dtype), dtype)
    return Weights(_quantized(module, own, count), _product(method, own, dtype, quantization))


def _held(module: Any) -> int:  # noqa: ANN401
    """Add up a module's own parameters."""
    return sum(_parameters(module))


def _parameters(module: Any) -> Iterable[int]:  # noqa: ANN401
    return (p.numel() * p.element_size() for name, p in module.named_parameters(recurse=False) if "bias" not in name)


def _sized(count: int, dtype: str) -> int | None:
    return count * _SIZES[dtype] if dtype in _SIZES else None


def _quantized(module: Any, own: Mapping[str, Any], count: int) -> int | None:  # noqa: ANN401
    """Return the bytes of weights, their scales and zero points; scales alone are not taken for them."""
    held = _held(module)
    if 8 * held >= count * _LEAST_BITS:
        return held
    kernel = getattr(own.get("scheme"), "kernel", None)
    handler = getattr(kernel, "dnnl_handler", None)
    is_int8 = handler is not None and handler.n * handler.k == count  # oneDNN's scaled product takes no other type
    return held + count if is_int8 else None


def _product(method: str, own: Mapping[str, Any], dtype: str, quantization: str) -> str | None:
    if own.get("use_w4a8"):  # a CPU's matrix engine, whose activations are quantized as well
        return "int8"
    scheme = own.get("scheme")
    found = _SCHEME.search(method if scheme is None else type(scheme).__name__)
    if found is None:
        known = _PRODUCTS.get(quantization)
        return dtype if known == "" else known
    bits, kind = found.groups()
    if bits == "16":
        return dtype
    return f"{'int' if kind.startswith('Int') else 'fp'}{bits}"
