"""ResNets: for images, for volumes, and the modified one of CLIP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or with `bottleneck` 1x1, 3x3 and 1x1; the stride sits in the (last) 3x3."""

    def __init__(self, width_in: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        out = width * 4 if bottleneck else width
        sides = (1, 3, 1) if bottleneck else (3, 3)
        widths = (width_in, width, width, out) if bottleneck else (width_in, width, out)
        self.steps, self.out_width = len(sides), out
        for i, side in enumerate(sides):
            here = stride if i == (1 if bottleneck else 0) else 1
            self._add(str(i + 1), widths[i], widths[i + 1], side, here)
        self.shortcut = stride != 1 or width_in != out
        if self.shortcut:
            self._add("_downsample", width_in, out, 1, stride)

    def _add(self, name: str, width_in: int, width: int, side: int, stride: int) -> None:
        conv = nn.Conv2d(width_in, width, side, stride=stride, padding=side // 2, bias=False)
        self.add_module(f"conv{name}", conv)
        self.add_module(f"norm{name}", nn.BatchNorm2d(width))

    def _step(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(f"norm{name}")(self.get_submodule(f"conv{name}")(x))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, Cin, h, w] to [B, Cout, h/stride, w/stride]."""
        y = x
        for i in range(1, self.steps + 1):
            y = self._step(str(i), y)
            y = F.relu(y) if i < self.steps else y
        return F.relu(y + (self._step("_downsample", x) if self.shortcut else x))


class ResNet(nn.Module):
    """ResNet v1.5."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        stem = config["stem_width"]
        self.token_layer = int(config.get("token_layer", "layer4").removeprefix("layer"))
        self.stem_conv = nn.Conv2d(config["channels"], stem, 7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.blocks = nn.ModuleDict()
        width, widths = stem, []
        for stage, depth in enumerate(config["depths"]):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                block = ResidualBlock(width, stem * 2**stage, stride, config["bottleneck"])
                self.blocks[f"layer{stage + 1}_{i}"] = block
                width = block.out_width
            widths.append(width)
        self.out_width, self.token_width = width, widths[self.token_layer - 1]

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """[B, C, H, W] -> the maps [B, c, h, w] after each stage."""
        x = F.relu(self.stem_norm(self.stem_conv(pixels)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return stages(self.blocks, x)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] -> tokens [B, N, D] of the token layer row by row, pooled [B, D]."""
        maps = self.maps(pixels)
        return {"tokens": flat(maps[self.token_layer - 1]), "pooled": maps[-1].mean((2, 3))}


def stages(blocks: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """Runs blocks named `layer1_0` ... and returns the map after each layer."""
    maps: dict[str, Tensor] = {}
    for name, block in blocks.items():
        x = block(x)
        maps[name.partition("_")[0]] = x
    return list(maps.values())


def flat(x: Tensor) -> Tensor:
    """A map [B, c, ...] as tokens [B, N, c]."""
    return x.flatten(2).transpose(1, 2)


class VolumeBlock(nn.Module):
    """Two 3x3x3 convolutions; where the shape changes, the shortcut is a projection or padded with zeros."""

    def __init__(self, width_in: int, width: int, stride: int, dilation: int, shortcut: str):
        super().__init__()
        options: dict[str, Any] = dict(padding=dilation, dilation=dilation, bias=False)
        self.conv1 = nn.Conv3d(width_in, width, 3, stride=stride, **options)
        self.conv2 = nn.Conv3d(width, width, 3, **options)
        self.norm1, self.norm2 = nn.BatchNorm3d(width), nn.BatchNorm3d(width)
        self.stride, self.added = stride, width - width_in
        self.projects = shortcut == "projection" and (stride != 1 or width_in != width)
        if self.projects:
            self.conv_downsample = nn.Conv3d(width_in, width, 1, stride=stride, bias=False)
            self.norm_downsample = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, Cin, d, h, w] to [B, Cout, d/stride, h/stride, w/stride]."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.projects:
            x = self.norm_downsample(self.conv_downsample(x))
        elif self.stride != 1 or self.added:
            step = self.stride
            x = F.pad(x[:, :, ::step, ::step, ::step], (0, 0, 0, 0, 0, 0, 0, self.added))
        return F.relu(y + x)


class VolumeResNet(nn.Module):
    """3-D ResNet of basic blocks: Med3D's and R3D."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, kernel = config["stem_width"], tuple(config["stem_kernel"])
        self.max_pool = config["max_pool"]
        self.stem_conv = nn.Conv3d(
            config["channels"],
            width,
            kernel,
            stride=tuple(config["stem_stride"]),
            padding=tuple(k // 2 for k in kernel),
            bias=False,
        )
        self.stem_norm = nn.BatchNorm3d(width)
        self.blocks = nn.ModuleDict()
        for stage, depth in enumerate(config["depths"]):
            dilated = config["dilated"] and stage >= 2
            stride = 1 if stage == 0 or dilated else 2
            dilation = 2 ** (stage - 1) if dilated else 1
            out = config["stem_width"] * 2**stage
            for i in range(depth):
                self.blocks[f"layer{stage + 1}_{i}"] = VolumeBlock(
                    width, out, stride if i == 0 else 1, dilation, config["shortcut"]
                )
                width = out
        self.out_width = self.token_width = width

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, D, H, W] -> tokens [B, N, C] slice by slice and row by row, pooled [B, C]."""
        x = F.relu(self.stem_norm(self.stem_conv(pixels)))
        if self.max_pool:
            x = F.max_pool3d(x, 3, stride=2, padding=1)
        tokens = flat(stages(self.blocks, x)[-1])
        return {"tokens": tokens, "pooled": tokens.mean(1)}


class ClipBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolution; with stride 2 map and shortcut are averaged over 2x2 positions."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        out = 4 * width
        self.stride, self.out_width = stride, out
        self.conv1, self.norm1 = nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.projects = stride != 1 or width_in != out
        if self.projects:
            self.conv_downsample = nn.Conv2d(width_in, out, 1, bias=False)
            self.norm_downsample = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, Cin, h, w] to [B, Cout, h/stride, w/stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.stride == 2:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        if self.projects:
            x = self.norm_downsample(self.conv_downsample(x))
        return F.relu(self.norm3(self.conv3(y)) + x)


class ClipPool(Attention):
    """Attention whose one query is the mean of the map."""

    def __init__(self, width: int, positions: int, out: int):
        super().__init__(width, width // 64, out=out)
        self.position_embed = nn.Parameter(torch.zeros(1, 1 + positions, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [B, N, C] to [B, out]."""
        x = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.position_embed
        return super().forward(x[:, :1], x)[:, 0]


class ClipResNet(nn.Module):
    """ResNet of CLIP: three convolutions in the stem, averages in place of strides, attention pooling."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        stem, width = config["stem_width"], config["channels"]
        for i, out in enumerate((stem // 2, stem // 2, stem), start=1):
            stride = 2 if i == 1 else 1
            conv = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
            self.add_module(f"stem_conv{i}", conv)
            self.add_module(f"stem_norm{i}", nn.BatchNorm2d(out))
            width = out
        self.blocks = nn.ModuleDict()
        for stage, depth in enumerate(config["depths"]):
            for i in range(depth):
                block = ClipBlock(width, stem * 2**stage, 2 if stage > 0 and i == 0 else 1)
                self.blocks[f"layer{stage + 1}_{i}"] = block
                width = block.out_width
        self.out_width, self.token_width = config["output_dim"], width
        # The first convolution rounds up, the means over 2x2 positions round down.
        side = (config["image_size"] + 1) // 2 // 16
        self.pool = ClipPool(width, side**2, self.out_width)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] -> tokens [B, N, C] of the last stage row by row, pooled [B, out]."""
        x = pixels
        for i in (1, 2, 3):
            x = self.get_submodule(f"stem_conv{i}")(x)
            x = F.relu(self.get_submodule(f"stem_norm{i}")(x))
        tokens = flat(stages(self.blocks, F.avg_pool2d(x, 2))[-1])
        return {"tokens": tokens, "pooled": self.pool(tokens)}
