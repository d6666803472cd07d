"""Jang et al.: CLIP on random sentences, with pairs that are drawn no closer than needed (2022).

Command:  ./run.sh train --config configs/jang.py:data=mimic_cxr --workdir W \\
              --config.model.image_encoder.init=CLIP --config.model.text_encoder.init=CLIP
          CLIP: openai/clip-vit-base-patch32, its folder or file; brings its tokenizer along.
          ./run.sh train --config configs/jang.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU.
Published: no figure of the paper is repeated here; its settings are known second-hand only.
Deviates: the ceiling of the cosine is a guess within the paper's idea; optimiser as CheXzero's family.
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
            global_batch_size=64,
            image=dict(size=224, resize=224, mean=common.CLIP_MEAN, std=common.CLIP_STD),
            text=dict(max_length=77, sample="sentence"),
        ),
        model=common.clip_towers(size),
        objectives=dict(
            target_contrast=dict(weight=1.0, targets="group", group="text_id", ceiling=0.8)
        ),
        optim=common.optim(1e-5, weight_decay=0.05),
        train=common.train("10ep"),
    )
    return common.shrink(config, size)
