"""Without these, an objective could read the impression where it expects the findings."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.objectives.corruption import NthText

KEY = jax.random.key(0)


def test_takes_one_text_of_each_row() -> None:
    ids = np.arange(24).reshape(3, 2, 4)
    keys = ("input_ids", "attention_mask", "word_ids", "sentence_ids")
    batch = {key: ids + i for i, key in enumerate(keys)}
    batch |= {"text_id": np.arange(6).reshape(3, 2), "text_present": np.ones((3, 2)), "image": ids}
    for index in (0, 1):
        got = NthText(index)(batch, KEY)
        for i, key in enumerate(keys):
            np.testing.assert_array_equal(got[key], ids[:, index] + i)
        np.testing.assert_array_equal(got["text_id"], batch["text_id"][:, index])
        assert got["image"] is ids
        assert got["text_present"].shape == (3, 2)
    assert NthText.changes == {"text"}


def test_a_single_text_is_the_first_one() -> None:
    batch = {"input_ids": np.ones((3, 4)), "text_id": np.arange(3)}
    np.testing.assert_array_equal(NthText(0)(batch, KEY)["input_ids"], batch["input_ids"])
    with pytest.raises(UserError, match=r"data\.text\.per_image=2"):
        NthText(1)(batch, KEY)
