"""Without these, masking could hide special tokens or a mismatched pair could be a matching one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.objectives.corruption import (
    Clean,
    Corruption,
    MaskImage,
    MaskText,
    MismatchPairs,
    random_masking_ids,
)
from medvlp_jax.parallel.mesh import batch_sharding, make_mesh, put_batch

VOCAB, MASK, SPECIAL = 50, 4, (0, 1, 2, 3, 4)


def text_batch(rows: int, length: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of 1 to L-2 pieces between [CLS] and [SEP]; words of one to three pieces."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((rows, length), np.int32)
    words = np.full((rows, length), -1, np.int32)
    for row in range(rows):
        count = 1 + row % (length - 2)
        starts = rng.integers(0, 3, count) == 0
        starts[0] = True
        words[row, 1 : count + 1] = np.cumsum(starts) - 1
        ids[row, 1 : count + 1] = rng.integers(len(SPECIAL), VOCAB, count)
        ids[row, 0], ids[row, count + 1] = 2, 3
    return {"input_ids": ids, "word_ids": words, "attention_mask": (ids > 0).astype(np.int32)}


def pair_batch(text_id: list[int], example_mask: list[int] | None = None) -> dict[str, np.ndarray]:
    """Every row's image, label and label_mask hold the row's number."""
    rows = np.arange(len(text_id), dtype=np.float32)
    return {
        "image": np.broadcast_to(rows[:, None, None, None], (len(rows), 4, 4, 1)).copy(),
        "label": rows[:, None].copy(),
        "label_mask": 100 + rows[:, None],
        "text_label": 200 + rows[:, None],
        "input_ids": np.arange(len(rows), dtype=np.int32)[:, None],
        "text_id": np.array(text_id, np.int32),
        "example_mask": np.array(example_mask or [1] * len(text_id), np.float32),
    }


def wanted_count(units: int, ratio: float) -> int:
    return max(round(ratio * units), min(units, 1))


@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_exact_number_of_pieces(ratio):
    batch = text_batch(44)
    out = MaskText(VOCAB, MASK, ratio, special_ids=SPECIAL)(batch, jax.random.key(0))
    chosen = np.asarray(out["mlm_labels"]) >= 0
    units = (batch["word_ids"] >= 0).sum(1)
    np.testing.assert_array_equal(chosen.sum(1), [wanted_count(n, ratio) for n in units])


@pytest.mark.parametrize("ratio", [0.15, 0.5])
def test_exact_number_of_whole_words(ratio):
    batch = text_batch(44)
    out = MaskText(VOCAB, MASK, ratio, whole_word=True, special_ids=SPECIAL)(
        batch, jax.random.key(0)
    )
    chosen = np.asarray(out["mlm_labels"]) >= 0
    for words, picked in zip(batch["word_ids"], chosen, strict=True):
        picked_words = set(words[picked])
        # All pieces of a chosen word are chosen.
        np.testing.assert_array_equal(picked, np.isin(words, list(picked_words)))
        assert len(picked_words) == wanted_count(words.max() + 1, ratio)


@pytest.mark.parametrize("whole_word", [False, True])
def test_special_and_padding_tokens_stay(whole_word):
    batch = text_batch(64)
    out = MaskText(VOCAB, MASK, 0.9, whole_word, special_ids=SPECIAL)(batch, jax.random.key(1))
    outside = batch["word_ids"] == -1
    assert (np.asarray(out["mlm_labels"])[outside] == -100).all()
    np.testing.assert_array_equal(
        np.asarray(out["input_ids"])[outside], batch["input_ids"][outside]
    )


def test_labels_are_the_originals_and_the_rest_is_unchanged():
    batch = text_batch(64)
    out = MaskText(VOCAB, MASK, 0.4, special_ids=SPECIAL)(batch, jax.random.key(2))
    labels, ids = np.asarray(out["mlm_labels"]), np.asarray(out["input_ids"])
    chosen = labels != -100
    np.testing.assert_array_equal(labels[chosen], batch["input_ids"][chosen])
    np.testing.assert_array_equal(ids[~chosen], batch["input_ids"][~chosen])
    assert ids.dtype == labels.dtype == np.int32
    for key in ("word_ids", "attention_mask"):
        np.testing.assert_array_equal(out[key], batch[key])


def test_a_row_without_text_has_nothing_to_predict():
    batch = text_batch(2)
    batch["word_ids"][1] = -1
    for whole_word in (False, True):
        out = MaskText(VOCAB, MASK, 0.15, whole_word)(batch, jax.random.key(0))
        assert (np.asarray(out["mlm_labels"])[1] == -100).all()
        np.testing.assert_array_equal(out["input_ids"][1], batch["input_ids"][1])


def test_shares_of_mask_random_and_unchanged():
    # 512 rows x 50 tokens, all of them the id 7, half of them chosen: 12,800 draws.
    shape = (512, 50)
    batch = {
        "input_ids": np.full(shape, 7, np.int32),
        "word_ids": np.broadcast_to(np.arange(50, dtype=np.int32), shape),
    }
    vocab = 1000
    corruption = MaskText(vocab, MASK, 0.5, special_ids=(*SPECIAL, 77, vocab - 1))
    out = corruption(batch, jax.random.key(3))
    ids = np.asarray(out["input_ids"])[np.asarray(out["mlm_labels"]) >= 0]
    assert ids.size == 512 * 25
    random = ids[(ids != MASK) & (ids != 7)]
    # The standard error of each share is below 0.0036.
    assert abs((ids == MASK).mean() - 0.8) < 0.015
    assert abs((ids == 7).mean() - 0.1) < 0.015
    assert abs(random.size / ids.size - 0.1) < 0.015
    # Replacements reach the whole vocabulary but never a special token.
    assert not np.isin(random, [*SPECIAL, 77, vocab - 1]).any()
    assert random.min() < 30
    assert random.max() > vocab - 30
    assert len(np.unique(random)) > 600


def test_random_ids_are_exactly_the_ordinary_ones():
    corruption = MaskText(9, 4, 1.0, mask_share=0.0, random_share=1.0, special_ids=(8, 0, 4))
    batch = {
        "input_ids": np.full((64, 8), 1, np.int32),
        "word_ids": np.broadcast_to(np.arange(8, dtype=np.int32), (64, 8)),
    }
    ids = np.asarray(corruption(batch, jax.random.key(0))["input_ids"])
    values, counts = np.unique(ids, return_counts=True)
    assert values.tolist() == [1, 2, 3, 5, 6, 7]
    assert counts.min() > 0.7 * ids.size / 6


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.6])
def test_image_mask_keep_count_and_inverse(ratio):
    batch = {"image": np.zeros((5, 64, 48, 3), np.float32)}
    out = MaskImage(ratio, 16)(batch, jax.random.key(0))
    keep, restore = np.asarray(out["image_keep_ids"]), np.asarray(out["image_restore_ids"])
    mask = np.asarray(out["image_mask"])
    count = 4 * 3
    kept = int(count * (1 - ratio))
    assert keep.shape == (5, kept)
    assert keep.dtype == restore.dtype == np.int32
    np.testing.assert_array_equal(np.sort(restore, axis=1), np.tile(np.arange(count), (5, 1)))
    for row in range(5):
        # Position of every kept patch in the shuffled order, and the mask says the same.
        np.testing.assert_array_equal(restore[row][keep[row]], np.arange(kept))
        np.testing.assert_array_equal(np.flatnonzero(mask[row] == 0), np.sort(keep[row]))
    # The pixels stay: they are the target.
    np.testing.assert_array_equal(out["image"], batch["image"])


def test_restore_ids_put_patches_back():
    noise = jax.random.uniform(jax.random.key(0), (3, 10))
    keep, restore, mask = random_masking_ids(noise, 0.7)
    patches = jax.random.normal(jax.random.key(1), (3, 10, 2))
    visible = jnp.take_along_axis(patches, keep[..., None], axis=1)
    padded = jnp.concatenate([visible, jnp.zeros((3, 10 - keep.shape[1], 2))], axis=1)
    back = jnp.take_along_axis(padded, restore[..., None], axis=1)
    np.testing.assert_array_equal(back, patches * (1 - mask[..., None]))


@pytest.mark.parametrize("rows", [2, 8, 9])
def test_half_of_distinct_pairs_is_mismatched(rows):
    batch = pair_batch(list(range(50, 50 + rows)))
    mix = jax.jit(MismatchPairs())
    for seed in range(20):
        out = mix(batch, jax.random.key(seed))
        label = np.asarray(out["itm_label"])
        assert (label == 0).sum() == round(rows / 2)
        source = np.asarray(out["label"])[:, 0]
        np.testing.assert_array_equal(label, source == np.arange(rows))


def test_image_keys_travel_and_text_stays():
    batch = pair_batch(list(range(8)))
    out = {k: np.asarray(v) for k, v in MismatchPairs()(batch, jax.random.key(0)).items()}
    source = out["label"][:, 0]
    np.testing.assert_array_equal(out["image"][:, 0, 0, 0], source)
    np.testing.assert_array_equal(out["label_mask"][:, 0], 100 + source)
    for key in ("text_label", "input_ids", "text_id", "example_mask"):
        np.testing.assert_array_equal(out[key], batch[key])
    assert out["itm_label"].dtype == np.int32


def test_equal_texts_never_count_as_mismatch():
    text_id = [5, 5, 5, 5, 5, 6, 6, 7]
    batch = pair_batch(text_id)
    swapped = 0
    mix = jax.jit(MismatchPairs())
    for seed in range(40):
        out = mix(batch, jax.random.key(seed))
        source = np.asarray(out["label"])[:, 0].astype(int)
        moved = np.asarray(out["itm_label"]) == 0
        swapped += moved.sum()
        assert all(text_id[source[row]] != text_id[row] for row in np.flatnonzero(moved))
        np.testing.assert_array_equal(source[~moved], np.flatnonzero(~moved))
    assert swapped == 40 * 4


def test_all_texts_equal_keeps_all_pairs():
    batch = pair_batch([3] * 6)
    out = MismatchPairs()(batch, jax.random.key(0))
    assert (np.asarray(out["itm_label"]) == 1).all()
    np.testing.assert_array_equal(out["image"], batch["image"])


def test_padded_rows_are_neither_changed_nor_a_source():
    batch = pair_batch(list(range(8)), [1, 1, 1, 1, 1, 0, 0, 0])
    partners = set()
    mix = jax.jit(MismatchPairs())
    for seed in range(40):
        out = mix(batch, jax.random.key(seed))
        source = np.asarray(out["label"])[:, 0].astype(int)
        label = np.asarray(out["itm_label"])
        assert source[5:].tolist() == [5, 6, 7]
        assert (label[5:] == 1).all()
        assert (label[:5] == 0).sum() == 2  # half of five, rounded to even
        partners |= set(source[:5][label[:5] == 0])
    assert partners == {0, 1, 2, 3, 4}


def test_a_single_real_row_stays_matched():
    out = MismatchPairs()(pair_batch([1, 2, 3], [0, 1, 0]), jax.random.key(0))
    assert (np.asarray(out["itm_label"]) == 1).all()


def every_corruption() -> list[Corruption]:
    return [
        Clean(),
        MaskImage(0.75, 16),
        MaskText(VOCAB, MASK, special_ids=SPECIAL),
        MaskText(VOCAB, MASK, whole_word=True),
        MismatchPairs(),
    ]


def full_batch(rows: int = 16) -> dict[str, np.ndarray]:
    image = np.random.default_rng(0).normal(size=(rows, 32, 32, 1)).astype(np.float32)
    pairs = pair_batch([i // 2 for i in range(rows)], [1] * (rows - 3) + [0] * 3)
    return {**pairs, **text_batch(rows), "image": image}


def assert_equal(a, b):
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(np.asarray(a[key]), np.asarray(b[key]), err_msg=key)


@pytest.mark.parametrize("corruption", every_corruption(), ids=repr)
def test_key_decides_and_devices_do_not(corruption):
    batch = full_batch()
    run = jax.jit(corruption)
    one = run(batch, jax.random.key(7))
    assert_equal(one, run(batch, jax.random.key(7)))
    mesh = make_mesh({"data": 8})
    sharding = batch_sharding(mesh)
    eight = jax.jit(corruption, out_shardings=sharding)(put_batch(batch, mesh), jax.random.key(7))
    assert all(len(value.sharding.device_set) == 8 for value in eight.values())
    assert_equal(one, eight)
    other = run(batch, jax.random.key(8))
    same = all((np.asarray(one[k]) == np.asarray(other[k])).all() for k in one)
    assert same == (corruption == Clean())


@pytest.mark.parametrize("corruption", every_corruption(), ids=repr)
def test_changes_names_the_towers_that_see_new_input(corruption):
    batch = full_batch()
    out = corruption(batch, jax.random.key(0))
    read = {
        "image": ("image", "image_keep_ids"),
        "text": ("input_ids", "attention_mask", "word_ids"),
    }
    for side, keys in read.items():
        same = all(k not in out or (k in batch and (out[k] == batch[k]).all()) for k in keys)
        assert same == (side not in corruption.changes)


def test_equal_settings_are_one_corruption():
    assert MaskImage(0.75, 16) == MaskImage(0.75, 16)
    assert len({MaskImage(0.75, 16), MaskImage(0.75, 16), MaskImage(0.5, 16)}) == 2
    assert MismatchPairs() != Clean()


def test_the_base_class_asks_for_a_definition():
    with pytest.raises(TypeError, match="must define"):
        Corruption()({}, jax.random.key(0))


def test_images_of_the_same_study_never_count_as_mismatch():
    """Two sentences of one report differ as texts, and both fit its images."""
    batch = pair_batch(list(range(8)))
    study = np.array([1, 1, 1, 1, 1, 2, 2, 3], np.int32)
    batch.update(study_id=study, subject_id=10 * study)
    for seed in range(20):
        out = {k: np.asarray(v) for k, v in MismatchPairs()(batch, jax.random.key(seed)).items()}
        source, moved = out["label"][:, 0].astype(int), out["itm_label"] == 0
        assert moved.sum() == 4
        assert (study[source[moved]] != study[moved]).all()
        # The ids of the study go with its image.
        np.testing.assert_array_equal(out["study_id"], study[source])
        np.testing.assert_array_equal(out["subject_id"], 10 * study[source])


def test_no_share_changes_no_pair():
    batch = pair_batch(list(range(8)))
    assert (np.asarray(MismatchPairs(share=0.0)(batch, jax.random.key(0))["itm_label"]) == 1).all()
