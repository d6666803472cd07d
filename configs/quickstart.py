"""Quick start: a small CLIP-type dual encoder on the embedded corpus, minutes on two CPU cores.

Command:  ./run.sh            (or ./run.sh train --config configs/quickstart.py --workdir runs/quickstart)
Corpus:   synthetic_cxr, built on the spot; held-out patients are the `test` split.
Expected: see README.md, "What to expect".
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, data=NAME."""
    options = parse_arg(arg, smoke=False, data="synthetic_cxr")
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=64,
            image=dict(size=128, mean=common.HALF, std=common.HALF),
            text=dict(max_length=48, vocab_size=2048, sample="sentence"),
        ),
        model=dict(
            image_encoder=dict(name="vit", variant="quickstart/16", pooling="pooler"),
            text_encoder=dict(name="bert", variant="tiny", pooling="pooler", dropout=0.0),
            **common.linear_heads(128),
            dtype="float32",
        ),
        objectives=dict(info_nce=dict(weight=1.0)),
        optim=common.optim(lr=1e-3, weight_decay=0.05, warmup="10%", b2=0.98),
        train=common.train(
            steps="8ep",
            eval_every="4ep",
            save_every="2ep",
            best_metric=f"zero_shot/{options.data.split('/')[0]}/macro_auroc",
        ),
    )
    return common.smoke(config) if options.smoke else config
