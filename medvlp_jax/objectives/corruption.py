"""Corruptions: pure functions `(batch, rng) -> batch`, deterministic in the key, independent of devices."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.types import IGNORE_INDEX, PIXEL_KEYS, Array, Batch


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Base class. Equal instances share one forward pass; `changes` says which towers see new input."""

    changes: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Returns a changed copy of the batch."""
        raise TypeError(f"{type(self).__name__} must define __call__(batch, rng)")


@dataclasses.dataclass(frozen=True)
class Clean(Corruption):
    """The batch as it is."""

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Returns the batch."""
        del rng
        return batch


@dataclasses.dataclass(frozen=True)
class SecondImage(Corruption):
    """The second random view of the image in place of the first."""

    changes: ClassVar[frozenset[str]] = frozenset({"image"})

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Replaces `image` by `image_2`.

        Raises:
            UserError: the batch has no second view.
        """
        del rng
        if "image_2" not in batch:
            raise UserError("two views of each image are needed: set data.image.views=2")
        return {**batch, "image": batch["image_2"]}


_TOKEN_KEYS = ("input_ids", "attention_mask", "word_ids")
# What belongs to the first text alone.
_FIRST_TEXT = ("text_id", "sentence_ids")


@dataclasses.dataclass(frozen=True)
class SecondText(Corruption):
    """The second text of the row in place of the first."""

    changes: ClassVar[frozenset[str]] = frozenset({"text"})

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Replaces `input_ids`, `attention_mask` and `word_ids` by those of the second text.

        Raises:
            UserError: the batch has no second text.
        """
        del rng
        if "input_ids_2" not in batch:
            raise UserError("two texts per row are needed: set data.text.second")
        second = {key: batch[f"{key}_2"] for key in _TOKEN_KEYS if f"{key}_2" in batch}
        return {k: v for k, v in batch.items() if k not in _FIRST_TEXT} | second


@dataclasses.dataclass(frozen=True)
class NthText(Corruption):
    """The n-th text of each row alone, where the rows have several (`data.text.per_image`)."""

    index: int = 0
    changes: ClassVar[frozenset[str]] = frozenset({"text"})

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Takes the text at `index` from the keys of texts, [B,n,L] -> [B,L]; text_present stays as it is.

        Raises:
            UserError: the rows do not have that many texts.
        """
        del rng
        number = batch["input_ids"].shape[1] if batch["input_ids"].ndim == 3 else 1
        if number <= self.index:
            raise UserError(
                f"{self.index + 1} texts per row are needed, but there are {number}: set "
                f"data.text.per_image={self.index + 1}"
            )
        keys = [key for key in (*_TOKEN_KEYS, *_FIRST_TEXT) if key in batch and number > 1]
        return {**batch, **{key: batch[key][:, self.index] for key in keys}}


@dataclasses.dataclass(frozen=True)
class Momentum(Corruption):
    """What slowly following copies of the towers make of the batch (MoCo, arXiv 1911.05722, eq. 2).

    The system keeps the copies in its collection `momentum`: the parameters themselves at the first step,
    then `decay * copy + (1 - decay) * parameters` before each forward pass. No gradient flows into them, and
    the pass holds what the towers and projections return, nothing fused or decoded.

    Attributes:
        decay: share of the copy that stays at each step; 1 freezes it as it was at the first step.
        of: the corruption whose batch the copies see.
        sides: towers that are kept, "image" and "text".
    """

    decay: float = 0.995
    of: Corruption = Clean()
    sides: tuple[str, ...] = ("image", "text")

    @property
    def name(self) -> str:
        """Of the copies in the collection: those of one decay and the same towers are kept once."""
        return f"{'_'.join(self.sides)}_{self.decay}"

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Returns the batch that `of` makes."""
        return self.of(batch, rng)


