"""Without these, an objective could read padding, miss a tower or start at the wrong loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax import build
from medvlp_jax import config as config_lib
from medvlp_jax.data import text as text_lib
from medvlp_jax.errors import UserError
from medvlp_jax.objectives.base import Objective, Pass
from medvlp_jax.objectives.info_nce import InfoNce
from medvlp_jax.objectives.itm import Itm
from medvlp_jax.objectives.mim import Mim
from medvlp_jax.objectives.mlm import Mlm
from medvlp_jax.objectives.prototype_alignment import PrototypeAlignment
from medvlp_jax.objectives.semantic_matching import SemanticMatching
from medvlp_jax.objectives.siglip import Siglip
from medvlp_jax.objectives.system import System
from medvlp_jax.objectives.token_alignment import TokenAlignment

ROWS, WIDTH, LABELS = 6, 8, 4
LENGTH = 40
TEXTS = (
    "the heart is enlarged. small effusion on the left.",
    "no acute finding.",
    "consolidation in the right lower lobe, most likely pneumonia; the heart size is normal",
    "pneumothorax at the left apex",
    "clear lungs without effusion or pneumothorax",
    "mild oedema, the heart is enlarged",
    "right effusion",
    "normal heart and lungs",
)


def random_pass(seed: int = 0, **changes: Any) -> Pass:
    """A clean pass with unit embeddings, distinct texts and random labels; all rows are real."""
    rng = np.random.default_rng(seed)
    embeds = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    batch = {
        "text_id": np.arange(ROWS, dtype=np.int32),
        "example_mask": np.ones(ROWS, np.float32),
        "label": rng.integers(-1, 2, (ROWS, LABELS)).astype(np.float32),
        "text_label": rng.integers(-1, 2, (ROWS, LABELS)).astype(np.float32),
        "label_mask": np.ones((ROWS, LABELS), np.float32),
        "text_label_mask": np.ones((ROWS, LABELS), np.float32),
    }
    outputs = {"image_embed": embeds[0], "text_embed": embeds[1]}
    for key, value in changes.items():
        (outputs if key in outputs else batch)[key] = value
    return Pass(batch, outputs)


def evaluate(objective: Objective, step: Pass, params: Any = None):
    """Loss, metrics and parameters (fresh ones unless given)."""
    variables = {"params": params or {}}
    if params is None:
        variables = objective.init(jax.random.key(0), (step,), train=False)
    loss, metrics = objective.apply(variables, (step,), train=False)
    return loss, metrics, variables.get("params", {})


def rows_of(step: Pass, rows: slice) -> Pass:
    return Pass(*({k: v[rows] for k, v in part.items()} for part in step))


# --- objectives on the two embeddings -------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [
        InfoNce(),
        InfoNce(learnable=False, duplicates="mask", image_to_text_weight=0.75),
        Siglip(),
        Siglip(duplicates="mask"),
        SemanticMatching(),
        SemanticMatching(variant="released"),
        PrototypeAlignment(count=5),
    ],
    ids=repr,
)
def test_padded_rows_do_not_count(objective):
    real = ROWS - 2
    mask = np.r_[np.ones(real), np.zeros(2)].astype(np.float32)
    # The padded rows even carry a text that a real row has.
    text_id = np.r_[np.arange(real), 0, 0].astype(np.int32)
    padded = random_pass(example_mask=mask, text_id=text_id)
    loss, _, params = evaluate(objective, padded)
    cut, _, _ = evaluate(objective, rows_of(padded, slice(real)), params)
    np.testing.assert_allclose(loss, cut, rtol=1e-5)
    assert loss.dtype == jnp.float32
    assert loss.shape == ()

    def loss_of(image: jax.Array, text: jax.Array) -> jax.Array:
        step = Pass(padded.batch, {"image_embed": image, "text_embed": text})
        return objective.apply({"params": params}, (step,), train=False)[0]

    for grad in jax.grad(loss_of, (0, 1))(*padded.outputs.values()):
        assert np.isfinite(grad).all()
        assert np.abs(grad[:real]).max() > 1e-4
        np.testing.assert_array_equal(grad[real:], 0)


def test_info_nce_temperature_is_a_parameter_or_fixed():
    _, metrics, params = evaluate(InfoNce(temperature=0.1), random_pass())
    np.testing.assert_allclose(params["log_logit_scale"], math.log(10), rtol=1e-6)
    np.testing.assert_allclose(metrics["logit_scale"], 10, rtol=1e-5)
    loss, metrics, params = evaluate(InfoNce(temperature=0.1, learnable=False), random_pass())
    assert params == {}
    np.testing.assert_allclose(metrics["logit_scale"], 10, rtol=1e-5)
    same, _, _ = evaluate(InfoNce(temperature=0.1), random_pass())
    np.testing.assert_allclose(loss, same, rtol=1e-6)


def test_info_nce_scale_is_clamped_at_100():
    step = random_pass()
    high = {"log_logit_scale": jnp.asarray(9.0)}
    loss, metrics, _ = evaluate(InfoNce(), step, high)
    np.testing.assert_allclose(metrics["logit_scale"], 100, rtol=1e-5)
    same, _, _ = evaluate(InfoNce(), step, {"log_logit_scale": jnp.log(100.0)})
    np.testing.assert_allclose(loss, same, rtol=1e-5)
    low = {"log_logit_scale": jnp.asarray(-1.0)}
    assert float(evaluate(InfoNce(), step, low)[1]["logit_scale"]) == pytest.approx(math.exp(-1))


@pytest.mark.parametrize("kind", [InfoNce, Siglip])
def test_duplicates_are_taken_from_text_id(kind):
    twins = random_pass(text_id=np.array([7, 7, 1, 2, 3, 4], np.int32))
    ignored, _, params = evaluate(kind(), twins)
    masked, _, _ = evaluate(kind(duplicates="mask"), twins, params)
    assert masked < ignored  # a negative less
    distinct = random_pass()
    np.testing.assert_allclose(
        evaluate(kind(), distinct, params)[0],
        evaluate(kind(duplicates="mask"), distinct, params)[0],
        rtol=1e-6,
    )
    with pytest.raises(UserError, match=r"choose ignore(,| or) mask"):
        evaluate(kind(duplicates="drop"), twins)


def test_info_nce_can_spare_the_other_rows_of_a_patient():
    """Equal to contrasting within the rows that are left: here two patients of one row each per block."""
    texts = np.arange(ROWS, dtype=np.int32)
    twins = random_pass(text_id=texts, subject_id=np.array([5, 5, 1, 2, 3, 4], np.int32))
    alone = random_pass(text_id=texts, subject_id=np.arange(ROWS, dtype=np.int32))
    loss, _, params = evaluate(InfoNce(duplicates="mask"), twins)
    spared, _, _ = evaluate(InfoNce(duplicates="mask_patient"), twins, params)
    assert spared < loss
    same, _, _ = evaluate(InfoNce(duplicates="mask_patient"), alone, params)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    as_texts = random_pass(text_id=np.array([5, 5, 1, 2, 3, 4], np.int32))
    np.testing.assert_allclose(
        spared, evaluate(InfoNce(duplicates="mask"), as_texts, params)[0], rtol=1e-6
    )


def test_info_nce_without_duplicates_ignores_their_similarity():
    """Only the two rows of the same text lose their edge: moving one row elsewhere changes the rest."""
    step = random_pass(text_id=np.full(ROWS, 9, np.int32))
    loss, _, _ = evaluate(InfoNce(duplicates="mask"), step)
    np.testing.assert_allclose(loss, 0, atol=1e-6)  # no negatives are left


def test_siglip_initial_parameters():
    loss, metrics, params = evaluate(Siglip(), random_pass())
    np.testing.assert_allclose(params["log_logit_scale"], math.log(10), rtol=1e-6)
    np.testing.assert_allclose(params["logit_bias"], -10)
    np.testing.assert_allclose(metrics["logit_scale"], 10, rtol=1e-5)
    np.testing.assert_allclose(metrics["logit_bias"], -10)
    assert loss > 0


def test_semantic_matching_variants_differ():
    step = random_pass()
    paper, metrics, params = evaluate(SemanticMatching(), step)
    released, _, _ = evaluate(SemanticMatching(variant="released"), step, params)
    assert abs(float(paper) - float(released)) > 1e-3
    np.testing.assert_allclose(metrics["logit_scale"], 1 / 0.07, rtol=1e-5)
    # One finding per row: cosine and product are the same number.
    label = np.eye(LABELS, dtype=np.float32)[np.arange(ROWS) % LABELS]
    single = random_pass(label=label, text_label=label)
    np.testing.assert_allclose(
        evaluate(SemanticMatching(), single, params)[0],
        evaluate(SemanticMatching(variant="released"), single, params)[0],
        rtol=1e-6,
    )


def test_semantic_matching_scale_stays_in_its_range():
    for value, wanted in ((-2.0, 1.0), (7.0, 100.0)):
        _, metrics, _ = evaluate(
            SemanticMatching(), random_pass(), {"log_logit_scale": jnp.asarray(value)}
        )
        np.testing.assert_allclose(metrics["logit_scale"], wanted, rtol=1e-4)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("side", ["label", "text_label"])
def test_semantic_matching_ignores_unknown_labels(side, variant):
    known = np.random.default_rng(1).integers(0, 2, (ROWS, LABELS)).astype(np.float32)
    step = random_pass(**{f"{side}_mask": known})
    other = np.where(known > 0, step.batch[side], 1 - step.batch[side])
    changed = random_pass(**{f"{side}_mask": known, side: other.astype(np.float32)})
    objective = SemanticMatching(variant=variant)
    loss, _, params = evaluate(objective, step)
    np.testing.assert_allclose(loss, evaluate(objective, changed, params)[0], rtol=1e-6)
    # A known label does matter.
    flipped = random_pass(**{f"{side}_mask": known, side: -step.batch[side]})
    assert abs(float(loss) - float(evaluate(objective, flipped, params)[0])) > 1e-4


def test_semantic_matching_refuses_what_it_cannot_use():
    with pytest.raises(UserError, match="paper or released"):
        evaluate(SemanticMatching(variant="relased"), random_pass())
    empty = np.zeros((ROWS, 0), np.float32)
    names = ("label", "text_label", "label_mask", "text_label_mask")
    with pytest.raises(UserError, match="has none"):
        evaluate(SemanticMatching(), random_pass(**dict.fromkeys(names, empty)))


def test_prototypes_start_on_the_unit_sphere():
    _, metrics, params = evaluate(PrototypeAlignment(count=50), random_pass())
    table = params["prototypes"]
    assert table.shape == (50, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    # Spread over the sphere: the mean of 50 random directions is short.
    assert np.linalg.norm(table.mean(axis=0)) < 0.5
    assert metrics == {}


def test_prototypes_get_a_gradient():
    step = random_pass()
    objective = PrototypeAlignment(count=5)
    _, _, params = evaluate(objective, step)
    grad = jax.grad(lambda p: objective.apply({"params": p}, (step,), train=True)[0])(params)
    assert np.isfinite(grad["prototypes"]).all()
    assert np.abs(grad["prototypes"]).max() > 1e-4


# --- objectives on the real, tiny models ----------------------------------------------------------

# Compiling is what takes time here, so unoptimised code is the faster one.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def tokenizer() -> text_lib.Tokenizer:
    return text_lib.train_wordpiece(TEXTS, 120)


@functools.cache
def built(root, name: str) -> tuple[System, Any, dict[str, np.ndarray]]:
    """System, variables and one batch of a smoke config, all encoders with one layer."""
    shallow = ["model.fusion.layers=1", "objectives.mim.layer=1"] if name == "m3ae" else []
    config = config_lib.load_config(f"{root}/configs/{name}.py:smoke", shallow)
    with config.unlocked():
        config.model.image_encoder.depth = config.model.text_encoder.depth = 1
    system = build.build_system(config, tokenizer())
    batch = make_batch(config.data.image.size, config.data.image.channels)
    return system, compiled(system.init)(rngs(), batch), batch


@functools.cache
def forward(root, name: str) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """`(variables, batch) -> metrics` of a smoke config."""
    system, _, _ = built(root, name)
    return compiled(lambda variables, batch: system.apply(variables, batch, rngs=rngs())[1])


@functools.cache
def fusion_gradients(root):
    """`(variables, batch) -> losses and gradients` of the system with a fusion encoder."""
    return compiled(losses_and_gradients(built(root, "m3ae")[0]))


def make_batch(size: int, channels: int) -> dict[str, np.ndarray]:
    rows = len(TEXTS)
    image = np.random.default_rng(0).normal(size=(rows, size, size, channels))
    return {
        "image": image.astype(np.float32),
        **text_lib.encode(tokenizer(), TEXTS, LENGTH),
        "text_id": np.arange(rows, dtype=np.int32),
        "example_mask": np.ones(rows, np.float32),
    }


def rngs(seed: int = 0) -> dict[str, jax.Array]:
    names = ("params", "dropout", "corruption")
    return dict(zip(names, jax.random.split(jax.random.key(seed), 3), strict=True))


def only(system: System, name: str, objective: Objective) -> System:
    """The same model with one objective."""
    return System(system.model, {name: objective}, {name: 1.0})


def losses_and_gradients(system: System) -> Callable[[Any, Any], tuple[Any, Any]]:
    """`(variables, batch) -> (name -> loss, name -> gradient of that loss alone)`."""
    names = list(system.objectives)

    def run(variables: Any, batch: Any) -> tuple[Any, Any]:
        def losses(params: Any) -> tuple[jax.Array, jax.Array]:
            _, metrics = system.apply({**variables, "params": params}, batch, rngs=rngs())
            values = jnp.stack([metrics[f"{name}/loss"] for name in names])
            return values, values

        gradients, values = jax.jacrev(losses, has_aux=True)(variables["params"])
        each = {name: jax.tree.map(lambda x, i=i: x[i], gradients) for i, name in enumerate(names)}
        return {name: values[i] for i, name in enumerate(names)}, each

    return run


def largest(tree: Any) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def with_garbage(batch: dict[str, np.ndarray], real: int) -> tuple[Any, Any]:
    """Two batches whose padded rows (after the first `real`) hold different things."""
    mask = (np.arange(len(TEXTS)) < real).astype(np.float32)
    first = {**batch, "example_mask": mask}
    second = {k: v.copy() for k, v in first.items()}
    second["image"][real:] = 3.0
    for key in ("input_ids", "attention_mask", "word_ids"):
        second[key][real:] = batch[key][:1]
    second["text_id"][real:] = 0
    return first, second


def test_padded_rows_do_not_count_with_two_towers(root):
    _, variables, batch = built(root, "mgca")
    first, second = (forward(root, "mgca")(variables, b) for b in with_garbage(batch, 5))
    everything = forward(root, "mgca")(variables, batch)
    for objective in ("info_nce", "token_alignment", "prototype_alignment"):
        key = f"{objective}/loss"
        np.testing.assert_allclose(first[key], second[key], rtol=1e-5, err_msg=objective)
        assert abs(float(first[key]) - float(everything[key])) > 1e-6, objective


def test_padded_rows_do_not_count_with_fusion(root):
    _, variables, batch = built(root, "m3ae")
    run = fusion_gradients(root)
    first, second = (run(variables, b) for b in with_garbage(batch, 5))
    everything, _ = run(variables, batch)
    for name in ("mlm", "mim", "itm"):
        np.testing.assert_allclose(first[0][name], second[0][name], rtol=1e-5, err_msg=name)
        assert abs(float(first[0][name]) - float(everything[name])) > 1e-6, name
        for one, other in zip(*(jax.tree.leaves(x[1][name]) for x in (first, second)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)


def test_token_alignment_loss_and_gradient_are_finite(root):
    system, variables, batch = built(root, "mgca")
    # A report without a word has no token to align.
    for key, value in text_lib.encode(tokenizer(), [""], LENGTH).items():
        batch = {**batch, key: np.concatenate([batch[key][:-1], value])}
    objectives = {v: TokenAlignment(variant=v) for v in ("paper", "released")}
    both = System(system.model, objectives, dict.fromkeys(objectives, 1.0))
    losses, gradients = compiled(losses_and_gradients(both))(variables, batch)
    assert abs(float(losses["paper"]) - float(losses["released"])) > 1e-3
    for variant, grads in gradients.items():
        assert losses[variant] > 0
        assert finite((losses[variant], grads)), variant
        for part in ("image_encoder", "text_encoder", "image_token_projection"):
            assert largest(grads["model"][part]) > 1e-5, (variant, part)
        assert largest(grads["model"]["text_token_projection"]) > 1e-5, variant


def test_token_alignment_does_not_see_padding_words(root):
    _, variables, batch = built(root, "mgca")
    assert (batch["attention_mask"][:, -1] == 0).all()  # no text was cut
    longer = {**batch, **text_lib.encode(tokenizer(), TEXTS, LENGTH + 8)}
    short, long = (forward(root, "mgca")(variables, b) for b in (batch, longer))
    np.testing.assert_allclose(
        short["token_alignment/loss"], long["token_alignment/loss"], atol=1e-4
    )


@pytest.mark.parametrize("missing", ["image_token_embed", "text_token_embed", "text_attention"])
def test_token_alignment_names_the_missing_output(missing):
    outputs = dict.fromkeys({"image_token_embed", "text_token_embed", "text_attention"}, 0)
    del outputs[missing]
    with pytest.raises(UserError, match=missing):
        evaluate(TokenAlignment(), Pass({}, outputs))
    with pytest.raises(UserError, match="paper or released"):
        evaluate(TokenAlignment(variant="code"), Pass({}, outputs))


def test_initial_losses_and_reach_of_the_fusion_objectives(root):
    _, variables, batch = built(root, "m3ae")
    losses, gradients = fusion_gradients(root)(variables, batch)
    wanted = {"mlm": math.log(len(tokenizer())), "mim": 1.0, "itm": math.log(2)}
    for name, value in wanted.items():
        assert abs(float(losses[name]) - value) < 0.15 * value, (name, losses[name])
        grads = gradients[name]
        assert finite(grads), name
        for part in ("image_encoder", "text_encoder", "fusion"):
            assert largest(grads["model"][part]) > 1e-6, (name, part)
        for other in wanted:
            reached = largest(grads[f"objectives_{other}"])
            assert (reached > 1e-5) if other == name else (reached == 0), (name, other)


def test_mim_layer_out_of_range(root):
    system, _, batch = built(root, "m3ae")
    settings = dict(patch_size=16, width=64, depth=1, heads=4)
    for layer, fine in ((-1, False), (0, True), (2, False)):
        single = only(system, "mim", Mim(layer=layer, **settings))
        if fine:
            jax.eval_shape(single.init, rngs(), batch)
            continue
        with pytest.raises(UserError, match="has 1 layers, so 0 to 1"):
            jax.eval_shape(single.init, rngs(), batch)


def test_mim_reads_the_image_encoder_without_fusion(root):
    system, _, batch = built(root, "mgca")
    mim = Mim(patch_size=16, width=32, depth=1, heads=4)
    shapes = jax.eval_shape(only(system, "mim", mim).init, rngs(), batch)
    embed = shapes["params"]["objectives_mim"]["decoder"]["embed"]["kernel"]
    assert embed.shape == (32, 32)


def test_itm_needs_fusion(root):
    system, _, batch = built(root, "mgca")
    with pytest.raises(UserError, match=r"model\.fusion"):
        jax.eval_shape(only(system, "itm", Itm()).init, rngs(), batch)


@pytest.mark.parametrize("key", ["fused_text_tokens", "text_states"])
def test_mlm_only_reads_the_masked_positions(key):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(3, 7, WIDTH)).astype(np.float32)
    labels = np.full((3, 7), -100, np.int32)
    labels[0, 2], labels[1, 4], labels[2, 1] = 5, 9, 11
    objective = Mlm(vocab_size=20, mask_id=4)
    batch = {"mlm_labels": labels, "example_mask": np.array([1, 1, 0], np.float32)}
    step = Pass(batch, {key: states})
    loss, _, params = evaluate(objective, step)

    @jax.jit
    def loss_of(values: jax.Array) -> jax.Array:
        return objective.apply({"params": params}, (Pass(batch, {key: values}),), train=True)[0]

    grad = np.asarray(jax.grad(loss_of)(states))
    reads = np.abs(grad).max(axis=-1) > 1e-6
    assert np.argwhere(reads).tolist() == [[0, 2], [1, 4]]
    other = rng.normal(size=states.shape).astype(np.float32)
    np.testing.assert_allclose(loss, loss_of(np.where(reads[..., None], states, other)), rtol=1e-6)


def test_the_builder_fills_in_the_tokenizer(root):
    system, _, _ = built(root, "m3ae")
    (corruption,) = system.objectives["mlm"].corruptions()
    assert corruption.vocab_size == len(tokenizer())
    assert corruption.mask_id == tokenizer().mask_token_id
    assert corruption.special_ids == tokenizer().special_token_ids
    assert len(corruption.special_ids) == 5
