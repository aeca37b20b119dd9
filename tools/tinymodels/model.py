"""The decoder: llama-style dense, or qwen3moe-style with a mixture of experts.

Sources: rotary embedding (Su et al., arXiv:2104.09864), RMSNorm (Zhang and
Sennrich, arXiv:1910.07467), SwiGLU (Shazeer, arXiv:2002.05202), grouped-query
attention (Ainslie et al., arXiv:2305.13245), top-k routing with a balance loss
(Fedus et al., arXiv:2101.03961), router z-loss (Zoph et al., arXiv:2202.08906),
growing in depth during training (Du et al., arXiv:2405.15319).

Rotary pairs are (i, i + half) here; export.py reorders rows for llama's (2i, 2i+1).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Everything that fixes the tensors of a model."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    experts: int = 0
    experts_used: int = 2
    head_dim: int = 64
    vocabulary: int = 4096
    rope_base: float = 10000.0
    eps: float = 1e-6

    @property
    def moe(self) -> bool:
        """Whether feed-forward layers are mixtures."""
        return self.experts > 0


SHAPES = {
    "tiny": Shape("tiny", width=384, layers=6, heads=6, kv_heads=2, ffn=1024),
    "tiny-draft": Shape(
        "tiny-draft", width=128, layers=3, heads=4, kv_heads=2, ffn=352, head_dim=32
    ),
    "tiny-moe": Shape("tiny-moe", width=256, layers=6, heads=4, kv_heads=2, ffn=192, experts=16),
}


def rotary_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Tables of cos and sin, [length, head_dim / 2]."""
    half = shape.head_dim // 2
    frequency = shape.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of x [rows, heads, time, head_dim]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def matrix(rows: int, columns: int, zero: bool = False) -> nn.Parameter:
    """A weight for F.linear, scaled by fan-in, or zero for branches' outputs."""
    if zero:
        return nn.Parameter(torch.zeros(rows, columns))
    return nn.Parameter(torch.randn(rows, columns) * columns**-0.5 * 0.7)


class Attention(nn.Module):
    """Causal grouped-query attention; q and k are normalised in the qwen3 shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = matrix(shape.heads * shape.head_dim, shape.width)
        self.k = matrix(shape.kv_heads * shape.head_dim, shape.width)
        self.v = matrix(shape.kv_heads * shape.head_dim, shape.width)
        self.o = matrix(shape.width, shape.heads * shape.head_dim, zero=True)
        if shape.moe:
            self.q_norm = nn.Parameter(torch.ones(shape.head_dim))
            self.k_norm = nn.Parameter(torch.ones(shape.head_dim))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x [rows, time, width]."""
        s = self.shape
        rows, time, _ = x.shape
        q = F.linear(x, self.q).view(rows, time, s.heads, s.head_dim).transpose(1, 2)
        k = F.linear(x, self.k).view(rows, time, s.kv_heads, s.head_dim).transpose(1, 2)
        v = F.linear(x, self.v).view(rows, time, s.kv_heads, s.head_dim).transpose(1, 2)
        if s.moe:
            q = F.rms_norm(q, (s.head_dim,), self.q_norm, s.eps)
            k = F.rms_norm(k, (s.head_dim,), self.k_norm, s.eps)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = s.heads // s.kv_heads
        k = k.repeat_interleave(groups, dim=1)
        v = v.repeat_interleave(groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(rows, time, -1), self.o)


