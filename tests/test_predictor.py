"""Without these, embeddings could depend on their batch, or examples be lost or counted twice."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlp_jax.data import device_transforms, text
from medvlp_jax.errors import UserError
from medvlp_jax.models import bert, heads, multi_image, vit
from medvlp_jax.models.vision_language import VisionLanguageModel
from medvlp_jax.objectives.info_nce import InfoNce
from medvlp_jax.objectives.system import System
from medvlp_jax.parallel.mesh import make_mesh
from medvlp_jax.predictor import Predictor, extract, trained_logit_scale

TEXTS = ["no pleural effusion", "left pleural effusion", "the heart is enlarged", "clear lungs"]
IMAGE = dict(image_size=32, channels=3, mean=(0.5,), std=(0.25,), max_length=12)


def make_system(**parts) -> System:
    defaults = dict(
        image_encoder=vit.Encoder(**vit.VARIANTS["test/8"]),
        text_encoder=bert.Encoder(**bert.VARIANTS["test"]),
        image_projection=heads.LinearProjection(16),
        text_projection=heads.LinearProjection(16),
    )
    model = VisionLanguageModel(**{**defaults, **parts})
    return System(model=model, objectives={"info_nce": InfoNce()}, weights={"info_nce": 1.0})


def make_tokenizer() -> text.Tokenizer:
    return text.train_wordpiece(TEXTS * 3, vocab_size=120)


def make_variables(system: System, seed: int = 0) -> dict:
    rows = text.encode(make_tokenizer(), TEXTS[:2], 12)
    batch = {"image": jnp.zeros((2, 32, 32, 3)), "text_id": jnp.arange(2), **rows}
    keys = jax.random.split(jax.random.key(seed), 3)
    rngs = dict(zip(("params", "dropout", "corruption"), keys, strict=True))
    return system.init(rngs, batch, train=False)


def make_images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def make_predictor(**changes) -> Predictor:
    system = make_system()
    return Predictor(
        system, make_variables(system), make_tokenizer(), **{**IMAGE, "batch_size": 8, **changes}
    )


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return make_predictor()


def make_batches(examples: int, rows: int, process: int = 0, processes: int = 1) -> list[dict]:
    """Batches as the data pipeline gives them: interleaved over processes, the last one padded."""
    tokenizer = make_tokenizer()
    images = make_images(examples)
    batches = []
    for start in range(0, examples, rows * processes):
        index = np.arange(start, start + rows * processes)[process::processes]
        real = index < examples
        safe = np.where(real, index, 0)
        batches.append(
            {
                "image": images[safe],
                **text.encode(tokenizer, [TEXTS[i % 4] for i in safe], 12),
                "label": np.stack([safe % 2, safe % 3 == 0], 1).astype(np.float32),
                "label_mask": np.ones((rows, 2), np.float32),
                "text_id": (safe % 4).astype(np.int32),
                "subject_id": (safe // 2).astype(np.int32),
                "study_id": safe.astype(np.int32),
                "example_index": np.where(real, index, -1).astype(np.int32),
                "example_mask": real.astype(np.float32),
            }
        )
    return batches


def test_embeddings_are_those_of_the_model(predictor) -> None:
    system = make_system()
    variables = make_variables(system)
    images = make_images(3)
    pixels = device_transforms.normalise(images, (0.5,), (0.25,), 3)
    expected = system.apply(variables, {"image": pixels}, method="encode_image")["image_embed"]
    got = predictor.encode_image(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    rows = text.encode(make_tokenizer(), TEXTS, 12)
    expected = system.apply(variables, rows, method="encode_text")["text_embed"]
    np.testing.assert_allclose(predictor.encode_text(TEXTS), expected, atol=1e-5)


def test_batching_and_padding_change_nothing_and_it_compiles_once() -> None:
    predictor = make_predictor()
    images = make_images(19)
    whole = predictor.encode_image(images)
    assert whole.shape == (19, 16)
    single = np.concatenate([predictor.encode_image(images[i : i + 1]) for i in range(19)])
    np.testing.assert_allclose(single, whole, atol=1e-6)
    other = predictor.with_variables(make_variables(make_system(), seed=1))
    assert np.abs(other.encode_image(images) - whole).max() > 0.01
    # 0: JAX's cache, which all functions share, had to make room.
    assert predictor._image_fn._cache_size() <= 1
    np.testing.assert_array_equal(predictor.encode_image(images), whole)


def test_grey_images_are_repeated(predictor) -> None:
    grey = make_images(2)[..., :1]
    both = predictor.encode_image(grey), predictor.encode_image(np.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(*both, atol=1e-6)


def test_more_devices_give_the_same(predictor) -> None:
    spread = make_predictor(mesh=make_mesh({"data": 4, "fsdp": 2}))
    images = make_images(11)
    np.testing.assert_allclose(
        spread.encode_image(images), predictor.encode_image(images), atol=1e-5
    )
    np.testing.assert_allclose(spread.encode_text(TEXTS), predictor.encode_text(TEXTS), atol=1e-5)
    with pytest.raises(UserError, match="batch_size=12"):
        make_predictor(mesh=make_mesh({"data": -1}), batch_size=12)


def test_zero_shot(predictor) -> None:
    images = make_images(5)
    similarity = predictor.encode_image(images) @ predictor.encode_text(TEXTS).T
    scale = predictor.logit_scale
    scores = predictor.zero_shot(images, TEXTS)
    assert scores.shape == (5, 4)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    expected = np.exp(scale * similarity)
    np.testing.assert_allclose(scores, expected / expected.sum(1, keepdims=True), rtol=1e-4)
    pairs = {"Effusion": {"positive": TEXTS[1:2], "negative": TEXTS[:1]}}
    pair = predictor.zero_shot(images, pairs)
    assert pair.shape == (5, 1)
    np.testing.assert_allclose(pair[:, 0], predictor.zero_shot(images, TEXTS[:2])[:, 1], rtol=1e-4)
    with pytest.raises(UserError, match="at least two"):
        predictor.zero_shot(images, TEXTS[:1])
    with pytest.raises(UserError, match="'negative'"):
        predictor.zero_shot(images, {"Effusion": {"positive": ["a"]}})


def test_logit_scale() -> None:
    system = make_system()
    variables = make_variables(system)
    assert trained_logit_scale(variables, system.objectives) == pytest.approx(1 / 0.07, rel=1e-5)
    variables["params"]["objectives_info_nce"]["log_logit_scale"] = jnp.log(30.0)
    assert trained_logit_scale(variables, system.objectives) == pytest.approx(30.0, rel=1e-5)
    variables["params"]["objectives_info_nce"]["log_logit_scale"] = jnp.log(300.0)
    assert trained_logit_scale(variables, system.objectives) == pytest.approx(100.0)
    fixed = {"info_nce": InfoNce(temperature=0.2, learnable=False)}
    assert trained_logit_scale({"params": {}}, fixed) == pytest.approx(5.0)
    assert trained_logit_scale({"params": {}}, {}) == pytest.approx(1 / 0.07)
    assert make_predictor(logit_scale=3.0).logit_scale == 3.0


@pytest.mark.parametrize("both_sides", [True, False])
def test_grounding_is_the_cosine_of_patch_and_phrase(both_sides: bool) -> None:
    parts = dict(image_token_projection=heads.LinearProjection(16))
    if both_sides:
        parts["text_token_projection"] = heads.LinearProjection(16)
    system = make_system(**parts)
    batch = {"image": jnp.zeros((1, 32, 32, 3)), **text.encode(make_tokenizer(), TEXTS[:1], 12)}
    params = system.model.init(jax.random.key(0), batch)["params"]
    predictor = Predictor(
        system, {"params": {"model": params}}, make_tokenizer(), batch_size=4, **IMAGE
    )
    images = make_images(6)
    maps = predictor.ground(images, "left effusion")
    assert maps.shape == (6, 4, 4)
    assert np.abs(maps).max() <= 1 + 1e-5
    pixels = device_transforms.normalise(images, (0.5,), (0.25,), 3)
    rows = text.encode(make_tokenizer(), ["left effusion"], 12)
    tokens = system.model.apply({"params": params}, {"image": pixels}, method="encode_image")
    words = system.model.apply({"params": params}, rows, method="encode_text")
    phrase = words["text_embed"][0]
    if both_sides:
        phrase = words["text_token_embed"][0][rows["attention_mask"][0] > 0].mean(axis=0)
    patch = tokens["image_token_embed"][5, 4 * 2 + 1]
    cosine = patch @ phrase / np.linalg.norm(patch) / np.linalg.norm(phrase)
    assert maps[5, 2, 1] == pytest.approx(float(cosine), abs=1e-5)
    # One phrase per image: each map is that of its own phrase, over several batches.
    phrases = [TEXTS[i] for i in (0, 1, 0, 2, 1, 3)]
    mixed = predictor.ground(images, phrases)
    for place, phrase in enumerate(phrases):
        np.testing.assert_allclose(mixed[place], predictor.ground(images, phrase)[place], atol=1e-6)
    with pytest.raises(UserError, match="6 images but 2 phrases"):
        predictor.ground(images, phrases[:2])


def test_bad_input_is_refused(predictor) -> None:
    with pytest.raises(UserError, match="image_token_projection"):
        predictor.ground(make_images(1), "effusion")
    for images in (
        make_images(2)[:, :16],
        make_images(2)[..., :2],
        make_images(2).astype(np.float32),
        make_images(0),
        make_images(1)[0],
    ):
        with pytest.raises(UserError, match=r"expected uint8 \[n, 32, 32, 3 or 1\]"):
            predictor.encode_image(images)
    for texts in ([], "one text"):
        with pytest.raises(UserError, match="list"):
            predictor.encode_text(texts)


def check_extracted(arrays: dict, examples: int, predictor: Predictor) -> None:
    np.testing.assert_array_equal(arrays["example_index"], np.arange(examples))
    np.testing.assert_array_equal(arrays["study_id"], np.arange(examples))
    np.testing.assert_array_equal(arrays["label"][:, 0], np.arange(examples) % 2)
    images = predictor.encode_image(make_images(examples))
    np.testing.assert_allclose(arrays["image_embed"], images, atol=1e-5)
    texts = predictor.encode_text([TEXTS[i % 4] for i in range(examples)])
    np.testing.assert_allclose(arrays["text_embed"], texts, atol=1e-5)
    assert "example_mask" not in arrays


@pytest.mark.parametrize("examples", [16, 21, 3])
def test_extract_counts_every_example_once(predictor, examples: int) -> None:
    batches = make_batches(examples, rows=8)
    assert (batches[-1]["example_mask"] == 0).any() == bool(examples % 8)
    check_extracted(extract(predictor, iter(batches)), examples, predictor)
    check_extracted(extract(predictor, batches[::-1]), examples, predictor)


def test_features_are_those_of_the_image_tower(predictor) -> None:
    arrays = extract(predictor, make_batches(21, rows=8), images_only=True)
    assert "text_embed" not in arrays
    np.testing.assert_array_equal(arrays["example_index"], np.arange(21))
    images = make_images(21)
    np.testing.assert_allclose(arrays["image_embed"], predictor.encode_image(images), atol=1e-5)
    system, pixels = make_system(), device_transforms.normalise(images, (0.5,), (0.25,), 3)
    outputs = system.apply(make_variables(system), {"image": pixels}, method="encode_image")
    np.testing.assert_allclose(arrays["image_pooled"], outputs["image_pooled"], atol=1e-4)
    assert arrays["image_pooled"].dtype == np.float32


def test_a_fingerprint_tells_models_apart(predictor) -> None:
    assert make_predictor().fingerprint() == predictor.fingerprint()
    spread = make_predictor(mesh=make_mesh({"data": 4}, jax.devices()[:4]))
    assert spread.fingerprint() == predictor.fingerprint()
    other = predictor.with_variables(make_variables(make_system(), seed=1))
    assert other.fingerprint() != predictor.fingerprint()


def test_extract_refuses_nothing_and_duplicates(predictor) -> None:
    with pytest.raises(UserError, match="no examples"):
        extract(predictor, [])
    with pytest.raises(ValueError, match="twice"):
        extract(predictor, make_batches(8, 8) * 2)


def work(process: int, port: int, out: str) -> None:
    """Body of one of two processes: extracts 21 examples on a mesh over both."""
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    predictor = make_predictor(mesh=make_mesh({"data": -1}))
    arrays = extract(predictor, make_batches(21, rows=4, process=process, processes=2))
    prompts = predictor.encode_text(TEXTS)
    np.savez(f"{out}/{process}.npz", prompts=prompts, **arrays)


@pytest.mark.slow
def test_two_processes_extract_the_same_as_one(predictor, tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    here = pathlib.Path(__file__).parent
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import test_predictor as t; t.work(*{json.dumps([i, port, str(tmp_path)])})",
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in running:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr[-3000:]
    for i in range(2):
        arrays = dict(np.load(tmp_path / f"{i}.npz"))
        np.testing.assert_allclose(arrays.pop("prompts"), predictor.encode_text(TEXTS), atol=1e-5)
        check_extracted(arrays, 21, predictor)


def test_evaluation_sees_prior_images() -> None:
    """As a training step does, normalised like the image; a row without a prior ignores what is there."""
    system = make_system(image_encoder=multi_image.Encoder(**multi_image.VARIANTS["test"]))
    predictor = Predictor(
        system, make_variables(system), make_tokenizer(), **{**IMAGE, "batch_size": 8}
    )
    batch = make_batches(8, 8)[0]
    prior, mask = make_images(8, seed=5), np.array([1, 0] * 4, np.float32)
    alone = predictor.encode_batch(batch)["image_embed"]
    given = predictor.encode_batch({**batch, "prior_image": prior, "prior_mask": mask})
    order = given["example_index"]
    assert np.array_equal(order, np.arange(8))
    changed = np.abs(given["image_embed"] - alone).max(axis=1)
    assert (changed[mask == 1] > 1e-4).all()
    np.testing.assert_allclose(given["image_embed"][mask == 0], alone[mask == 0], atol=1e-6)
    features = predictor.encode_features({**batch, "prior_image": prior, "prior_mask": mask})
    np.testing.assert_allclose(features["image_embed"], given["image_embed"], atol=1e-6)
