"""Two views of each text agree, in features that do not repeat each other (Med-UniC, arXiv 2305.19894)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvlp_jax.losses import redundancy as loss_lib
from medvlp_jax.models import heads
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, SecondText
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.types import Array, Metrics


class CrossLingual(Objective):
    """Regularisation of the text tower across languages; needs `data.text.second`, e.g. translations.

    A row without a second text repeats its first one: the two views then differ by dropout, as all do in the
    released code. Med-UniC has it beside `info_nce` between image and text and between two image views.

    Fields:
        method: "barlow" = Med-UniC's terms on features and instances, "vicreg" = VICReg on the features, with
            the instances' term beside it.
        feature_weight, instance_weight: of the two terms (the released launch has 0 for the second).
        features, hidden: widths of its own projection of `text_pooled`.
        off_weight: lambda off the diagonal.
        variant: "paper" or "released", see `losses.redundancy`.
    """

    method: str = "barlow"
    feature_weight: float = 1.0
    instance_weight: float = 1.0
    features: int = 512
    hidden: int = 2048
    off_weight: float = 0.0051
    variant: str = "paper"

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch and the one with the second texts."""
        return (Clean(), SecondText())

    @nn.compact
    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; metrics: features, instances."""
        require_choice(self.method, ("barlow", "vicreg"), "cross_lingual method")
        require_choice(self.variant, ("paper", "released"), "cross_lingual variant")
        head = heads.BatchNormProjection(self.features, self.hidden, name="projection")
        views = [head(p.outputs["text_pooled"], train=train) for p in passes]
        rows = passes[0].batch.get("example_mask")
        options: dict[str, Any] = dict(off_weight=self.off_weight, variant=self.variant)
        if self.method == "vicreg":
            features = loss_lib.vicreg(*views, example_mask=rows)
        else:
            features = loss_lib.cross_lingual_features(*views, example_mask=rows, **options)
        instances = loss_lib.cross_lingual_instances(*views, example_mask=rows, **options)
        loss = self.feature_weight * features + self.instance_weight * instances
        return jnp.asarray(loss), {"features": features, "instances": instances}
