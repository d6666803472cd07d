"""KAD: a text tower that knows medical concepts guides the image tower (Nat. Commun. 2023, arXiv 2302.14042).

Command:  ./run.sh train --config configs/kad.py:stage=knowledge,data=image_text_folder/UMLS,second=TABLE \\
              --workdir W1
          Rows: a concept's name as text, its CUI as study_id; TABLE: its definition or a relation. Every row
          needs an image file, which is not used.
          ./run.sh export --workdir W1 --to hf --part text TOWER
          ./run.sh train --config configs/kad.py:data=mimic_cxr,queries=QUERIES.npy --workdir W \\
              --config.model.text_encoder.init=TOWER
          QUERIES.npy: one row for each label of the data set, in its order: that tower's state of its name.
          ./run.sh train --config configs/kad.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: batch 64 at 512 pixels, as published.
Published (second-hand, not run): zero-shot AUROC ChestX-ray14 78.9, CheXpert 90.5.
Deviates: the text is the report itself, not the entities that RadGraph finds in it; the queries are the
          labels of the data set, learned unless given. Zero-shot by the queries is not an evaluation task
          here yet: a run logs image_knowledge/accuracy. Settings of the first stage beside its batch and text
          length are ours.
Released: the scale of the contrast is ln(1 / 0.07), a constant, and its features are not normalised; the
          targets of the first stage are divided by their L2 norm: `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released, stage=joint|knowledge, queries=FILE,
    second=FILE (the second texts of the first stage)."""
    options = parse_arg(
        arg,
        smoke=False,
        cpu=False,
        data="synthetic_cxr",
        variant="paper",
        stage="joint",
        queries="",
        second="impression",
    )
    size = common.size_of(options)
    parts = _knowledge(options, size) if options.stage == "knowledge" else _joint(options, size)
    config = common.assemble(variant=options.variant, **parts)
    # The contrast is of means of tokens, which zero-shot prompts and retrieval do not compare.
    config.eval.tasks = {}
    return common.shrink(config, size)


def _joint(options, size: str) -> dict:
    """Groups of the second stage: images against entities and queries."""
    width = {"full": 768, "cpu": 256, "smoke": 32}[size]
    decoder = {"full": "kad", "cpu": "medklip", "smoke": "test"}[size]
    frozen = ((r"text_encoder/", dict(freeze=True)),) if size == "full" else ()
    # The decoder reads both towers, so all three share one width.
    narrow = dict(width=width, mlp_dim=4 * width) if size == "cpu" else {}
    return dict(
        data=common.data(
            options.data,
            global_batch_size=64,
            image=dict(size=512, resize=512, mean=common.IMAGENET_MEAN, std=common.IMAGENET_STD),
            text=dict(max_length=256, sample="report"),
        ),
        model=dict(
            image_encoder=common.resnet(size),
            text_encoder=common.bert(size, "base", pooling="cls", **narrow),
            image_token_projection=dict(name="heads.MLPProjection", features=width),
        ),
        objectives=dict(
            image_knowledge=dict(
                weight=1.0, decoder=decoder, queries=options.queries, uncertain="zeros"
            )
        ),
        optim=common.optim(5e-5, weight_decay=0.02, warmup="20ep", groups=frozen),
        train=common.train("100ep"),
    )


def _knowledge(options, size: str) -> dict:
    """Groups of the first stage: texts of one concept against each other."""
    return dict(
        data=common.data(
            options.data,
            global_batch_size=256,
            image=dict(size=64, resize=64, mean=common.HALF, std=common.HALF),
            text=dict(max_length=128, sample="report", second=options.second),
        ),
        model=dict(
            # Not used, and no statistics to keep: the compiled step leaves it out.
            image_encoder=common.resnet(size, frozen_bn=True),
            text_encoder=common.bert(size, "base", pooling="cls"),
        ),
        objectives=dict(knowledge_contrast=dict(weight=1.0, group="study_id", temperature=0.07)),
        optim=common.optim(
            5e-5, weight_decay=0.02, groups=((r"image_encoder/", dict(freeze=True)),)
        ),
        train=common.train("100ep"),
    )
