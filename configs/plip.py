"""PLIP: OpenAI's CLIP fine-tuned on pathology images and their posts (Nature Medicine 2023, Huang et al.).

Command:  ./run.sh train --config configs/plip.py:data=quilt_1m --workdir W \\
              --config.model.image_encoder.init=CLIP --config.model.text_encoder.init=CLIP
          CLIP: openai/clip-vit-base-patch32, its folder or file; brings its tokenizer along.
          ./run.sh train --config configs/plip.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: not stated; batch 128 fits one GPU.
Published (second-hand, not run): zero-shot weighted F1: Kather 0.565, PanNuke 0.656, DigestPath 0.832,
          WSSS4LUAD 0.734.
Deviates: OpenPath (208,414 pairs from Twitter) is not distributed, so the command names Quilt-1M; batch size
          and epochs are ours.
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
            image=dict(size=224, resize=224, mean=common.CLIP_MEAN, std=common.CLIP_STD),
            text=dict(max_length=77, sample="report"),
        ),
        model=common.clip_towers(size),
        objectives=dict(info_nce=dict(weight=1.0, temperature=0.07)),
        optim=common.optim(5e-5, weight_decay=0.2, clip_norm=0.0),
        train=common.train("12ep"),
    )
    config.data.image.augment.update(dict(rotate=0.0, brightness=0.0, contrast=0.0))
    return common.shrink(config, size)
