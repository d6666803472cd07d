"""SLIP: CLIP's contrast beside SimCLR's on two views of the image (arXiv 2112.12750).

Command:  ./run.sh train --config configs/slip.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/slip.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: the paper used 64 GPUs, batch 4096.
Published: natural images only; here a baseline beside CXR-CLIP and Med-UniC, which use its image term.
Deviates: BERT as text tower, views without flips and strong colour changes.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr")
    size = common.size_of(options)
    width = 4096 if size == "full" else 256
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=1024,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF, views=2),
            text=dict(max_length=77, sample="section"),
        ),
        model=dict(
            image_encoder=common.vit(size, pooling="cls"),
            text_encoder=common.bert(size, pooling="cls"),
            **common.linear_heads(size, 512),
        ),
        objectives=dict(
            info_nce=dict(weight=1.0, temperature=0.07),
            simclr=dict(weight=1.0, hidden=width, temperature=0.1),
        ),
        optim=common.optim(3e-3, b2=0.98, weight_decay=0.1, warmup="1ep"),
        train=common.train("25ep"),
    )
    config.data.image.augment.update(dict(crop_scale=(0.4, 1.0), brightness=0.4, contrast=0.4))
    return common.shrink(config, size)
