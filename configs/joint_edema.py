"""Joint edema: radiographs, reports and how severe the edema is (MICCAI 2020, arXiv 2008.09884).

Command:  ./run.sh train --config configs/joint_edema.py:data=image_text_folder/EDEMA,columns=0-1-2 \\
              --workdir W
          EDEMA: label columns such as "at least vascular congestion", "at least interstitial" and "alveolar
          edema", whose sum is the severity 0 to 3; a blank is unknown.
          ./run.sh train --config configs/joint_edema.py:columns=COLUMN,data=mimic_cxr --workdir W
          Edema there or not, one column of the labels.
          ./run.sh train --config configs/joint_edema.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: batch 4, as published; one GPU.
Published: tables of the paper are not repeated here.
Deviates: a standard ResNet in place of the paper's small one, on 224 pixels; embeddings of length 1, which
          are compared by their cosine (an option of the code, whose default is the dot product).
Released: the wrong partner of a row is the next row of the batch: `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released, columns=K or K-K-K of the labels, from 0
    (3 is edema in synthetic_cxr)."""
    options = parse_arg(
        arg, smoke=False, cpu=False, data="synthetic_cxr", variant="paper", columns="3"
    )
    size = common.size_of(options)
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=4,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=320, sample="report"),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base", pooling="pooler"),
            **common.linear_heads(size, 768),
        ),
        objectives=dict(
            ranking=dict(
                weight=1.0,
                columns=tuple(int(column) for column in options.columns.split("-")),
                margin=0.5,
                severity_weight=1.0,
            )
        ),
        optim=common.optim(2e-5, weight_decay=0.1, schedule="linear"),
        train=common.train("300ep"),
    )
    return common.shrink(config, size)
