"""CXR-CLIP: two images and two texts of every study against each other (MICCAI 2023, arXiv 2310.13292).

Command:  ./run.sh train --config configs/cxr_clip.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/cxr_clip.py:data=mimic_cxr,second=TRANSLATED.jsonl --workdir W
          ./run.sh train --config configs/cxr_clip.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: batch 128 per GPU, as published.
Published (second-hand, not run): CheXpert 5x200 zero-shot accuracy about 0.62; MIMIC-CXR image to text
          Recall@1 / 5 / 10 21.6 / 48.9 / 60.2.
Deviates: the second image is a second random view of the same image, never the lateral one; the second text
          is the impression beside the findings, or a table's (`second`), never a prompt made of labels. The
          contrast-limited equalisation is an option of the build (`data build --option equalise=clahe`).
Released: the loop that shuffles sentences does nothing, and none is done here.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, image=resnet|swin, second=impression|FILE."""
    options = parse_arg(
        arg, smoke=False, cpu=False, data="synthetic_cxr", image="resnet", second="impression"
    )
    size = common.size_of(options)
    swin = dict(name="swin", init="")
    swin["variant"] = "T" if size == "full" else "test"
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=128,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF, views=2),
            text=dict(max_length=256, sample="findings", second=options.second),
        ),
        model=dict(
            image_encoder=swin if options.image == "swin" else common.resnet(size),
            text_encoder=common.bert(size, pooling="cls"),
            **common.linear_heads(size, 512),
        ),
        objectives=dict(
            cxr_clip=dict(weight=1.0, temperature=0.07, image_weight=1.0, text_weight=0.5)
        ),
        optim=common.optim(5e-5, weight_decay=1e-4, warmup="1ep", clip_norm=0.0),
        train=common.train("15ep"),
    )
    config.data.image.augment.update(dict(crop_scale=(0.8, 1.0), contrast=0.2, brightness=0.2))
    return common.shrink(config, size)
