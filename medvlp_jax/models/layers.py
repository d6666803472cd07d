"""Building blocks of every tower: normalisation, activations, attention, feed-forward, blocks.

Numerics follow the PyTorch sources the weights come from: exact (erf) GELU, LayerNorm with an explicit
epsilon and two-pass variance, softmax and all statistics in float32 whatever the compute dtype. LayerNorm,
GELU and softmax carry their own backward pass, which keeps only the input (or the output) alive and
recomputes the rest; like every `jax.custom_vjp` they support reverse-mode differentiation only.

Linear layers have kernels [in, out]; `query`, `key`, `value` and `out` are separate, so that sharding rules
and PyTorch names map one to one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.types import Array

Implementation = Literal["auto", "einsum", "xla", "cudnn"]
Remat = Literal["none", "full", "dots"]
Initializer = Callable[..., Any]

_REMAT_STATIC = (3, 4)  # positions of `train` and `need_probs` in a block's __call__, self counted


# --- linear, elementwise and normalisation ---------------------------------------------------------------


class Dense(nn.Module):
    """Linear layer with parameters `kernel` [in, out] and `bias` [out] in float32.

    As `flax.linen.Dense`, but leading axes are flattened first: the gradient of the kernel is then one
    plain matrix product (a training step of ViT-S takes 8 % less time on CPU).
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [..., in] to [..., out] in `dtype`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        y = jnp.dot(x.reshape(-1, x.shape[-1]).astype(self.dtype), kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), shape[1:], jnp.float32)
            y = y + bias.astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Normalises the last axis of x [..., D] (arXiv 1607.06450, eq. 4); scale, bias [D].

    Mean and the two-pass variance are float32; the result has the dtype of x. The backward pass keeps x
    and two numbers per row.
    """
    return _layer_norm(x, scale, bias, eps)


def _layer_norm_forward(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, Any]:
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    rstd = jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps)
    y = centred * rstd * scale + bias
    return y.astype(x.dtype), (x, mean, rstd, scale)


def _layer_norm_backward(eps: float, saved: Any, g: Array) -> tuple[Array, Array, Array]:
    x, mean, rstd, scale = saved
    g = g.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * rstd
    rows = tuple(range(x.ndim - 1))
    d_scale, d_bias = (g * normed).sum(rows), g.sum(rows)
    g = g * scale
    dx = rstd * (g - g.mean(-1, keepdims=True) - normed * (g * normed).mean(-1, keepdims=True))
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(scale.dtype)


_layer_norm = jax.custom_vjp(lambda *args: _layer_norm_forward(*args)[0], nondiff_argnums=(3,))
_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis with parameters `scale`, `bias` [D] in float32."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises x [..., D]; returns `dtype`."""
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), width, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), width, jnp.float32)
        return layer_norm(x, scale, bias, self.eps).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, as `torch.nn.BatchNorm1d/2d` (arXiv 1502.03167).

    Parameters `scale`, `bias` [D] unless `affine=False`; collection `batch_stats` holds `mean`, `var` [D].
    In training rows are normalised with the biased variance of the batch while the running variance takes
    the unbiased one, as PyTorch does. Under `jit` the statistics are those of the global batch. Rows that
    only pad the last batch do enter the statistics; evaluation uses the running ones and is unaffected.
    """

    eps: float = 1e-5
    momentum: float = 0.9
    affine: bool = True
    frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises x [..., D]; `frozen` always uses the running statistics; returns `dtype`."""
        width = (x.shape[-1],)
        mean_var = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        var_var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        x32 = x.astype(jnp.float32)
        if train and not self.frozen:
            rows = tuple(range(x.ndim - 1))
            mean = x32.mean(rows)
            var = jnp.square(x32 - mean).mean(rows)
            if not self.is_initializing():
                n = x.size // x.shape[-1]
                keep, unbiased = self.momentum, n / max(n - 1, 1)
                mean_var.value = keep * mean_var.value + (1 - keep) * mean
                var_var.value = keep * var_var.value + (1 - keep) * unbiased * var
        else:
            mean, var = mean_var.value, var_var.value
        factor = jax.lax.rsqrt(var + self.eps)
        shift = jnp.zeros(width, jnp.float32)
        if self.affine:
            factor = factor * self.param("scale", nn.initializers.ones_init(), width, jnp.float32)
            shift = self.param("bias", nn.initializers.zeros_init(), width, jnp.float32)
        return ((x32 - mean) * factor + shift).astype(self.dtype)


