"""Medical vision-language pretraining in JAX/Flax: dual and fusion encoders on TPU, GPU or CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvlp_jax.predictor import Predictor

__version__ = "0.1.0"


def load(path: str, **options: Any) -> Predictor:
    """Loads a trained workdir and returns an object with `encode_image`, `encode_text`, `zero_shot`
    and `ground`.

    Args:
        path: workdir of `train`.
        **options: `step` (default: best, else last), `batch_size`.

    Raises:
        UserError: the folder holds no checkpoint.
    """
    # Imported here so that `import medvlp_jax` stays free of jax.
    from medvlp_jax.runs import load_predictor

    return load_predictor(path, **options)
