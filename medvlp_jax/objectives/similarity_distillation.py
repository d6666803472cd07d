"""The towers keep, or follow, the similarities that their slower copies see in a batch."""

from __future__ import annotations

from medvlp_jax.losses.distillation import similarity_distillation
from medvlp_jax.losses.info_nce import scaled_products
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.corruption import Clean, Corruption, Momentum
from medvlp_jax.objectives.inputs import require_choice
from medvlp_jax.types import Array, Metrics

PAIRS = {
    "image_text": ("image_embed", "text_embed"),
    "image_image": ("image_embed", "image_embed"),
    "text_text": ("text_embed", "text_embed"),
}


class SimilarityDistillation(Objective):
    """KL divergence to the teacher's similarity matrix of the batch; the teacher is a `Momentum` copy.

    Fields:
        decay: 1 = the towers as they were at the first step, so that pretrained ones forget nothing; less = a
            moving average of them.
        pairs: "image_text", "image_image" or "text_text".
        temperature: of the student; teacher_temperature: of the teacher, lower = sharper.
    """

    decay: float = 1.0
    pairs: str = "image_text"
    temperature: float = 0.07
    teacher_temperature: float = 0.07

    def corruptions(self) -> tuple[Corruption, ...]:
        """The clean batch, by the towers and by the teacher."""
        return (Clean(), Momentum(self.decay))

    def __call__(self, passes: tuple[Pass, ...], *, train: bool) -> tuple[Array, Metrics]:
        """See the base class; no metrics."""
        del train
        require_choice(self.pairs, tuple(PAIRS), "similarity_distillation pairs")
        first, second = PAIRS[self.pairs]
        student, teacher = (
            scaled_products(p.outputs[first], p.outputs[second], 1 / temperature)
            for p, temperature in zip(
                passes, (self.temperature, self.teacher_temperature), strict=True
            )
        )
        mask = passes[0].batch.get("example_mask")
        return similarity_distillation(student, teacher, example_mask=mask), {}