_SQRT_HALF = 0.5**0.5
_INV_SQRT_2PI = 0.3989422804014327


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU, x * Phi(x) with the error function (arXiv 1606.08415); only x is kept for backward."""
    x32 = x.astype(jnp.float32)
    return (x32 * 0.5 * (1.0 + jax.lax.erf(x32 * _SQRT_HALF))).astype(x.dtype)


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    x32 = x.astype(jnp.float32)
    slope = 0.5 * (1.0 + jax.lax.erf(x32 * _SQRT_HALF))
    slope = slope + x32 * jnp.exp(-0.5 * x32 * x32) * _INV_SQRT_2PI
    return ((g.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU (arXiv 1606.08415, section 2), which GPT-2 uses."""
    return jax.nn.gelu(x, approximate=True)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """Function of that name: gelu (exact), gelu_tanh, quick_gelu or relu; `UserError` otherwise."""
    if name not in _ACTIVATIONS:
        raise UserError(f"activation {name!r} is unknown; choose one of {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def l2_normalize(x: Array, eps: float = 1e-6) -> Array:
    """x / max(|x|, eps) over the last axis, in float32; a zero vector stays zero, with a finite gradient."""
    x = jnp.asarray(x, jnp.float32)
    squared = jnp.sum(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, eps * eps))


# --- dropout -------------------------------------------------------------------------------------


