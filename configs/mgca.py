"""MGCA: instance, token and disease-prototype alignment (arXiv 2210.06044).

Command:  ./run.sh train --config configs/mgca.py:data=image_text_folder/YOURS --workdir W
          ./run.sh train --config configs/mgca.py:cpu --workdir W        (synthetic corpus, minutes)
Hardware: 2 x RTX 3090, about one day for 217,000 MIMIC-CXR pairs and 50 epochs (as published).
Published (second-hand, not run): linear probe CheXpert AUROC 88.8 / 89.1 / 89.7, RSNA 89.1 / 89.9 / 90.8
          for ViT at 1 / 10 / 100 % of the labels.
Deviates: towers start from DeiT and BioClinicalBERT weights in the paper; here from what `init` gives.
Released: all three weights are 1, the instance term adds its two directions instead of averaging them,
          padding words stay negatives of the word direction, the text context of a ViT patch is not
          normalised, batch 144 is 2 x 72 with negatives of one device only (not reproduced: our
          contrast is always global).
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released, image=vit|resnet."""
    options = parse_arg(
        arg, smoke=False, cpu=False, data="synthetic_cxr", variant="paper", image="vit"
    )
    size = common.size_of(options)
    released = options.variant == "released"
    if options.image == "vit":
        image_encoder = common.vit(size, last_attention=True)
    else:
        image_encoder = common.resnet(size, token_layer="layer3")
    head = dict(
        name="heads.BatchNormProjection", features=128, hidden=2048 if size == "full" else 256
    )
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=144,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=112, sample="report"),
        ),
        model=dict(
            image_encoder=image_encoder,
            text_encoder=common.bert(size, "base-cased", pooling="cls", last_attention=True),
            image_projection=dict(head),
            text_projection=dict(head),
            image_token_projection=dict(head),
            text_token_projection=dict(head),
            merge_words=True,
        ),
        objectives=dict(
            info_nce=dict(weight=2.0 if released else 1.0, temperature=0.07, learnable=False),
            token_alignment=dict(weight=1.0 if released else 0.7, temperature=0.1),
            prototype_alignment=dict(
                weight=1.0 if released else 0.5, count=500 if size == "full" else 32
            ),
        ),
        optim=common.optim(
            2e-5,
            weight_decay=0.05,
            warmup="40%",
            min_lr=1e-8,
            clip_norm=0.0,
            groups=((r"prototypes$", dict(freeze="1ep")),),
            unit_norm=(r"prototypes$",),
        ),
        train=common.train("50ep"),
    )
    config.data.image.augment.update(dict(crop="random", rotate=0.0, brightness=0.0, contrast=0.0))
    return common.shrink(config, size)
