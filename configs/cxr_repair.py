"""CXR-RePaiR: CLIP on radiographs, whose nearest reports or sentences become the report (ML4H 2021).

Command:  ./run.sh train --config configs/cxr_repair.py:data=mimic_cxr --workdir W \\
              --config.model.image_encoder.init=CLIP --config.model.text_encoder.init=CLIP
          CLIP: openai/clip-vit-base-patch32, its folder or file; brings its tokenizer along.
          ./run.sh train --config configs/cxr_repair.py:sample=sentence,data=mimic_cxr --workdir W
          ./run.sh train --config configs/cxr_repair.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU.
Published (second-hand, not run): MIMIC-CXR BLEU-2 0.069, BERTScore 0.193, RadGraph F1 0.090.
Deviates: batch, optimiser and epochs are those of CheXzero, which is the same training.
          Not here: writing the report. The paper takes the one report, or the K sentences, of the training
          corpus that are nearest to an image by cosine, and scores that text; `retrieval` ranks the texts of
          the evaluated split, and no score of generated text is computed.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, sample=impression|sentence|report."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", sample="impression")
    size = common.size_of(options)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=16,
            image=dict(size=224, resize=224, mean=common.CLIP_MEAN, std=common.CLIP_STD),
            text=dict(max_length=77, sample=options.sample),
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
