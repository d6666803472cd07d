"""Without these, a local objective could ask the real models for an output of another name or shape."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from medvlp_jax import build
from medvlp_jax.models import bert, resnet
from medvlp_jax.models.heads import LinearProjection
from medvlp_jax.models.vision_language import VisionLanguageModel
from medvlp_jax.objectives.cross_lingual import CrossLingual
from medvlp_jax.objectives.hierarchical_contrast import HierarchicalContrast
from medvlp_jax.objectives.limitr import Limitr
from medvlp_jax.objectives.local_intra_sample import LocalIntraSample
from medvlp_jax.objectives.local_mutual_information import LocalMutualInformation
from medvlp_jax.objectives.matching_triplet import MatchingTriplet
from medvlp_jax.objectives.mflag import Mflag
from medvlp_jax.objectives.nt_xent import NtXent
from medvlp_jax.objectives.prior_local import PriorLocal
from medvlp_jax.objectives.system import System
from medvlp_jax.objectives.tier import Tier
from medvlp_jax.objectives.uniformity import Uniformity
from medvlp_jax.objectives.word_region import WordRegion

ROWS, LENGTH = 4, 12
ONE_TEXT: dict[str, Any] = {
    "word_region": WordRegion(tile=2),
    "limitr": Limitr(tile=2),
    "tier": Tier(),
    "lovt": LocalIntraSample(features=8, hidden=16, max_sentences=3),
    "prior": PriorLocal(features=8, max_sentences=3, global_weight=1.0),
    "mutual_information": LocalMutualInformation(hidden=(8,), max_sentences=3),
    "mflag": Mflag(),
    "nt_xent": NtXent(),
    "matching_triplet": MatchingTriplet(),
    "uniformity": Uniformity(),
    "cross_lingual": CrossLingual(features=8, hidden=16),
}
TWO_TEXTS: dict[str, Any] = {
    "imitate": HierarchicalContrast(features=8, pool_size=4, shares=(0.1,) * 4)
}


def system_of(objectives: dict[str, Any]) -> System:
    model = VisionLanguageModel(
        resnet.Encoder(**resnet.VARIANTS["test"]),
        bert.Encoder(**bert.VARIANTS["test"]),
        *(LinearProjection(16) for _ in range(4)),
    )
    return System(model, objectives, dict.fromkeys(objectives, 1.0))


def batch_of(texts: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH) if texts == 1 else (ROWS, texts, LENGTH)
    ids = rng.integers(5, 500, shape).astype(np.int32)
    mask = np.broadcast_to(np.arange(LENGTH) < LENGTH - 3, shape).astype(np.int32)
    place = np.broadcast_to(np.arange(LENGTH), shape)
    inside = (place > 0) & (place < LENGTH - 4)
    return {
        "image": rng.normal(size=(ROWS, 64, 64, 3)).astype(np.float32),
        "input_ids": ids,
        "attention_mask": mask,
        "word_ids": np.where(inside, place - 1, -1).astype(np.int32),
        "sentence_ids": np.where(inside, place // 4, -1).astype(np.int32),
        "input_ids_2": ids[::-1],
        "attention_mask_2": mask,
        "text_id": np.arange(ROWS * texts, dtype=np.int32).reshape(shape[:-1]),
        "text_present": np.ones((ROWS, texts), np.float32),
        "study_id": np.arange(ROWS, dtype=np.int32),
        "example_mask": np.ones(ROWS, np.float32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("texts", [1, 2])
def test_objectives_train_on_the_outputs_of_the_models(texts: int, fill) -> None:
    """Loss and gradients of all of them together, in training mode."""
    objectives = ONE_TEXT if texts == 1 else TWO_TEXTS
    system, batch = system_of(objectives), batch_of(texts)
    rngs = {"corruption": jax.random.key(1), "dropout": jax.random.key(2)}
    shapes = jax.eval_shape(system.init, {"params": jax.random.key(0), **rngs}, batch)
    variables = fill(shapes)

    @jax.jit
    def run(variables: Any) -> Any:
        def total(params: Any) -> Any:
            (loss, metrics), _ = system.apply(
                {**variables, "params": params},
                batch,
                train=True,
                rngs=rngs,
                mutable=["batch_stats"],
            )
            return loss, metrics

        return jax.grad(total, has_aux=True)(variables["params"])

    grads, metrics = run(variables)
    for name in objectives:
        assert np.isfinite(metrics[f"{name}/loss"]), name
        for path, grad in jax.tree_util.tree_leaves_with_path(grads.get(f"objectives_{name}", {})):
            assert np.isfinite(grad).all(), (name, path)
    for tower in ("image_encoder", "text_encoder"):
        leaves = jax.tree.leaves(grads["model"][tower])
        assert all(np.isfinite(leaf).all() for leaf in leaves), tower
        # The text tower of IMITATE only gives targets and what its own head reads, without gradient.
        reached = max(np.abs(leaf).max() for leaf in leaves) > 1e-6
        assert reached or (texts == 2 and tower == "text_encoder"), tower


@pytest.mark.parametrize("objective", [*ONE_TEXT.values(), *TWO_TEXTS.values()], ids=repr)
def test_a_config_finds_the_objective_by_the_name_of_its_file(objective) -> None:
    cls = type(objective)
    name = cls.__module__.rsplit(".", 1)[1]
    key = f"objectives.{name}"
    assert build.load_class("objectives", name, key, attribute=build.camel_case(name))[1] is cls
