"""FLAIR: fundus images and expert descriptions of their categories (Medical Image Analysis 2025, 2308.07898).

Command:  ./run.sh train --config configs/flair.py:data=image_text_folder/FUNDUS --workdir W
          A table with the category's description as text and one label column per category.
          ./run.sh train --config configs/flair.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU, batch 16, as published.
Published: zero-shot and adapter tables of 38 fundus sets, not repeated here.
Deviates: descriptions come from the user's table; category-balanced sampling is `data.label_balance`.
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
            global_batch_size=16,
            label_balance=True,
            image=dict(size=512, resize=512, mean=common.HALF, std=common.HALF, fit="pad"),
            text=dict(max_length=77, sample="report"),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
            **common.linear_heads(size, 512),
        ),
        objectives=dict(
            target_contrast=dict(weight=1.0, targets="group", group="label", temperature=0.07)
        ),
        optim=common.optim(1e-4, weight_decay=1e-5, warmup="1ep"),
        train=common.train("15ep"),
    )
    return common.shrink(config, size)
