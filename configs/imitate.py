"""IMITATE: levels of the image against sections of the report, with soft targets (arXiv 2310.07355).

Command:  ./run.sh train --config configs/imitate.py:data=mimic_cxr --workdir W \\
              --config.model.text_encoder.init=BIOCLINICALBERT
          The frozen text tower needs pretrained weights.
          ./run.sh train --config configs/imitate.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: batch 128, as published.
Published (second-hand, not run): segmentation RSNA Dice 70.5 at 1 % of the labels.
Deviates: embeddings have 512 features (768 in the released settings).
Released: nothing known that the paper contradicts.
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
            global_batch_size=128,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            # Findings and impression of each row.
            text=dict(max_length=256, sample="section", per_image=2),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
        ),
        objectives=dict(
            hierarchical_contrast=dict(
                weight=1.0,
                features=512 if size == "full" else 128,
                pool_size=16 if size == "full" else 8,
                temperature=0.07,
                visual_temperature=0.2,
                strength=0.2,
            )
        ),
        optim=common.optim(
            2e-4,
            weight_decay=0.05,
            clip_norm=0.0,
            groups=((r"^model/text_encoder/", dict(freeze=True)),),
        ),
        train=common.train("20ep"),
    )
    # The embeddings are those of the objective's heads on each section; the model has none to score prompts.
    config.eval.tasks = {}
    return common.shrink(config, size)
