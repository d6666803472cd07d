"""QuiltNet: CLIP fine-tuned on the histopathology of Quilt-1M (arXiv 2306.11207).

Command:  ./run.sh train --config configs/quiltnet.py:data=quilt_1m --workdir W \\
              --config.model.image_encoder.init=CLIP --config.model.text_encoder.init=CLIP
          CLIP: openai/clip-vit-base-patch32 (image=B/16: -patch16); text=pubmedbert takes a BERT checkpoint
          with its tokenizer, 256 tokens.
          ./run.sh train --config configs/quiltnet.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: 4 A40, as published.
Published: thirteen zero-shot and linear-probe sets, not repeated here.
Deviates: batch 256 and the schedule are ours where the paper's appendix leaves them open.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, patch=32|16, text=clip|pubmedbert."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr", patch="32", text="clip")
    size = common.size_of(options)
    model = common.clip_towers(size, f"clip-B/{options.patch}")
    if options.text == "pubmedbert":
        model["text_encoder"] = common.bert(size, pooling="cls")
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=256,
            image=dict(size=224, resize=224, mean=common.CLIP_MEAN, std=common.CLIP_STD),
            text=dict(max_length=256 if options.text == "pubmedbert" else 77, sample="report"),
        ),
        model=model,
        objectives=dict(info_nce=dict(weight=1.0, temperature=0.07)),
        optim=common.optim(1e-5, b2=0.98, eps=1e-6, weight_decay=0.1, clip_norm=0.0),
        train=common.train("20ep"),
    )
    config.data.image.augment.update(dict(rotate=0.0, brightness=0.0, contrast=0.0))
    return common.shrink(config, size)
