"""UMCL: images and texts with similar labels attract each other (Wang et al.; soft targets as in UniCL).

Command:  ./run.sh train --config configs/umcl.py:data=chexpert --workdir W
          ./run.sh train --config configs/umcl.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU.
Published: no figure of the paper is repeated here; its settings are known second-hand only.
Deviates: trains on labelled pairs; image-label and image-only data enter as rows of a mixture with prompts or
          blank texts, which this config does not set up. Optimiser and sizes are ours.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr")
    size = common.size_of(options)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=128,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=128, sample="sentence"),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
            **common.linear_heads(size, 512),
        ),
        objectives=dict(target_contrast=dict(weight=1.0, targets="labels")),
        optim=common.optim(5e-5, weight_decay=1e-4),
        train=common.train("20ep"),
    )
    return common.shrink(config, size)
