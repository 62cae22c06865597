"""Decoders in plain torch with random weights, as eager as the papers' ones: op for op what Hugging Face's do.

A `Shape` goes in, a `Decoder` with `prefill` and `decode` steps comes out. Norms, rotary embedding and expert loops are
written out op by op on purpose: how many kernels a token takes is what is measured.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides how many kernels of which size a step launches; `experts` 0 is a dense model."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    experts: int = 0
    top_k: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    is_gpt2: bool = False
    has_qk_norm: bool = False

    def cut(self, layers: int) -> "Shape":
        """The same with fewer layers, and saying so."""
        return self if layers >= self.layers else replace(self, name=f"{self.name} ({layers} layers)", layers=layers)


SHAPES = {
    "gpt2": Shape(
        name="GPT-2", layers=12, hidden=768, heads=12, kv_heads=12, head_dim=64, ffn=3072, vocab=50257, is_gpt2=True
    ),
    "llama-1b": Shape(
        name="Llama-3.2-1B", layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256
    ),
    "llama-3b": Shape(
        name="Llama-3.2-3B", layers=28, hidden=3072, heads=24, kv_heads=8, head_dim=128, ffn=8192, vocab=128256
    ),
    "olmoe": Shape(
        name="OLMoE-1B-7B", layers=16, hidden=2048, heads=16, kv_heads=16, head_dim=128, ffn=0, vocab=50304,
        experts=64, top_k=8, expert_ffn=1024, has_qk_norm=True,
    ),
    "qwen1.5-moe": Shape(
        name="Qwen1.5-MoE-A2.7B", layers=24, hidden=2048, heads=16, kv_heads=16, head_dim=128, ffn=0, vocab=151936,
        experts=60, top_k=4, expert_ffn=1408, shared_ffn=5632,
    ),
    "qwen3-moe": Shape(
        name="Qwen3-30B-A3B", layers=48, hidden=2048, heads=32, kv_heads=4, head_dim=128, ffn=0, vocab=151936,
        experts=128, top_k=8, expert_ffn=768, has_qk_norm=True,
    ),
}  # fmt: skip
_TINY = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128, "vocab": 512}
_TINY_EXPERTS = {"experts": 8, "top_k": 2, "expert_ffn": 32, "ffn": 0}


def tiny(shape: Shape) -> Shape:
    """The same kind of model in a size for a rehearsal on a CPU."""
    small = replace(shape, name=f"tiny {shape.name}", **_TINY, shared_ffn=64 if shape.shared_ffn else 0)
    if shape.kv_heads == shape.heads:
        small = replace(small, kv_heads=small.heads)
    return replace(small, **_TINY_EXPERTS) if shape.experts else small


class Decoder:
    """A model of a shape; `step(tokens, past)` runs [batch, length] tokens behind `past` cached ones."""

    def __init__(self, shape: Shape, *, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)
        s, width, kv_width = shape, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.embedding = self._weight(s.vocab, s.hidden)
        self.positions = self._weight(1024 * 2, s.hidden) if s.is_gpt2 else None
        self.layers = [
            {
                "norm1": self._ones(s.hidden),
                "norm2": self._ones(s.hidden),
                "q": self._weight(width, s.hidden),
                "k": self._weight(kv_width, s.hidden),
                "v": self._weight(kv_width, s.hidden),
                "o": self._weight(s.hidden, width),
                "bias": self._weight(max(s.ffn, s.hidden)),
            }
            | self._mlp()
            for _ in range(s.layers)
        ]
        self.norm = self._ones(s.hidden)
        self.inv_freq = 1.0 / 10000.0 ** (torch.arange(0, s.head_dim, 2, device=device).float() / s.head_dim)

    def caches(self, batch: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Made-up keys and values of `length` tokens, [batch, kv heads, length, head dim], for every layer."""
        shape = (batch, self.shape.kv_heads, length, self.shape.head_dim)
        return [(self._weight(*shape), self._weight(*shape)) for _ in self.layers]

    def tokens(self, batch: int, length: int) -> torch.Tensor:
        """Made-up token ids, [batch, length]."""
        return torch.randint(self.shape.vocab, (batch, length), device=self.device, generator=self._generator)

    def step(self, tokens: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]] | None = None) -> torch.Tensor:
        """Return the next token of each sequence, on the device."""
        start = past[0][0].shape[2] if past else 0
        position = torch.arange(start, start + tokens.shape[1], device=self.device)[None]
        x = F.embedding(tokens, self.embedding)
        if self.positions is not None:
            x = x + F.embedding(position, self.positions)
            rotary = None
        else:
            rotary = self._rotary(position)
        for index, layer in enumerate(self.layers):
            x = x + self._attend(self._normalize(x, layer["norm1"]), layer, rotary, past[index] if past else None)
            normal = self._normalize(x, layer["norm2"])
            x = x + (self._experts(normal, layer) if self.shape.experts else self._dense(normal, layer))
        x = self._normalize(x[:, -1:], self.norm)
        return F.linear(x, self.embedding)[:, -1].float().argmax(dim=-1)

    def _mlp(self) -> dict[str, torch.Tensor | list[tuple[torch.Tensor, ...]]]:
        s = self.shape
        if s.is_gpt2:
            return {"up": self._weight(s.ffn, s.hidden), "down": self._weight(s.hidden, s.ffn)}
        if not s.experts:
            return dict(zip(("gate", "up", "down"), self._gated(s.ffn), strict=True))
        shared = (
            {"shared": [self._gated(s.shared_ffn)], "shared_gate": self._weight(1, s.hidden)} if s.shared_ffn else {}
        )
        return {
            "router": self._weight(s.experts, s.hidden),
            "experts": [self._gated(s.expert_ffn) for _ in range(s.experts)],
        } | shared

    def _gated(self, width: int) -> tuple[torch.Tensor, ...]:
        hidden = self.shape.hidden
        return self._weight(width, hidden), self._weight(width, hidden), self._weight(hidden, width)

    def _normalize(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.shape.is_gpt2:
            return F.layer_norm(x, (x.shape[-1],), weight, weight)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight * wide.to(self.dtype)

    def _rotary(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = (position[..., None].float() * self.inv_freq).repeat(1, 1, 2)
        return angle.cos().to(self.dtype)[:, None], angle.sin().to(self.dtype)[:, None]

    def _attend(
        self,
        x: torch.Tensor,
        layer: dict[str, torch.Tensor],
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
        past: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        s = self.shape
        batch, length, _ = x.shape

        def heads(name: str, count: int) -> torch.Tensor:
            y = F.linear(x, layer[name]).view(batch, length, count, s.head_dim)
            if s.has_qk_norm and name != "v":
                y = self._normalize(y, layer["norm1"][: s.head_dim])
            return y.transpose(1, 2)

        q, k, v = heads("q", s.heads), heads("k", s.kv_heads), heads("v", s.kv_heads)
        if rotary is not None:
            cos, sin = rotary
            q = q * cos + _half_turned(q) * sin
            k = k * cos + _half_turned(k) * sin
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        if s.kv_heads != s.heads:
            k, v = (_repeated(t, s.heads // s.kv_heads) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return F.linear(y.transpose(1, 2).reshape(batch, length, -1), layer["o"])

    def _dense(self, x: torch.Tensor, layer: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.shape.is_gpt2:
            y = F.linear(x, layer["up"], layer["bias"])
            y = 0.5 * y * (1.0 + torch.tanh(0.7978845608 * (y + 0.044715 * torch.pow(y, 3.0))))
            return F.linear(y, layer["down"])
        return _gated(x, layer["gate"], layer["up"], layer["down"])

    def _experts(self, x: torch.Tensor, layer: dict) -> torch.Tensor:
        """The loop over all experts, hit or not, that OLMoE's and Qwen-MoE's modelling files run."""
        s = self.shape
        flat = x.reshape(-1, s.hidden)
        weights = F.linear(flat, layer["router"]).softmax(-1, dtype=torch.float)
        weights, chosen = weights.topk(s.top_k, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(self.dtype)
        result = torch.zeros_like(flat)
        mask = F.one_hot(chosen, s.experts).permute(2, 1, 0)
        for number, expert in enumerate(layer["experts"]):
            place, row = torch.where(mask[number])
            own = _gated(flat[row], *expert) * weights[row, place, None]
            result.index_add_(0, row, own)
        if s.shared_ffn:
            gate = torch.sigmoid(F.linear(flat, layer["shared_gate"]))
            result = result + gate * _gated(flat, *layer["shared"][0])
        return result.view_as(x)

    def _weight(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, device=self.device, dtype=self.dtype).normal_(0, 0.02, generator=self._generator)

    def _ones(self, size: int) -> torch.Tensor:
        return torch.ones(size, device=self.device, dtype=self.dtype)


def _gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def _repeated(x: torch.Tensor, times: int) -> torch.Tensor:
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, times, length, width).reshape(batch, heads * times, length, width)
