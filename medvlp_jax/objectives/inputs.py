"""What objectives ask of the batch and of the model's outputs, with errors that name the config key."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from medvlp_jax.errors import UserError
from medvlp_jax.losses.info_nce import duplicate_negatives
from medvlp_jax.models.pooling import pool_sentences
from medvlp_jax.types import Batch, Outputs


def require(found: Outputs | Batch, names: Sequence[str], objective: str, remedy: str) -> None:
    """Checks that the model's outputs (or the batch) hold what an objective reads.

    Raises:
        UserError: one is missing; the message ends with `remedy`, which names the config keys to set.
    """
    for name in names:
        if name not in found:
            raise UserError(f"objective {objective} needs {name}, which is not there: {remedy}")


def require_choice(value: str, choices: Sequence[str], key: str) -> None:
    """Checks an option.

    Raises:
        UserError: `value` is none of `choices`; `key` is e.g. "info_nce variant".
    """
    if value not in choices:
        raise UserError(f"{key}={value!r}: choose {', '.join(choices[:-1])} or {choices[-1]}")


def dropped_negatives(batch: Batch, duplicates: str, objective: str) -> jax.Array | None:
    """Pairs [B,B] that are no negatives of each other, None where all are.

    Args:
        batch: with `text_id`, and `subject_id` for "mask_patient".
        duplicates: "ignore" = all other rows are negatives, "mask" = not those with the same text,
            "mask_patient" = not those of the same patient either.
        objective: its name, for the error.

    Raises:
        UserError: unknown choice.
    """
    require_choice(duplicates, ("ignore", "mask", "mask_patient"), f"{objective} duplicates")
    if duplicates == "ignore":
        return None
    drop = duplicate_negatives(batch["text_id"])
    if duplicates == "mask_patient":
        drop = drop | duplicate_negatives(batch["subject_id"])
    return drop


def sentence_states(
    batch: Batch, outputs: Outputs, count: int, pooling: str, objective: str
) -> tuple[jax.Array, jax.Array]:
    """States [B,S,Dt] of the first S = `count` sentences of each text and their mask [B,S].

    Args:
        batch: with `sentence_ids` [B,L]; outputs: with `text_states` [B,L,Dt], of the pieces.
        pooling: "mean" or "max" over the pieces of a sentence.
        objective: its name, for the error.

    Raises:
        UserError: one of them is missing.
    """
    require(batch, ("sentence_ids",), objective, "set data.text.sentence_ids=True")
    require(outputs, ("text_states",), objective, "set model.text_encoder")
    states, mask = pool_sentences(outputs["text_states"], batch["sentence_ids"], count, pooling)
    return jnp.asarray(states), jnp.asarray(mask)


def grid_of(count: int, grid: tuple[int, int] | None, objective: str) -> tuple[int, int]:
    """Rows and columns of N = `count` regions: `grid`, or a square.

    Raises:
        UserError: they do not hold that many regions.
    """
    side = round(count**0.5)
    rows, columns = (side, side) if grid is None else grid
    if rows * columns != count:
        raise UserError(
            f"objective {objective}: {count} regions do not fill a grid of {rows}x{columns}; set "
            f"objectives.{objective}.grid to the rows and columns of the image's tokens"
        )
    return rows, columns


def class_attention(outputs: Outputs, side: str, objective: str) -> jax.Array:
    """[B,T] attention of the first token in the last block, mean over the heads, without gradient.

    Args:
        outputs: with `image_attention` or `text_attention` [B,h,T,T]; side: "image" or "text".

    Raises:
        UserError: the encoder does not return it.
    """
    remedy = f"set model.{side}_encoder.last_attention=True, or weights='uniform' of the objective"
    require(outputs, (f"{side}_attention",), objective, remedy)
    return jax.lax.stop_gradient(jnp.mean(outputs[f"{side}_attention"][:, :, 0], axis=1))
