"""G2D: contrast, and a decoder that segments where the contrast looks (NeurIPS 2024, arXiv 2312.01522).

Command:  ./run.sh train --config configs/g2d.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/g2d.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: 16 GPUs, batch 128 each, as published.
Published (second-hand, not run): linear probe at 1 / 10 / 100 % of the labels, AUROC CheXpert 89.7 / 90.4 /
          91.1, RSNA 92.2 / 92.9 / 93.6; Dice of encoder and decoder SIIM 65.6 / 66.9 / 68.4, RSNA 72.8 /
          73.4 / 76.9.
Deviates: text tower and optimiser beside learning rate, batch and epochs are ours; the bilateral filter is
          that of `losses.pseudo_segmentation`. Zero-shot and retrieval would compare another pooling of the
          image than the one trained here and are left out.
Released: neither body mask nor filter; Dice of the logits themselves, weighed 1 and 0.2 with the cross
          entropy: `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", variant="paper")
    size = common.size_of(options)
    head = dict(name="heads.LinearProjection", features=128, use_bias=False)
    channels = {"full": (256, 128, 64, 32, 16), "cpu": (64, 32, 16, 16, 8), "smoke": (8,) * 5}
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=2048,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=128, sample="report"),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
            text_projection=dict(head),
            image_token_projection=dict(head),
        ),
        objectives=dict(
            g2d=dict(weight=1.0, temperature=0.07, quantile=0.85, channels=channels[size])
        ),
        optim=common.optim(2e-4, weight_decay=0.05),
        train=common.train("50ep"),
    )
    config.eval.tasks = {}
    return common.shrink(config, size)
