"""Swin Transformer image encoder (arXiv 2103.14030), equal to `transformers.SwinModel`."""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers, vit
from medvlp_jax.types import Array, Outputs

_EPS = 1e-5  # of every LayerNorm

VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"width": 16, "depths": (2, 2), "heads": (2, 4), "window": 4},
    "T": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "S": {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "B": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
}
"""Constructor arguments per variant; T, S and B as published for 224 px."""

_BLOCK = r"encoder.layers.\1.blocks.\2"
TORCH_RULES: list[tuple[str, str, str]] = [
    (r"patch_embed/kernel", "embeddings.patch_embeddings.projection.weight", "conv"),
    (r"patch_embed/bias", "embeddings.patch_embeddings.projection.bias", "copy"),
    (r"patch_norm/scale", "embeddings.norm.weight", "copy"),
    (r"patch_norm/bias", "embeddings.norm.bias", "copy"),
    (
        r"stage_(\d)_block_(\d+)/attention/(query|key|value)/kernel",
        rf"{_BLOCK}.attention.self.\3.weight",
        "linear",
    ),
    (
        r"stage_(\d)_block_(\d+)/attention/(query|key|value)/bias",
        rf"{_BLOCK}.attention.self.\3.bias",
        "copy",
    ),
    (
        r"stage_(\d)_block_(\d+)/attention/position_bias",
        rf"{_BLOCK}.attention.self.relative_position_bias_table",
        "copy",
    ),
    (
        r"stage_(\d)_block_(\d+)/attention/out/kernel",
        rf"{_BLOCK}.attention.output.dense.weight",
        "linear",
    ),
    (
        r"stage_(\d)_block_(\d+)/attention/out/bias",
        rf"{_BLOCK}.attention.output.dense.bias",
        "copy",
    ),
    (r"stage_(\d)_block_(\d+)/norm1/scale", rf"{_BLOCK}.layernorm_before.weight", "copy"),
    (r"stage_(\d)_block_(\d+)/norm1/bias", rf"{_BLOCK}.layernorm_before.bias", "copy"),
    (r"stage_(\d)_block_(\d+)/norm2/scale", rf"{_BLOCK}.layernorm_after.weight", "copy"),
    (r"stage_(\d)_block_(\d+)/norm2/bias", rf"{_BLOCK}.layernorm_after.bias", "copy"),
    (r"stage_(\d)_block_(\d+)/mlp/fc1/kernel", rf"{_BLOCK}.intermediate.dense.weight", "linear"),
    (r"stage_(\d)_block_(\d+)/mlp/fc1/bias", rf"{_BLOCK}.intermediate.dense.bias", "copy"),
    (r"stage_(\d)_block_(\d+)/mlp/fc2/kernel", rf"{_BLOCK}.output.dense.weight", "linear"),
    (r"stage_(\d)_block_(\d+)/mlp/fc2/bias", rf"{_BLOCK}.output.dense.bias", "copy"),
    (r"stage_(\d)_merge_norm/scale", r"encoder.layers.\1.downsample.norm.weight", "copy"),
    (r"stage_(\d)_merge_norm/bias", r"encoder.layers.\1.downsample.norm.bias", "copy"),
    (r"stage_(\d)_merge/kernel", r"encoder.layers.\1.downsample.reduction.weight", "linear"),
    (r"norm/scale", "layernorm.weight", "copy"),
    (r"norm/bias", "layernorm.bias", "copy"),
]
"""Names of `transformers.SwinModel` as its checkpoint files spell them (without the `swin.` prefix), in the
form explained at `vit.TORCH_RULES`. The files of older releases also hold `relative_position_index`, which is
no parameter."""


