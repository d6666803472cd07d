"""Without these, G2D's decoder could learn from a mask of another grid, or its pool not at all."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.losses.info_nce import info_nce
from medvlp_jax.objectives.base import Pass
from medvlp_jax.objectives.g2d import G2d

ROWS, SIDE, WIDTH = 4, 32, 8
KEYS = {"params": jax.random.key(0)}


def clean(vit: bool = False, **changes: Any) -> tuple[Pass, ...]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    text = normal(ROWS, WIDTH)
    hidden = tuple(normal(ROWS, SIDE // s, SIDE // s, 4) for s in (4, 8, 16))
    outputs: dict[str, Any] = {
        "image_token_embed": normal(ROWS, 4, WIDTH),
        "image_tokens": normal(ROWS, 4, 5),
        "text_embed": text / np.linalg.norm(text, axis=-1, keepdims=True),
        "image_hidden": (normal(ROWS, 5, 5),) if vit else hidden,
    }
    batch = {"image": normal(ROWS, SIDE, SIDE, 1), "example_mask": np.ones(ROWS, np.float32)}
    for key, value in changes.items():
        (outputs if key in outputs else batch)[key] = value
    return (Pass(batch, outputs),)


@pytest.mark.parametrize("vit", [False, True])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_both_terms_reach_what_they_should(vit, variant) -> None:
    made = G2d(channels=(8, 4), segmentation_weight=2.0, variant=variant)
    step = clean(vit)
    variables = made.init(KEYS, step, train=False)
    loss, metrics = made.apply(variables, step, train=False)
    np.testing.assert_allclose(loss, metrics["contrast"] + 2 * metrics["segmentation"], rtol=1e-5)

    def part(params: Any, name: str) -> jax.Array:
        return made.apply({**variables, "params": params}, step, train=False)[1][name]

    contrast, segmentation = (
        jax.grad(part)(variables["params"], name) for name in ("contrast", "segmentation")
    )
    largest = lambda tree: max(np.abs(x).max() for x in jax.tree.leaves(tree))  # noqa: E731
    assert largest(contrast["pool"]) > 1e-5
    assert largest(contrast["decoder"]) == 0
    assert largest(segmentation["decoder"]) > 1e-5
    assert largest(segmentation["pool"]) == 0  # the mask is a target


def test_padded_rows_do_not_count() -> None:
    made = G2d(channels=(8, 4))
    mask = np.array([1, 1, 1, 0], np.float32)
    step = clean(example_mask=mask)
    variables = made.init(KEYS, step, train=False)
    loss, _ = made.apply(variables, step, train=False)
    cut = Pass(
        {k: v[:3] for k, v in step[0].batch.items()},
        jax.tree.map(lambda x: x[:3], step[0].outputs),
    )
    np.testing.assert_allclose(loss, made.apply(variables, (cut,), train=False)[0], rtol=1e-5)


def test_contrast_is_info_nce_of_the_attention_pool() -> None:
    """The mean token, with its place, attends to all tokens; one head, computed here with numpy."""
    made, (step,) = G2d(channels=(8, 4), heads=1), clean()
    variables = made.init(KEYS, (step,), train=False)
    params = variables["params"]

    def dense(x: np.ndarray, weights: Any) -> np.ndarray:
        return x @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])

    pooled = []
    for tokens in step.outputs["image_token_embed"]:
        x = np.concatenate([tokens.mean(axis=0, keepdims=True), tokens])
        x = x + np.asarray(params["position_embed"])
        query, key, value = (dense(x, params["pool"][n]) for n in ("query", "key", "value"))
        weights = np.exp(key @ query[0] / np.sqrt(WIDTH))
        pooled.append(dense((weights / weights.sum()) @ value, params["pool"]["out"]))
    image = dense(np.stack(pooled), params["pool_projection"])
    image /= np.linalg.norm(image, axis=-1, keepdims=True)
    _, metrics = made.apply(variables, (step,), train=False)
    wanted = info_nce(image, step.outputs["text_embed"], 1 / 0.07)
    np.testing.assert_allclose(metrics["contrast"], wanted, rtol=1e-4)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="same features"):
        G2d().init(KEYS, clean(image_token_embed=np.ones((ROWS, 4, 6), np.float32)), train=False)
    with pytest.raises(UserError, match="g2d variant"):
        G2d(variant="code").init(KEYS, clean(), train=False)
    tokens = np.ones((ROWS, 6, 5), np.float32)
    with pytest.raises(UserError, match="square"):
        G2d().init(KEYS, clean(True, image_tokens=tokens), train=False)
