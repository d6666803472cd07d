"""Seibold et al.: images and sentences, beside self-supervision of images (MICCAI 2022, arXiv 2205.07139).

Command:  ./run.sh train --config configs/seibold.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/seibold.py:image_term=none,data=mimic_cxr --workdir W
          ./run.sh train --config configs/seibold.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU.
Published: tables of the paper are not repeated here.
Deviates: settings of the paper are known second-hand only: sizes, optimiser and weights are ours. An image
          has four sentences of its report, of which any may fit (MIL-NCE); the report as a whole is not a
          text of its own beside them.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg

SENTENCES = 4


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, image_term=simsiam|none."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", image_term="simsiam")
    size = common.size_of(options)
    with_images = options.image_term == "simsiam"
    objectives = dict(mil_nce=dict(weight=1.0, texts=SENTENCES, temperature=0.07))
    if with_images:
        wide = 2048 if size == "full" else 64
        objectives["simsiam"] = dict(
            weight=1.0, several_texts=True, features=wide, hidden=wide, bottleneck=wide // 4
        )
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=128,
            image=dict(
                size=224,
                resize=256,
                mean=common.HALF,
                std=common.HALF,
                views=2 if with_images else 1,
            ),
            text=dict(max_length=77, sample="sentence", per_image=SENTENCES),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
            **common.linear_heads(size, 512),
        ),
        objectives=objectives,
        optim=common.optim(1e-4, weight_decay=0.05),
        train=common.train("30ep"),
    )
    return common.shrink(config, size)