def _original_rules(shift: int) -> list[tuple[str, str, str]]:
    """Names of the released code; the layer that halves the grid after a stage is counted `shift` later."""
    theirs, block = r"layers.\1.blocks.\2", r"stage_(\d)_block_(\d+)"
    rules = [
        (r"patch_embed/kernel", "patch_embed.proj.weight", "conv"),
        (r"patch_embed/bias", "patch_embed.proj.bias", "copy"),
        (r"patch_norm/scale", "patch_embed.norm.weight", "copy"),
        (r"patch_norm/bias", "patch_embed.norm.bias", "copy"),
        (
            f"{block}/attention/position_bias",
            f"{theirs}.attn.relative_position_bias_table",
            "copy",
        ),
        (f"{block}/attention/out/kernel", f"{theirs}.attn.proj.weight", "linear"),
        (f"{block}/attention/out/bias", f"{theirs}.attn.proj.bias", "copy"),
        (f"{block}/norm(1|2)/scale", rf"{theirs}.norm\3.weight", "copy"),
        (f"{block}/norm(1|2)/bias", rf"{theirs}.norm\3.bias", "copy"),
        (f"{block}/mlp/fc(1|2)/kernel", rf"{theirs}.mlp.fc\3.weight", "linear"),
        (f"{block}/mlp/fc(1|2)/bias", rf"{theirs}.mlp.fc\3.bias", "copy"),
        (r"norm/scale", "norm.weight", "copy"),
        (r"norm/bias", "norm.bias", "copy"),
    ]
    for i, name in enumerate(("query", "key", "value")):
        part = f"{block}/attention/{name}"
        rules.append((f"{part}/kernel", f"{theirs}.attn.qkv.weight", f"linear:{i}/3"))
        rules.append((f"{part}/bias", f"{theirs}.attn.qkv.bias", f"copy:{i}/3"))
    for stage in range(3):
        merge, layer = f"stage_{stage}_merge", f"layers.{stage + shift}.downsample"
        rules.append((f"{merge}_norm/scale", f"{layer}.norm.weight", "copy"))
        rules.append((f"{merge}_norm/bias", f"{layer}.norm.bias", "copy"))
        rules.append((f"{merge}/kernel", f"{layer}.reduction.weight", "linear"))
    return rules


ORIGINAL_RULES: list[tuple[str, str, str]] = _original_rules(0)
"""Names of the released files and of timm before 0.9, in that form."""

TIMM_RULES: list[tuple[str, str, str]] = _original_rules(1)
"""Names of timm since 0.9, where a stage begins with the layer that halves the grid, in that form."""

SOURCES: dict[str, list[tuple[str, str, str]]] = {
    "transformers Swin": TORCH_RULES,
    "released Swin": ORIGINAL_RULES,
    "timm Swin": TIMM_RULES,
}
"""Namings that `interop.pretrained` recognises."""


