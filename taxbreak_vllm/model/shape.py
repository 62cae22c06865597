"""What decides the work of a step: the shape of the model on one rank, and what the step's requests add up to.

A worker writes both into the spool: the shape once, in its state, the step's integers in `step.json`. Weights are
counted in elements, sizes in bytes; `None` is what could not be told, with a reason in `missing`.
"""

from dataclasses import dataclass

from taxbreak_vllm.model.numbers import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixShape:
    """Matrices that each token of a step is multiplied with: Σ in·out, and the bytes that they take."""

    weights: Int64 = 0
    bytes: Int64 | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Layers of attention that are alike: heads of this rank, sizes of a head, bytes of a token in one layer's cache.

    `window` is that of sliding attention. `latent` and `rope` are sizes of MLA (c, r), 0 for any other kind. A request
    with more queries than `absorbed_queries` has its latent cache unpacked, to heads of `unpacked_size` (d + d_v) in
    all; None where vLLM always absorbs.
    """

    layers: Int64
    heads: Int64
    kv_heads: Int64
    head_size: Int64
    head_size_v: Int64
    window: Int64 | None = None
    latent: Int64 = 0
    rope: Int64 = 0
    unpacked_size: Int64 = 0
    absorbed_queries: Int64 | None = None
    kv_bytes_per_token: Int64 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """Layers of experts that are alike: all experts, those of this rank, and what one of them weighs in a layer."""

    layers: Int64
    experts: Int64
    local_experts: Int64
    top_k: Int64
    weights: Int64
    bytes: Int64 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A built model on one rank. Shared experts and gates are among `linear`; `lm_head` is on the last stage alone.

    `dtype` is what activations are in, `product_dtype` what linear layers and experts multiply in (None: the
    quantization is not known). `graph_sizes` are the numbers of tokens that steps are padded to under CUDA graphs.
    `uncounted` says why the experts that a step's tokens choose are not counted.
    """

    dtype: str
    product_dtype: str | None
    linear: MatrixShape
    lm_head: MatrixShape
    attention: tuple[AttentionShape, ...] = ()
    experts: tuple[ExpertShape, ...] = ()
    quantization: str | None = None
    tensor_parallel: Int64 = 1
    pipeline_parallel: Int64 = 1
    data_parallel: Int64 = 1
    expert_parallel: Int64 = 1
    graph_sizes: tuple[Int64, ...] = ()
    missing: tuple[str, ...] = ()
    uncounted: str | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        """The sizes of sliding windows, each once."""
        return tuple(sorted({group.window for group in self.attention if group.window is not None}))

    @property
    def absorbed_queries(self) -> int | None:
        """The most queries of a request with which its latent cache is not unpacked; None: it never is."""
        return next((group.absorbed_queries for group in self.attention if group.absorbed_queries is not None), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowWork:
    """The attention of one layer with a sliding window: keys that are read and (query, key) pairs within the window."""

    window: Int64
    keys: Int64
    pairs: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedWork:
    """The requests whose latent cache a step unpacks: their tokens of this step, those before it, and their pairs."""

    queries: Int64
    context: Int64
    pairs: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """Sums over a step's requests, each with q tokens scheduled of k in its context.

    `queries` is Σq, `keys` Σk (k: computed before + q), `pairs` Σ[qk − q(q−1)/2]; `windows` has the same per size of
    sliding window, `unpacked` for the requests whose latent cache is unpacked (None: the model has none that is).
    `logits_rows` is how many tokens get logits, `padded_tokens` what Σq is padded to under a graph.
    `distinct_experts` is how many experts the layers read, added up, where that was counted.
    """

    queries: Int64
    keys: Int64
    pairs: Int64
    logits_rows: Int64
    padded_tokens: Int64
    windows: tuple[WindowWork, ...] = ()
    unpacked: UnpackedWork | None = None
    distinct_experts: Int64 | None = None
