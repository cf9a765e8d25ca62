"""The convolutional parts of the full-size detector in PyTorch, with torchvision's tensor names.

What torchvision does in compiled operators of its own (proposals, suppression, RoIAlign) is not
here: the peer's sum leaves it out, ours has it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1, and the shortcut."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        width = after // 4
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        self.downsample = None
        if stride != 1 or before != after:
            short = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, before, H, W] to [B, after, H / stride, W / stride]."""
        y = F.relu_(self.bn1(self.conv1(x)))
        y = F.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu_(y + (x if self.downsample is None else self.downsample(x)))


class Body(nn.Module):
    """ResNet-50 to its four stages."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        before = 64
        for i, (count, after) in enumerate(zip((3, 4, 6, 3), (256, 512, 1024, 2048), strict=True)):
            blocks = []
            for j in range(count):
                blocks.append(Bottleneck(before, after, 2 if i and not j else 1))
                before = after
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of the four stages of a normalised image."""
        x = F.max_pool2d(F.relu_(self.bn1(self.conv1(x))), 3, 2, 1)
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages


def _normed(before: int, after: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(after)]


class Pyramid(nn.Module):
    """Lateral and output convolutions."""

    def __init__(self):
        super().__init__()
        widths = (256, 512, 1024, 2048)
        self.inner_blocks = nn.ModuleList(nn.Sequential(*_normed(n, 256, 1)) for n in widths)
        self.layer_blocks = nn.ModuleList(nn.Sequential(*_normed(256, 256, 3)) for _ in widths)

    def forward(self, stages: list[torch.Tensor]) -> list[torch.Tensor]:
        """P2..P6 of the stages."""
        merged, outputs = None, []
        for i in (3, 2, 1, 0):
            lateral = self.inner_blocks[i](stages[i])
            if merged is not None:
                lateral = lateral + F.interpolate(merged, size=lateral.shape[-2:])
            merged = lateral
            outputs.insert(0, self.layer_blocks[i](merged))
        return [*outputs, F.max_pool2d(outputs[-1], 1, 2)]


class Proposals(nn.Module):
    """The convolutions of the proposal network."""

    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()) for _ in range(2)]
        self.conv = nn.Sequential(*blocks)
        self.cls_logits, self.bbox_pred = nn.Conv2d(256, 3, 1), nn.Conv2d(256, 12, 1)

    def forward(self, pyramid: list[torch.Tensor]) -> list[torch.Tensor]:
        """Logits and deltas of every level."""
        maps = [self.conv(x) for x in pyramid]
        return [f(x) for x in maps for f in (self.cls_logits, self.bbox_pred)]


class Regions(nn.Module):
    """The box head and the predictor."""

    def __init__(self, classes: int):
        super().__init__()
        convs = [nn.Sequential(*_normed(256, 256, 3), nn.ReLU()) for _ in range(4)]
        self.box_head = nn.Sequential(*convs, nn.Flatten(), nn.Linear(12544, 1024), nn.ReLU())
        self.box_predictor = nn.ModuleDict(
            {"cls_score": nn.Linear(1024, classes), "bbox_pred": nn.Linear(1024, 4 * classes)}
        )

    def forward(self, pooled: torch.Tensor) -> list[torch.Tensor]:
        """Class logits and box deltas of pooled regions [R, 256, 7, 7]."""
        x = self.box_head(pooled)
        return [self.box_predictor[name](x) for name in ("cls_score", "bbox_pred")]


class Peer(nn.Module):
    """The whole network; state-dict names are torchvision's."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.backbone = nn.ModuleDict({"body": Body(), "fpn": Pyramid()})
        self.rpn = nn.ModuleDict({"head": Proposals()})
        self.roi_heads = Regions(classes)

    def pyramid(self, x: torch.Tensor) -> list[torch.Tensor]:
        """P2..P6 of a normalised image."""
        return self.backbone["fpn"](self.backbone["body"](x))
