"""BiomedCLIP: ViT and PubMedBERT with a long context, contrasted on biomedical figures (arXiv 2303.00915).

Command:  ./run.sh train --config configs/biomedclip.py:data=pmc_oa --workdir W \\
              --config.model.image_encoder.init=VIT --config.model.text_encoder.init=PUBMEDBERT
          VIT: google/vit-base-patch16-224 or timm's; PUBMEDBERT: a BERT checkpoint with its tokenizer.
          ./run.sh train --config configs/biomedclip.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: 16 A100, batch 4,096, 40 epochs of PMC-15M, as published.
Published (second-hand, not run): PMC-15M test, Recall@1 / 5 / 10: 70.1 / 86.4 / 90.2 and 69.6 / 86.3 / 90.2.
Deviates: PMC-15M cannot be downloaded; PMC-OA is the nearest public corpus. The warm-up of 2,000 steps is
          written as the share that it was.
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
            global_batch_size=4096,
            image=dict(size=224, resize=224, mean=common.CLIP_MEAN, std=common.CLIP_STD),
            text=dict(max_length=256, sample="report"),
        ),
        model=dict(
            image_encoder=common.vit(size, pooling="cls"),
            text_encoder=common.bert(size, pooling="cls"),
            image_projection=dict(
                name="heads.LinearProjection", features=512 if size == "full" else 128
            ),
            # open_clip's "mlp" projection of a Hugging Face text tower: linear, GELU, linear, no bias.
            text_projection=dict(
                name="heads.MLPProjection",
                features=512 if size == "full" else 128,
                hidden=640 if size == "full" else 128,
                activation="gelu",
                use_bias=False,
            ),
        ),
        objectives=dict(info_nce=dict(weight=1.0, temperature=0.07)),
        optim=common.optim(5e-4, b2=0.98, eps=1e-6, weight_decay=0.2, warmup="1%", clip_norm=0.0),
        train=common.train("40ep"),
    )
    config.data.image.augment.update(
        dict(
            crop_scale=(0.9, 1.0),
            crop_ratio=(0.75, 4 / 3),
            rotate=0.0,
            brightness=0.0,
            contrast=0.0,
        )
    )
    return common.shrink(config, size)
