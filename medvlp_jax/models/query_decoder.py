"""Queries that look at the tokens of an image: the decoder of MedKLIP, KAD and UniBrain.

MedKLIP: arXiv 2301.02228; KAD: 2302.14042; UniBrain: 2309.06828.

Every query is one finding. It attends to the other queries and to the image, and comes out as the state from
which a classifier reads whether the finding is there; where it looked is its cross-attention.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.models import layers
from medvlp_jax.models.causal_decoder import Block
from medvlp_jax.models.heads import MLPProjection
from medvlp_jax.types import Array, Outputs

VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 64},
    "medklip": {"width": 256, "depth": 4, "heads": 4, "mlp_dim": 1024},
    "kad": {"width": 768, "depth": 4, "heads": 4, "mlp_dim": 1024, "norm_inputs": True},
    "unibrain": {"width": 768, "depth": 4, "heads": 4, "mlp_dim": 1024},
}
"""Constructor arguments per variant."""


def _torch_rules() -> list[tuple[str, str, str]]:
    block, theirs = r"block_(\d+)", r"layers.\1"
    rules = [(f"norm/{a}", f"norm.{b}", "copy") for a, b in (("scale", "weight"), ("bias", "bias"))]
    for ours, name in (("norm1", "norm1"), ("cross_norm", "norm2"), ("norm2", "norm3")):
        rules.append((f"{block}/{ours}/scale", f"{theirs}.{name}.weight", "copy"))
        rules.append((f"{block}/{ours}/bias", f"{theirs}.{name}.bias", "copy"))
    for ours, name in (("attention", "self_attn"), ("cross_attention", "multihead_attn")):
        for part, side in enumerate(("query", "key", "value")):
            there = f"{theirs}.{name}.in_proj"
            rules.append((f"{block}/{ours}/{side}/kernel", f"{there}_weight", f"linear:{part}/3"))
            rules.append((f"{block}/{ours}/{side}/bias", f"{there}_bias", f"copy:{part}/3"))
        rules.append((f"{block}/{ours}/out/kernel", f"{theirs}.{name}.out_proj.weight", "linear"))
        rules.append((f"{block}/{ours}/out/bias", f"{theirs}.{name}.out_proj.bias", "copy"))
    for ours, name in (("fc1", "linear1"), ("fc2", "linear2")):
        rules.append((f"{block}/mlp/{ours}/kernel", f"{theirs}.{name}.weight", "linear"))
        rules.append((f"{block}/mlp/{ours}/bias", f"{theirs}.{name}.bias", "copy"))
    return rules


TORCH_RULES: list[tuple[str, str, str]] = _torch_rules()
"""Names of `torch.nn.TransformerDecoder` with `norm_first=True` and a final norm, in the form explained at
`vit.TORCH_RULES`; slices as in `interop.keys`."""


class QueryDecoder(nn.Module):
    """Pre-norm transformer decoder over queries. Sizes come from `VARIANTS`.

    Fields:
        width, depth, heads, mlp_dim: sizes.
        learned: number of queries that the decoder learns itself; 0 = they are given.
        project_queries: linear layer `query_projection` to `width` on given queries, e.g. text embeddings.
        project_context: two layers `context_projection` to `width` on the image tokens (MedKLIP, KAD).
        norm_inputs: queries and tokens first pass the final norm, whose parameters they share (KAD).
        activation, layer_norm_eps: of the blocks.
        dropout, attention_dropout: rates; None = the same. The released code also drops in the feed-forward's
            hidden layer.
        init_std: standard deviation of the initial weights.
        attention: implementation, see `layers.attention`.
        dtype: compute dtype; parameters are float32.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    learned: int = 0
    project_queries: bool = False
    project_context: bool = False
    norm_inputs: bool = False
    activation: str = "relu"
    layer_norm_eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float | None = None
    init_std: float = 0.02
    attention: layers.Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        context: Array,
        queries: Array | None = None,
        context_mask: Array | None = None,
        *,
        train: bool = False,
        need_attention: bool = False,
    ) -> Outputs:
        """Lets the queries read a context.

        Args:
            context: [B, S, Dc], e.g. image tokens; context_mask: [B, S], nonzero where it may be seen.
            queries: [Q, E] for all rows or [B, Q, E]; None = the learned ones.
            train: whether dropout is active (needs the rng "dropout").
            need_attention: also return where the queries look.

        Returns:
            states [B, Q, D] after the final norm; with `need_attention` attention [B, depth, heads, Q, S] of
            every block's cross-attention.

        Raises:
            UserError: queries are given to a decoder that learns them, or missing, or of another width.
        """
        x = self._queries(queries)
        if self.project_context:
            context = MLPProjection(self.width, dtype=self.dtype, name="context_projection")(
                context
            )
        norm = layers.LayerNorm(self.layer_norm_eps, self.dtype, name="norm")
        if self.norm_inputs:
            x, context = norm(x), norm(context)
        x = jnp.broadcast_to(x, (context.shape[0], *x.shape[-2:])).astype(self.dtype)
        rate = self.dropout if self.attention_dropout is None else self.attention_dropout
        maps = []
        for i in range(self.depth):
            x, probs = Block(
                self.heads,
                self.mlp_dim,
                self.layer_norm_eps,
                self.activation,
                self.dropout,
                rate,
                True,
                self._init(),
                self.attention,
                self.dtype,
                name=f"block_{i}",
            )(x, None, train, need_attention, context, context_mask)
            maps.append(probs)
        outputs: Outputs = {"states": norm(x)}
        if need_attention:
            outputs["attention"] = jnp.stack(maps, axis=1)
        return outputs

    def _init(self) -> layers.Initializer:
        return nn.initializers.normal(self.init_std)

    def _queries(self, queries: Array | None) -> jax.Array:
        """Queries [(B,) Q, D]."""
        if self.learned:
            if queries is not None:
                raise UserError("this query decoder learns its queries; set learned=0 to pass some")
            return self.param("queries", self._init(), (self.learned, self.width), jnp.float32)
        if queries is None:
            raise UserError("this query decoder needs queries; pass them or set learned")
        x = jnp.asarray(queries, self.dtype)
        if self.project_queries:
            dense = layers.Dense(
                self.width, kernel_init=self._init(), dtype=self.dtype, name="query_projection"
            )
            return jnp.asarray(dense(x))
        if x.shape[-1] != self.width:
            raise UserError(
                f"queries of width {x.shape[-1]} do not fit a decoder of width {self.width}; set "
                "project_queries=True"
            )
        return x
