"""Without these, a weight could be lost, transposed or swapped on its way to or from PyTorch."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys

RULES = [
    (r"block_(\d+)/(query|key)/kernel", r"layer.\1.\2.weight", "linear"),
    (r"block_(\d+)/(query|key)/bias", r"layer.\1.\2.bias", "copy"),
    (r"patch/kernel", "patch.weight", "conv"),
    (r"words/embedding", "words.weight", "embedding"),
    (r"cls", "cls", "leading"),
]


def params() -> dict:
    rng = np.random.default_rng(0)

    def block() -> dict:
        return {
            name: {"kernel": rng.normal(size=(3, 5)), "bias": rng.normal(size=5)}
            for name in ("query", "key")
        }

    return {
        "block_0": block(),
        "block_11": block(),
        "patch": {"kernel": rng.normal(size=(2, 4, 3, 6))},
        "words": {"embedding": rng.normal(size=(7, 5))},
        "cls": rng.normal(size=(1, 1, 5)),
    }


def test_names_and_layouts() -> None:
    ours = params()
    theirs = keys.to_torch(ours, RULES, prefix="x.")
    assert len(theirs) == len(keys.flatten(ours)) == 11
    assert theirs["x.layer.11.key.weight"].shape == (5, 3)
    np.testing.assert_array_equal(
        theirs["x.layer.0.query.weight"], ours["block_0"]["query"]["kernel"].T
    )
    assert theirs["x.patch.weight"].shape == (6, 3, 2, 4)
    assert theirs["x.patch.weight"][1, 2, 0, 3] == ours["patch"]["kernel"][0, 3, 2, 1]
    assert theirs["x.words.weight"].shape == (7, 5)
    assert theirs["x.cls"].shape == (5,)
    assert all(value.flags.c_contiguous for value in theirs.values())


def test_round_trip_is_the_identity() -> None:
    ours = params()
    theirs = keys.to_torch(ours, RULES, prefix="x.")
    back = keys.from_torch({**theirs, "other": np.zeros(1)}, ours, RULES, prefix="x.")
    assert jax.tree.structure(back) == jax.tree.structure(ours)
    jax.tree.map(np.testing.assert_array_equal, back, ours)
    assert keys.unflatten(keys.flatten(ours)).keys() == ours.keys()


def test_all_problems_are_in_one_message_with_shapes() -> None:
    ours = params()
    theirs = keys.to_torch(ours, RULES)
    theirs["layer.0.key.bias"] = np.zeros(9)
    theirs["pooler.weight"] = np.zeros((2, 2))
    del theirs["cls"]
    with pytest.raises(UserError) as error:
        keys.from_torch(theirs, ours, RULES)
    message = str(error.value)
    assert message.startswith("3 parameters do not fit")
    assert "block_0/key/bias (5,): layer.0.key.bias is (9,)" in message
    assert "cls (1, 1, 5): cls is missing" in message
    assert "pooler.weight (2, 2): no parameter takes it" in message
    theirs["cls"], theirs["layer.0.key.bias"] = np.zeros(5), np.zeros(5)
    keys.from_torch(theirs, ours, RULES, ignore=(r"pooler\..*",))


def test_every_parameter_needs_exactly_one_rule() -> None:
    ours = params()
    with pytest.raises(UserError, match=r"cls \(1, 1, 5\): no rule"):
        keys.to_torch(ours, RULES[:-1])
    with pytest.raises(UserError, match="2 rules"):
        keys.to_torch(ours, [*RULES, (r"cl.", "cl", "copy")])
    with pytest.raises(UserError, match="taken by another"):
        keys.to_torch(ours, [*RULES[:-1], (r"cls", "words.weight", "copy")])
    with pytest.raises(UserError, match="and 5 more"):
        keys.to_torch({f"p{i}": np.zeros(1) for i in range(17)}, RULES)
    with pytest.raises(ValueError, match="unknown transform"):
        keys.to_torch({"a": np.zeros(1)}, [("a", "a", "flip")])


FUSED = [
    (r"query/kernel", "in_proj_weight", "linear:0/3"),
    (r"key/kernel", "in_proj_weight", "linear:1/3"),
    (r"value/kernel", "in_proj_weight", "linear:2/3"),
    (r"query/bias", "in_proj_bias", "copy:0/3"),
    (r"key/bias", "in_proj_bias", "copy:1/3"),
    (r"value/bias", "in_proj_bias", "copy:2/3"),
]


def test_slices_of_a_fused_tensor_keep_their_order_in_both_directions() -> None:
    rng = np.random.default_rng(1)
    # Reversed, so that the order of the rules and not that of the parameters must decide.
    ours = {
        name: {"kernel": rng.normal(size=(4, 5)), "bias": rng.normal(size=5)}
        for name in ("value", "key", "query")
    }
    theirs = keys.to_torch(ours, FUSED, prefix="attn.")
    assert {k: v.shape for k, v in theirs.items()} == {
        "attn.in_proj_weight": (15, 4),
        "attn.in_proj_bias": (15,),
    }
    np.testing.assert_array_equal(theirs["attn.in_proj_weight"][5:10], ours["key"]["kernel"].T)
    np.testing.assert_array_equal(theirs["attn.in_proj_bias"][10:], ours["value"]["bias"])
    assert theirs["attn.in_proj_weight"].flags.c_contiguous
    back = keys.from_torch(theirs, ours, FUSED, prefix="attn.")
    jax.tree.map(np.testing.assert_array_equal, back, ours)
    # A Conv1D weight of GPT-2 is [in, 3 * out]: "copy" cuts it along the outputs as well.
    conv = [(pattern, key, kind.replace("linear", "copy")) for pattern, key, kind in FUSED]
    weight = keys.to_torch(ours, conv)["in_proj_weight"]
    np.testing.assert_array_equal(weight[:, :5], ours["query"]["kernel"])
    jax.tree.map(
        np.testing.assert_array_equal, keys.from_torch(keys.to_torch(ours, conv), ours, conv), ours
    )


def test_incomplete_doubled_or_misshapen_slices_are_refused() -> None:
    ours = {n: {"kernel": np.ones((4, 5)), "bias": np.ones(5)} for n in ("query", "key", "value")}
    theirs = keys.to_torch(ours, FUSED)
    without = {name: ours[name] for name in ("query", "value")}
    with pytest.raises(UserError, match=r"in_proj_weight: no parameter for its slices \[1\]"):
        keys.to_torch(without, FUSED)
    with pytest.raises(UserError, match=r"in_proj_bias: no parameter for its slices \[1\]"):
        keys.from_torch(theirs, without, FUSED)
    with pytest.raises(UserError, match="key in_proj_bias is taken by another"):
        keys.to_torch({**ours, "more": np.ones(5)}, [*FUSED, ("more", "in_proj_bias", "copy:0/3")])
    with pytest.raises(UserError, match="key in_proj_bias is taken by another"):
        keys.to_torch({**ours, "more": np.ones(5)}, [*FUSED, ("more", "in_proj_bias", "copy")])
    with pytest.raises(UserError, match=r"query/bias \(5,\): in_proj_bias is \(14,\)"):
        keys.from_torch({**theirs, "in_proj_bias": np.ones(14)}, ours, FUSED)
    with pytest.raises(UserError, match=r"key/bias \(5,\): in_proj_bias is \(18,\), that is \(6,"):
        keys.from_torch({**theirs, "in_proj_bias": np.ones(18)}, ours, FUSED)
    for wrong in ("copy:3/3", "copy:1", "copy:a/b"):
        with pytest.raises(ValueError, match="unknown slice"):
            keys.to_torch({"a": np.zeros(1)}, [("a", "a", wrong)])
