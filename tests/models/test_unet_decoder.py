"""Without these, a map could be joined at the wrong scale, or the result miss the image's size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.models.unet_decoder import UnetDecoder


def maps(size: int, widths=(8, 16, 32, 64)):
    rng = np.random.default_rng(0)
    sides = [-(-size // 4), -(-size // 8), -(-size // 16), -(-size // 32)]
    return tuple(
        rng.normal(size=(2, s, s, w)).astype(np.float32) for s, w in zip(sides, widths, strict=True)
    )


@pytest.mark.parametrize("size", [64, 72])
def test_size_of_the_image(size) -> None:
    decoder = UnetDecoder((16, 8, 8, 4, 4), classes=3)
    inputs = maps(size)
    out, _ = decoder.init_with_output(jax.random.key(0), inputs, (size, size))
    assert out.shape == (2, size, size, 3)
    assert out.dtype == jnp.float32


def test_a_vit_has_one_map() -> None:
    decoder = UnetDecoder((8, 8, 4))
    grid = np.ones((2, 4, 4, 6), np.float32)
    out, _ = decoder.init_with_output(jax.random.key(0), (grid,), (24, 24))
    assert out.shape == (2, 24, 24, 1)


def test_every_map_counts() -> None:
    decoder = UnetDecoder((16, 8, 8, 4, 4))
    inputs = maps(64)
    variables = decoder.init(jax.random.key(0), inputs, (64, 64))
    grads = jax.grad(lambda m: jnp.sum(decoder.apply(variables, m, (64, 64)) ** 2))(inputs)
    for grad in grads:
        assert np.abs(grad).max() > 1e-6


def test_number_of_parameters_on_a_resnet_50() -> None:
    wide = tuple(jnp.zeros((1, 64 // s, 64 // s, w)) for s, w in ((4, 256), (8, 512), (16, 1024)))
    wide = (*wide, jnp.zeros((1, 2, 2, 2048)))
    shapes = jax.eval_shape(lambda: UnetDecoder().init(jax.random.key(0), wide, (64, 64)))
    # Two 3x3 convolutions and two norms per step, then one convolution with bias.
    wanted, width = 9 * 16 + 1, 2048
    for skip, new in ((1024, 256), (512, 128), (256, 64), (0, 32), (0, 16)):
        wanted += 9 * (width + skip) * new + 9 * new * new + 4 * new
        width = new
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == wanted == 8_994_641
