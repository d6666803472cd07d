"""MITER: sections, then views, then images and reports, each against its own (2024, code ZhuYi98/MITER).

Command:  ./run.sh train --config configs/miter.py:stage=text,data=mimic_cxr --workdir W1
          ./run.sh export --workdir W1 --to hf --part text TEXT
          ./run.sh train --config configs/miter.py:stage=image,data=mimic_cxr --workdir W2
          ./run.sh export --workdir W2 --to hf --part image IMAGE
          ./run.sh train --config configs/miter.py:data=mimic_cxr --workdir W \\
              --config.model.text_encoder.init=TEXT --config.model.image_encoder.init=IMAGE
          ./run.sh train --config configs/miter.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: 4 GPUs, batch 512 (400 in the first two stages), as published.
Published: tables of the paper are not repeated here.
Deviates: the second view of an image is a random change of it, never the lateral one; the two sections share
          one space, without a projection of each to the other; matching reads a fusion encoder of one layer
          and random wrong images; the contrast has all negatives, not the k hardest.
Released: the loss of the k hardest negatives asks for entry 1 as the right one, where entry 0 is the pair:
          not reproduced.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, stage=joint|text|image."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", stage="joint")
    size = common.size_of(options)
    joint, text = options.stage == "joint", options.stage == "text"
    model = dict(
        image_encoder=common.vit(size, "B/32", pooling="cls"),
        text_encoder=common.bert(size, "base-cased", pooling="cls"),
        **common.linear_heads(size, 768),
    )
    if joint:
        width = {"full": 768, "cpu": 128, "smoke": 32}[size]
        model["fusion"] = dict(
            name="fusion.CoAttention", layers=1, width=width, heads=width // 16, mlp_dim=4 * width
        )
        if size == "full":
            model["fusion"]["heads"] = 8
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=512 if joint else 400,
            image=dict(
                size=224,
                resize=256,
                mean=common.HALF,
                std=common.HALF,
                views=2 if options.stage == "image" else 1,
            ),
            text=dict(
                max_length=128,
                sample="impression" if text else "report",
                second="findings" if text else None,
            ),
        ),
        model=model,
        objectives=_objectives(options.stage),
        optim=common.optim(
            5e-6,
            b2=0.98,
            eps=1e-6,
            weight_decay=0.0,
            clip_norm=0.0,
            groups=((r"^model/(fusion|.*_projection)|^objectives_", dict(lr_mult=16.0)),),
        ),
        train=common.train("90ep" if joint else "5ep"),
    )
    if not joint:
        config.eval.tasks = {}  # one side alone is trained
    return common.shrink(config, size)


def _objectives(stage: str) -> dict:
    """Losses of a stage."""
    if stage == "text":
        return dict(
            knowledge_contrast=dict(weight=1.0, group="study_id", temperature=0.05, learnable=False)
        )
    if stage == "image":
        return dict(simclr=dict(weight=1.0, features=0, temperature=0.05))
    return dict(info_nce=dict(weight=1.0, temperature=0.07), itm=dict(weight=1.0))
