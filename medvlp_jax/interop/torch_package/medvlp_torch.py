"""A vision-language model that was trained with medvlp_jax, rebuilt in PyTorch.

Needs torch and safetensors, nothing else. With this file, `manifest.json` and the weights in a folder:

    from medvlp_torch import load
    model = load(".")
    image_embed = model.encode_image(pixels)                # float [B, C, H, W], normalised
    text_embed = model.encode_text(input_ids, attention_mask)

Licence: Apache-2.0. Research use only, not for clinical use.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def load(folder: str | os.PathLike[str]) -> VisionLanguageModel:
    """The model of a folder, in evaluation mode on the CPU.

    Raises:
        RuntimeError: the weights do not fit the manifest.
    """
    folder = pathlib.Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    model = VisionLanguageModel(manifest["model"])
    model.load_state_dict(safetensors.torch.load_file(folder / manifest["weights"]))
    return model.eval()


# --- transformer parts ---------------------------------------------------------------------------


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU."""
    return F.gelu(x, approximate="tanh")


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Function of that name: gelu (exact), gelu_tanh, quick_gelu or relu."""
    known = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu, "relu": F.relu}
    return known[name]


class Attention(nn.Module):
    """Multi-head attention of x [B, T, D] to a context [B, S, Dc]."""

    def __init__(self, width: int, heads: int, *, context: int | None = None, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(context or width, width, bias=bias)
        self.value = nn.Linear(context or width, width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Maps to [B, T, D]; mask [B, S] or [B, 1, T, S] is nonzero where the context may be seen."""
        context = x if context is None else context
        q, k, v = self._split(self.query(x)), self._split(self.key(context)), self.value(context)
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, self._split(v))
        else:
            # A row without any real token gets zeros, and must not become a softmax over nothing.
            allowed = (mask if mask.ndim == 4 else mask[:, None, None, :]) != 0
            some = allowed.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(q, k, self._split(v), attn_mask=allowed | ~some)
            y = y * some
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, out: int, name: str):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)
        self.activation = activation(name)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., width] to [..., out]."""
        return self.fc2(self.activation(self.fc1(x)))


class PreNormBlock(nn.Module):
    """Block of ViT: x + f(LayerNorm(x)), each branch times a learned vector with `layer_scale` (DINOv2)."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, eps = config["width"], config["layer_norm_eps"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attention = Attention(width, config["heads"], bias=config["qkv_bias"])
        self.mlp = Mlp(width, config["mlp_dim"], width, config["activation"])
        scaled = config["layer_scale"] > 0
        self.layer_scale1 = nn.Parameter(torch.ones(width)) if scaled else None
        self.layer_scale2 = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps [B, T, D] to [B, T, D]."""
        y = self.attention(self.norm1(x), None, mask)
        x = x + (y if self.layer_scale1 is None else y * self.layer_scale1)
        y = self.mlp(self.norm2(x))
        return x + (y if self.layer_scale2 is None else y * self.layer_scale2)


class PostNormBlock(nn.Module):
    """Block of BERT: LayerNorm(x + f(x)); with `cross` there is attention to another sequence in between."""

    def __init__(self, config: dict[str, Any], *, cross: bool = False):
        super().__init__()
        width, heads, eps = config["width"], config["heads"], config["layer_norm_eps"]
        self.attention, self.attention_norm = Attention(width, heads), nn.LayerNorm(width, eps)
        if cross:
            self.cross_attention = Attention(width, heads)
            self.cross_attention_norm = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, config["mlp_dim"], width, config["activation"])
        self.mlp_norm = nn.LayerNorm(width, eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Maps [B, T, D] to [B, T, D]."""
        x = self.attention_norm(x + self.attention(x, None, mask))
        if context is not None:
            y = self.cross_attention(x, context, context_mask)
            x = self.cross_attention_norm(x + y)
        return self.mlp_norm(x + self.mlp(x))


# --- image towers --------------------------------------------------------------------------------


