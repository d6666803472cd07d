"""Any image tower on videos and stacks of slices: each frame for itself, then pooling over the frames.

The tower's parameters are below one name, `tower`, and look as they do without this module, so a checkpoint
for images fits that subtree: `interop.pretrained.load(encoder.tower, {"params": shapes["tower"]}, source)`.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import pooling
from medvlp_jax.types import Array, Outputs


class Encoder(nn.Module):
    """Pools what an image tower says about each frame (CLIP4Clip's mean pooling, arXiv 2104.08860, sec. 3.3).

    Fields:
        tower: an image encoder, e.g. `vit.Encoder(**vit.VARIANTS["B/16"])`. In training one with BatchNorm
            counts frames that are not real, which it sees as zeros, in its statistics.
        pooling: over frames: "mean", "max" per feature, or "attention" = `pooling.AttentionPool`.
        heads: attention heads of that pooling.
        dtype: compute dtype of the pooling; the tower has its own.
    """

    tower: Any
    pooling: Literal["mean", "max", "attention"] = "mean"
    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Array,
        frame_mask: Array | None = None,
        *,
        keep_ids: Array | None = None,
        train: bool = False,
    ) -> Outputs:
        """Encodes normalised float frames.

        Args:
            image: [B,T,H,W,C].
            frame_mask: [B,T], nonzero for real frames; None = all are. The others have no influence.
            keep_ids: must be None.
            train: passed to the tower.

        Returns:
            pooled [B,D]; frames [B,T,D], the tower's pooled outputs; tokens [B,T*N,D], frame by frame;
            token_mask [B,T*N] float32, 1 for those of real frames. Outputs of frames that are not real are
            finite and meaningless. A row without any real frame is zeros with "mean" and "max".

        Raises:
            UserError: not [B,T,H,W,C], a mask of another shape, `keep_ids`, or an unknown pooling.
        """
        if image.ndim != 5:
            raise UserError(f"frames wants videos [B,T,H,W,C], not an array of shape {image.shape}")
        if keep_ids is not None:
            raise UserError(
                "frames cannot encode a subset of the patches (image_keep_ids); drop the objective that "
                "masks the image"
            )
        batch, count = image.shape[:2]
        mask = jnp.ones((batch, count)) if frame_mask is None else jnp.asarray(frame_mask)
        if mask.shape != (batch, count):
            raise UserError(
                f"frame_mask has shape {mask.shape}, the video {batch} x {count} frames"
            )
        # Blank frames keep whatever the padding holds (even NaN) out of sums and gradients.
        image = jnp.where((mask != 0)[:, :, None, None, None], image, 0)
        out = self.tower(image.reshape(-1, *image.shape[2:]), train=train)
        frames = out["pooled"].reshape(batch, count, -1)
        width = out["tokens"].shape[-1]
        tokens = out["tokens"].reshape(batch, -1, width)
        return {
            "pooled": self._pool(frames, mask, train),
            "frames": frames,
            "tokens": tokens,
            "token_mask": jnp.repeat(
                (mask != 0).astype(jnp.float32), tokens.shape[1] // count, axis=1
            ),
        }

    def _pool(self, frames: Array, mask: Array, train: bool) -> Array:
        if self.pooling == "mean":
            return pooling.masked_mean(frames, mask)
        if self.pooling == "max":
            return pooling.masked_max(frames, mask)
        if self.pooling == "attention":
            pool = pooling.AttentionPool(self.heads, dtype=self.dtype, name="attention_pool")
            return pool(frames, mask, train=train)
        raise UserError(f"pooling={self.pooling!r} is unknown; choose mean, max or attention")
