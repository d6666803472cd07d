"""Quick start: a small CLIP-type dual encoder on the embedded corpus, minutes on two CPU cores.

Command:  ./run.sh   (the same as ./run.sh quickstart --workdir runs/quickstart)
Corpus:   synthetic_cxr/quickstart, built on the spot; the `test` split holds other patients. It is the
          easy end of the embedded corpus: gross findings only. `synthetic_cxr/benchmark` is the hard end.
Text:     the impression, which says in few words what is there; whole reports learn more slowly.
Expected: README.md, "What to expect".
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=True, data="synthetic_cxr/quickstart")
    size = common.size_of(options)
    bert = common.bert(size, pooling="pooler")
    config = common.assemble(
        data=common.data(options.data, text=dict(max_length=40, sample="impression")),
        model=dict(
            # A convolution's priors and BatchNorm learn from scratch in a fraction of a ViT's images.
            image_encoder=common.convnext(size),
            text_encoder=dict(bert, depth=2),
            **common.linear_heads(size, 128),
        ),
        objectives=dict(info_nce=dict(weight=1.0, duplicates="mask")),
        optim=common.optim(weight_decay=0.05),
        train=common.train(),
    )
    config.data.image.update(dict(mean=common.HALF, std=common.HALF))
    # Three passes over the corpus do not overfit, so changed images would only take longer.
    config.data.image.augment.update(
        dict(crop="none", rotate=0.0, brightness=0.0, contrast=0.0)
    )
    common.shrink(config, size)
    if size == "cpu":
        config.optim.lr = 2e-3
        config.train.update(dict(steps="600", eval_every="300", save_every="300"))
        config.train.best_metric = f"zero_shot/{options.data.split('/')[0]}/macro_auroc"
    return config
