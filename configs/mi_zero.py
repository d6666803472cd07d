"""MI-Zero: CLIP on pathology captions, for slides scored patch by patch (CVPR 2023, arXiv 2306.07831).

Command:  ./run.sh train --config configs/mi_zero.py:data=quilt_1m --workdir W \\
              --config.model.image_encoder.init=SWIN --config.model.text_encoder.init=PUBMEDBERT
          ./run.sh train --config configs/mi_zero.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: not stated here; batch 256.
Published (second-hand, not run): median balanced accuracy over three tasks (BRCA, NSCLC, RCC) 70.2.
Deviates: the 33,480 pairs of the paper are in-house and ARCH's, so the command names Quilt-1M; a Swin-T in
          place of CTransPath, which has convolutions for patches; batch, optimiser and epochs are ours.
          Not here: whole slides. The score of a slide is the mean of the K largest similarities of its
          patches to a class, K of 1 to 100, smoothed over neighbours or not; evaluation here is that of
          single images (`zero_shot` with prompts, `retrieval`).
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr")
    size = common.size_of(options)
    swin = dict(name="swin", init="")
    swin["variant"] = "T" if size == "full" else "test"
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=256,
            image=dict(size=224, resize=256, mean=common.IMAGENET_MEAN, std=common.IMAGENET_STD),
            text=dict(max_length=128, sample="report"),
        ),
        model=dict(
            image_encoder=swin,
            text_encoder=common.bert(size, "base", pooling="cls"),
            **common.linear_heads(size, 512),
        ),
        objectives=dict(info_nce=dict(weight=1.0, temperature=0.07)),
        optim=common.optim(1e-4, weight_decay=0.2),
        train=common.train("50ep"),
    )
    return common.shrink(config, size)