class Dense(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = matrix(shape.ffn, shape.width)
        self.up = matrix(shape.ffn, shape.width)
        self.down = matrix(shape.width, shape.ffn, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., width]."""
        return F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)


class Mixture(nn.Module):
    """Top-k of many small SwiGLUs; weights renormalised over the chosen, as qwen3moe does.

    Tokens are sorted by expert, so each expert is one matrix product.  ``penalty``
    holds the balance loss and z-loss of the last call, ``load`` its choices per expert.
    Balance is asked of a running mean over some ten batches, not of each batch: a batch
    of few domains may then lean on their experts (Qiu et al., arXiv:2501.11873).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        n = shape.experts
        self.router = nn.Parameter(torch.randn(n, shape.width) * 0.02)
        self.gate = nn.Parameter(torch.stack([matrix(shape.ffn, shape.width) for _ in range(n)]))
        self.up = nn.Parameter(torch.stack([matrix(shape.ffn, shape.width) for _ in range(n)]))
        self.down = nn.Parameter(torch.zeros(n, shape.width, shape.ffn))
        self.penalty = torch.zeros(())
        self.load = torch.zeros(n)
        self.share = torch.full((n,), 1.0 / n)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., width]."""
        s = self.shape
        flat = x.reshape(-1, s.width)
        logits = F.linear(flat, self.router)
        probabilities = logits.softmax(-1)
        weight, chosen = probabilities.topk(s.experts_used, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        counts = torch.bincount(chosen.reshape(-1), minlength=s.experts)
        self.load = counts.detach()
        if self.training:
            self.share = self.share.lerp(counts.float() / chosen.numel(), 0.1)
        balance = s.experts * (self.share * probabilities.mean(0)).sum()
        self.penalty = 0.01 * balance + 1e-4 * logits.logsumexp(-1).square().mean()
        order = chosen.reshape(-1).argsort(stable=True)
        token = order // s.experts_used
        parts = flat[token].split(counts.tolist())
        done = []
        weights = zip(self.gate.unbind(0), self.up.unbind(0), self.down.unbind(0), strict=True)
        for part, (gate, up, down) in zip(parts, weights, strict=True):
            done.append(F.linear(F.silu(F.linear(part, gate)) * F.linear(part, up), down))
        scaled = torch.cat(done) * weight.reshape(-1)[order].unsqueeze(-1)
        return torch.zeros_like(flat).index_add(0, token, scaled).view_as(x)


class Block(nn.Module):
    """Attention and feed-forward with pre-normalisation."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = nn.Parameter(torch.ones(shape.width))
        self.attention = Attention(shape)
        self.ffn_norm = nn.Parameter(torch.ones(shape.width))
        self.ffn: Dense | Mixture = Mixture(shape) if shape.moe else Dense(shape)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after attention, and the input of the feed-forward layer."""
        w, eps = (self.shape.width,), self.shape.eps
        x = x + self.attention(F.rms_norm(x, w, self.attention_norm, eps), cos, sin)
        return x, F.rms_norm(x, w, self.ffn_norm, eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x [rows, time, width]."""
        x, normed = self.attend(x, cos, sin)
        return x + self.ffn(normed)


class Decoder(nn.Module):
    """Tied embedding, blocks, norm; may hold fewer blocks than its shape while it grows."""

    def __init__(self, shape: Shape, layers: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.width) * 0.02)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(layers or shape.layers)])
        self.norm = nn.Parameter(torch.ones(shape.width))
        self.tables: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [rows, time, vocabulary]."""
        time = tokens.shape[1]
        if self.tables[0].shape[0] < time:
            self.tables = rotary_tables(self.shape, time)
        cos, sin = self.tables[0][:time], self.tables[1][:time]
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = F.rms_norm(x, (self.shape.width,), self.norm, self.shape.eps)
        return F.linear(x, self.embedding)

    def compile_parts(self) -> None:
        """Compile what can be, where routing keeps the whole from being compiled."""
        for block in self.blocks:
            block.attend = torch.compile(block.attend)

    def penalty(self) -> Tensor:
        """Router losses of the last call, mean over layers (zero if dense)."""
        terms = [b.ffn.penalty for b in self.blocks if isinstance(b.ffn, Mixture)]
        return torch.stack(terms).mean() if terms else torch.zeros(())

    def grow(self) -> None:
        """Double the blocks, each followed by a copy whose outputs start at zero.

        The function does not change; the copies then learn.
        """
        grown: list[nn.Module] = []
        for block in self.blocks:
            twin = copy.deepcopy(block)
            with torch.no_grad():
                twin.attention.o.zero_()
                twin.ffn.down.zero_()
            grown += [block, twin]
        self.blocks = nn.ModuleList(grown)

    def parameters_total(self) -> int:
        """Number of weights, the tied embedding once."""
        return sum(p.numel() for p in self.parameters())
