"""SurgVLP: surgical video lectures and two transcripts of them (Medical Image Analysis 2025, 2307.15220).

Command:  ./run.sh train --config configs/surgvlp.py:data=volume_folder/CLIPS,frames=4,second=TABLE \\
              --workdir W
          CLIPS: a data set with `slices`, the frames of each clip, and the first transcript as text;
          TABLE: the second transcript by image_id. Without `frames` every clip is one still image.
          ./run.sh train --config configs/surgvlp.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: not stated here.
Published: zero-shot tables of the paper are not repeated here.
Deviates: the lectures of the paper (SVL) are not distributed; a clip has one text of the second transcript,
          not all that overlap it. The released code has no training: batch, optimiser, widths and the number
          of frames are ours.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, frames=N (0 = still images), second=SECTION|FILE."""
    options = parse_arg(
        arg, smoke=False, cpu=False, data="synthetic_cxr", frames=0, second="impression"
    )
    size = common.size_of(options)
    features = 768 if size == "full" else 128
    head = dict(name="heads.LinearProjection", features=features, use_bias=True)
    image_encoder = common.resnet(size)
    if options.frames:
        # The features of the frames are averaged.
        image_encoder = dict(name="frames", tower=image_encoder, pooling="mean")
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=128,
            image=dict(
                size=224,
                resize=256,
                mean=common.IMAGENET_MEAN,
                std=common.IMAGENET_STD,
                frames=options.frames,
            ),
            text=dict(max_length=77, sample="report", second=options.second),
        ),
        model=dict(
            image_encoder=image_encoder,
            text_encoder=common.bert(size, "base-cased", pooling="mean"),
            image_projection=dict(head),
            text_projection=dict(head),
            merge_words=True,
            last_layers=4 if size == "full" else 1,
            text_pooling="mean",
        ),
        objectives=dict(
            info_nce=dict(weight=1.0, temperature=0.07),
            mil_nce=dict(weight=1.0, temperature=0.07),
        ),
        optim=common.optim(5e-5, weight_decay=0.05),
        train=common.train("50ep"),
    )
    return common.shrink(config, size)