class VisionTransformer(nn.Module):
    """ViT with the options of MAE, CLIP, DINOv2 and SigLIP."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, patch, eps = config["width"], config["patch_size"], config["layer_norm_eps"]
        self.pooling, self.out_width = config["pooling"], width
        self.patch_embed = nn.Conv2d(
            config["channels"], width, patch, stride=patch, bias=config["patch_bias"]
        )
        first = int(config["class_token"])
        side = config["image_size"] // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if first else None
        self.position_embed = nn.Parameter(torch.zeros(1, first + side * side, width))
        self.registers = config["registers"]
        if self.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, self.registers, width))
        self.pre_norm = nn.LayerNorm(width, eps) if config["pre_layernorm"] else nn.Identity()
        self.blocks = nn.ModuleDict(
            {f"block_{i}": PreNormBlock(config) for i in range(config["depth"])}
        )
        self.norm = nn.LayerNorm(width, eps)
        self.pooler = nn.Linear(width, width) if self.pooling == "pooler" else None
        if self.pooling == "map":
            self.attention_pool = MapPool(config)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] -> tokens [B, N, D], pooled [B, D], and cls [B, D] if there is a class token."""
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        first = 0 if self.cls_token is None else 1
        parts = [x + self.position_embed[:, first:]]
        if self.registers:
            parts.insert(0, self.register_tokens.expand(x.shape[0], -1, -1))
        if self.cls_token is not None:
            cls = self.cls_token + self.position_embed[:, :first]
            parts.insert(0, cls.expand(x.shape[0], -1, -1))
        x = self.pre_norm(torch.cat(parts, dim=1))
        for block in self.blocks.values():
            x = block(x)
        x = self.norm(x)
        tokens = x[:, first + self.registers :]
        outputs = {"tokens": tokens}
        if self.cls_token is not None:
            outputs["cls"] = x[:, 0]
        if self.pooling == "mean":
            outputs["pooled"] = tokens.mean(1)
        elif self.pooling == "map":
            outputs["pooled"] = self.attention_pool(tokens)
        elif self.pooler is None:
            outputs["pooled"] = x[:, 0]
        else:
            outputs["pooled"] = torch.tanh(self.pooler(x[:, 0]))
        return outputs


class MapPool(nn.Module):
    """A learned probe attends to the tokens -> y; the result is y + MLP(LayerNorm(y)) (SigLIP)."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width = config["width"]
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = Attention(width, config["heads"])
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.mlp = Mlp(width, config["mlp_dim"], width, config["activation"])

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, N, D] to [B, D]."""
        y = self.attention(self.probe.expand(x.shape[0], -1, -1), x)
        return (y + self.mlp(self.norm(y)))[:, 0]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or with `bottleneck` 1x1, 3x3 and 1x1; the stride sits in the (last) 3x3."""

    def __init__(self, width_in: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        out = width * 4 if bottleneck else width
        sides = (1, 3, 1) if bottleneck else (3, 3)
        widths = (width_in, width, width, out) if bottleneck else (width_in, width, out)
        self.steps = len(sides)
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

    def _apply_step(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(f"norm{name}")(self.get_submodule(f"conv{name}")(x))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, Cin, h, w] to [B, Cout, h/stride, w/stride]."""
        y = x
        for i in range(1, self.steps + 1):
            y = self._apply_step(str(i), y)
            y = F.relu(y) if i < self.steps else y
        return F.relu(y + (self._apply_step("_downsample", x) if self.shortcut else x))


