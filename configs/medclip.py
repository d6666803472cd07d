"""MedCLIP: unpaired images and texts, contrasted by the similarity of their labels (arXiv 2210.10163).

Command:  ./run.sh train --config configs/medclip.py:data=image_text_folder/YOURS --workdir W
          ./run.sh train --config configs/medclip.py:cpu --workdir W     (synthetic corpus, minutes)
Hardware: one GPU, batch 100.
Published (re-evaluation of the released weights by EGMA, not re-measured here): CheXpert 5x200 zero-shot
          accuracy 57.5.
Deviates: no horizontal flip (laterality; `flip` gives the paper's); the Swin-T tower is not built yet, the
          paper's ResNet-50 variant is the default; texts carry the labels of their study.
Released: targets are the plain product of the label vectors instead of their cosine; learning rate 2e-5
          instead of 5e-5.
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
    mean, std = (0.5863,) * 3, (0.2795,) * 3
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=100,
            pairing="unpaired",
            image=dict(size=224, resize=256, mean=mean, std=std),
            text=dict(max_length=77, sample="sentence"),
        ),
        model=dict(
            image_encoder=image_encoder,
            text_encoder=common.bert(size, "base-cased", pooling="mean"),
            **common.linear_heads(size, 512),
        ),
        objectives=dict(semantic_matching=dict(weight=1.0)),
        optim=common.optim(
            2e-5 if options.variant == "released" else 5e-5, weight_decay=1e-4, warmup="10%"
        ),
        train=common.train("10ep"),
    )
    config.data.image.augment.update(
        dict(
            crop="random", rotate=10.0, translate=0.0625, zoom=(0.8, 1.1), brightness=0.2,
            contrast=0.2, hflip=options.flip,
        )
    )  # fmt: skip
    return common.shrink(config, size)
