"""Record a trace of a Llama-shaped layer in plain torch at batch sizes from 1 to 128: `python torch_layer.py FILE`."""

import sys

import torch
import torch.nn.functional as F

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
HIDDEN, HEADS, HEAD, INNER, WORDS = 256, 8, 32, 512, 1024


def main(path: str) -> None:
    """Profile one step a batch size."""
    weights = {
        name: torch.rand(shape)
        for name, shape in {
            "embedding": (WORDS, HIDDEN),
            "norm": (HIDDEN,),
            "qkv": (3 * HIDDEN, HIDDEN),
            "out": (HIDDEN, HIDDEN),
            "up": (2 * INNER, HIDDEN),
            "down": (HIDDEN, INNER),
        }.items()
    }
    with (
        torch.inference_mode(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
    ):
        for batch in BATCHES:
            step(weights, batch)
    profile.export_chrome_trace(path)


def step(w: dict[str, torch.Tensor], batch: int) -> torch.Tensor:
    """From words to the next word, one layer between."""
    x = F.embedding(torch.arange(batch), w["embedding"])
    q, k, v = F.linear(F.rms_norm(x, (HIDDEN,), w["norm"]), w["qkv"]).chunk(3, dim=-1)
    q, k, v = (part.view(1, batch, HEADS, HEAD).transpose(1, 2) for part in (q, k, v))
    angle = torch.arange(batch)[:, None] * torch.rand(HEAD)
    q, k = (part * angle.cos() + part.roll(HEAD // 2, -1) * angle.sin() for part in (q, k))
    scores = (q @ k.transpose(-1, -2) * HEAD**-0.5).softmax(-1)
    x = x + F.linear((scores @ v).transpose(1, 2).reshape(batch, HIDDEN), w["out"])
    gate, up = F.linear(F.rms_norm(x, (HIDDEN,), w["norm"]), w["up"]).chunk(2, dim=-1)
    x = x + F.linear(F.silu(gate) * up, w["down"])
    logits = F.linear(x, w["embedding"]) / 0.8
    best, _ = logits.topk(20, dim=-1)
    return logits.masked_fill(logits < best[:, -1:], -1e9).softmax(-1).argmax(-1)


if __name__ == "__main__":
    main(sys.argv[1])
