"""Quick start: a small CLIP-type dual encoder, minutes on two CPU cores.

Command:  ./run.sh   (the same as ./run.sh quickstart --workdir runs/quickstart)
          ./run.sh train --config configs/quickstart.py:data=image_text_folder/YOURS --workdir W
Corpus:   synthetic_cxr/quickstart, built on the spot; the `test` split holds other patients. It is the
          easy end of the embedded corpus: gross findings only. `synthetic_cxr/benchmark` is the hard end.
Text:     the impression, which says in few words what is there; whole reports learn more slowly. On
          another dataset, a random part of each text, against overfitting.
Expected: README.md, "What to expect".
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=True, data="synthetic_cxr/quickstart")
    size = common.size_of(options)
    embedded = options.data.startswith("synthetic_cxr")
    text = dict(max_length=40, sample="impression") if embedded else _OWN_TEXT
    config = common.assemble(
        data=common.data(options.data, text=text),
        model=dict(
            # A convolution's priors and BatchNorm learn from scratch in a fraction of a ViT's images.
            image_encoder=common.convnext(size),
            text_encoder=dict(common.bert(size, pooling="pooler"), depth=2),
            **common.linear_heads(size, 128),
        ),
        objectives=dict(
            info_nce=dict(weight=1.0, duplicates="mask" if embedded else "mask_patient")
        ),
        optim=common.optim(weight_decay=0.05),
        train=common.train(),
    )
    config.data.image.update(dict(mean=common.HALF, std=common.HALF))
    common.shrink(config, size)
    if size == "cpu":
        _schedule(config, embedded)
    return config


_OWN_TEXT = dict(max_length=96, sample="sentences")


def _schedule(config, embedded: bool) -> None:
    """Six hundred steps on the embedded corpus, fifty epochs on a small one of the user's."""
    if embedded:
        config.optim.lr = 2e-3
        config.train.update(dict(steps="600", eval_every="300", save_every="300"))
        config.train.best_metric = "zero_shot/synthetic_cxr/macro_auroc"
        # Five passes over the corpus do not overfit, so changed images would only take longer.
        config.data.image.augment.update(
            dict(crop="none", rotate=0.0, brightness=0.0, contrast=0.0)
        )
    else:
        config.train.update(dict(steps="50ep", eval_every="25ep", save_every="25ep"))
        config.data.image.augment.update(
            dict(crop_scale=(0.7, 1.0), rotate=10.0, brightness=0.2, contrast=0.3)
        )
