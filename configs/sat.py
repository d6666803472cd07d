"""SAT: reports of a batch are positive, neutral or negative for an image (IEEE TMI 2023, Liu et al.).

Command:  ./run.sh train --config configs/sat.py:data=mimic_cxr --workdir W \\
              --config.model.text_encoder.init=BIOCLINICALBERT
          The frozen copy of the text tower that compares the reports needs pretrained weights.
          ./run.sh train --config configs/sat.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: 8 GPUs, batch 32 each, as published.
Published: tables of the paper are not repeated here.
Deviates: the tool that compares reports is the text tower as it is at the first step, not a separate model.
Released: see `losses.triage`; `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", variant="paper")
    size = common.size_of(options)
    frozen: tuple = (
        (r"text_encoder/((word|position|token_type)_embed|embed_norm)", dict(freeze=True)),
        (r"text_encoder/block_[0-5]/", dict(freeze=True)),
    )
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=256,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=128, sample="report"),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
            **common.mlp_heads(size, 512),
        ),
        objectives=dict(triaged_contrast=dict(weight=1.0, positive=0.98, negative=0.97)),
        optim=common.optim(
            4e-4, weight_decay=1e-4, clip_norm=0.0, groups=frozen if size == "full" else ()
        ),
        train=common.train("200ep"),
    )
    return common.shrink(config, size)
