"""Global contrast between images and texts (ConVIRT, CLIP and the systems built on them)."""
from __future__ import annotations
import flax.linen as nn
import jax.numpy as jnp
from medvlp_jax.losses import info_nce as loss_lib
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.types import Array, Metrics
class InfoNce(Objective):
    temperature: float = 0.07
    learnable: bool = True
    max_scale: float = 100.0
    image_to_text_weight: float = 0.5
    duplicates: str = "ignore"
    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        (p,) = passes
        log_scale = self.param("log_logit_scale", lambda _: jnp.asarray(-jnp.log(self.temperature), jnp.float32)) if self.learnable else jnp.asarray(-jnp.log(self.temperature))
        scale = jnp.minimum(jnp.exp(log_scale), self.max_scale)
        drop = loss_lib.duplicate_negatives(p.batch["text_id"]) if self.duplicates == "mask" else None
        loss = loss_lib.info_nce(p.outputs["image_embed"], p.outputs["text_embed"], scale, image_to_text_weight=self.image_to_text_weight, example_mask=p.batch.get("example_mask"), drop_negatives=drop)
        return loss, {"logit_scale": scale}
