"""BioViL: a radiology language model, then its contrast with image patches (ECCV 2022, arXiv 2204.09817).

Command:  ./run.sh train --config configs/biovil.py:stage=text,data=mimic_cxr --workdir W1
          ./run.sh export --workdir W1 --to hf --part text TEXT
          ./run.sh train --config configs/biovil.py:data=mimic_cxr --workdir W \\
              --config.model.text_encoder.init=TEXT
          ./run.sh train --config configs/biovil.py:local=yes,data=mimic_cxr --workdir W   (BioViL-L)
          ./run.sh train --config configs/biovil.py:cpu --workdir W      (synthetic corpus, minutes)
          The published towers load as `init` too: docs/pretrained.md.
Hardware: batch 32.
Published (second-hand, not run): RSNA zero-shot accuracy 0.732, F1 0.665, AUROC 0.831; MS-CXR
          contrast-to-noise ratio 1.03 to 1.07, BioViL-L 1.14 to 1.21.
Deviates: training code and settings are not released: rate, schedule, weights of the terms and epochs are
          ours; the language model sees one corpus, not PubMed and MIMIC-III; a report that lacks a section
          is matched with itself under another dropout.
Released: weights only.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, stage=joint|text, local=no|yes."""
    options = parse_arg(
        arg, smoke=False, cpu=False, data="synthetic_cxr", stage="joint", local="no"
    )
    size = common.size_of(options)
    text, local = options.stage == "text", options.local == "yes"
    text_head = dict(name="biovil.TextProjection", features=128)
    model = dict(
        image_encoder=common.resnet(size),
        text_encoder=common.bert(size, pooling="cls"),
        image_projection=dict(name="biovil.ImageProjection", features=128),
        image_pooling="projected_mean",
        text_projection=dict(text_head),
    )
    if local:
        model["text_token_projection"] = dict(text_head)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=256 if text else 32,
            # Pixels between 0 and 1, as the published weights expect.
            image=dict(size=448, resize=512, mean=(0.0,) * 3, std=(1.0,) * 3),
            text=dict(
                max_length=128,
                sample="findings" if text else "impression",
                second="impression" if text else None,
            ),
        ),
        model=model,
        objectives=_objectives(text, local),
        optim=common.optim(
            2e-5,
            weight_decay=0.01,
            groups=((r"^model/image_", dict(freeze=True)),) if text else (),
        ),
        train=common.train("50ep"),
    )
    if text:
        config.eval.tasks = {}  # the text tower alone is trained
    return common.shrink(config, size)


def _objectives(text: bool, local: bool) -> dict:
    """Losses of a stage."""
    mlm = dict(weight=0.1, ratio=0.15, whole_word=False)
    if text:
        # Findings against impressions; rows of one study are no negatives of each other.
        matching = dict(
            name="knowledge_contrast",
            weight=1.0,
            group="study_id",
            temperature=0.5,
            learnable=False,
        )
        return dict(section_matching=matching, mlm=mlm)
    found = dict(info_nce=dict(weight=1.0, temperature=0.5), mlm=mlm)
    if local:
        found["word_region"] = dict(weight=0.5, temp1=4.0, temp2=5.0, temp3=10.0)
    return found
