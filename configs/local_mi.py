"""Local MI: mutual information of image regions and sentences (MICCAI 2021, Liao et al., arXiv 2103.04537).

Command:  ./run.sh train --config configs/local_mi.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/local_mi.py:estimator=dv,data=mimic_cxr --workdir W
          ./run.sh train --config configs/local_mi.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU, batch 8.
Published: tables of the paper are not repeated here.
Deviates: ResNet-18 instead of the authors' small residual network for 256 px; the learning rate of the image
          side falls too, where theirs stays; the released training has one vector per image and report,
          which is the paper's global variant and not set up here.
Released: see `losses.mutual_information`; `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released, estimator=infonce|dv|jsd."""
    options = parse_arg(
        arg,
        smoke=False,
        cpu=False,
        data="synthetic_cxr",
        variant="paper",
        estimator="infonce",
    )
    size = common.size_of(options)
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=8,
            image=dict(size=256, resize=288, mean=common.HALF, std=common.HALF),
            text=dict(max_length=320, sample="report", sentence_ids=True),
        ),
        model=dict(
            image_encoder=common.resnet(size, "18"),
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
        ),
        objectives=dict(
            local_mutual_information=dict(
                weight=1.0,
                estimator=options.estimator,
                hidden=(1024, 512) if size == "full" else (128, 64),
            )
        ),
        optim=common.optim(
            5e-4,
            weight_decay=0.0,
            schedule="linear",
            warmup="10%",
            clip_norm=0.0,
            # 2e-5 for the text tower, whose matrices alone decay.
            groups=((r"^model/text_encoder/", dict(lr_mult=0.04, weight_decay=0.1)),),
        ),
        train=common.train("100ep"),
    )
    # A critic scores regions and sentences: there are no embeddings that prompts could be held against.
    config.eval.tasks = {}
    config.data.image.augment.update(
        dict(crop="none", rotate=20.0, translate=0.1, brightness=0.0, contrast=0.0)
    )
    return common.shrink(config, size)
