"""GLoRIA: words of the report attend to regions of the image (ICCV 2021, Huang et al.).

Command:  ./run.sh train --config configs/gloria.py:data=chexpert --workdir W
          ./run.sh train --config configs/gloria.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU, batch 48, as published.
Published (second-hand, not run): CheXpert 5x200 zero-shot accuracy 0.61, F1 0.67; linear probe CheXpert
          AUROC 86.6 / 87.8 / 88.1 and RSNA 86.1 / 88.0 / 88.6 at 1 / 10 / 100 % of the labels.
Deviates: the paper's reports of CheXpert were closed then (CheXpert Plus has them now); cosine schedule
          instead of halving on a plateau; the towers start from what `init` gives.
Released: the attention passes a softmax over the words before the one over the regions, and a text is
          scored by a sum over its words, so that long ones score higher: `variant=released`.
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
    regions = dict(name="heads.LinearProjection", features=features, use_bias=False)
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=48,
            # Images of 224 px are enlarged, so that layer 3 has 19 x 19 regions.
            image=dict(size=299, resize=341, mean=common.HALF, std=common.HALF),
            text=dict(max_length=97, sample="shuffle"),
        ),
        model=dict(
            image_encoder=common.resnet(size, token_layer="layer3"),
            text_encoder=common.bert(size, "base-cased", pooling="mean"),
            image_projection=dict(head),
            image_token_projection=regions,
            text_token_projection=dict(name="heads.Identity"),
            merge_words=True,
            last_layers=4 if size == "full" else 1,
            text_pooling="mean",
        ),
        objectives=dict(
            # Both directions are added, which is twice their mean.
            info_nce=dict(weight=2.0, temperature=0.1, learnable=False),
            word_region=dict(weight=1.0, temp1=4.0, temp2=5.0, temp3=10.0),
        ),
        optim=common.optim(5e-5, name="adam", weight_decay=1e-6, clip_norm=0.25),
        train=common.train("50ep"),
    )
    if size != "full":
        # Narrow text towers have another width than the shared space.
        config.model.text_token_projection = dict(regions)
        config.model.text_projection = dict(head)
    return common.shrink(config, size)
