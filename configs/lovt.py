"""LoVT: sentences and image regions aligned within each pair (ECCV 2022, arXiv 2112.02889).

Command:  ./run.sh train --config configs/lovt.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/lovt.py:local=uniformity,data=mimic_cxr --workdir W
          ./run.sh train --config configs/lovt.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU, batch 32, as published.
Published: eighteen localized tasks, not repeated here.
Deviates: regions and sentences weigh alike; the paper takes the attention of its pooling. local=uniformity is
          the variant of Mueller et al. (arXiv 2211.07254): uniformity in place of the local contrast.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, local=contrast|uniformity."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", local="contrast")
    size = common.size_of(options)
    full = size == "full"
    frozen: tuple = (
        (r"text_encoder/((word|position|token_type)_embed|embed_norm)", dict(freeze=True)),
        (r"text_encoder/block_[0-5]/", dict(freeze=True)),
    )
    parts = dict(contrast_weight=1.0)
    if options.local == "uniformity":
        parts = dict(contrast_weight=0.0, uniformity_weight=1.0, alignment_weight=1.0)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=32,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=512, sample="report", sentence_ids=True),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base-cased", pooling="max"),
            **common.mlp_heads(size, 512, 2048 if full else 128),
        ),
        objectives=dict(
            info_nce=dict(weight=1.0, temperature=0.1, learnable=False, image_to_text_weight=0.75),
            local_intra_sample=dict(
                weight=0.375,
                local_temperature=0.3,
                features=512 if full else 64,
                hidden=2048 if full else 64,
                **parts,
            ),
        ),
        optim=common.optim(1e-4, weight_decay=1e-6, groups=frozen if full else ()),
        train=common.train("100ep"),
    )
    return common.shrink(config, size)
