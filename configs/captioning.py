"""Captioning: a ViT and a causal decoder that writes the report, pretrained from nothing but pairs.

VirTex's task (arXiv 2006.06666), forward direction, on reports as RadTex and REFERS have it.

Command:  ./run.sh train --config configs/captioning.py:data=mimic_cxr --workdir W
          ./run.sh train --config configs/captioning.py:cpu --workdir W
          ./run.sh export --workdir W --to hf OUT     # transformers' VisionEncoderDecoderModel
Hardware: one GPU or a TPU slice at full size; `cpu` runs in minutes on two cores.
Published: nothing with these towers; a baseline of this project.
Deviates: ViT instead of ResNet-50; GPT-2 blocks (pre-LN) instead of post-LN ones; no backward decoder.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr")
    size = common.size_of(options)
    variant, width = {
        "full": ("captioner", 512),
        "cpu": ("quickstart", 192),
        "smoke": ("test", 32),
    }[size]
    image_encoder = common.vit(size, pooling="cls")
    same = size == "smoke"  # the test towers are equally wide: there is nothing to project
    projection = dict(name="heads.LinearProjection", features=width, use_bias=True)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=256,
            image=dict(size=224, resize=256, mean=common.HALF, std=common.HALF),
            text=dict(max_length=128, sample="report"),
        ),
        model=dict(
            image_encoder=image_encoder,
            context_projection=None if same else projection,
            text_decoder=dict(name="causal_decoder.Decoder", variant=variant, init=""),
        ),
        objectives=dict(captioning=dict(weight=1.0)),
        optim=common.optim(5e-4, weight_decay=0.05, b2=0.98),
        train=common.train("50ep"),
    )
    # Nothing is contrasted: zero-shot classification and retrieval have no scores to go by.
    config.eval.tasks = {}
    return common.shrink(config, size)