def random_masking_ids(noise: Array, ratio: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keeps the patches with the smallest noise (MAE, arXiv 2111.06377).

    Args:
        noise: [B,N].
        ratio: share that is removed; int(N * (1 - ratio)) stay.

    Returns:
        keep_ids [B,Nk], restore_ids [B,N] (argsort of the shuffle), mask [B,N] (1 = removed).
    """
    count = noise.shape[1]
    keep = int(count * (1 - ratio))
    shuffle = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(shuffle, axis=1)
    return shuffle[:, :keep], restore, (restore >= keep).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MaskImage(Corruption):
    """Removes `ratio` of the patches at random; encoders then run on the rest only."""

    ratio: float = 0.75
    patch_size: int = 16
    changes: ClassVar[frozenset[str]] = frozenset({"image"})

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Adds image_keep_ids, image_restore_ids, image_mask; the pixels stay for the target."""
        rows, height, width = batch["image"].shape[:3]
        count = (height // self.patch_size) * (width // self.patch_size)
        noise = jax.random.uniform(rng, (rows, count))
        keep, restore, mask = random_masking_ids(noise, self.ratio)
        return {
            **batch,
            "image_keep_ids": keep.astype(jnp.int32),
            "image_restore_ids": restore.astype(jnp.int32),
            "image_mask": mask,
        }


@dataclasses.dataclass(frozen=True)
class MaskText(Corruption):
    """BERT masking (arXiv 1810.04805): of the chosen tokens 80 % become [MASK], 10 % random, 10 % stay.

    Each row has exactly round(ratio * maskable) chosen units, at least one where there is any. Units are
    word pieces, or whole words. Special and padding tokens (`word_ids == -1`) are never chosen, and a
    random replacement is never one of `special_ids`.
    """

    vocab_size: int
    mask_id: int
    ratio: float = 0.15
    whole_word: bool = False
    mask_share: float = 0.8
    random_share: float = 0.1
    special_ids: tuple[int, ...] = ()
    changes: ClassVar[frozenset[str]] = frozenset({"text"})

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Replaces input_ids and adds mlm_labels (-100 where nothing is predicted)."""
        ids, words = batch["input_ids"], batch["word_ids"]
        choose, kind, replace = jax.random.split(rng, 3)
        chosen = self._choose(words, choose)
        roll = jax.random.uniform(kind, ids.shape)
        random_ids = self._ordinary(replace, ids.shape)
        masked = jnp.where(roll < self.mask_share, self.mask_id, ids)
        is_random = (roll >= self.mask_share) & (roll < self.mask_share + self.random_share)
        masked = jnp.where(is_random, random_ids, masked)
        return {
            **batch,
            "input_ids": jnp.where(chosen, masked, ids).astype(ids.dtype),
            "mlm_labels": jnp.where(chosen, ids, IGNORE_INDEX).astype(jnp.int32),
        }

    def _ordinary(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Random ids of the vocabulary, uniform over those that are not special."""
        special = sorted(set(self.special_ids))
        ids = jax.random.randint(rng, shape, 0, self.vocab_size - len(special))
        for skipped in special:  # in rising order: each one moves the ids from it on up by one
            ids = ids + (ids >= skipped)
        return ids

    def _choose(self, words: Array, rng: jax.Array) -> jax.Array:
        """[B,L] True at the pieces to predict."""
        length = words.shape[1]
        maskable = words >= 0
        noise = jax.random.uniform(rng, words.shape)
        if not self.whole_word:
            return _smallest(noise, maskable, self.ratio, at_least=1)
        present = jnp.any(words[:, None, :] == jnp.arange(length)[None, :, None], axis=-1)
        chosen_words = _smallest(noise, present, self.ratio, at_least=1)
        picked = jnp.take_along_axis(chosen_words, jnp.maximum(words, 0), axis=1)
        return picked & maskable


def _smallest(noise: Array, allowed: Array, ratio: float, at_least: int = 0) -> jax.Array:
    """[B,L] True at the round(ratio * n) (or `at_least`) allowed entries with the smallest noise."""
    count = allowed.sum(1, keepdims=True)
    number = jnp.maximum(jnp.round(ratio * count), jnp.minimum(count, at_least)).astype(jnp.int32)
    rank = jnp.argsort(jnp.argsort(jnp.where(allowed, noise, jnp.inf), axis=1), axis=1)
    return (rank < number) & allowed


# Keys that belong to the image and travel with it when images are exchanged.
_IMAGE_KEYS = (
    *PIXEL_KEYS,
    "image_present",
    "prior_mask",
    "label",
    "label_mask",
    "subject_id",
    "study_id",
)


@dataclasses.dataclass(frozen=True)
class MismatchPairs(Corruption):
    """Gives round(share * real rows) of the real rows the image of another row (image-text matching).

    The other row must have another text and be of another study (two sentences of one report both fit
    its images). A chosen row for which the batch has no such row keeps its image and stays a positive.
    """

    share: float = 0.5
    changes: ClassVar[frozenset[str]] = frozenset({"image"})

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        """Exchanges images and adds itm_label (1 = the pair matches)."""
        text_id, real = batch["text_id"], batch["example_mask"] > 0
        rows = text_id.shape[0]
        which, order = jax.random.split(rng)
        swap = _smallest(jax.random.uniform(which, (1, rows)), real[None], self.share)[0]
        other = (text_id[:, None] != text_id[None, :]) & real[None, :]
        if "study_id" in batch:
            other &= batch["study_id"][:, None] != batch["study_id"][None, :]
        noise = jax.random.uniform(order, (rows, rows))
        partner = jnp.argmin(jnp.where(other, noise, jnp.inf), axis=1)
        swap = swap & other.any(axis=1)
        source = jnp.where(swap, partner, jnp.arange(rows))
        moved = {k: jnp.take(batch[k], source, axis=0) for k in _IMAGE_KEYS if k in batch}
        return {**batch, **moved, "itm_label": jnp.where(swap, 0, 1).astype(jnp.int32)}
