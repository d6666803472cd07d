"""Without these, the multi-level feature could miss a stage, or differ from PyTorch's adaptive pooling."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.models.multi_level import MultiLevelPool, adaptive_mean

RNG = np.random.default_rng(0)
MAPS = tuple(RNG.normal(size=(2, 8 >> i, 8 >> i, 4 + i)).astype(np.float32) for i in range(4))
POOL = MultiLevelPool(size=4, shares=(0.5, 0.5, 0.5, 0.5), heads=2)


@pytest.mark.parametrize("shape", [(7, 7), (14, 10), (32, 32), (3, 20)])
def test_adaptive_mean_equals_pytorch(shape) -> None:
    torch = pytest.importorskip("torch")
    x = RNG.normal(size=(2, *shape, 3)).astype(np.float32)
    wanted = torch.nn.AdaptiveAvgPool2d(16)(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    got = adaptive_mean(x, 16)
    np.testing.assert_allclose(got, wanted.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-6)


def test_every_stage_reaches_the_result(fill) -> None:
    variables = fill(jax.eval_shape(POOL.init, jax.random.key(0), MAPS))
    assert variables["params"]["positions"].shape == (1, 1 + 2 + 2 + 3 + 3, 16)
    out = jax.jit(POOL.apply)(variables, MAPS)
    assert out.shape == (2, 16)
    for grad in jax.jit(jax.grad(lambda maps: POOL.apply(variables, maps).sum()))(MAPS):
        assert np.abs(grad).max() > 1e-6


def test_channels_are_drawn_in_training_only(fill) -> None:
    variables = fill(jax.eval_shape(POOL.init, jax.random.key(0), MAPS))

    @jax.jit
    def run(seed):
        return POOL.apply(variables, MAPS, train=True, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3


def test_refuses_what_are_no_maps() -> None:
    for states in (MAPS[:3], tuple(np.ones((2, 5, 4)) for _ in range(4))):
        with pytest.raises(UserError, match="needs 4 maps"):
            POOL.init(jax.random.key(0), states)