def _mix(x: jax.Array) -> jax.Array:
    # A bijection of 32-bit integers in which every input bit flips every output bit half of the time
    # (the two-round multiply-xorshift family of integer hash functions).
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _kept(words: Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index * jnp.uint32(shape[axis]) + along
    bits = _mix(_mix(index ^ words[0]) + words[-1])
    return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


def _scale_kept(x: Array, words: Array, rate: float, rows_only: bool) -> jax.Array:
    shape = x.shape[:1] + (1,) * (x.ndim - 1) if rows_only else x.shape
    return jnp.where(_kept(words, rate, shape), x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


_drop = jax.custom_vjp(_scale_kept, nondiff_argnums=(2, 3))
_drop.defvjp(
    lambda x, words, rate, rows_only: (_scale_kept(x, words, rate, rows_only), words),
    lambda rate, rows_only, words, g: (_scale_kept(g, words, rate, rows_only), None),
)


def dropout(x: Array, rate: float, rng: Array, *, rows_only: bool = False) -> jax.Array:
    """Zeroes entries of x with probability rate and scales the rest by 1/(1 - rate).

    The mask is a hash of the position in x and of the key instead of `jax.random.bernoulli`: some ten
    integer operations per entry that fuse with their surroundings, compile fast, are recomputed in the
    backward pass instead of kept, and do not depend on how x is sharded.

    Args:
        x: [B, ...]; rng: a jax random key.
        rows_only: drop whole rows of the leading axis (stochastic depth, arXiv 1603.09382).
    """
    words = jax.random.key_data(rng).reshape(-1).astype(jnp.uint32)
    return _drop(x, words, rate, rows_only)


# --- attention -----------------------------------------------------------------------------------


def masked_softmax(logits: Array, mask: Array | None, dtype: Any) -> Array:
    """Softmax of float32 logits [..., K] over the entries where mask is true; returns `dtype`.

    A row without any true entry is all zeros (never NaN). Backward keeps the probabilities only.
    """
    return _masked_softmax(logits, mask, dtype)


def _softmax_forward(logits: Array, mask: Array | None, dtype: Any) -> tuple[Array, Array]:
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    if mask is not None:
        weights = jnp.where(mask, weights, 0)
    total = weights.sum(-1, keepdims=True)
    if mask is not None:
        total = jnp.where(total == 0, 1, total)
    probs = (weights / total).astype(dtype)
    return probs, probs


def _softmax_backward(dtype: Any, probs: Array, g: Array) -> tuple[Array, None]:
    p, g = probs.astype(jnp.float32), g.astype(jnp.float32)
    return p * (g - (g * p).sum(-1, keepdims=True)), None


_masked_softmax = jax.custom_vjp(lambda *args: _softmax_forward(*args)[0], nondiff_argnums=(2,))
_masked_softmax.defvjp(_softmax_forward, _softmax_backward)


def causal_mask(mask: Array) -> Array:
    """Mask for `attention` by which a position sees real tokens up to itself only.

    Args:
        mask: [B, L], nonzero for real tokens.

    Returns:
        [B, 1, L, L] bool; rows of leading padding see nothing.
    """
    before = jnp.tril(jnp.ones((mask.shape[1], mask.shape[1]), bool))
    return (mask != 0)[:, None, None, :] & before


def attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    implementation: Implementation = "auto",
    dropout_rate: float = 0.0,
    dropout_rng: Array | None = None,
    need_probs: bool = False,
) -> tuple[Array, Array | None]:
    """Scaled dot-product attention (arXiv 1706.03762, eq. 1).

    Args:
        query: [B, T, h, d]; key, value: [B, S, h, d].
        mask: [B, S] (nonzero = may be attended) or anything that broadcasts to [B, h, T, S].
        implementation: "einsum" is plain matrix products in [B, h, T, d] layout, the fast form on CPU;
            "xla" and "cudnn" are those of `jax.nn.dot_product_attention`; "auto" takes einsum on CPU, cudnn
            on GPU for 16-bit floats with a head width it supports, xla otherwise.
        dropout_rate, dropout_rng: dropout on the probabilities; needs einsum, which is then used.
        need_probs: also return the probabilities (before dropout), [B, h, T, S] in the dtype of query;
            needs einsum, which is then used.

    Returns:
        ([B, T, h, d], probabilities or None). Queries that may attend to nothing get zeros.
    """
    if mask is not None:
        mask = (mask != 0)[:, None, None, :] if mask.ndim == 2 else mask != 0
    drop = dropout_rate > 0.0 and dropout_rng is not None
    if drop or need_probs:
        chosen = "einsum"
    else:
        chosen = _choose(implementation, query) if implementation == "auto" else implementation
    if chosen == "einsum":
        rng = dropout_rng if drop else None
        out, probs = _einsum_attention(query, key, value, mask, dropout_rate, rng)
        return out, probs if need_probs else None
    if chosen == "xla":
        return _library_attention(query, key, value, mask, "xla"), None
    if chosen == "cudnn":
        return _even_cudnn_attention(query, key, value, mask), None
    raise UserError(
        f"attention implementation {implementation!r} is unknown; choose auto, einsum, xla or cudnn"
    )


def _choose(implementation: str, query: Array) -> str:
    backend = jax.default_backend()
    if backend == "cpu":
        return "einsum"
    if backend == "gpu":
        narrow = query.shape[-1] <= 128 and query.shape[-1] % 8 == 0
        half = query.dtype in (jnp.bfloat16, jnp.float16)
        return "cudnn" if half and narrow else "xla"
    return "xla"


def _einsum_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    dropout_rate: float,
    dropout_rng: Array | None,
) -> tuple[Array, Array]:
    scale = query.shape[-1] ** -0.5
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (query * scale, key, value))
    logits = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    probs = masked_softmax(logits, mask, query.dtype)
    weights = probs
    if dropout_rng is not None:
        weights = dropout(probs, dropout_rate, dropout_rng)
    return jnp.swapaxes(jnp.einsum("bhts,bhsd->bhtd", weights, v), 1, 2), probs


def _library_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    implementation: Literal["xla", "cudnn"],
) -> Array:
    if mask is None:
        return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
    # Library kernels turn an empty row into a mean over the padding or NaN; let such rows see
    # everything and drop their result.
    some = jnp.any(mask, -1, keepdims=True)
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask | ~some, implementation=implementation
    )
    return jnp.where(jnp.swapaxes(some, 1, 2), out, 0)


def _even_cudnn_attention(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    if mask is None:
        return _library_attention(query, key, value, None, "cudnn")
    # With a mask, cuDNN's backward pass wants even lengths: add one masked position where needed.
    length, odd_t, odd_s = query.shape[1], query.shape[1] % 2, key.shape[1] % 2
    query = jnp.pad(query, ((0, 0), (0, odd_t), (0, 0), (0, 0)))
    key, value = (jnp.pad(x, ((0, 0), (0, odd_s), (0, 0), (0, 0))) for x in (key, value))
    pad_t = odd_t if mask.shape[2] > 1 else 0
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, pad_t), (0, odd_s)))
    return _library_attention(query, key, value, mask, "cudnn")[:, :length]


