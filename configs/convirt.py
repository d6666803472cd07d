"""ConVIRT: contrast between an image and one random sentence of its report (arXiv 2010.00747).

Command:  ./run.sh train --config configs/convirt.py:data=image_text_folder/YOURS --workdir W
          ./run.sh train --config configs/convirt.py:cpu,data=image_text_folder/covid_cxr --workdir W
Hardware: the paper used one GPU, batch 32.
Published (the paper's own split, not re-measured here): RSNA linear probe AUROC 90.7 / 91.7 / 92.1
          at 1 / 10 / 100 % of the labels.
Deviates: no horizontal flip (it would contradict "left" and "right" of the report; `flip` gives the
          paper's); cosine schedule instead of halving on a plateau; towers start from `init` weights
          only when given, the paper starts from ImageNet and BioClinicalBERT.
Released: the edreisMD code computes the text branch without gradient, so its text tower never trains;
          `variant=released` freezes it.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released, image=resnet|vit, flip."""
    options = parse_arg(
        arg,
        smoke=False,
        cpu=False,
        data="synthetic_cxr",
        variant="paper",
        image="resnet",
        flip=False,
    )
    size = common.size_of(options)
    image_encoder = (
        common.vit(size, pooling="cls") if options.image == "vit" else common.resnet(size)
    )
    # Embeddings and the first six layers of the text tower stay as they are (section 4.2).
    frozen: tuple = (
        (r"text_encoder/((word|position|token_type)_embed|embed_norm)", dict(freeze=True)),
        (r"text_encoder/block_[0-5]/", dict(freeze=True)),
    )
    if options.variant == "released":
        frozen = ((r"text_encoder/|text_projection/", dict(freeze=True)),)
    if size != "full":
        frozen = ()  # small towers start from nothing: there is nothing to keep
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=32,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=128, sample="sentence"),
        ),
        model=dict(
            image_encoder=image_encoder,
            text_encoder=common.bert(size, "base-cased", pooling="max"),
            **common.mlp_heads(size, 512),
        ),
        objectives=dict(
            info_nce=dict(weight=1.0, temperature=0.1, learnable=False, image_to_text_weight=0.75)
        ),
        optim=common.optim(1e-4, name="adam", weight_decay=1e-6, groups=frozen, clip_norm=0.0),
        train=common.train("200ep"),
    )
    config.data.image.augment.update(
        dict(
            crop_scale=(0.6, 1.0), rotate=20.0, translate=0.1, zoom=(0.95, 1.05), brightness=0.4,
            contrast=0.4, blur=(0.1, 3.0), hflip=options.flip,
        )
    )  # fmt: skip
    return common.shrink(config, size)
