"""PRIOR, first stage: regions and sentences of each pair through sigmoid attention (arXiv 2307.12577).

Command:  ./run.sh train --config configs/prior.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/prior.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: 6 GPUs, batch 98 each, as published.
Published (all three stages, re-evaluated by EGMA, not re-measured here): linear probe CheXpert AUROC 86.16 /
          87.08 / 89.08 at 1 / 10 / 100 % of the labels; CheXpert 5x200 zero-shot accuracy 34.90.
Deviates: stages 2 (prototypes of sentences) and 3 (reconstruction of image and sentences) are not there;
          global image features are means; the report's embedding is that of its class token, so that prompts
          can be scored, `pool=sentences` has the paper's pool over the sentences; no horizontal flip (it
          would contradict "left" and "right" of the report; `flip` gives the paper's).
Released: both temperatures are 0.01 in its experiment and 0.1 in the code; 0.01 here.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, pool=report|sentences, flip."""
    options = parse_arg(
        arg, smoke=False, cpu=False, data="synthetic_cxr", pool="report", flip=False
    )
    size = common.size_of(options)
    features = 512 if size == "full" else 128
    head = dict(name="heads.LinearProjection", features=features, use_bias=True)
    sentences = options.pool == "sentences"
    objectives = dict(
        prior_local=dict(
            weight=1.0,
            features=features,
            local_temperature=0.01,
            global_weight=1.0 if sentences else 0.0,
            global_temperature=0.01,
        )
    )
    if not sentences:
        objectives["info_nce"] = dict(weight=1.0, temperature=0.01)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=588,
            image=dict(size=224, resize=224, mean=common.HALF, std=common.HALF),
            text=dict(max_length=256, sample="report", sentence_ids=True),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base-cased", pooling="cls"),
            image_projection=dict(head),
            text_projection=dict(head),
        ),
        objectives=objectives,
        optim=common.optim(1e-5, weight_decay=1e-6, warmup="1ep", clip_norm=0.0),
        train=common.train("20ep"),
    )
    if sentences:
        config.eval.tasks = {}  # the embedding of the class token is not trained
    config.data.image.augment.update(
        dict(crop="none", rotate=5.0, brightness=0.0, contrast=0.0, hflip=options.flip)
    )
    return common.shrink(config, size)
