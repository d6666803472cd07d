"""KoBo: a knowledge graph says which negatives are none, and guides both towers (MICCAI 2023, 2307.07246).

Command:  ./run.sh train --config configs/kobo.py:data=mimic_cxr,entities=ENTITIES.npy --workdir W
          ENTITIES.npy: one row for each label of the data set, in its order: its embedding in a knowledge
          graph, made beforehand.
          ./run.sh train --config configs/kobo.py:cpu --workdir W      (synthetic corpus, minutes)
          The synthetic corpus has a table of ours, kobo_synthetic_cxr.npy: one column for each finding, then
          lung, pleura, heart, bone, diaphragm, device, opacity, air, fluid and loss of volume (1 = has it).
Hardware: one GPU.
Published: tables of the paper are not repeated here.
Deviates: the embeddings are fixed, where the paper has a graph network over UMLS; a sample's entities are the
          labels that are present; the losses are the plain forms of `losses.knowledge_negatives`. The paper's
          code is not published: batch, optimiser and weights are ours.
"""

from __future__ import annotations

import pathlib

from configs import common
from medvlp_jax.config import parse_arg

SYNTHETIC = pathlib.Path(__file__).resolve().parent / "kobo_synthetic_cxr.npy"


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, image=resnet|vit, entities=FILE."""
    options = parse_arg(
        arg, smoke=False, cpu=False, data="synthetic_cxr", image="resnet", entities=""
    )
    size = common.size_of(options)
    entities = options.entities
    if not entities and options.data.startswith("synthetic_cxr"):
        entities = str(SYNTHETIC)
    tower = common.vit(size, pooling="cls") if options.image == "vit" else common.resnet(size)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=128,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=128, sample="report"),
        ),
        model=dict(
            image_encoder=tower,
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
            **common.mlp_heads(size, 256),
        ),
        objectives=dict(
            kobo=dict(
                weight=1.0,
                entities=entities,
                contrast_weight=1.0,
                enhancement_weight=1.0,
                guidance_weight=1.0,
                temperature=0.07,
            )
        ),
        optim=common.optim(2e-5, weight_decay=0.05),
        train=common.train("50ep"),
    )
    return common.shrink(config, size)
