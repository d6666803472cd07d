"""SigLIP: pairwise sigmoid loss instead of a softmax over the batch (arXiv 2303.15343).

Command:  ./run.sh train --config configs/siglip.py:data=image_text_folder/YOURS --workdir W
Hardware: written for a TPU slice (batch 1024); `cpu` runs in minutes on two cores.
Published: no chest X-ray figures in the paper; a baseline of this project.
Deviates: domain data and a BERT text tower instead of WebLI and SentencePiece.
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
            global_batch_size=1024,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=64, sample="section"),
        ),
        model=dict(
            image_encoder=common.vit(size, pooling="pooler"),
            text_encoder=common.bert(size, pooling="pooler", dropout=0.0, attention_dropout=0.0),
            **common.linear_heads(size, 768),
        ),
        objectives=dict(siglip=dict(weight=1.0)),
        # b2 = 0.95 keeps large sigmoid batches stable (section 4.7 of the paper).
        optim=common.optim(1e-3, b2=0.95, weight_decay=1e-4),
        train=common.train("100ep"),
    )
    return common.shrink(config, size)