class ResNet(nn.Module):
    """ResNet v1.5."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        stem, bottleneck = config["stem_width"], config["bottleneck"]
        self.token_layer = config["token_layer"]
        self.stem_conv = nn.Conv2d(config["channels"], stem, 7, stride=2, padding=3, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.blocks = nn.ModuleDict()
        width = stem
        for stage, depth in enumerate(config["depths"]):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                inner = stem * 2**stage
                self.blocks[f"layer{stage + 1}_{i}"] = ResidualBlock(
                    width, inner, stride, bottleneck
                )
                width = inner * 4 if bottleneck else inner
        self.out_width = width

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] -> tokens [B, N, D] of the token layer row by row, pooled [B, D]."""
        x = F.relu(self.stem_norm(self.stem_conv(pixels)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        tokens = x
        for name, block in self.blocks.items():
            x = block(x)
            if name.startswith(self.token_layer):
                tokens = x
        return {"tokens": tokens.flatten(2).transpose(1, 2), "pooled": x.mean((2, 3))}


def convolve_last(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution on [B, h, w, C]."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, linear, GELU, linear, layer scale, on [B, h, w, C]."""

    def __init__(self, width: int, scaled: bool):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layer_scale = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, h, w, C] to [B, h, w, C]."""
        y = self.fc2(F.gelu(self.fc1(self.norm(convolve_last(self.depthwise, x)))))
        return x + (y if self.layer_scale is None else y * self.layer_scale)


class ConvNeXt(nn.Module):
    """ConvNeXt; a BatchNorm of the training is already part of the weights."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        sizes, patch = config["hidden_sizes"], config["patch_size"]
        self.out_width = sizes[-1]
        self.stem = nn.Conv2d(config["channels"], sizes[0], patch, stride=patch)
        self.stem_norm = nn.LayerNorm(sizes[0], 1e-6)
        self.blocks = nn.ModuleDict()
        for stage, (width, depth) in enumerate(zip(sizes, config["depths"], strict=True)):
            if stage:
                self.blocks[f"down_{stage}_norm"] = nn.LayerNorm(sizes[stage - 1], 1e-6)
                self.blocks[f"down_{stage}"] = nn.Conv2d(sizes[stage - 1], width, 2, stride=2)
            for i in range(depth):
                self.blocks[f"stage_{stage}_block_{i}"] = ConvNeXtBlock(
                    width, config["layer_scale"] > 0
                )
        self.norm = nn.LayerNorm(self.out_width, config["layer_norm_eps"])

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] -> tokens [B, N, D] of the last stage row by row, pooled [B, D]."""
        x = self.stem_norm(convolve_last(self.stem, pixels.permute(0, 2, 3, 1)))
        for block in self.blocks.values():
            x = convolve_last(block, x) if isinstance(block, nn.Conv2d) else block(x)
        return {"tokens": x.flatten(1, 2), "pooled": self.norm(x.mean((1, 2)))}


# --- text towers ---------------------------------------------------------------------------------


class Bert(nn.Module):
    """BERT or RoBERTa."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, types = config["width"], config["token_types"]
        self.pooling, self.out_width = config["pooling"], width
        self.roberta, self.padding_idx = config["position_ids"] == "roberta", config["padding_idx"]
        self.word_embed = nn.Embedding(config["vocab_size"], width)
        self.position_embed = nn.Embedding(config["max_positions"], width)
        self.token_type_embed = nn.Embedding(types, width) if types else None
        self.embed_norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.blocks = nn.ModuleDict(
            {f"block_{i}": PostNormBlock(config) for i in range(config["depth"])}
        )
        self.pooler = nn.Linear(width, width) if self.pooling == "pooler" else None
        if self.pooling == "attention":
            self.attention_pool = AttentionPool(width, config["heads"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        """[B, L], [B, L] -> tokens [B, L, D], pooled [B, D], hidden: the states of all layers."""
        real = (attention_mask != 0).long()
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        if self.roberta:
            positions = real.cumsum(1) * real + self.padding_idx
        x = self.word_embed(input_ids) + self.position_embed(positions)
        if self.token_type_embed is not None:
            x = x + self.token_type_embed.weight[0]
        x = self.embed_norm(x)
        hidden = [x]
        for block in self.blocks.values():
            x = block(x, attention_mask)
            hidden.append(x)
        return {"tokens": x, "pooled": self._pool(x, attention_mask), "hidden": hidden}

    def _pool(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.pooler is not None:
            return torch.tanh(self.pooler(x[:, 0]))
        if self.pooling == "cls":
            return x[:, 0]
        if self.pooling == "eos":
            return take_position(x, last_position(mask))
        if self.pooling == "mean":
            return masked_mean(x, mask)
        if self.pooling == "attention":
            return self.attention_pool(x, mask)
        keep = (mask != 0)[..., None]
        highest = x.masked_fill(~keep, torch.finfo(x.dtype).min).amax(1)
        return highest * keep.any(1)


class AttentionPool(nn.Module):
    """One learned query attends to the tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = Attention(width, heads)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps [B, L, D] to [B, D]."""
        return self.attention(self.query.expand(x.shape[0], -1, -1), x, mask)[:, 0]


class ClipText(nn.Module):
    """CLIP's text transformer: causal, read at the end-of-text token."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, eps = config["width"], config["layer_norm_eps"]
        self.out_width, self.eos_token_id = width, config["eos_token_id"]
        self.word_embed = nn.Embedding(config["vocab_size"], width)
        self.position_embed = nn.Embedding(config["max_positions"], width)
        block = {**config, "qkv_bias": True, "layer_scale": 0.0}
        self.blocks = nn.ModuleDict(
            {f"block_{i}": PreNormBlock(block) for i in range(config["depth"])}
        )
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        """[B, L], [B, L] -> tokens [B, L, D], pooled [B, D], hidden: the states of all layers."""
        length = input_ids.shape[1]
        places = torch.arange(length, device=input_ids.device)
        real = attention_mask != 0
        mask = real[:, None, None, :] & (places[None, :] <= places[:, None])
        x = self.word_embed(input_ids) + self.position_embed(places)
        hidden = [x]
        for block in self.blocks.values():
            x = block(x, mask)
            hidden.append(x)
        tokens = self.norm(x)
        pooled = take_position(tokens, self._end(input_ids, real))
        return {"tokens": tokens, "pooled": pooled, "hidden": hidden}

    def _end(self, input_ids: Tensor, real: Tensor) -> Tensor:
        """Where the text ends: the first end-of-text token, or without an id for it the highest id."""
        if self.eos_token_id is None:
            ids = input_ids.masked_fill(~real, -1)
            return first_position(ids == ids.amax(1, keepdim=True))
        found = real & (input_ids == self.eos_token_id)
        return torch.where(found.any(1), first_position(found), last_position(real))


def first_position(where: Tensor) -> Tensor:
    """Position of the first nonzero entry of each row of [B, L] -> [B]; 0 for an empty row."""
    length = where.shape[1]
    left = torch.arange(length, 0, -1, device=where.device)  # positions from here to the end
    return (length - (where * left).amax(1)) % length


def last_position(mask: Tensor) -> Tensor:
    """Position of the last nonzero entry of each row of [B, L] -> [B]; 0 for an empty row."""
    return ((mask != 0) * torch.arange(mask.shape[1], device=mask.device)).amax(1)


def take_position(x: Tensor, position: Tensor) -> Tensor:
    """The state of x [B, L, D] at position [B] of each row -> [B, D]."""
    index = position[:, None, None].expand(-1, 1, x.shape[-1])
    return x.gather(1, index)[:, 0]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x [B, L, D] where mask [B, L] is nonzero; zeros for an empty row."""
    keep = (mask != 0)[..., None].to(x.dtype)
    return (x * keep).sum(1) / keep.sum(1).clamp(min=1)


def merge_word_pieces(x: Tensor, word_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the states of the pieces of each word.

    Args:
        x: [B, L, D]; word_ids: [B, L], the word a piece belongs to, -1 for special tokens and padding.

    Returns:
        [B, L, D], position w holds word w; mask [B, L], whether there is such a word.
    """
    words = torch.arange(x.shape[1], device=x.device)[:, None]
    member = word_ids[:, None, :] == words
    return member.to(x.dtype) @ x, member.any(-1)


# --- heads and fusion ----------------------------------------------------------------------------


class LinearHead(nn.Module):
    """One linear layer."""

    def __init__(self, width: int, config: dict[str, Any]):
        super().__init__()
        self.fc = nn.Linear(width, config["features"], bias=config["use_bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D] to [B, features]."""
        return self.fc(x)


class MlpHead(Mlp):
    """Linear, activation, linear (ConVIRT)."""

    def __init__(self, width: int, config: dict[str, Any]):
        super().__init__(width, config["hidden"] or width, config["features"], config["activation"])


class BatchNormHead(nn.Module):
    """Linear, BatchNorm, ReLU, linear, BatchNorm without affine (MGCA)."""

    def __init__(self, width: int, config: dict[str, Any]):
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(width, config["hidden"]), nn.BatchNorm1d(config["hidden"])
        self.fc2 = nn.Linear(config["hidden"], config["features"])
        self.norm2 = nn.BatchNorm1d(config["features"], affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D] to [B, features]."""
        return self.norm2(self.fc2(F.relu(self.norm1(self.fc1(x)))))


class CoAttention(nn.Module):
    """Two streams that read each other (METER, M3AE)."""

    def __init__(self, image_width: int, text_width: int, config: dict[str, Any]):
        super().__init__()
        width, count = config["width"], config["layers"]
        self.image_input = nn.Linear(image_width, width)
        self.text_input = nn.Linear(text_width, width)
        self.image_modality = nn.Parameter(torch.zeros(width))
        self.text_modality = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleDict()
        for i in range(count):
            for stream in ("image", "text"):
                self.blocks[f"{stream}_block_{i}"] = PostNormBlock(config, cross=True)
        self.count = count
        # Named as in training, where a pooler is a module around its linear layer.
        self.image_pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.text_pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor
    ) -> dict[str, Tensor]:
        """[B, N, Di], [B, L, Dt], [B, L] -> image_tokens [B, N, D], text_tokens [B, L, D], pooled [B, 2D]."""
        image = self.image_input(image_tokens) + self.image_modality
        text = self.text_input(text_tokens) + self.text_modality
        for i in range(self.count):
            image_block, text_block = (
                self.blocks[f"image_block_{i}"],
                self.blocks[f"text_block_{i}"],
            )
            next_text = text_block(text, text_mask, image)
            image = image_block(image, None, text, text_mask)
            text = next_text
        pooled = [
            torch.tanh(self.text_pooler["dense"](text[:, 0])),
            torch.tanh(self.image_pooler["dense"](image[:, 0])),
        ]
        return {"image_tokens": image, "text_tokens": text, "pooled": torch.cat(pooled, dim=-1)}


# --- the model -----------------------------------------------------------------------------------

IMAGE_TOWERS = {"vit": VisionTransformer, "resnet": ResNet, "convnext": ConvNeXt}
TEXT_TOWERS = {"bert": Bert, "clip_text": ClipText}
HEADS = {
    "LinearProjection": LinearHead,
    "MLPProjection": MlpHead,
    "BatchNormProjection": BatchNormHead,
}


class VisionLanguageModel(nn.Module):
    """Image encoder, text encoder, projections to the shared space and, where trained, a fusion encoder.

    Attributes:
        logit_scale: factor of the cosine of two embeddings.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        image, text, fusion = config["image_encoder"], config["text_encoder"], config["fusion"]
        self.image_encoder = IMAGE_TOWERS[image["name"]](image)
        self.text_encoder = TEXT_TOWERS[text["name"]](text)
        widths = {"image": self.image_encoder.out_width, "text": self.text_encoder.out_width}
        self.image_projection = self._head(widths["image"], config["image_projection"])
        self.text_projection = self._head(widths["text"], config["text_projection"])
        self.fusion = CoAttention(widths["image"], widths["text"], fusion) if fusion else None
        self.text_pooling, self.last_layers = config["text_pooling"], config["last_layers"]
        self.merge_words = config["merge_words"]
        self.logit_scale: float = config["logit_scale"]

    @staticmethod
    def _head(width: int, config: dict[str, Any] | None) -> nn.Module:
        return nn.Identity() if config is None else HEADS[config["name"]](width, config)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] -> embeddings [B, D] of length 1."""
        embed = self.image_projection(self.image_encoder(pixels)["pooled"])
        return F.normalize(embed, dim=-1, eps=1e-6)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, word_ids: Tensor | None = None
    ) -> Tensor:
        """Token ids and mask [B, L] -> embeddings [B, D] of length 1.

        word_ids [B, L] (the word a token belongs to, -1 for special tokens and padding) is needed only by a
        model that pools words (`manifest.json` lists the inputs).
        """
        encoded = self.text_encoder(input_ids, attention_mask)
        pooled = encoded["pooled"]
        if self.text_pooling == "mean":
            states, mask = (
                torch.stack(encoded["hidden"][-self.last_layers :]).sum(0),
                attention_mask,
            )
            if self.merge_words:
                if word_ids is None:
                    raise ValueError("this model pools words: give word_ids")
                states, mask = merge_word_pieces(states, word_ids)
            pooled = masked_mean(states, mask)
        return F.normalize(self.text_projection(pooled), dim=-1, eps=1e-6)

    def fuse(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Joint states of pairs: image_tokens [B, N, D], text_tokens [B, L, D], pooled [B, 2D]."""
        if self.fusion is None:
            raise ValueError("this model has no fusion encoder")
        image = self.image_encoder(pixels)
        tokens = image["tokens"]
        if "cls" in image:
            tokens = torch.cat([image["cls"][:, None], tokens], dim=1)
        states = self.text_encoder(input_ids, attention_mask)["tokens"]
        return self.fusion(tokens, states, attention_mask)

    def forward(
        self,
        pixels: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [images, texts]: scaled cosines of the embeddings."""
        texts = self.encode_text(input_ids, attention_mask, word_ids)
        return self.logit_scale * self.encode_image(pixels) @ texts.T
