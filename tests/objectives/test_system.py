"""Without these, objectives could see each other's corruptions or pay for towers they share."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, MaskImage, MaskText, MismatchPairs
from medvlp_jax.objectives.info_nce import InfoNce
from medvlp_jax.objectives.siglip import Siglip
from medvlp_jax.objectives.system import System

ROWS, LENGTH, VOCAB = 6, 10, 40
MASK_IMAGE = MaskImage(0.5, 4)
MASK_TEXT = MaskText(VOCAB, 4, 0.3)
KEYS = ("image", "input_ids", "image_keep_ids", "mlm_labels", "itm_label")


@dataclasses.dataclass(eq=False)
class Log:
    """What ran (while tracing) and which batches each probe saw."""

    calls: list[str] = dataclasses.field(default_factory=list)
    seen: dict[str, list[dict[str, np.ndarray]]] = dataclasses.field(default_factory=dict)


class Towers(nn.Module):
    """Smallest model of the system's interface; writes down every call."""

    log: Log
    fusion: Any = None

    def setup(self) -> None:
        self.image_encoder = nn.Dense(8)
        self.text_encoder = nn.Embed(VOCAB, 8)

    def encode_image(self, batch, *, train: bool = False):
        self.log.calls.append("image")
        pooled = self.image_encoder(batch["image"].mean(axis=(1, 2)))
        if "image_keep_ids" in batch:
            pooled = pooled * (1 + batch["image_keep_ids"].mean(axis=1, keepdims=True))
        return {"image_embed": pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)}

    def encode_text(self, batch, *, train: bool = False):
        self.log.calls.append("text")
        pooled = self.text_encoder(batch["input_ids"]).mean(axis=1)
        return {"text_embed": pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)}

    def join(self, encoded, batch, *, train: bool = False):
        if self.fusion is None:
            return {}
        self.log.calls.append("fuse")
        return {"fused_pooled": encoded["image_embed"] + encoded["text_embed"]}


class Probe(Objective):
    """Notes what it is given; its loss depends on both towers."""

    label: str
    log: Log
    wants: tuple[Corruption, ...] = (Clean(),)

    def corruptions(self) -> tuple[Corruption, ...]:
        return self.wants

    def __call__(self, passes: tuple[Pass, ...], *, train: bool):
        self.log.seen[self.label] = [
            {k: np.asarray(p.batch[k]) for k in KEYS if k in p.batch} for p in passes
        ]
        loss = sum(jnp.mean(p.outputs["image_embed"] * p.outputs["text_embed"]) for p in passes)
        return loss, {"passes": jnp.asarray(len(passes))}


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(ROWS, 16, 16, 3)).astype(np.float32),
        "input_ids": rng.integers(5, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "attention_mask": np.ones((ROWS, LENGTH), np.int32),
        "word_ids": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "text_id": np.arange(ROWS, dtype=np.int32),
        "example_mask": np.ones(ROWS, np.float32),
    }


def rngs(seed: int = 0) -> dict[str, jax.Array]:
    names = ("params", "dropout", "corruption")
    return dict(zip(names, jax.random.split(jax.random.key(seed), 3), strict=True))


def probes(log: Log, fusion: Any = None, **wants: tuple[Corruption, ...]) -> System:
    objectives = {name: Probe(name, log, wanted) for name, wanted in wants.items()}
    return System(Towers(log, fusion), objectives, dict.fromkeys(objectives, 1.0))


def run(system: System, batch, seed: int = 0):
    """Fixed parameters; `seed` only changes the corruptions."""
    variables = system.init(rngs(0), batch)
    for objective in system.objectives.values():
        if isinstance(objective, Probe):
            objective.log.calls.clear()
    return system.apply(variables, batch, rngs={"corruption": jax.random.key(seed)})


def test_total_is_the_weighted_sum_of_the_objectives_alone(log, batch):
    objectives = {"a": InfoNce(), "b": Siglip()}
    weights = {"a": 0.3, "b": 2.0}
    both = System(Towers(log), objectives, weights)
    variables = both.init(rngs(), batch)
    total, metrics = both.apply(variables, batch, rngs=rngs())
    alone = {
        name: System(Towers(log), {name: objective}, {name: 1.0}).apply(
            variables, batch, rngs=rngs()
        )[0]
        for name, objective in objectives.items()
    }
    np.testing.assert_allclose(total, 0.3 * alone["a"] + 2.0 * alone["b"], rtol=1e-6)
    # Metrics hold the unweighted losses.
    for name in objectives:
        np.testing.assert_allclose(metrics[f"{name}/loss"], alone[name], rtol=1e-6)
    assert total.dtype == jnp.float32
    assert total.shape == ()


def test_names_of_metrics_and_parameters(log, batch):
    system = System(Towers(log), {"a": InfoNce(), "other": Siglip()}, {"a": 1.0, "other": 1.0})
    variables = system.init(rngs(), batch)
    assert set(variables["params"]) == {"model", "objectives_a", "objectives_other"}
    assert set(variables["params"]["model"]) == {"image_encoder", "text_encoder"}
    _, metrics = system.apply(variables, batch, rngs=rngs())
    assert set(metrics) == {
        "loss", "a/loss", "a/logit_scale", "a/accuracy",
        "other/loss", "other/logit_scale", "other/logit_bias",
    }  # fmt: skip