def windows(x: Array, side: int) -> jax.Array:
    """Cuts a map [B,H,W,C] into windows [B,M,side*side,C], row by row; H and W are multiples of side."""
    batch, height, width, channels = x.shape
    grid = (batch, height // side, side, width // side, side, channels)
    x = jnp.swapaxes(jnp.reshape(x, grid), 2, 3)
    return x.reshape(batch, -1, side * side, channels)


def unwindow(x: Array, side: int, height: int, width: int) -> jax.Array:
    """The inverse of `windows`: [B,M,side*side,C] -> [B,height,width,C]."""
    batch, channels = x.shape[0], x.shape[-1]
    grid = (batch, height // side, width // side, side, side, channels)
    return jnp.swapaxes(jnp.reshape(x, grid), 2, 3).reshape(batch, height, width, channels)


def relative_positions(side: int) -> np.ndarray:
    """Row of the bias table for each pair of positions in a window -> int [side*side, side*side].

    Query i and key j that lie dy rows and dx columns apart (i - j) share the row
    (dy + side - 1) * (2 side - 1) + dx + side - 1.
    """
    rows, columns = (x.reshape(-1) for x in np.mgrid[:side, :side])
    dy, dx = (x[:, None] - x[None, :] + side - 1 for x in (rows, columns))
    return dy * (2 * side - 1) + dx


def shifted_mask(height: int, width: int, side: int, shift: int) -> np.ndarray:
    """Which pairs of a window were neighbours before the cyclic shift -> bool [M, side*side, side*side].

    The shift puts the map's first `shift` rows and columns behind its last ones; only positions from the
    same side of that seam may attend to each other (fig. 4 of the paper).
    """
    y, x = (np.arange(n) >= n - shift for n in (height, width))
    region = 2 * y[:, None] + x[None, :]
    region = region.reshape(height // side, side, width // side, side).swapaxes(1, 2)
    region = region.reshape(-1, side * side)
    return region[:, :, None] == region[:, None, :]


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a learned bias per relative position (eq. 4).

    `position_bias` [(2 window - 1)^2, heads]: see `relative_positions` for its rows.
    """

    heads: int
    window: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Maps x [B,M,S,C] to the same shape, S = window^2; mask: bool [M,S,S], None = all pairs."""
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(
                f"width {width} is not divisible by heads={self.heads}; change one of them"
            )
        init = nn.initializers.xavier_uniform()
        dense = functools.partial(layers.Dense, width, dtype=self.dtype, kernel_init=init)
        split = (*x.shape[:-1], self.heads, width // self.heads)
        query, key, value = (
            jnp.moveaxis(dense(name=name)(x).reshape(split), 3, 2)
            for name in ("query", "key", "value")
        )
        query = query * (width // self.heads) ** -0.5
        logits = jnp.einsum("bmhtd,bmhsd->bmhts", query, key, preferred_element_type=jnp.float32)
        allowed = None if mask is None else mask[:, None]
        probs = layers.masked_softmax(logits + self._bias(), allowed, self.dtype)
        out = jnp.einsum("bmhts,bmhsd->bmhtd", probs, value)
        return dense(name="out")(jnp.moveaxis(out, 2, 3).reshape(x.shape))

    def _bias(self) -> Array:
        """[heads,S,S] float32."""
        shape = ((2 * self.window - 1) ** 2, self.heads)
        init = nn.initializers.truncated_normal(0.02)
        table = self.param("position_bias", init, shape, jnp.float32)
        return jnp.moveaxis(table[relative_positions(self.window)], -1, 0)


class Block(nn.Module):
    """x + f(LN(x)), attention inside windows then feed-forward; `shift` moves the windows (eq. 3)."""

    heads: int
    window: int
    shift: int
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B,H,W,C] to [B,H,W,C]."""
        height, width, channels = x.shape[1:]
        y = layers.LayerNorm(_EPS, self.dtype, name="norm1")(x)
        # Zeros fill the map up to whole windows. They are attended to: the published weights have seen them.
        bottom, right = -height % self.window, -width % self.window
        y = jnp.pad(y, ((0, 0), (0, bottom), (0, right), (0, 0)))
        full, mask = (height + bottom, width + right), None
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
            mask = shifted_mask(*full, self.window, self.shift)
        attention = WindowAttention(self.heads, self.window, self.dtype, name="attention")
        y = unwindow(attention(windows(y, self.window), mask), self.window, *full)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        x = x + self._branch(y[:, :height, :width], train)
        y = layers.LayerNorm(_EPS, self.dtype, name="norm2")(x)
        y = layers.Mlp(4 * channels, dtype=self.dtype, name="mlp")(y)
        return x + self._branch(y, train)

    def _branch(self, y: Array, train: bool) -> Array:
        if train and self.drop_path > 0:
            y = layers.dropout(y, self.drop_path, self.make_rng("dropout"), rows_only=True)
        return y


class Encoder(nn.Module):
    """Swin image encoder. Sizes come from `VARIANTS`.

    Fields:
        width: channels of the first stage; each further stage doubles them and halves the grid.
        depths, heads: blocks and attention heads per stage.
        window: side of the attention windows, in positions of the grid.
        patch_size: side of a patch in pixels.
        drop_path: rate of the last block, growing linearly from 0.
        remat: "none", or "full" to recompute each block in the backward pass.
        dtype: compute dtype; parameters are float32.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    patch_size: int = 4
    drop_path: float = 0.0
    remat: Literal["none", "full"] = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Array, *, keep_ids: Array | None = None, train: bool = False
    ) -> Outputs:
        """Encodes normalised float images.

        Args:
            image: [B,H,W,C], H and W multiples of `patch_size`. A grid that does not fill whole windows, or
                whose side is odd before it is halved, is padded with zeros inside the layers.
            keep_ids: must be None: shifted windows need all patches.
            train: whether drop path is active (needs the rng "dropout").

        Returns:
            tokens [B,N,D], the last stage's grid after the final norm, row by row; pooled [B,D], their mean;
            hidden: tuple of each stage's map [B,h,w,c], before the grid is halved and before the final norm.

        Raises:
            UserError: `keep_ids` given, image not float, not divisible into patches or too small for a
                window, stages that do not match.
        """
        self._check(image, keep_ids)
        rows, columns = image.shape[1] // self.patch_size, image.shape[2] // self.patch_size
        embed = vit.PatchEmbed(self.patch_size, self.width, dtype=self.dtype, name="patch_embed")
        x = embed(vit.image_patches(image, self.patch_size))
        x = layers.LayerNorm(_EPS, self.dtype, name="patch_norm")(x)
        x = x.reshape(x.shape[0], rows, columns, self.width)
        hidden, done = [], 0
        for stage, depth in enumerate(self.depths):
            if stage:
                x = self._merge(x, stage - 1)
            for k in range(depth):
                x, done = self._block(stage, k, done, min(x.shape[1:3]))(x, train), done + 1
            hidden.append(x)
        x = layers.LayerNorm(_EPS, self.dtype, name="norm")(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        pooled = tokens.astype(jnp.float32).mean(axis=1).astype(self.dtype)
        return {"tokens": tokens, "pooled": pooled, "hidden": tuple(hidden)}

    def _check(self, image: Array, keep_ids: Array | None) -> None:
        layers.check_whole_image(image, keep_ids, "a Swin Transformer")
        if len(self.heads) != len(self.depths):
            raise UserError(
                f"heads={self.heads} and depths={self.depths} must have as many entries"
            )

    def _block(self, stage: int, k: int, done: int, grid: int) -> nn.Module:
        """Block k of a stage, after `done` blocks in all; grid: the shorter side of the map."""
        if grid < self.window:
            side = self.patch_size * self.window * 2 ** (len(self.depths) - 1)
            raise UserError(
                f"the grid of stage {stage + 1} has {grid} positions along a side, less than window="
                f"{self.window}; use images of at least {side} px, or a smaller window or patch_size"
            )
        block_class = self._block_class()
        return block_class(
            heads=self.heads[stage],
            window=self.window,
            # One window that spans the map has no neighbours to be shifted against.
            shift=self.window // 2 if k % 2 and grid > self.window else 0,
            drop_path=self.drop_path * done / max(sum(self.depths) - 1, 1),
            dtype=self.dtype,
            name=f"stage_{stage}_block_{k}",
        )

    def _block_class(self) -> type[nn.Module]:
        if self.remat == "none":
            return Block
        if self.remat == "full":
            return nn.remat(Block, static_argnums=(2,))
        raise UserError(f"remat={self.remat!r} is unknown for a Swin; choose none or full")

    def _merge(self, x: Array, stage: int) -> Array:
        """Halves the grid: LayerNorm and a linear layer on 2x2 neighbours, [B,h,w,c] -> [B,h/2,w/2,2c]."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        # Column by column, the order of the published weights.
        x = jnp.concatenate([x[:, i::2, j::2] for j in range(2) for i in range(2)], axis=-1)
        x = layers.LayerNorm(_EPS, self.dtype, name=f"stage_{stage}_merge_norm")(x)
        dense = layers.Dense(
            x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name=f"stage_{stage}_merge"
        )
        return dense(x)
