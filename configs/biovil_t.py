"""BioViL-T: the image beside the patient's image before it (CVPR 2023, arXiv 2301.04558).

Command:  ./run.sh train --config configs/biovil_t.py:data=mimic_cxr --workdir W \\
              --config.model.text_encoder.init=microsoft/BiomedVLP-CXR-BERT-general
          ./run.sh train --config configs/biovil_t.py:cpu --workdir W      (synthetic corpus, minutes)
          The published towers load as `init` too: docs/pretrained.md.
Hardware: not given by our sources.
Published (second-hand, not run): RSNA zero-shot accuracy 0.805, F1 0.706, AUROC 0.871; MS-CXR
          contrast-to-noise ratio 1.33; MS-CXR-T macro-accuracy 61.1 (consolidation), 67.0 (pleural effusion),
          61.9 (pneumonia), 42.6 (pneumothorax), 68.5 (oedema).
Deviates: training code and settings are not released: batch, rate, schedule and epochs are ours; masked words
          see the image through a fusion encoder of one layer, not from each layer of the text tower; the
          report before is not read.
Released: weights only.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr")
    size = common.size_of(options)
    variant = {"full": "resnet50", "cpu": "resnet18", "smoke": "test"}[size]
    image_encoder: dict = dict(name="multi_image", variant=variant, init="")
    if size == "cpu":
        image_encoder["stem_width"] = 16
    width = {"full": 768, "cpu": 128, "smoke": 32}[size]
    dropout = 0.1 if size == "full" else 0.0
    text_head = dict(name="biovil.TextProjection", features=128)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=128,
            # Pixels between 0 and 1, as the published weights expect.
            image=dict(size=448, resize=512, mean=(0.0,) * 3, std=(1.0,) * 3, prior=True),
            text=dict(max_length=128, sample="report"),
        ),
        model=dict(
            image_encoder=image_encoder,
            text_encoder=common.bert(size, pooling="cls"),
            image_projection=dict(name="biovil.ImageProjection", features=128),
            image_pooling="projected_mean",
            text_projection=dict(text_head),
            text_token_projection=dict(text_head),
            fusion=dict(
                name="fusion.CoAttention",
                layers=1,
                width=width,
                heads=width // 64 or 1,
                mlp_dim=4 * width,
                dropout=dropout,
            ),
        ),
        objectives=dict(
            info_nce=dict(weight=1.0, temperature=0.5),
            word_region=dict(weight=0.5, temp1=4.0, temp2=5.0, temp3=10.0),
            mlm=dict(weight=1.0, ratio=0.45, whole_word=False),
        ),
        optim=common.optim(2e-5, weight_decay=0.01),
        train=common.train("50ep"),
    )
    return common.shrink(config, size)
