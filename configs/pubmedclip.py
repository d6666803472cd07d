"""PubMedCLIP: OpenAI's CLIP fine-tuned on the figures and captions of ROCO (arXiv 2112.13906).

Command:  ./run.sh train --config configs/pubmedclip.py:data=roco --workdir W \\
              --config.model.image_encoder.init=CLIP --config.model.text_encoder.init=CLIP
          CLIP: openai/clip-vit-base-patch32, or for image=resnet OpenAI's RN50; brings its tokenizer along.
          ./run.sh train --config configs/pubmedclip.py:cpu --workdir W      (synthetic corpus, minutes)
Hardware: one GPU, batch 64, as published.
Published (second-hand, not run): as image encoder of a VQA model, VQA-RAD open / closed / all
          60.1 / 80.0 / 72.1, SLAKE 78.4 / 82.5 / 80.1.
Released: the code exponentiates two fixed numbers and multiplies the logits by exp(0.01) / exp(0.07), about
          0.94, where CLIP has 1 / 0.07; `variant=released` does that, the paper's text has CLIP's scale.
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME, variant=paper|released, image=vit|resnet."""
    options = parse_arg(
        arg, smoke=False, cpu=False, data="synthetic_cxr", variant="paper", image="vit"
    )
    size = common.size_of(options)
    model = common.clip_towers(size)
    if options.image == "resnet":
        variant = "test" if size == "smoke" else "RN50"
        model["image_encoder"] = dict(name="clip_resnet", variant=variant, init="")
        if size == "full":
            # RN50's attention pooling already projects to the 1024 features that both sides share.
            model["image_projection"] = None
            model["text_projection"]["features"] = 1024
    loss = dict(weight=1.0, temperature=0.07)
    if options.variant == "released":
        loss.update(temperature=2.718281828459045**0.06, learnable=False)
    config = common.assemble(
        variant=options.variant,
        data=common.data(
            options.data,
            global_batch_size=64,
            image=dict(size=224, resize=224, mean=common.CLIP_MEAN, std=common.CLIP_STD),
            text=dict(max_length=77, sample="report"),
        ),
        model=model,
        objectives=dict(info_nce=loss),
        optim=common.optim(1e-5, name="adam", eps=1e-6, weight_decay=5e-4, clip_norm=0.0),
        train=common.train("50ep"),
    )
    config.data.image.augment.update(dict(crop="none", rotate=0.0, brightness=0.0, contrast=0.0))
    return common.shrink(config, size)
