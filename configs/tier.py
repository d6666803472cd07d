"""TIER: few patches for each token and few tokens for each patch, beside CLIP's contrast (arXiv 2212.06710).

Command:  ./run.sh train --config configs/tier.py:data=mimic_cxr --workdir W \\
              --config.model.text_encoder.init=microsoft/BiomedVLP-CXR-BERT-specialized
          The paper starts the image tower from BioViL's weights too (`model.image_encoder.init`).
          ./run.sh train --config configs/tier.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU, batch 16.
Published: tables of the paper are not repeated here.
Deviates: the tokens of the text have a head of their own instead of the one of the class token; both weights
          are 0.1, where the paper searches between 0.1 and 0.2; weight decay and schedule are ours.
Released: padding tokens count, and the shares have 1e-7 added: `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", variant="paper")
    size = common.size_of(options)
    # Embeddings and the first eight layers of the text tower stay as they are.
    frozen: tuple = (
        (r"text_encoder/((word|position|token_type)_embed|embed_norm)", dict(freeze=True)),
        (r"text_encoder/block_[0-7]/", dict(freeze=True)),
    )
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=16,
            image=dict(size=224, resize=256, mean=common.IMAGENET_MEAN, std=common.IMAGENET_STD),
            text=dict(max_length=128, sample="impression"),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, pooling="cls"),
            image_projection=dict(name="biovil.ImageProjection", features=128),
            image_pooling="projected_mean",
            text_projection=dict(name="biovil.TextProjection", features=128),
            text_token_projection=dict(name="biovil.TextProjection", features=128),
        ),
        objectives=dict(
            info_nce=dict(weight=1.0, temperature=0.07),
            tier=dict(weight=1.0, patch_weight=0.1, token_weight=0.1),
        ),
        optim=common.optim(
            1e-4, weight_decay=1e-4, clip_norm=0.0, groups=frozen if size == "full" else ()
        ),
        train=common.train("50ep"),
    )
    config.data.image.augment.update(
        dict(
            crop_scale=(0.08, 1.0), crop_ratio=(0.9, 1.0), rotate=10.0, translate=0.05,
            zoom=(0.95, 1.05), brightness=0.2, contrast=0.2,
        )
    )  # fmt: skip
    return common.shrink(config, size)
