"""Med-UniC: image and text, two views of the image, two views of the text in any language (arXiv 2305.19894).

Command:  ./run.sh train --config configs/med_unic.py:stage=text,data=mimic_cxr --workdir W1
          ./run.sh export --workdir W1 --to hf --part text TEXT
          ./run.sh train --config configs/med_unic.py:data=mimic_cxr,second=TRANSLATED.jsonl --workdir W \\
              --config.model.text_encoder.init=TEXT
          ./run.sh train --config configs/med_unic.py:cpu --workdir W      (synthetic corpus, minutes)
          English and Spanish together: `data.mixture`, e.g. MIMIC-CXR and PadChest.
Hardware: 8 GPUs, batch 128 each, as published.
Published (ResNet-50, not re-measured here): linear probe CheXpert AUROC 88.2 / 89.2 / 89.5, RSNA 89.1 /
          90.4 / 90.8 at 1 / 10 / 100 % of the labels.
Deviates: without translations the second view of a report is its impression; the contrast of the two image
          views has the negatives of both; one tokenizer is trained on the mixture instead of extending
          CXR-BERT's.
Released: the second view of a text is the same text in another dropout pass (here: the impression, twice),
          the instances' term is left out, and the features' term is half: `variant=released`.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released, image=resnet|vit, stage=joint|text,
    second=impression|FILE."""
    options = parse_arg(
        arg,
        smoke=False,
        cpu=False,
        data="synthetic_cxr",
        variant="paper",
        image="resnet",
        stage="joint",
        second="impression",
    )
    size = common.size_of(options)
    joint = options.stage == "joint"
    hidden = 2048 if size == "full" else 128
    head = dict(
        name="heads.BatchNormProjection", features=512 if size == "full" else 128, hidden=hidden
    )
    image_encoder = (
        common.vit(size, pooling="cls") if options.image == "vit" else common.resnet(size)
    )
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=1024,
            image=dict(
                size=224,
                resize=256,
                mean=common.HALF,
                std=common.HALF,
                views=2 if joint else 1,
            ),
            text=dict(
                max_length=256,
                sample="impression" if joint and options.variant == "released" else "report",
                second=options.second if joint else None,
            ),
        ),
        model=dict(
            image_encoder=image_encoder,
            text_encoder=common.bert(size, pooling="cls"),
            image_projection=dict(head),
            text_projection=dict(head),
        ),
        objectives=_objectives(joint, options.variant, hidden),
        optim=common.optim(
            4e-5 if joint else 5e-4, weight_decay=0.05, groups=_groups(joint, size == "full")
        ),
        train=common.train("100ep" if joint else "15ep"),
    )
    if not joint:
        config.eval.tasks = {}  # the text tower alone is trained
    return common.shrink(config, size)


def _objectives(joint: bool, variant: str, hidden: int) -> dict:
    """Losses of a stage."""
    if not joint:
        return dict(mlm=dict(weight=1.0, ratio=0.15, whole_word=False))
    return dict(
        info_nce=dict(weight=1.0, temperature=0.07, learnable=False),
        simclr=dict(weight=1.0, features=0, temperature=0.07),
        cross_lingual=dict(
            weight=1.0,
            features=512 if hidden == 2048 else 128,
            hidden=hidden,
            off_weight=0.0051,
            instance_weight=0.0 if variant == "released" else 1.0,
        ),
    )


def _groups(joint: bool, full: bool) -> tuple:
    """What stays as it is: the image side, or embeddings and first nine layers of the text tower."""
    if not joint:
        return ((r"^model/image_", dict(freeze=True)),)
    if not full:
        return ()  # small towers start from nothing: there is nothing to keep
    return (
        (r"text_encoder/((word|position|token_type)_embed|embed_norm)", dict(freeze=True)),
        (r"text_encoder/block_[0-8]/", dict(freeze=True)),
    )
