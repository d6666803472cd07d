"""A trained model ready for use: images and texts in, NumPy arrays out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medvlp_jax.data import device_transforms, text
from medvlp_jax.errors import UserError
from medvlp_jax.parallel.mesh import batch_sharding, check_batch, make_mesh, put_batch, replicated
from medvlp_jax.types import PIXEL_KEYS, Batch

if TYPE_CHECKING:
    from medvlp_jax.objectives.system import System

# What an image encoder may read; most batches hold the first alone.
_IMAGE_KEYS = ("image", "prior_image", "prior_mask", "image_present")
_TEXT_KEYS = ("input_ids", "attention_mask", "word_ids")
_ROW_KEYS = (
    "label",
    "label_mask",
    "text_id",
    "subject_id",
    "study_id",
    "example_index",
    "example_mask",
)
_DEFAULT_LOGIT_SCALE = 1 / 0.07  # initial value of CLIP (arXiv 2103.00020), for models without one


class Predictor:
    """Encodes images and texts with fixed parameters, in batches of one size.

    Attributes:
        logit_scale: factor of the cosine in the contrastive loss, already exponentiated.
        batch_size: rows per device call; other numbers of rows are padded to it.
        mesh: devices the batch is spread over.
    """

    def __init__(
        self,
        system: System,
        variables: Mapping[str, Any],
        tokenizer: text.Tokenizer,
        *,
        image_size: int,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        max_length: int,
        batch_size: int = 64,
        mesh: Mesh | None = None,
        logit_scale: float | None = None,
    ):
        """Places the parameters; compiles on first use.

        Args:
            system: model and objectives.
            variables: `{"params": ..., "batch_stats": ...}` as `System.apply` takes them.
            tokenizer: from `data.text`.
            image_size: side of the images in pixels.
            channels: channels the encoder sees.
            mean, std: per channel, in units of [0, 1].
            max_length: tokens per text, special ones included.
            batch_size: divisible by the devices of the mesh that split the batch.
            mesh: default the first device of this process.
            logit_scale: default the trained one, else 1 / 0.07.

        Raises:
            UserError: the batch size does not divide over the mesh.
        """
        if mesh is None:
            mesh = make_mesh({"data": 1}, devices=jax.local_devices()[:1])
        else:
            check_batch(batch_size, mesh, "batch_size")
        self.mesh = mesh
        self.batch_size = batch_size
        self._system = system
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._image_size, self._channels = image_size, channels
        self._mean, self._std = tuple(mean), tuple(std)
        self._given_scale = logit_scale
        self._set_variables(variables)
        self._compile()

    def _set_variables(self, variables: Mapping[str, Any]) -> None:
        self._variables = _on_mesh(dict(variables), self.mesh)
        scale = self._given_scale
        if scale is None:
            scale = trained_logit_scale(variables, self._system.objectives)
        self.logit_scale = float(scale)

    def _compile(self) -> None:
        """One compiled function per kind of input; batch shapes are fixed, so each compiles once."""
        whole = replicated(self.mesh)

        def image_side(variables: Any, batch: Batch) -> Any:
            images = {key: batch[key] for key in _IMAGE_KEYS if key in batch}
            for key in images.keys() & PIXEL_KEYS:
                images[key] = device_transforms.normalise(
                    images[key], self._mean, self._std, self._channels
                )
            return self._system.apply(variables, images, method="encode_image")

        def text_side(variables: Any, batch: Batch) -> Any:
            return self._system.apply(variables, batch, method="encode_text")

        # The ids travel along: whatever order the mesh gives the rows, they stay together.
        def both(variables: Any, batch: Batch) -> dict[str, jax.Array]:
            return {
                "image_embed": image_side(variables, batch)["image_embed"],
                "text_embed": text_side(variables, batch)["text_embed"],
                **{key: batch[key] for key in _ROW_KEYS},
            }

        def features(variables: Any, batch: Batch) -> dict[str, jax.Array]:
            outputs = image_side(variables, batch)
            return {
                "image_embed": outputs["image_embed"],
                "image_pooled": outputs["image_pooled"].astype(jnp.float32),
                **{key: batch[key] for key in _ROW_KEYS},
            }

        def patches(variables: Any, batch: Batch) -> jax.Array:
            return _cosine_map(image_side(variables, batch), batch["phrase"])

        def phrase(variables: Any, batch: Batch) -> jax.Array:
            return _phrase_vector(text_side(variables, batch))

        def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
            return jax.jit(fn, out_shardings=whole)

        self._image_fn = compiled(lambda v, b: image_side(v, b)["image_embed"])
        self._text_fn = compiled(lambda v, b: text_side(v, b)["text_embed"])
        self._both_fn = compiled(both)
        self._features_fn = compiled(features)
        self._patch_fn = compiled(patches)
        self._phrase_fn = compiled(phrase)

    def with_variables(self, variables: Mapping[str, Any]) -> Predictor:
        """The same predictor with other parameters of the same shapes: nothing compiles again."""
        other = object.__new__(Predictor)
        other.__dict__.update(self.__dict__)
        other._set_variables(variables)
        return other

    # --- encoding -----------------------------------------------------------------------------------

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """Embeds images.

        Args:
            images: uint8 [n, H, W, C] with H = W = image_size; C = 1 is repeated to the model's channels.
                With several processes, the same array on each of them.

        Returns:
            float32 [n, D], L2-normalised.

        Raises:
            UserError: wrong size, type or channels, or no image.
        """
        images = self._checked(images)
        return self._in_batches(
            {"image": images}, lambda batch: self._image_fn(self._variables, batch)
        )

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts -> float32 [n, D], L2-normalised. Raises UserError for an empty list."""
        if isinstance(texts, str) or not len(texts):
            raise UserError("encode_text takes a list of at least one text")
        rows = text.encode(self._tokenizer, list(texts), self._max_length)
        return self._in_batches(rows, lambda batch: self._text_fn(self._variables, batch))

    def encode_batch(self, batch: Batch) -> dict[str, np.ndarray]:
        """Embeds both sides of a batch of the data pipeline (this process's rows).

        Returns:
            `image_embed`, `text_embed` and the ids and labels, for the rows of all processes.
        """
        return self._rows(batch, (*_IMAGE_KEYS, *_TEXT_KEYS), self._both_fn)

    def encode_features(self, batch: Batch) -> dict[str, np.ndarray]:
        """Encodes the images of a batch of the data pipeline (this process's rows); texts are not read.

        Returns:
            `image_embed` [n, D], `image_pooled` [n, Di] float32 (what the projection reads) and the ids and
            labels, for the rows of all processes.
        """
        return self._rows(batch, _IMAGE_KEYS, self._features_fn)

    def _rows(
        self, batch: Batch, inputs: Sequence[str], call: Callable[..., Any]
    ) -> dict[str, np.ndarray]:
        given = {key: batch[key] for key in (*inputs, *_ROW_KEYS) if key in batch}
        placed = put_batch(given, self.mesh)
        return {k: np.asarray(v) for k, v in call(self._variables, placed).items()}

    def fingerprint(self) -> str:
        """SHA-256 of all parameters and statistics: equal for equal models, on whatever devices."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._variables):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return digest.hexdigest()

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        size = self._image_size
        expected = f"uint8 [n, {size}, {size}, {self._channels} or 1]"
        if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}, expected {expected} with n >= 1"
            )
        if images.shape[1:3] != (size, size) or images.shape[3] not in (1, self._channels):
            raise UserError(
                f"images are {list(images.shape)}, expected {expected}: resize them as in training "
                "(medvlp_jax.data.transforms.eval_image)"
            )
        return images

    def _in_batches(
        self, rows: Mapping[str, np.ndarray], call: Callable[[Batch], jax.Array]
    ) -> np.ndarray:
        """Runs `call` on batches of one size; the last is filled with copies of its first row."""
        number = len(next(iter(rows.values())))
        sharding = batch_sharding(self.mesh)
        results = []
        for start in range(0, number, self.batch_size):
            take = np.arange(start, start + self.batch_size)
            take[take >= number] = start
            batch = {}
            for key, value in rows.items():
                local = value[take]
                batch[key] = jax.make_array_from_callback(
                    local.shape, sharding, lambda index, local=local: local[index]
                )
            results.append(np.asarray(call(batch))[: number - start])
        return np.concatenate(results)

    # --- uses ---------------------------------------------------------------------------------------

    def zero_shot(
        self, images: np.ndarray, prompts: Sequence[str] | Mapping[str, Mapping[str, Sequence[str]]]
    ) -> np.ndarray:
        """Scores images against prompts.

        Args:
            images: uint8 [n, H, W, C].
            prompts: P texts that exclude each other, or a dict of K labels with the texts that say it is
                there and not there: `{"Edema": {"positive": [...], "negative": [...]}}`.

        Returns:
            float32 [n, P], softmax over the prompts; or [n, K], for each label the probability of
            `positive` against `negative` (mean embedding of each set). Not calibrated.

        Raises:
            UserError: fewer than two prompts, or a label without both sets.
        """
        if isinstance(prompts, Mapping):
            positive, negative = (
                np.stack([self._mean_embed(prompts, label, side) for label in prompts])
                for side in ("positive", "negative")
            )
            margin = self.encode_image(images) @ (positive - negative).T
            return sigmoid(self.logit_scale * margin)
        if isinstance(prompts, str) or len(prompts) < 2:
            raise UserError(
                "zero-shot scores compare prompts, so give at least two (or, per label, positive and "
                "negative ones)"
            )
        return softmax(self.logit_scale * self.encode_image(images) @ self.encode_text(prompts).T)

    def _mean_embed(self, prompts: Mapping[str, Any], label: str, side: str) -> np.ndarray:
        texts = prompts[label].get(side)
        if not texts:
            raise UserError(f"prompts of {label!r} lack a list {side!r} with at least one text")
        return mean_embed(self.encode_text(list(texts)))

    def ground(self, images: np.ndarray, phrase: str | Sequence[str]) -> np.ndarray:
        """Where a phrase is in the images: cosine of each patch with the phrase.

        The phrase is the mean of its projected tokens where the model projects tokens of both sides
        (GLoRIA), else its text embedding (BioViL).

        Args:
            images: uint8 [n, H, W, C].
            phrase: e.g. `"right pleural effusion"`, or one for each of the n images.

        Returns:
            float32 [n, h, w], h x w patches (or grid cells) from top left.

        Raises:
            UserError: the model has no projection of image tokens; not one phrase per image.
        """
        images = self._checked(images)
        phrases = [phrase] * len(images) if isinstance(phrase, str) else list(phrase)
        if len(phrases) != len(images):
            raise UserError(f"ground got {len(images)} images but {len(phrases)} phrases")
        number = {text: row for row, text in enumerate(dict.fromkeys(phrases))}
        tokens = text.encode(self._tokenizer, list(number), self._max_length)
        vectors = self._in_batches(tokens, lambda batch: self._phrase_fn(self._variables, batch))
        maps = self._in_batches(
            {"image": images, "phrase": vectors[[number[phrase] for phrase in phrases]]},
            lambda batch: self._patch_fn(self._variables, batch),
        )
        side = math.isqrt(maps.shape[1])
        if side * side != maps.shape[1]:
            raise UserError(f"the {maps.shape[1]} image tokens are not a square grid: no map")
        return maps.reshape(-1, side, side)


def extract(
    predictor: Predictor, batches: Iterable[Batch], *, images_only: bool = False
) -> dict[str, np.ndarray]:
    """Embeds a split, every example exactly once.

    Args:
        predictor: on a mesh over all processes when there are several.
        batches: this process's batches from `data.pipeline.eval_batches`; the same number on each process.
        images_only: `encode_features` instead of both sides: image_pooled takes the place of text_embed.

    Returns:
        The arrays of `tasks.base.EvalData` for the whole split, on every process: image_embed and
        text_embed [n, D], label, label_mask, text_id, subject_id, study_id, example_index, ordered by
        example_index and without padding.

    Raises:
        UserError: no batch at all.
    """
    encode = predictor.encode_features if images_only else predictor.encode_batch
    parts = [encode(batch) for batch in batches]
    if not parts:
        raise UserError("the split holds no examples: choose another split or rebuild the dataset")
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    real = arrays.pop("example_mask") > 0
    arrays = {key: value[real] for key, value in arrays.items()}
    order = np.argsort(arrays["example_index"], kind="stable")
    index = arrays["example_index"][order]
    if np.any(index[1:] == index[:-1]):
        twice = np.unique(index[1:][index[1:] == index[:-1]])[:5]
        raise ValueError(f"examples {twice.tolist()} occur twice in the evaluation batches")
    return {key: value[order] for key, value in arrays.items()}


def trained_logit_scale(variables: Mapping[str, Any], objectives: Mapping[str, Any]) -> float:
    """Factor of the cosine in the contrastive loss.

    Args:
        variables: with `params/objectives_<name>/log_logit_scale` where it is trained.
        objectives: name -> objective, for `max_scale` and a fixed `temperature`.

    Returns:
        exp(log_logit_scale), at most `max_scale`, else 1 / temperature, of the objective `info_nce` if it is
        there, else of the first that has one; 1 / 0.07 if none has.
    """
    params = variables["params"]
    for name in sorted(objectives, key=lambda name: "info_nce" not in name):
        trained = params.get(f"objectives_{name}", {}).get("log_logit_scale")
        temperature = getattr(objectives[name], "temperature", None)
        if trained is not None:
            scale = math.exp(float(np.asarray(trained).reshape(())))
            return min(scale, getattr(objectives[name], "max_scale", math.inf))
        if isinstance(temperature, int | float) and temperature > 0:
            return 1 / temperature
    return _DEFAULT_LOGIT_SCALE


def trained_logit_bias(variables: Mapping[str, Any]) -> float | None:
    """What the sigmoid loss adds to the scaled cosine.

    Args:
        variables: with `params/objectives_siglip/logit_bias` where it is trained.

    Returns:
        The bias; None without that objective, or beside `info_nce`, whose scale is then the model's.
    """
    params = variables["params"]
    trained = params.get("objectives_siglip", {}).get("logit_bias")
    if trained is None or "log_logit_scale" in params.get("objectives_info_nce", {}):
        return None
    return float(np.asarray(trained).reshape(()))


def mean_embed(embeds: np.ndarray) -> np.ndarray:
    """Mean of embeddings [P, D], L2-normalised again -> [D]: the prompt ensemble of BioViL
    (arXiv 2204.09817)."""
    mean = np.asarray(embeds, np.float32).mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow; softmax of two logits with difference x."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(x)))


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _phrase_vector(outputs: Mapping[str, jax.Array]) -> jax.Array:
    if "text_token_embed" not in outputs:
        return outputs["text_embed"]
    mask = outputs["text_token_mask"][..., None]
    total = (outputs["text_token_embed"].astype(jnp.float32) * mask).sum(axis=1)
    return total / jnp.maximum(mask.sum(axis=1), 1.0)


def _cosine_map(outputs: Mapping[str, jax.Array], phrase: jax.Array) -> jax.Array:
    """Cosines [B, N] of the image tokens with one phrase [B, D] per image."""
    if "image_token_embed" not in outputs:
        raise UserError(
            "grounding needs projected image tokens, and this model has none: train it with "
            "model.image_token_projection (for example configs/mgca.py)"
        )
    tokens = outputs["image_token_embed"].astype(jnp.float32)
    if tokens.shape[-1] != phrase.shape[-1]:
        raise UserError(
            f"image tokens are projected to {tokens.shape[-1]} features, the phrase to "
            f"{phrase.shape[-1]}: set model.text_token_projection to the same number"
        )
    phrase = phrase.astype(jnp.float32)
    norms = jnp.linalg.norm(tokens, axis=-1) * jnp.linalg.norm(phrase, axis=-1)[:, None]
    return jnp.einsum("bnd,bd->bn", tokens, phrase) / jnp.maximum(norms, 1e-12)


def _on_mesh(variables: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Replicates the leaves that do not live on exactly the devices of the mesh."""
    devices = set(mesh.devices.flat)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        return jax.device_put(leaf, replicated(mesh))

    return jax.tree.map(place, variables)
