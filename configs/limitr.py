"""LIMITR: global contrast, words and regions across the batch and within each pair (arXiv 2303.11755).

Command:  ./run.sh train --config configs/limitr.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/limitr.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU, batch 48, as published.
Published (second-hand, not run): retrieval on MIMIC-CXR, Recall@1 37.7 and 39.7 for the two directions, which
          sources assign differently.
Deviates: no lateral view and no position code (neither has the released default); global features are means,
          not pooled by attention; no dropout of the scores; the best checkpoint is not chosen by retrieval.
Released: the internal loss has the weight 0, see also `losses.limitr`; `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", variant="paper")
    size = common.size_of(options)
    features = 768 if size == "full" else 128
    head = dict(name="heads.LinearProjection", features=features, use_bias=True)
    tokens = dict(name="heads.LinearProjection", features=features, use_bias=False)
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=48,
            # As GLoRIA: images of 224 px are enlarged, so that layer 3 has 19 x 19 regions.
            image=dict(size=299, resize=341, mean=common.HALF, std=common.HALF),
            text=dict(max_length=97, sample="shuffle"),
        ),
        model=dict(
            image_encoder=common.resnet(size, token_layer="layer3"),
            text_encoder=common.bert(size, "base-cased", pooling="mean"),
            image_projection=dict(head),
            text_projection=dict(head),
            image_token_projection=dict(tokens),
            text_token_projection=dict(tokens),
            merge_words=True,
            last_layers=4 if size == "full" else 1,
            text_pooling="mean",
        ),
        objectives=dict(
            # Both directions are added, which is twice their mean.
            info_nce=dict(weight=2.0, temperature=0.1, learnable=False),
            limitr=dict(
                weight=1.0,
                temp1=4.0,
                temp3=10.0,
                internal_weight=0.0 if options.variant == "released" else 1.0,
            ),
        ),
        optim=common.optim(5e-5, name="adam", weight_decay=1e-6, clip_norm=0.25),
        train=common.train("50ep"),
    )
    return common.shrink(config, size)