def test_gradient_is_the_weighted_sum_too(log, batch):
    objectives = {"a": InfoNce(), "b": Siglip()}
    variables = System(Towers(log), objectives, {"a": 1.0, "b": 1.0}).init(rngs(), batch)

    def gradient(names: tuple[str, ...], weights: dict[str, float]):
        system = System(Towers(log), {n: objectives[n] for n in names}, weights)
        grad = jax.grad(lambda p: system.apply({"params": p}, batch, rngs=rngs())[0])
        return grad(variables["params"])["model"]

    both = gradient(("a", "b"), {"a": 0.3, "b": 2.0})
    alone = [gradient((name,), {name: weight}) for name, weight in (("a", 0.3), ("b", 2.0))]
    for got, *parts in zip(*map(jax.tree.leaves, (both, *alone)), strict=True):
        np.testing.assert_allclose(got, sum(parts), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("wants", "image", "text"),
    [
        (dict(a=(Clean(),), b=(Clean(),)), 1, 1),
        (dict(a=(Clean(),), b=(MASK_TEXT,)), 1, 2),
        (dict(a=(MASK_TEXT,), b=(MaskText(VOCAB, 4, 0.3),)), 1, 1),
        (dict(a=(MASK_TEXT,), b=(MaskText(VOCAB, 4, 0.4),)), 1, 2),
        # Masked image: clean text; masked text: clean image. Each tower twice, never three times.
        (dict(a=(MASK_TEXT,), b=(MASK_IMAGE,), c=(Clean(),)), 2, 2),
        (dict(a=(MASK_TEXT,), b=(MASK_IMAGE,), c=(MismatchPairs(),)), 3, 2),
        (dict(a=(MASK_TEXT, MASK_IMAGE), b=(MASK_IMAGE, Clean())), 2, 2),
    ],
)
def test_each_tower_runs_once_per_distinct_input(log, batch, wants, image, text):
    run(probes(log, **wants), batch)
    assert log.calls.count("image") == image
    assert log.calls.count("text") == text
    assert log.calls.count("fuse") == 0


def test_fusion_runs_once_per_corruption(log, batch):
    run(probes(log, "yes", a=(MASK_TEXT,), b=(MASK_IMAGE,), c=(MASK_IMAGE, MASK_TEXT)), batch)
    assert log.calls.count("fuse") == 2


def test_passes_come_in_the_declared_order(log, batch):
    run(probes(log, a=(MASK_IMAGE, Clean(), MASK_TEXT)), batch)
    keys = [set(seen) - {"image", "input_ids"} for seen in log.seen["a"]]
    assert keys == [{"image_keep_ids"}, set(), {"mlm_labels"}]


def test_a_pass_gets_the_towers_of_its_own_corruption(log, batch):
    system = probes(log, a=(MASK_TEXT,), b=(MASK_IMAGE,), c=(Clean(),))
    bound = system.bind(system.init(rngs(), batch), rngs={"corruption": jax.random.key(0)})
    passes = bound._passes(batch, False)
    for step in passes.values():
        for side in ("image", "text"):
            alone = getattr(bound, f"encode_{side}")(step.batch)[f"{side}_embed"]
            np.testing.assert_allclose(step.outputs[f"{side}_embed"], alone, rtol=1e-6)
    clean, hidden = passes[Clean()].outputs, passes[MASK_TEXT].outputs
    assert np.abs(clean["text_embed"] - hidden["text_embed"]).max() > 1e-3


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


def differs(a, b) -> bool:
    return any((x[key] != y[key]).any() for x, y in zip(a, b, strict=True) for key in x)


def test_deterministic_in_the_rng(log, batch):
    system = probes(log, a=(MASK_TEXT, MASK_IMAGE))
    first, _ = run(system, batch, 1)
    seen = log.seen["a"]
    again, _ = run(system, batch, 1)
    assert_same(seen, log.seen["a"])
    np.testing.assert_array_equal(first, again)
    other, _ = run(system, batch, 2)
    assert differs(seen, log.seen["a"])
    assert first != other


def test_other_objectives_do_not_change_what_an_objective_sees(log, batch):
    alone, _ = run(probes(log, a=(MASK_TEXT, MismatchPairs())), batch)
    seen = log.seen["a"]
    system = probes(log, z=(MASK_IMAGE,), a=(MASK_TEXT, MismatchPairs()), b=(Clean(), MASK_TEXT))
    _, metrics = run(system, batch)
    assert_same(seen, log.seen["a"])
    np.testing.assert_allclose(metrics["a/loss"], alone, rtol=1e-6)
    # The shared corruption is one and the same.
    assert_same(log.seen["a"][:1], log.seen["b"][1:])


def test_equal_kinds_with_other_settings_draw_apart(log, batch):
    run(probes(log, a=(MaskImage(0.5, 4),), b=(MaskImage(0.4999, 4),)), batch)
    assert differs(log.seen["a"], log.seen["b"])


def test_jit_changes_nothing(log, batch):
    system = System(Towers(log), {"a": InfoNce(), "b": Siglip()}, {"a": 1.0, "b": 1.0})
    variables = system.init(rngs(), batch)
    eager, _ = system.apply(variables, batch, rngs=rngs())
    jitted, _ = jax.jit(system.apply)(variables, batch, rngs=rngs())
    np.testing.assert_allclose(eager, jitted, rtol=1e-6)


def test_the_base_objective_asks_for_a_definition(log, batch):
    with pytest.raises(TypeError, match="must define"):
        System(Towers(log), {"a": Objective()}, {"a": 1.0}).init(rngs(), batch)
    assert Objective().corruptions() == (Clean(),)
