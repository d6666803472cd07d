"""Quick start: a small CLIP-type dual encoder on the embedded corpus, minutes on two CPU cores.

Command:  ./run.sh   (the same as ./run.sh quickstart --workdir runs/quickstart)
Corpus:   synthetic_cxr, built on the spot; the `test` split holds other patients.
Expected: README.md, "What to expect".
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=True, data="synthetic_cxr")
    size = common.size_of(options)
    config = common.assemble(
        data=common.data(options.data, text=dict(max_length=64, sample="report")),
        model=dict(
            image_encoder=common.vit(size, pooling="pooler"),
            text_encoder=common.bert(size, pooling="pooler"),
            **common.linear_heads(size, 128),
        ),
        objectives=dict(info_nce=dict(weight=1.0)),
        optim=common.optim(weight_decay=0.05),
        train=common.train(best_metric="zero_shot/synthetic_cxr/macro_auroc"),
    )
    config.data.image.update(dict(mean=common.HALF, std=common.HALF))
    return common.shrink(config, size)
