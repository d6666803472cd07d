"""LiT: contrastive tuning on a locked, pretrained image tower (arXiv 2111.07991); with locked=both on two.

Command:  ./run.sh train --config configs/lit.py:data=NAME --workdir W \\
              --config.model.image_encoder.init=IMAGES --config.model.text_encoder.init=TEXTS
          IMAGES, TEXTS: checkpoints, a file, a folder or a Hugging Face name, docs/pretrained.md.
          locked=both,cpu trains the two projections only: minutes on two cores, for some hundred pairs.
Hardware: the paper used TPU v3 and 4 billion pairs; nothing here was measured at that size.
Deviates: DINOv2 with registers and BERT instead of the paper's ViT-g/14; locked=both also locks the text.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, locked=image|both."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", locked="image")
    size = common.size_of(options)
    image = {"full": "dinov2-B/14-reg", "cpu": "dinov2-S/14-reg", "smoke": "test/16"}[size]
    text = {"full": "base", "cpu": "mini6", "smoke": "test"}[size]
    frozen = "image_encoder/|text_encoder/" if options.locked == "both" else "image_encoder/"
    no_dropout = dict(dropout=0.0, attention_dropout=0.0) if size != "full" else {}
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=256,
            image=dict(size=224, resize=224),
            text=dict(max_length=128, sample="report"),
        ),
        model=dict(
            image_encoder=dict(name="vit", variant=image, pooling="cls", init=""),
            text_encoder=dict(name="bert", variant=text, pooling="mean", init="", **no_dropout),
            **common.linear_heads(size, 512),
        ),
        objectives=dict(info_nce=dict(weight=1.0, temperature=0.1, duplicates="mask_patient")),
        optim=common.optim(3e-4, weight_decay=0.05, groups=((frozen, dict(freeze=True)),)),
        train=common.train("50ep"),
    )
    common.shrink(config, size)
    if size == "cpu":
        # A locked tower sees each image alike, so changed ones would cost more and teach little.
        config.data.image.augment.update(
            dict(crop="none", rotate=0.0, brightness=0.0, contrast=0.0)
        )
        config.data.image.size, config.data.text.max_length = 112, 64
        config.optim.lr = 3e-3
        config.train.update(dict(steps="60", eval_every="60", save_every="60"))
    return config
