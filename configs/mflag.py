"""M-FLAG: a frozen language model, no negatives, orthogonal image features (arXiv 2307.08347).

Command:  ./run.sh train --config configs/mflag.py:data=mimic_cxr --workdir W \\
              --config.model.text_encoder.init=microsoft/BiomedVLP-CXR-BERT-specialized
          The frozen text tower needs pretrained weights.
          ./run.sh train --config configs/mflag.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: batch 512 per process; the released launch has 2 of them.
Published (second-hand, not run): segmentation SIIM Dice 52.5 / 61.2 / 64.8, RSNA 64.6 / 69.7 / 70.5;
          detection RSNA mAP 13.7 / 17.5 / 25.4 at 1 / 10 / 100 % of the labels.
Deviates: one cosine schedule instead of restarts; mild rotations and no perspective, where the code turns
          by up to 90 degrees; the mean runs over the rows of the global batch.
Released: alignment counts twice and orthogonality half: `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", variant="paper")
    size = common.size_of(options)
    full = size == "full"
    head = dict(
        name="heads.BatchNormProjection",
        features=1024 if full else 128,
        hidden=2048 if full else 256,
    )
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=512,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=256, sample="report"),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, pooling="cls"),
            image_projection=dict(head),
            text_projection=dict(head),
        ),
        objectives=dict(mflag=dict(weight=1.0, off_weight=0.0051)),
        optim=common.optim(
            2e-5,
            weight_decay=0.05,
            warmup="0",
            clip_norm=0.0,
            groups=((r"^model/text_encoder/", dict(freeze=True)),),
        ),
        train=common.train("50ep"),
    )
    return common.shrink(config, size)
