"""CheXzero: OpenAI's CLIP fine-tuned on chest radiographs and their impressions (NBME 2022, Tiu et al.).

Command:  ./run.sh train --config configs/chexzero.py:data=mimic_cxr --workdir W \\
              --config.model.image_encoder.init=CLIP --config.model.text_encoder.init=CLIP
          CLIP: openai/clip-vit-base-patch32, its folder or file; brings its tokenizer along.
          ./run.sh train --config configs/chexzero.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU, batch 16, as published.
Published (second-hand, not run): CheXpert test, five findings, zero-shot: AUROC 0.889, MCC 0.523, F1 0.606
          (mean of ten checkpoints).
Deviates: evaluation scores with the learned scale; the released code takes the softmax over the pair of
          prompts without it, which changes probabilities but not AUROC. Cosine schedule instead of none.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg

# The released code subtracts 101.48761 and divides by 83.43944 on pixels of 0 to 255.
MEAN, STD = (101.48761 / 255,) * 3, (83.43944 / 255,) * 3


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr")
    size = common.size_of(options)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=16,
            image=dict(size=224, resize=224, mean=MEAN, std=STD),
            text=dict(max_length=77, sample="impression"),
        ),
        model=common.clip_towers(size),
        objectives=dict(info_nce=dict(weight=1.0, temperature=0.07)),
        optim=common.optim(1e-4, name="sgd", momentum=0.9, weight_decay=0.0, clip_norm=0.0),
        train=common.train("4ep"),
    )
    config.data.image.augment.update(dict(crop="none", rotate=0.0, brightness=0.0, contrast=0.0))
    if size != "full":
        config.optim.name = "adamw"  # plain SGD moves small random towers nowhere in some minutes
    return common.shrink(config, size)
