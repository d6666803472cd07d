"""M3AE: masked words, masked patches and matching in a co-attention fusion encoder (arXiv 2209.07098).

Command:  ./run.sh train --config configs/m3ae.py:data=image_text_folder/YOURS --workdir W
          ./run.sh train --config configs/m3ae.py:cpu --workdir W        (synthetic corpus, minutes)
Hardware: 8 x 32 images on 8 GPUs as published; batch 256.
Published (second-hand, not run): VQA-RAD 67.23 / 83.46 / 77.01 (open / closed / all), SLAKE 80.31 /
          87.82 / 83.25.
Deviates: towers start from CLIP ViT-B/16 and RoBERTa-base in the paper; here from what `init` gives.
Released: nothing known that the paper contradicts; the code drops the last block of CLIP's ViT, which
          is the tower used here (11 blocks).
"""

from __future__ import annotations

from configs import common
from medvlp_jax.config import parse_arg


def get_config(arg: str = ""):
    """Arguments: smoke, cpu, data=NAME."""
    options = parse_arg(arg, smoke=False, cpu=False, data="synthetic_cxr")
    size = common.size_of(options)
    full = size == "full"
    fusion = (
        dict(name="fusion.CoAttention")
        if full
        else dict(
            name="fusion.CoAttention",
            width=128 if size == "cpu" else 32,
            layers=4,
            heads=4,
            mlp_dim=256 if size == "cpu" else 64,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )
    decoder = {} if full else dict(width=64, depth=1 if size == "smoke" else 2, heads=4)
    config = common.assemble(
        data=common.data(
            options.data,
            global_batch_size=256,
            image=dict(size=288, mean=common.CLIP_MEAN, std=common.CLIP_STD),
            text=dict(max_length=64, sample="report"),
        ),
        model=dict(
            image_encoder=common.vit(size, "clip-B/16", depth=11),
            text_encoder=common.bert(size, "roberta-base", pooling="cls"),
            fusion=fusion,
        ),
        objectives=dict(
            mlm=dict(weight=1.0, ratio=0.15, whole_word=True),
            mim=dict(
                weight=1.0,
                ratio=0.75,
                layer=3,
                **decoder,
                activation="quick_gelu",
                layer_norm_eps=1e-5,
            ),
            itm=dict(weight=1.0),
        ),
        optim=common.optim(
            1e-5,
            b2=0.98,
            weight_decay=0.01,
            schedule="linear",
            warmup="10%",
            clip_norm=0.0,
            groups=((r"^(model/fusion|objectives_)", dict(lr_mult=5.0)),),
        ),
        train=common.train("100000", eval_every="5000", save_every="5000"),
        eval=common.evaluation(),
    )
    # The image and text embeddings of this system are never contrasted: zero-shot and retrieval need an
    # objective that does, or a fine-tuned matching head.
    config.eval.tasks = {}
    # Resize and centre crop only, as published.
    config.data.image.augment.update(dict(crop="none", rotate=0.0, brightness=0.0, contrast=0.0))
    return common.shrink(config, size)
