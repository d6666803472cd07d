"""Without it, an option of the pipeline could give arrays that no model takes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from configs import common
from medvlp_jax import build
from medvlp_jax.data import pipeline

VIT = dict(name="vit", variant="test/8")
# Options of the images, and an image encoder that reads them.
CASES: dict[str, tuple[dict, dict]] = {
    "prior": (dict(prior=True), dict(name="multi_image", variant="test")),
    "studies": (dict(per_study=2), dict(name="frames", tower=VIT)),
    "clips": (dict(frames=4), dict(name="frames", tower=VIT)),
    "volumes": (dict(frames=4), dict(name="vit3d", variant="test")),
}


@pytest.mark.parametrize("case", CASES)
def test_batches_go_through_the_model(case, built, config, of_volumes, tokenizer) -> None:
    options, encoder = CASES[case]
    chosen = of_volumes if "frames" in options else {**config, "dataset": "synthetic_cxr/tiny"}
    data = common.data(chosen["dataset"], **{k: v for k, v in chosen.items() if k != "dataset"})
    data.image.update({"frames": 0, **options})
    text = dict(name="bert", variant="test")
    setting = common.assemble(data=data, model=dict(image_encoder=encoder, text_encoder=text))
    model: Any = build.build_model(setting, vocab_size=len(tokenizer))
    preprocess = build.make_preprocess(setting)
    training = next(pipeline.train_iterator(setting.data, tokenizer, seed=0))
    evaluation = next(iter(pipeline.eval_batches(setting.data, tokenizer, "test")))
    for batch in (training, evaluation):
        outputs, _ = jax.eval_shape(
            lambda batch: model.init_with_output(jax.random.key(0), preprocess(batch)), batch
        )
        assert outputs["image_embed"].shape[0] == 4
        assert outputs["image_embed"].dtype == np.float32
