"""MaCo: masked images contrasted by what they show, and restored (arXiv 2309.05904).

Command:  ./run.sh train --config configs/maco.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/maco.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: 4 GPUs, batch 512 each, as published.
Published: tables of the paper are not repeated here.
Deviates: restores the image at its own resolution, not at twice it; towers start from what `init` gives.
Released: `--lam` is parsed and never used: both terms weigh 1, as here.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr")
    size = common.size_of(options)
    decoder = (
        dict(width=512, depth=8, heads=16) if size == "full" else dict(width=64, depth=1, heads=2)
    )
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=2048,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=256, sample="report"),
        ),
        model=dict(
            image_encoder=common.vit(size, pooling="mean", positions="sincos"),
            text_encoder=common.bert(size, pooling="cls"),
            **common.linear_heads(size, 512),
        ),
        objectives=dict(
            maco=dict(weight=1.0, ratio=0.5, temperature=0.03),
            mim=dict(weight=1.0, ratio=0.5, **decoder),
        ),
        optim=common.optim(2.5e-4, b2=0.95, weight_decay=0.05, warmup="2ep", clip_norm=0.0),
        train=common.train("51ep"),
    )
    config.data.image.augment.update(
        dict(crop_scale=(0.6, 1.0), rotate=0.0, brightness=0.0, contrast=0.0)
    )
    return common.shrink(config, size)
