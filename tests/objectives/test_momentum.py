"""Without these, momentum towers or queues could stand still, learn, or depend on the number of devices."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvlp_jax.checkpoint import Checkpoints, abstract
from medvlp_jax.errors import UserError
from medvlp_jax.models import bert, heads, vit
from medvlp_jax.models.layers import l2_normalize
from medvlp_jax.models.vision_language import VisionLanguageModel
from medvlp_jax.objectives.corruption import Clean, Momentum
from medvlp_jax.objectives.info_nce import InfoNce
from medvlp_jax.objectives.momentum_contrast import MomentumContrast
from medvlp_jax.objectives.similarity_distillation import SimilarityDistillation
from medvlp_jax.objectives.system import System
from medvlp_jax.objectives.triaged_contrast import TriagedContrast
from medvlp_jax.parallel.mesh import make_mesh
from medvlp_jax.step import make_init, make_train_step, place_state

ROWS, LENGTH, VOCAB, WIDTH, QUEUE = 8, 5, 30, 4, 20


class Towers(nn.Module):
    """The least of a model; the image tower has batch statistics."""

    def setup(self) -> None:
        self.image_encoder = nn.Dense(WIDTH)
        self.image_norm = nn.BatchNorm(momentum=0.9)
        self.text_encoder = nn.Embed(VOCAB, WIDTH)

    def encode_image(self, batch, *, train: bool = False):
        pooled = self.image_encoder(batch["image"].mean(axis=(1, 2)))
        pooled = self.image_norm(pooled, use_running_average=not train)
        return {"image_pooled": pooled, "image_embed": l2_normalize(pooled)}

    def encode_text(self, batch, *, train: bool = False):
        states = self.text_encoder(batch["input_ids"])
        pooled = states.mean(axis=1)
        embed = l2_normalize(pooled)
        return {"text_states": states, "text_pooled": pooled, "text_embed": embed}

    def join(self, encoded, batch, *, train: bool = False):
        return {}


def batch_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(ROWS, 4, 4, 3)).astype(np.float32),
        "input_ids": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "attention_mask": np.ones((ROWS, LENGTH), np.int32),
        "text_id": np.arange(ROWS, dtype=np.int32),
        "example_mask": np.ones(ROWS, np.float32),
    }


def system_of(**objectives: Any) -> System:
    return System(Towers(), objectives, dict.fromkeys(objectives, 1.0))


def training(devices: int, start: str = "random"):
    """Fresh state, step function, and what a checkpoint is restored into."""
    system = system_of(
        albef=MomentumContrast(
            queue_size=QUEUE, decay=0.6, alpha_ramp=2, queue_start=start, temperature=0.2
        )
    )
    tx = optax.sgd(0.5)
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    init = make_init(system, lambda _: tx, lambda batch: batch)
    shapes, shardings = place_state(init, jax.random.key(0), batch_of(0), mesh)
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0), batch_of(0))
    run = make_train_step(
        system, tx, lambda _: 0.5, lambda batch: batch, shardings=shardings, mesh=mesh
    )
    return state, run, abstract(shapes, shardings)


@functools.cache
def trained(devices: int, steps: int = 4, start: str = "random") -> list[Any]:
    """States before and after each of a few training steps, as numpy, with the losses."""
    state, run, _ = training(devices, start)
    found = [(jax.tree.map(np.array, (state.params, state.model_state)), {})]
    for step in range(steps):
        state, metrics = run(state, batch_of(step))
        found.append((jax.tree.map(np.array, (state.params, state.model_state)), dict(metrics)))
    return found


def copies(model_state: Any, name: str = "image_text_0.6") -> Any:
    return model_state["momentum"][name]


def test_copies_start_as_the_parameters_and_then_follow() -> None:
    found = trained(1)
    (params, state), _ = found[0]
    own = jax.tree.map(np.array, params["model"])
    followed = own
    for step, ((params, state), _) in enumerate(found[1:]):
        if step:  # the first step copies what the parameters are by then
            followed = jax.tree.map(lambda a, b: 0.6 * a + 0.4 * b, followed, own)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
            copies(state)["model"],
            followed,
        )
        assert copies(state)["steps"] == step + 1
        own = params["model"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), followed, own)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_copies_are_placed_as_what_they_copy() -> None:
    system = system_of(albef=MomentumContrast(queue_size=QUEUE, decay=0.6))
    mesh = make_mesh({"data": 2, "fsdp": 4})
    init = make_init(system, lambda _: optax.sgd(0.1), lambda batch: batch)
    _, shardings = place_state(init, jax.random.key(0), batch_of(0), mesh)
    own, copy = shardings.params["model"], copies(shardings.model_state)["model"]
    assert jax.tree.leaves(own) == jax.tree.leaves(copy)
    assert not own["image_encoder"]["kernel"].is_fully_replicated
    queue = shardings.model_state["queue"]["objectives_albef"]["image"]
    assert queue.is_fully_replicated


def test_queues_hold_the_latest_keys() -> None:
    """Two batches of 8 in a queue of 20, then the third wraps around."""
    found = trained(1, start="empty")
    for step, ((_, state), _) in enumerate(found):
        queue = state["queue"]["objectives_albef"]
        assert queue["position"] == 8 * step % QUEUE
        assert queue["filled"] == min(8 * step, QUEUE)
        assert queue["steps"] == step
        for name in ("image", "text"):
            lengths = np.linalg.norm(queue[name], axis=1)
            np.testing.assert_allclose(lengths[: queue["filled"]], 1, rtol=1e-5)
            np.testing.assert_array_equal(lengths[queue["filled"] :], 0)
    # What was written last are the momentum towers' embeddings of that batch.
    (_, before), (_, after) = found[3][0], found[4][0]
    texts = copies(after)["model"]["text_encoder"]["embedding"][batch_of(3)["input_ids"]].mean(1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    places = (before["queue"]["objectives_albef"]["position"] + np.arange(ROWS)) % QUEUE
    np.testing.assert_allclose(
        after["queue"]["objectives_albef"]["text"][places], texts, rtol=1e-4, atol=1e-6
    )


def test_a_random_queue_is_a_queue_of_directions() -> None:
    (_, state), _ = trained(1)[0]
    queue = state["queue"]["objectives_albef"]
    for name in ("image", "text"):
        np.testing.assert_allclose(np.linalg.norm(queue[name], axis=1), 1, rtol=1e-5)
    assert np.abs(queue["image"] - queue["text"]).max() > 0.1


def test_pseudo_targets_rise_from_zero() -> None:
    alphas = [float(metrics["albef/alpha"]) for _, metrics in trained(1)[1:]]
    np.testing.assert_allclose(alphas, [0, 0.2, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("devices", [2, 8])
def test_number_of_devices_changes_nothing(devices: int) -> None:
    for (one, first), (other, second) in zip(trained(1), trained(devices), strict=True):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other
        )
        if first:
            np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-5)


def test_a_resumed_run_goes_on_with_the_same_copies_and_queues(tmp_path) -> None:
    state, run, like = training(1)
    for step in range(2):
        state, _ = run(state, batch_of(step))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, data_state={}, config={}, metrics={})
    checkpoints.close()
    state, _, _ = Checkpoints(tmp_path, read_only=True).restore(2, like)
    for step in (2, 3):
        state, _ = run(state, batch_of(step))
    found = jax.tree.map(np.array, (state.params, state.model_state))
    jax.tree.map(np.testing.assert_array_equal, found, trained(1)[4][0])


def test_frozen_copies_are_those_of_the_first_step() -> None:
    """Pretrained weights that replace the initial ones after `init` count."""
    system = system_of(nce=InfoNce(), sat=TriagedContrast(pooling="mean"))
    rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "corruption", "dropout"))}
    variables = dict(system.init(rngs, batch_of(0)))
    name = "text_1.0"
    assert set(copies(variables, name)["model"]) == {"text_encoder"}  # the image tower is not kept
    pretrained = jax.tree.map(lambda p: p + 1, variables["params"])
    apply = jax.jit(
        lambda v: system.apply(
            v, batch_of(1), train=True, rngs=rngs, mutable=["momentum", "batch_stats"]
        )[1]
    )
    first = apply({**variables, "params": pretrained})
    wanted = pretrained["model"]["text_encoder"]["embedding"]
    later = apply({**variables, **first, "params": jax.tree.map(lambda p: p * 2, pretrained)})
    for updated in (first, later):
        embedding = copies(updated, name)["model"]["text_encoder"]["embedding"]
        np.testing.assert_allclose(embedding, wanted)


def test_copies_of_one_decay_are_kept_once_and_get_no_gradient() -> None:
    system = system_of(
        albef=MomentumContrast(queue_size=QUEUE, decay=0.5),
        distil=SimilarityDistillation(decay=0.5),
        frozen=SimilarityDistillation(decay=1.0),
    )
    rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "corruption", "dropout"))}
    variables = dict(system.init(rngs, batch_of(0)))
    assert set(variables["momentum"]) == {"image_text_0.5", "image_text_1.0"}

    def loss(v: Any) -> jax.Array:
        return system.apply(v, batch_of(0), rngs=rngs)[0]

    grads = jax.grad(loss, allow_int=True)(variables)
    for leaf in jax.tree.leaves(grads["momentum"]["image_text_0.5"]["model"]):
        np.testing.assert_array_equal(leaf, 0)
    assert np.abs(grads["params"]["model"]["image_encoder"]["kernel"]).max() > 1e-5


def test_evaluation_leaves_copies_and_queues_alone() -> None:
    system = system_of(albef=MomentumContrast(queue_size=QUEUE))
    rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "corruption", "dropout"))}
    variables = dict(system.init(rngs, batch_of(0)))
    _, updated = system.apply(variables, batch_of(1), rngs=rngs, mutable=["momentum", "queue"])
    for name in ("momentum", "queue"):
        jax.tree.map(np.testing.assert_array_equal, updated[name], variables[name])


def test_the_batch_must_fit_the_queue() -> None:
    system = system_of(albef=MomentumContrast(queue_size=ROWS - 1))
    rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "corruption", "dropout"))}
    variables = system.init(rngs, batch_of(0))
    mutable = ["momentum", "queue", "batch_stats"]
    with pytest.raises(UserError, match="queue_size"):
        system.apply(variables, batch_of(0), train=True, rngs=rngs, mutable=mutable)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_copies_of_real_towers(dropout: float) -> None:
    """Their outputs are those of the towers with the copied parameters, apart from what dropout draws."""
    text = bert.Encoder(**{**bert.VARIANTS["test"], "vocab_size": VOCAB, "dropout": dropout})
    model = VisionLanguageModel(
        vit.Encoder(**vit.VARIANTS["test/8"]),
        text,
        heads.LinearProjection(WIDTH),
        heads.LinearProjection(WIDTH),
    )
    objectives = {"same": SimilarityDistillation(decay=0.0), "kept": SimilarityDistillation()}
    system = System(model, objectives, dict.fromkeys(objectives, 1.0))
    rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "corruption", "dropout"))}
    batch = {**batch_of(0), "image": np.zeros((ROWS, 16, 16, 3), np.float32)}
    batch["image"] += np.arange(ROWS)[:, None, None, None]
    variables = dict(jax.jit(system.init)(rngs, batch))
    assert set(copies(variables, "image_text_1.0")["model"]) == set(variables["params"]["model"])

    @jax.jit
    def losses(v: Any) -> Any:
        (_, metrics), updated = system.apply(v, batch, train=True, rngs=rngs, mutable=["momentum"])
        return metrics, updated

    metrics, updated = losses(variables)
    moved = {**variables, **updated}
    moved["params"] = jax.tree.map(lambda p: p + 0.1 * jnp.sin(p * 99), variables["params"])
    later, _ = losses(moved)
    for name in ("same", "kept"):
        assert (float(metrics[f"{name}/loss"]) < 1e-5) == (dropout == 0)
    assert float(later["kept/loss"]) > 0.1
    if not dropout:
        assert float(later["same/loss"]) < 1e-5


def test_names_of_copies() -> None:
    assert Momentum(0.99).name == "image_text_0.99"
    assert (
        Momentum(1.0, sides=("text",)).name == Momentum(1.0, Clean(), ("text",)).name == "text_1.0"
    )
    assert jnp.asarray(Momentum().decay) == 0.995
