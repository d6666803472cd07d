"""MedKLIP: queries for entities read an image and say what is there (ICCV 2023, arXiv 2301.02228).

Command:  ./run.sh train --config configs/medklip.py:data=mimic_cxr,queries=QUERIES.npy --workdir W
          QUERIES.npy: one row for each label of the data set, in its order: the [CLS] states of their
          descriptions by ClinicalBERT. Without it the queries are learned.
          ./run.sh train --config configs/medklip.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: batch 48, as published; one GPU holds it.
Published (second-hand, not run): zero-shot AUROC RSNA 86.9, SIIM 89.2, ChestX-ray14 72.6, CheXpert 87.9 (as
          G2D lists them); ChestX-ray14 fine-tuned on 1 / 10 / 100 % of the labels 77.2 / 78.9 / 83.2.
Deviates: the entities are the labels of the data set, not the paper's 75; no contrast of positions, for which
          no data set here stores `entity_positions` (`objectives.entity_query.location_weight`); mild
          augmentation instead of RandAugment. Zero-shot by the queries is not an evaluation task here yet: a
          run logs entity_query/accuracy.
Released: nothing known that the paper contradicts.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, queries=FILE."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", queries="")
    size = common.size_of(options)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=48,
            image=dict(size=224, resize=256, mean=common.IMAGENET_MEAN, std=common.IMAGENET_STD),
            text=dict(max_length=128, sample="report"),
        ),
        model=dict(
            # 14 x 14 places, from scratch as published.
            image_encoder=common.resnet(size, token_layer="layer3"),
            # Only makes the queries, beforehand: training does not read the reports.
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
        ),
        objectives=dict(
            entity_query=dict(
                weight=1.0,
                decoder="test" if size == "smoke" else "medklip",
                queries=options.queries,
                uncertain="ignore",
            )
        ),
        optim=common.optim(
            1e-4, weight_decay=0.02, warmup="5ep", groups=((r"text_encoder/", dict(freeze=True)),)
        ),
        train=common.train("100ep"),
    )
    # Images and texts are never contrasted: there is nothing for zero-shot prompts and retrieval.
    config.eval.tasks = {}
    return common.shrink(config, size)
