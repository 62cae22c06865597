"""A kernel's name as a person would say it: the function, and for one that runs any functor the functor.

In: a name as the profiler wrote it, demangled or not. Out: `fused_add_rms_norm_kernel` of
`std::enable_if<…>::type vllm::fused_add_rms_norm_kernel<…>(…)`, `elementwise_kernel<CUDAFunctor_add>` of a kernel that
only its functor tells from a hundred others. A name that is no C++ stays as it is.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

_CLOSING = {")": "(", "]": "[", "}": "{", ">": "<"}
_OPENING = frozenset(_CLOSING.values())

# Kernels that are given what they compute as a template argument.
_GENERIC = re.compile(
    r"Kernel2?|kernel|kentry|\w*device_kernel|DeviceKernel|trampoline_kernel|\w*elementwise\w*kernel\w*"
    r"|\w*reduce_kernel\w*|\w*copy_kernel|multi_tensor_apply_kernel|Device\w+Kernel|tensor_kernel_scan\w*",
    re.IGNORECASE,
)
# Templates that only hand on what they are given.
_WRAPPER = re.compile(
    r"gpu_kernel_impl\w*|\w*unary\w*functor\w*|\w*binary\w*functor\w*|func_wrapper_t|reduceop|\w*device_?kernel\w*|\w*wrapper\w*"
    r"|\w*config",
    re.IGNORECASE,
)
# Types, sizes and namespaces: they say of what, not what.
_UNTELLING = re.compile(
    r"(unsigned |signed |const )*(void|bool|char|short|int|long|float|double|half|size_t|u?int\d+_t|__half2?"
    r"|__nv_bfloat16|BFloat16|Half|bfloat16_t|half_t|tuple|array|Array|complex|type|conditional|enable_if|integral_constant|true|false"
    r"|default_config|target_arch|C|at|native|c10|std|detail|cuda|cub|thrust|cutlass|cute|ck_tile|ck|rocprim|templates"
    r"|memory|hip|impl|gemm|kernel|internal|\W?\d\S*)",
)
_TENSILE_TYPES = re.compile(r"Cijk_[A-Za-z]+_[A-Za-z]+(_[A-Z0-9]+(?=_))?")
_IDENTIFIER = re.compile(r"\d+")
_NO_IDENTIFIER = re.compile(r"L[a-z]n?\d+E|[ST][0-9A-Z]*_")  # a number as an argument, a name or an argument again
_NESTED = re.compile(r"_ZN?[VKLr]*(?:St)?(?=\d)")


@lru_cache(maxsize=4096)
def kernel_name(name: str) -> str:
    """Return a name that fits a table."""
    if name.startswith("_Z"):
        return _mangled(name) or name
    if name.startswith("Cijk_"):
        return _tensile(name)
    if ("(" not in name and "::" not in name and "<" not in name) or name.startswith(("Memcpy", "Memset")):
        return name
    text = name.replace("(anonymous namespace)::", "").replace("operator()", "operator")
    base, arguments = _last(_callee(text))
    if not base:
        return name
    functor = next(_functors(arguments), None) if _GENERIC.fullmatch(base) else None
    return functor if functor and functor.startswith("cutlass_") else f"{base}<{functor}>" if functor else base


def _callee(text: str) -> str:
    """Cut off what is returned and what is taken."""
    begin = depth = 0
    for place, _, depth, char in _walk(text):
        if depth == 0 and char == " " and place + 1 < len(text):
            begin = place + 1
        elif depth == 1 and char == "(" and place > begin:
            return text[begin:place]
    return text[begin:]


def _last(qualified: str) -> tuple[str, str]:
    """Return the last name of a qualified one and its template arguments."""
    begin, opened, closed = 0, -1, -1
    for place, _, depth, char in _walk(qualified):
        if depth == 0 and char == ":":
            begin, opened = place + 1, -1
        elif depth == 1 and char == "<" and opened < 0:
            opened = place
        elif depth == 0 and char == ">":
            closed = place
    if opened < 0:
        return qualified[begin:].strip(), ""
    return qualified[begin:opened].strip(), qualified[opened + 1 : closed if closed > opened else len(qualified)]


def _functors(arguments: str, depth: int = 0) -> Iterator[str]:
    """Go through template arguments for names that say what is computed."""
    for argument in _split(arguments) if depth < 8 else ():
        enclosing = _enclosing(argument)
        if enclosing and not _WRAPPER.fullmatch(enclosing):
            yield enclosing
            continue
        base, inner = _last(_callee(argument.strip()))
        base = base.removesuffix("*").strip()
        if _WRAPPER.fullmatch(base) or _GENERIC.fullmatch(base):
            yield from _functors(inner, depth + 1)
        elif base.isidentifier() and not _UNTELLING.fullmatch(base):
            yield base


def _enclosing(argument: str) -> str:
    """Return the function that a lambda stands in, "" for what is no lambda."""
    if "{lambda" not in argument:
        return ""
    begin = 0
    for place, _, depth, char in _walk(argument):
        if depth == 0 and char in ": ":
            begin = place + 1
        elif depth == 1 and char in "(<" and place > begin:
            name = argument[begin:place]
            return "" if char == "<" and _WRAPPER.fullmatch(name) else name
    return ""


def _split(arguments: str) -> Iterator[str]:
    begin = 0
    for place, before, depth, char in _walk(arguments):
        if before == depth == 0 and char == ",":
            yield arguments[begin:place]
            begin = place + 1
    yield arguments[begin:]


def _walk(text: str) -> Iterator[tuple[int, int, int, str]]:
    """Go through a text: each place, how many brackets are open before and after it, and its character."""
    opened: list[str] = []
    for place, char in enumerate(text):
        before = len(opened)
        if char in _OPENING:
            opened.append(char)
        elif char in _CLOSING and opened and opened[-1] == _CLOSING[char]:  # a ">" in parentheses compares
            opened.pop()
        yield place, before, len(opened), char


def _tensile(name: str) -> str:
    types, tile = _TENSILE_TYPES.match(name), re.search(r"MT\d+x\d+x\d+", name)
    return " ".join(found[0] for found in (types, tile) if found) or name


def _mangled(name: str) -> str:
    """Read the names out of a mangled one, as far as they are spelled out."""
    head = _NESTED.match(name)
    if head is None:
        return ""
    at, base = head.end(), ""
    while (found := _identifier(name, at)) is not None:
        word, at = found
        base = base if word.startswith("_GLOBAL__N_") else word
    if not _GENERIC.fullmatch(base):
        return base
    arguments = _NO_IDENTIFIER.sub("", name[at:])
    functor = next((word for word in _identifiers(arguments) if not _UNTELLING.fullmatch(word)), None)
    return f"{base}<{functor}>" if functor else base


def _identifier(name: str, at: int) -> tuple[str, int] | None:
    number = _IDENTIFIER.match(name, at)
    if number is None or not 0 < int(number[0][:6]) <= len(name) - number.end():
        return None
    end = number.end() + int(number[0][:6])
    return name[number.end() : end], end


def _identifiers(arguments: str) -> Iterator[str]:
    at = 0
    while (number := _IDENTIFIER.search(arguments, at)) is not None:
        found = _identifier(arguments, number.start())
        word, at = found or ("", number.end())
        if word.isidentifier() and not _WRAPPER.fullmatch(word):
            yield word
