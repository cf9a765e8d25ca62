"""The training step of `benchmarks/hjepa.py` in PyTorch: the same network, lists, loss, updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as fn


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Any, valid: Any) -> Any:
        """Tokens [B, N, D] and bool [B, N] or None."""
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mask = None if valid is None else valid[:, None, None, :]
        y = fn.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, d))
        return x + self.down(fn.gelu(self.up(self.norm2(x))))


def take(x: Any, index: Any) -> Any:
    """Rows of [B or 1, N, D] at [B, K]."""
    x = x.expand(index.shape[0], -1, -1)
    return torch.gather(x, 1, index[..., None].expand(-1, -1, x.shape[-1]))


class Encoder(nn.Module):
    """The vision transformer, on a list of patches or on all."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, tokens: int):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch * 3, width)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Any, index: Any = None, valid: Any = None) -> Any:
        """Images [B, H, W, 3] to [B, 1 + K, D]."""
        b, h, w, _ = images.shape
        p = self.patch
        x = images.reshape(b, h // p, p, w // p, p, 3).permute(0, 1, 3, 2, 4, 5)
        x, positions = x.reshape(b, -1, p * p * 3), self.positions
        if index is not None:
            x, positions = take(x, index), take(positions, index)
        x = self.embed(x) + positions
        x = torch.cat([self.first.expand(b, -1, -1), x], 1)
        if valid is not None:
            valid = fn.pad(valid, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, valid)
        return self.norm(x)


class Network(nn.Module):
    """Context encoder, predictor and the pyramid that adds."""

    def __init__(self, sizes: dict[str, int], tokens: int, levels: int = 3):
        super().__init__()
        width, self.levels = sizes["width"], levels
        self.encoder = Encoder(width, sizes["depth"], sizes["heads"], sizes["patch"], tokens)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        heads = sizes["predictor_heads"]
        self.predictor = nn.ModuleList(
            Block(width, heads, 4 * width) for _ in range(sizes["predictor_depth"])
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, width)

        def mapped() -> Any:
            return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))

        self.lateral = nn.ModuleList(mapped() for _ in range(levels))
        self.down = nn.ModuleList(mapped() for _ in range(levels - 1))
        self.project = nn.ModuleList(mapped() for _ in range(levels))

    def pyramid(self, x: Any, valid: Any) -> list[Any]:
        """[(tokens, valid)] of the levels."""
        outs, masks = [], []
        for i in range(self.levels):
            weight = valid.float()[..., None]
            f, n = 2**i, x.shape[1] // 2**i
            total = (x * weight)[:, : n * f].reshape(x.shape[0], n, f, -1).sum(2)
            count = weight[:, : n * f].reshape(x.shape[0], n, f, 1).sum(2)
            outs.append(self.lateral[i](total / count.clamp_min(1)))
            masks.append(count[..., 0] > f / 2)
        for i in reversed(range(self.levels - 1)):
            size = outs[i].shape[1]
            up = fn.interpolate(outs[i + 1].transpose(1, 2), size=size, mode="linear")
            outs[i] = outs[i] + self.down[i](up.transpose(1, 2))
        return [(self.project[i](x), masks[i]) for i, x in enumerate(outs)]

    def predict(self, context: Any, known: Any, index: Any, valid: Any) -> Any:
        """Predictions [B, M, D] of the hidden tokens."""
        x = torch.cat([context, self.mask_token + take(self.encoder.positions, index)], 1)
        keys = torch.cat([known, valid], 1)
        for block in self.predictor:
            x = block(x, keys)
        return self.head(self.norm(x[:, context.shape[1] :]))


class Step:
    """One training step: forward, backward, clipping, AdamW, moving average of the target."""

    def __init__(self, sizes: dict[str, int], batch: dict[str, Any], rooms: tuple[int, int]):
        """Prepares the network and the lists of hidden and visible patches."""
        torch.manual_seed(0)
        self.images = (torch.as_tensor(batch["image"]).float() / 255 - 0.45) / 0.225
        hidden, context = (torch.as_tensor(batch[k]) for k in ("hidden", "context"))
        self.index, self.valid = self._list(hidden, rooms[0])
        self.kept, self.known = self._list(context & ~hidden, rooms[1])
        self.model = Network(sizes, hidden.shape[1])
        self.target = Encoder(
            sizes["width"], sizes["depth"], sizes["heads"], sizes["patch"], hidden.shape[1]
        )
        self.target.load_state_dict(self.model.encoder.state_dict())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), 1e-4, weight_decay=0.05)

    @staticmethod
    def _list(wanted: Any, room: int) -> tuple[Any, Any]:
        order = torch.argsort((~wanted).int(), dim=1, stable=True)[:, :room]
        valid = torch.arange(room)[None] < wanted.sum(1, keepdim=True)
        return torch.where(valid, order, 0), valid

    def __call__(self) -> None:
        """Does it."""
        self.optimiser.zero_grad(set_to_none=True)
        context = self.model.encoder(self.images, self.kept, self.known)[:, 1:]
        predicted = self.model.predict(context, self.known, self.index, self.valid)
        with torch.no_grad():
            wanted = take(self.target(self.images)[:, 1:], self.index)
            targets = self.model.pyramid(wanted, self.valid)
        loss = 0.0
        pairs = zip(self.model.pyramid(predicted, self.valid), targets, strict=True)
        for weight, ((ours, mask), (theirs, _)) in zip((1.0, 0.7, 0.5), pairs, strict=True):
            error = ((ours - theirs) ** 2 * mask[..., None]).sum()
            loss = loss + weight * error / (mask.sum() * ours.shape[-1])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        self.optimiser.step()
        with torch.no_grad():
            own = list(self.model.encoder.parameters())
            for t, p in zip(self.target.parameters(), own, strict=True):
                t.lerp_(p, 0.004)
        loss.item()