class MultiHeadAttention(nn.Module):
    """Multi-head attention with linear layers `query`, `key`, `value`, `out`.

    Width in and out is that of the queries, which `heads` must divide.
    """

    heads: int
    qkv_bias: bool = True
    dropout: float = 0.0
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    implementation: Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        mask: Array | None = None,
        *,
        train: bool,
        need_probs: bool = False,
    ) -> tuple[Array, Array | None]:
        """Lets x [B, T, D] attend to context [B, S, Dc] (itself when None).

        Args:
            mask: see `attention`.
            need_probs: also return the probabilities [B, heads, T, S].

        Returns:
            ([B, T, D], probabilities or None).
        """
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(
                f"width {width} is not divisible by heads={self.heads}; change one of them"
            )
        context = x if context is None else context
        dense = functools.partial(Dense, width, dtype=self.dtype, kernel_init=self.kernel_init)
        split = (self.heads, width // self.heads)
        q = dense(use_bias=self.qkv_bias, name="query")(x)
        k = dense(use_bias=self.qkv_bias, name="key")(context)
        v = dense(use_bias=self.qkv_bias, name="value")(context)
        drop = train and self.dropout > 0.0
        out, probs = attention(
            q.reshape(*q.shape[:-1], *split),
            k.reshape(*k.shape[:-1], *split),
            v.reshape(*v.shape[:-1], *split),
            mask,
            implementation=self.implementation,
            dropout_rate=self.dropout,
            dropout_rng=self.make_rng("dropout") if drop else None,
            need_probs=need_probs,
        )
        return dense(name="out")(out.reshape(x.shape)), probs


# --- feed-forward and blocks ---------------------------------------------------------------------


class Mlp(nn.Module):
    """Feed-forward: `fc1` to mlp_dim, activation, `fc2` back to the input width."""

    mlp_dim: int
    activation: str = "gelu"
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [..., D] to [..., D]."""
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        hidden = activation(self.activation)(dense(self.mlp_dim, name="fc1")(x))
        return dense(x.shape[-1], name="fc2")(hidden)


class PreNormBlock(nn.Module):
    """Transformer block of ViT (arXiv 2010.11929, eq. 2-3): x + f(LN(x)), attention then feed-forward.

    With `layer_scale` > 0 each branch is multiplied by a learned vector that starts there (CaiT, DINOv2).
    """

    heads: int
    mlp_dim: int
    eps: float = 1e-6
    activation: str = "gelu"
    qkv_bias: bool = True
    layer_scale: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    implementation: Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None = None, train: bool = False, need_probs: bool = False
    ) -> tuple[Array, Array | None]:
        """Maps x [B, T, D] to ([B, T, D], attention probabilities [B, heads, T, T] or None)."""
        y, probs = MultiHeadAttention(
            self.heads,
            qkv_bias=self.qkv_bias,
            dropout=self.attention_dropout,
            kernel_init=self.kernel_init,
            implementation=self.implementation,
            dtype=self.dtype,
            name="attention",
        )(
            LayerNorm(self.eps, self.dtype, name="norm1")(x),
            mask=mask,
            train=train,
            need_probs=need_probs,
        )
        x = x + self._branch("layer_scale1", y, train)
        y = Mlp(
            self.mlp_dim,
            activation=self.activation,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="mlp",
        )(LayerNorm(self.eps, self.dtype, name="norm2")(x))
        return x + self._branch("layer_scale2", y, train), probs

    def _branch(self, name: str, y: Array, train: bool) -> Array:
        if self.layer_scale > 0.0:
            init = nn.initializers.constant(self.layer_scale)
            scale = self.param(name, init, (y.shape[-1],), jnp.float32)
            y = y * jnp.asarray(scale, self.dtype)
        if train and self.dropout > 0.0:
            y = dropout(y, self.dropout, self.make_rng("dropout"))
        if train and self.drop_path > 0.0:
            y = dropout(y, self.drop_path, self.make_rng("dropout"), rows_only=True)
        return y


class PostNormBlock(nn.Module):
    """Transformer block of BERT (arXiv 1810.04805): LN(x + f(x)); with cross_attention BERT's cross layer.

    Order: self-attention, cross-attention to `context` when `cross_attention` is set, feed-forward.
    """

    heads: int
    mlp_dim: int
    eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    cross_attention: bool = False
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    implementation: Implementation = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        train: bool = False,
        need_probs: bool = False,
        context: Array | None = None,
        context_mask: Array | None = None,
    ) -> tuple[Array, Any]:
        """Maps x [B, T, D] to ([B, T, D], probabilities or None).

        Args:
            mask: [B, T], see `attention`; context: [B, S, Dc] and context_mask: [B, S] for cross-attention.

        Returns:
            Probabilities are [B, heads, T, T], or with `cross_attention` the pair of those and the
            cross-attention's [B, heads, T, S].
        """
        y, probs = self._attention("attention", x, None, mask, train, need_probs)
        x = self._add_norm("attention_norm", x, y, train)
        if self.cross_attention:
            y, cross = self._attention(
                "cross_attention", x, context, context_mask, train, need_probs
            )
            x = self._add_norm("cross_attention_norm", x, y, train)
            probs = (probs, cross) if need_probs else None
        y = Mlp(
            self.mlp_dim,
            activation=self.activation,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="mlp",
        )(x)
        return self._add_norm("mlp_norm", x, y, train), probs

    def _attention(
        self,
        name: str,
        x: Array,
        context: Array | None,
        mask: Array | None,
        train: bool,
        need_probs: bool,
    ) -> tuple[Array, Array | None]:
        return MultiHeadAttention(
            self.heads,
            dropout=self.attention_dropout,
            kernel_init=self.kernel_init,
            implementation=self.implementation,
            dtype=self.dtype,
            name=name,
        )(x, context, mask, train=train, need_probs=need_probs)

    def _add_norm(self, name: str, x: Array, y: Array, train: bool) -> Array:
        if train and self.dropout > 0.0:
            y = dropout(y, self.dropout, self.make_rng("dropout"))
        return LayerNorm(self.eps, self.dtype, name=name)(x + y)


def check_whole_image(image: Array, keep_ids: Array | None, tower: str) -> None:
    """Raises UserError for an input that a tower without patches of its own cannot encode.

    Args:
        image: what must be normalised floats.
        keep_ids: what must be None.
        tower: with its article, "a ResNet", for the message.
    """
    if keep_ids is not None:
        raise UserError(
            f"{tower} cannot encode a subset of the patches (image_keep_ids); use a ViT image encoder, "
            "or drop the objective that masks the image"
        )
    check_normalised(image)


def check_normalised(image: Array) -> None:
    """Raises UserError for an image that is not of floats."""
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(f"image has dtype {image.dtype}; the encoder wants normalised floats")


def rematerialised(block: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """Block class whose activations are recomputed in the backward pass.

    Args:
        block: a block of this file; its `train` and `need_probs` must be passed by position.
        remat: "none" keeps everything, "full" recomputes the whole block, "dots" keeps the results of the
            linear layers and recomputes attention and elementwise work.
    """
    if remat == "none":
        return block
    if remat == "full":
        return nn.remat(block, static_argnums=_REMAT_STATIC)
    if remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return nn.remat(block, static_argnums=_REMAT_STATIC, policy=policy)
    raise UserError(f"remat={remat!r} is unknown; choose none, full or dots")


def block_stack(
    block: type[nn.Module],
    depth: int,
    x: Array,
    *inputs: Array | None,
    train: bool,
    last_attention: bool = False,
    remat: Remat = "none",
    dropout: float = 0.0,
    attention_dropout: float | None = None,
    drop_path: float = 0.0,
    **settings: Any,
) -> tuple[list[Array], Array | None]:
    """Runs blocks named `block_0` ... in the scope of the module whose compact method calls it.

    Args:
        block: a transformer block; called as block(x, mask, train, need_probs, ...).
        depth: number of blocks.
        x: [B, T, D].
        inputs: the mask, then what the block takes after `need_probs`.
        train: whether dropout is active.
        last_attention: ask the last block for its attention.
        remat: see `rematerialised`.
        dropout, attention_dropout: rates; attention_dropout None = dropout.
        drop_path: rate of the last block, growing linearly from 0; only for blocks that have it.
        settings: further fields of the block.

    Returns:
        depth + 1 arrays [B, T, D], x first, then each block's output; the last block's attention or None.
    """
    block_class = rematerialised(block, remat)
    mask, *further = inputs
    attention_dropout = dropout if attention_dropout is None else attention_dropout
    settings = {**settings, "dropout": dropout, "attention_dropout": attention_dropout}
    hidden, probs = [x], None
    for i in range(depth):
        if drop_path:
            settings["drop_path"] = drop_path * i / max(depth - 1, 1)
        need_probs = last_attention and i == depth - 1
        made: Any = block_class(**settings, name=f"block_{i}")
        x, probs = made(x, mask, train, need_probs, *further)
        hidden.append(x)
    return hidden, probs
