"""PointPillars' two halves in plain PyTorch, with the usual names of tensors: a peer to time."""

from __future__ import annotations

import torch
from torch import nn

LOW, CELL = (0.0, -39.68), (0.16, 0.16)
ROWS, COLUMNS = 496, 432


def conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """3x3 convolution, normalisation, ReLU."""
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs, 1e-3, 0.01),
        nn.ReLU(inplace=True),
    ]


class Encoder(nn.Module):
    """Padded pillars to the canvas, as the dense implementations do it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(9, 64, 1, bias=False)
        self.bn = nn.BatchNorm1d(64, 1e-3, 0.01)

    def forward(self, pillars, cells, counts):
        """[P, 32, 4], [P] cell numbers, [P] -> [1, 64, rows, columns]."""
        mean = pillars[:, :, :3].sum(1, keepdim=True) / counts[:, None, None]
        x, y = cells % COLUMNS, cells // COLUMNS
        middle = [n * size + size / 2 + low for n, size, low in zip((x, y), CELL, LOW, strict=True)]
        offset = pillars[:, :, :2] - torch.stack(middle, 1)[:, None]
        features = torch.cat([offset, pillars[:, :, 2:], pillars[:, :, :3] - mean, offset], -1)
        real = torch.arange(pillars.shape[1])[None] < counts[:, None]
        features = (features * real[..., None]).transpose(1, 2)
        best = torch.relu(self.bn(self.conv(features))).max(-1).values
        canvas = torch.zeros(ROWS * COLUMNS, best.shape[1])
        canvas[cells] = best
        # A view with the channels innermost in memory: what the convolutions like.
        return canvas.reshape(1, ROWS, COLUMNS, -1).permute(0, 3, 1, 2)


class Backbone(nn.Module):
    """Three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.multi_blocks = nn.ModuleList()
        inputs = 64
        for outputs, more in ((64, 3), (128, 5), (256, 5)):
            layers = conv(inputs, outputs, 2)
            for _ in range(more):
                layers += conv(outputs, outputs, 1)
            self.multi_blocks.append(nn.Sequential(*layers))
            inputs = outputs

    def forward(self, x):
        """Outputs of the blocks."""
        found = []
        for block in self.multi_blocks:
            x = block(x)
            found.append(x)
        return found


class Neck(nn.Module):
    """Transposed convolutions to one resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder_blocks = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(inputs, 128, k, k, bias=False),
                nn.BatchNorm2d(128, 1e-3, 0.01),
                nn.ReLU(inplace=True),
            )
            for inputs, k in ((64, 1), (128, 2), (256, 4))
        )

    def forward(self, blocks):
        """Joined maps."""
        parts = zip(self.decoder_blocks, blocks, strict=True)
        return torch.cat([layer(x) for layer, x in parts], 1)


class Head(nn.Module):
    """Three 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_cls = nn.Conv2d(384, 18, 1)
        self.conv_reg = nn.Conv2d(384, 42, 1)
        self.conv_dir_cls = nn.Conv2d(384, 12, 1)

    def forward(self, x):
        """Class, box and direction maps."""
        return self.conv_cls(x), self.conv_reg(x), self.conv_dir_cls(x)


class Peer(nn.Module):
    """Both halves."""

    def __init__(self) -> None:
        super().__init__()
        self.pillar_encoder = Encoder()
        self.backbone, self.neck, self.head = Backbone(), Neck(), Head()

    def tail(self, canvas):
        """Canvas to the three maps."""
        return self.head(self.neck(self.backbone(canvas)))
