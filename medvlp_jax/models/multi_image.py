"""BioViL-T's image encoder (arXiv 2301.04558, section 3.1): a ResNet, and what changed since the prior image.

The features of the current image (static) stand beside those of a small transformer that compares them with
the features of the prior image (difference). Where there is no prior image a learned vector takes the place
of the difference.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, resnet
from medvlp_jax.types import Array, Outputs

VARIANTS: dict[str, dict[str, Any]] = {
    "test": {**resnet.VARIANTS["test"], "width": 16, "heads": 2},
    "resnet18": resnet.VARIANTS["18"],
    "resnet50": resnet.VARIANTS["50"],
}
"""Constructor arguments per variant; "resnet50" is BioViL-T."""


def _torch_rules() -> list[tuple[str, str, str]]:
    rules = [(f"backbone/{a}", f"encoder.{b}", kind) for a, b, kind in resnet.TORCHVISION_RULES]
    rules += [
        ("reduce/kernel", "backbone_to_vit.weight", "conv"),
        ("missing_prior", "missing_previous_emb", "copy"),
        ("image_embed", "vit_pooler.type_embed", "copy"),
        ("norm/scale", "vit_pooler.norm_post.weight", "copy"),
        ("norm/bias", "vit_pooler.norm_post.bias", "copy"),
    ]
    block, theirs = r"block_(\d+)", r"vit_pooler.blocks.\1"
    names = (("query", "proj_q"), ("key", "proj_k"), ("value", "proj_v"), ("out", "proj"))
    linears = [(f"attention/{a}", f"attn.{b}") for a, b in names]
    for ours, name in [*linears, ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")]:
        rules.append((f"{block}/{ours}/kernel", f"{theirs}.{name}.weight", "linear"))
        rules.append((f"{block}/{ours}/bias", f"{theirs}.{name}.bias", "copy"))
    for name in ("norm1", "norm2"):
        rules.append((f"{block}/{name}/scale", f"{theirs}.{name}.weight", "copy"))
        rules.append((f"{block}/{name}/bias", f"{theirs}.{name}.bias", "copy"))
    return rules


TORCH_RULES: list[tuple[str, str, str]] = _torch_rules()
"""Names of the image encoder in BioViL-T's released weights (without the prefix `encoder.`; the projection,
`projector.*`, and torchvision's unused `encoder.fc.*` are left over), in the form explained at
`vit.TORCH_RULES`; they also cover the collection `batch_stats`."""


def sine_positions(width: int, grid: tuple[int, int]) -> np.ndarray:
    """Fixed 2-D positions of DETR (arXiv 2005.12872, appendix A.4) -> float64 [h*w, width].

    The first half of the features encodes the row, the second the column. Rows 1..h are scaled to end at
    2 pi, likewise columns; sine and cosine of the frequencies 10000^(-2i/(width/2)) alternate.
    """
    if width % 4:
        raise UserError(f"sine-cosine positions need a width divisible by 4, not {width}")
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    halves = []
    for index, length in zip(np.mgrid[: grid[0], : grid[1]], grid, strict=True):
        angle = 2 * np.pi * (index.reshape(-1, 1) + 1) / length * omega
        halves.append(np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(angle), -1))
    return np.concatenate(halves, axis=1)


class Block(nn.Module):
    """Pre-LN block whose attention sees LN(x) + position: each block is told the positions anew.

    As in the released code they reach queries, keys and values.
    """

    heads: int
    dropout: float
    drop_path: float
    kernel_init: layers.Initializer
    implementation: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, position: Array, train: bool) -> Array:
        """Maps x [B, T, D] with position [T, D] to [B, T, D]."""
        attend = layers.MultiHeadAttention(
            self.heads,
            qkv_bias=False,
            dropout=self.dropout,
            kernel_init=self.kernel_init,
            implementation=self.implementation,
            dtype=self.dtype,
            name="attention",
        )
        y = layers.LayerNorm(1e-6, self.dtype, name="norm1")(x) + position
        y, _ = attend(y, train=train)
        x = x + self._branch(y, train)
        y = layers.LayerNorm(1e-6, self.dtype, name="norm2")(x)
        mlp = layers.Mlp(x.shape[-1], kernel_init=self.kernel_init, dtype=self.dtype, name="mlp")
        return x + self._branch(mlp(y), train)

    def _branch(self, y: Array, train: bool) -> Array:
        if train and self.dropout > 0.0:
            y = layers.dropout(y, self.dropout, self.make_rng("dropout"))
        if train and self.drop_path > 0.0:
            y = layers.dropout(y, self.drop_path, self.make_rng("dropout"), rows_only=True)
        return y


class Encoder(nn.Module):
    """Encoder of an image and, where there is one, of a prior image of the same patient.

    Fields:
        depths, bottleneck, stem_width, frozen_bn: the ResNet, see `resnet.Encoder`.
        width: features of the static and of the difference half each; depth, heads: the transformer.
        dropout, drop_path: rates in the transformer as published (the released code also drops inside the
            feed-forward, which is left out).
        remat: "none", or "full" to recompute each block of the ResNet in the backward pass.
        attention: implementation, see `layers.attention`.
        dtype: compute dtype; parameters and statistics are float32.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    stem_width: int = 64
    frozen_bn: bool = False
    width: int = 256
    depth: int = 3
    heads: int = 8
    dropout: float = 0.1
    drop_path: float = 0.25
    remat: Literal["none", "full"] = "none"
    attention: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Array,
        prior_image: Array | None = None,
        prior_mask: Array | None = None,
        *,
        keep_ids: Array | None = None,
        train: bool = False,
    ) -> Outputs:
        """Encodes normalised float images [B, H, W, C].

        Args:
            prior_image: [B, H, W, C], None = no image has a prior.
            prior_mask: [B], nonzero where `prior_image` holds one, None = everywhere. Other rows of it are
                replaced by the current image, so what they hold does not matter, for BatchNorm neither.
            train: whether dropout is active (needs the rng "dropout") and BatchNorm uses the batch, which is
                that of all current and prior images.

        Returns:
            tokens [B, N, 2*width], row by row: first half static, second half difference, which is the
            learned vector where there is no prior; pooled [B, 2*width], their mean; hidden: the ResNet's maps
            of the current image.

        Raises:
            UserError: `keep_ids` given, an image that is not float, or a prior image of another size.
        """
        if prior_image is None and self.is_initializing():
            prior_image = image  # every parameter must exist, whatever the first batch holds
        images = image
        if prior_image is not None:
            images = jnp.concatenate([image, self._priors(image, prior_image, prior_mask)])
        maps = self._backbone()(images, keep_ids=keep_ids, train=train)["hidden"]
        init = nn.initializers.normal(0.02)
        reduce = nn.Conv(self.width, (1, 1), use_bias=False, dtype=self.dtype, name="reduce")
        x = reduce(maps[-1])
        grid = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, self.width)
        static = x[: image.shape[0]]
        # The layout of the released weights.
        missing = self.param("missing_prior", init, (1, self.width, 1, 1), jnp.float32)
        difference = jnp.broadcast_to(missing.reshape(1, 1, -1).astype(self.dtype), static.shape)
        if prior_image is not None:
            compared = self._compare(static, x[image.shape[0] :], grid, train)
            known = True if prior_mask is None else (prior_mask != 0)[:, None, None]
            difference = jnp.where(known, compared, difference)
        tokens = jnp.concatenate([static, difference], axis=-1)
        return {
            "hidden": tuple(x[: image.shape[0]] for x in maps),
            "tokens": tokens,
            "pooled": tokens.astype(jnp.float32).mean(axis=1).astype(tokens.dtype),
        }

    def _backbone(self) -> resnet.Encoder:
        return resnet.Encoder(
            depths=self.depths,
            bottleneck=self.bottleneck,
            stem_width=self.stem_width,
            frozen_bn=self.frozen_bn,
            remat=self.remat,
            dtype=self.dtype,
            name="backbone",
        )

    def _priors(self, image: Array, prior_image: Array, prior_mask: Array | None) -> Array:
        if prior_image.shape != image.shape:
            raise UserError(
                f"prior_image has shape {prior_image.shape}, but image {image.shape}; load both at one size"
            )
        if prior_mask is None:
            return prior_image
        return jnp.where((prior_mask != 0)[:, None, None, None], prior_image, image)

    def _compare(self, static: Array, prior: Array, grid: tuple[int, ...], train: bool) -> Array:
        """Features [B, N, width] of the current image after attention over both images' features."""
        init = nn.initializers.normal(0.02)
        kinds = self.param("image_embed", init, (2, 1, self.width), jnp.float32)
        places = sine_positions(self.width, (grid[0], grid[1])).astype(np.float32)
        position = (kinds + places[None]).reshape(-1, self.width).astype(self.dtype)
        x = jnp.concatenate([static, prior], axis=1)
        if train and self.dropout > 0.0:
            x = layers.dropout(x, self.dropout, self.make_rng("dropout"))
        for i in range(self.depth):
            x = Block(
                self.heads,
                self.dropout,
                self.drop_path,
                init,
                self.attention,
                self.dtype,
                name=f"block_{i}",
            )(x, position, train)
        norm = layers.LayerNorm(1e-6, self.dtype, name="norm")
        return norm(x[:, : static.shape[1]])
