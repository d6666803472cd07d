"""Without these, padding, batch order, extreme values or the number of devices could change a loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medvlp_jax.losses import (
    captioning,
    convirt,
    cxr_clip,
    distillation,
    entity_query,
    image_knowledge,
    knowledge_negatives,
    limitr,
    local_intra_sample,
    maco,
    masked,
    matching,
    mil_nce,
    momentum_contrast,
    mutual_information,
    nt_xent,
    prototype,
    pseudo_segmentation,
    ranking,
    redundancy,
    siglip,
    simsiam,
    soft_contrast,
    tier,
    token_alignment,
    triage,
    uniformity,
    word_region,
)
from medvlp_jax.losses import info_nce as nce
from medvlp_jax.parallel.mesh import make_mesh

B, D, N, L, K = 8, 6, 5, 7, 4


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def inputs(rows: int = B, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    words = (rng.random((rows, L)) < 0.7).astype(np.float32)
    words[:, 0] = 1
    return {
        "image": unit(normal(rows, D)),
        "text": unit(normal(rows, D)),
        "label": rng.integers(-1, 2, (rows, K)).astype(np.float32),
        "text_label": rng.integers(-1, 2, (rows, K)).astype(np.float32),
        "patches": normal(rows, N, D),
        "words": normal(rows, L, D),
        "word_mask": words,
        "word_attention": rng.random((rows, L)).astype(np.float32) * words,
        "patch_attention": rng.random((rows, N)).astype(np.float32),
        "logits": normal(rows, L, 11),
        "ids": rng.integers(0, 11, (rows, L)),
        "labels": np.where(rng.random((rows, L)) < 0.4, rng.integers(0, 11, (rows, L)), -100),
        "pair_logits": normal(rows, 2),
        "pair_labels": rng.integers(0, 2, rows),
        "pixels": normal(rows, N, 12),
        "predicted": normal(rows, N, 12),
        "removed": (rng.random((rows, N)) < 0.5).astype(np.float32),
        "mask": np.ones(rows, np.float32),
    }


PROTOTYPES = unit(np.random.default_rng(9).normal(size=(3, D)).astype(np.float32))
QUEUE = unit(np.random.default_rng(10).normal(size=(5, D)).astype(np.float32))
TURN = np.linalg.qr(np.random.default_rng(11).normal(size=(D, D)))[0].astype(np.float32)


def tokens(x, variant):
    return token_alignment.token_alignment(
        x["patches"],
        x["words"],
        image_weights=token_alignment.clipped_weights(x["patch_attention"]),
        text_weights=token_alignment.clipped_weights(x["word_attention"]),
        text_token_mask=x["word_mask"],
        variant=variant,
        example_mask=x["mask"],
    )


def soft(x, cosine):
    targets = soft_contrast.label_similarity(x["label"], x["text_label"], cosine=cosine)
    logits = 10.0 * jnp.matmul(x["image"], x["text"].T, precision="highest")
    return soft_contrast.soft_contrast(logits, targets, example_mask=x["mask"])


def local_scores(x, **options):
    return word_region.word_region_scores(x["patches"], x["words"], x["word_mask"], **options)


def intra_sample(x, side, **options):
    return sum(
        local_intra_sample.local_intra_sample(
            x[side], x[side][:, ::-1] ** 2, example_mask=x["mask"], **options
        )
    )


def products(x, scale: float = 10.0):
    return scale * jnp.matmul(x["image"], x["text"].T, precision="highest")


def second(values):
    """Another view of the same rows, whose unit embeddings are the first one's, turned by a fixed matrix."""
    return jnp.matmul(values, TURN, precision="highest")


def triaged(x, variant):
    positives, negatives = triage.triage(
        soft_contrast.label_similarity(x["label"], x["label"]), positive=0.7, negative=0.3
    )
    return triage.triaged_contrast(
        products(x), positives, negatives, variant=variant, example_mask=x["mask"]
    )


def several_texts(x, variant):
    return mil_nce.mil_nce(
        x["image"],
        jnp.stack([x["text"], second(x["text"])], axis=1),
        10.0,
        text_present=x["word_mask"][:, :2],
        variant=variant,
        example_mask=x["mask"],
    )


def with_queue(x, **options):
    return momentum_contrast.momentum_contrast(
        (x["image"], x["text"]),
        (second(x["image"]), second(x["text"])),
        (QUEUE, second(QUEUE)),
        10.0,
        example_mask=x["mask"],
        **options,
    )[0]


def limitr_filtration() -> limitr.Filtration:
    rng = np.random.default_rng(3)
    shapes = [(D, D), (D,), (D, D), (D,), (D,), (), (D,), ()]
    return limitr.Filtration(*(rng.normal(size=s).astype(np.float32) for s in shapes))


def limitr_external(x):
    scores = limitr.limitr_scores(
        x["patches"], x["words"], x["word_mask"], *[limitr_filtration()] * 2, tile=3
    )
    return sum(limitr.limitr_external(*scores, x["word_mask"], example_mask=x["mask"]))


def limitr_internal(x):
    return limitr.limitr_internal(
        x["patches"], x["words"], text_token_mask=x["word_mask"], example_mask=x["mask"]
    )


def mutual(x, **options):
    scores = mutual_information.sentence_scores(x["patches"], x["words"], tile=3)
    return mutual_information.mutual_information(
        scores, x["word_mask"], example_mask=x["mask"], **options
    )


def views(x):
    """Features of length 1: these losses grow with the fourth power of what they get."""
    return [token_alignment.normalise(x[side]) for side in ("image", "text")]


LOSSES = {
    "existence": lambda x: entity_query.existence(
        x["words"][:, :K, :2], x["label"], x["word_mask"][:, :K], example_mask=x["mask"]
    )[0],
    "position": lambda x: entity_query.position_contrast(
        x["words"],
        QUEUE,
        x["ids"][..., None] % 4 + np.arange(2),
        x["word_mask"],
        example_mask=x["mask"],
    ),
    "kad": lambda x: image_knowledge.image_entity_contrast(
        x["image"], x["text"], example_mask=x["mask"]
    ),
    "kad_released": lambda x: image_knowledge.image_entity_contrast(
        x["image"], x["text"], variant="released", example_mask=x["mask"]
    ),
    "g2d": lambda x: pseudo_segmentation.pseudo_segmentation(
        x["patches"],
        pseudo_segmentation.pseudo_mask(x["patch_attention"][:, None], (N, D)),
        example_mask=x["mask"],
    ),
    "kobo": lambda x: knowledge_negatives.enhanced_contrast(
        products(x),
        knowledge_negatives.noise_of_negatives(
            knowledge_negatives.sample_knowledge(x["label"], QUEUE[:K])
        ),
        example_mask=x["mask"],
    ),
    "kobo_guidance": lambda x: knowledge_negatives.knowledge_guidance(
        x["image"], x["text"], second(x["text"]), 10.0, example_mask=x["mask"]
    ),
    "ranking": lambda x: sum(
        ranking.ranking(
            products(x, 1.0),
            ranking.severity_margins(x["ids"][:, 0] % 4, x["label"][:, 0] >= 0, x["ids"][:, 1]),
            example_mask=x["mask"],
        )
    ),
    "mi_infonce": mutual,
    "mi_infonce_released": lambda x: mutual(x, variant="released"),
    "mi_dv": lambda x: mutual(x, estimator="dv"),
    "mi_jsd": lambda x: mutual(x, estimator="jsd"),
    "tier": lambda x: sum(
        tier.token_patch_entropy(x["patches"], x["words"], x["word_mask"], example_mask=x["mask"])
    ),
    "orthogonality": lambda x: redundancy.orthogonality(views(x)[0], example_mask=x["mask"]),
    "cosine_alignment": lambda x: redundancy.cosine_alignment(*views(x), example_mask=x["mask"]),
    "barlow_twins": lambda x: redundancy.barlow_twins(*views(x), example_mask=x["mask"]),
    "vicreg": lambda x: redundancy.vicreg(*views(x), example_mask=x["mask"]),
    "cross_lingual_features": lambda x: redundancy.cross_lingual_features(
        *views(x), variant="released", example_mask=x["mask"]
    ),
    "cross_lingual_instances": lambda x: redundancy.cross_lingual_instances(
        *views(x), example_mask=x["mask"]
    ),
    "limitr_external": limitr_external,
    "limitr_internal": limitr_internal,
    "simsiam": lambda x: simsiam.simsiam(
        x["patches"],
        x["predicted"][..., :D],
        x["predicted"][..., D:],
        x["patches"][..., ::-1],
        example_mask=x["mask"],
    ),
    "target_group": lambda x: soft_contrast.target_contrast(
        products(x), soft_contrast.same_group(x["pair_labels"]), example_mask=x["mask"]
    ),
    "target_kad": lambda x: soft_contrast.target_contrast(
        products(x),
        soft_contrast.same_group(x["pair_labels"]),
        normalise="l2",
        example_mask=x["mask"],
    ),
    "target_prior": lambda x: soft_contrast.target_contrast(
        products(x),
        soft_contrast.clinical_prior(x["text"]),
        normalise="none",
        example_mask=x["mask"],
    ),
    "triage_paper": lambda x: triaged(x, "paper"),
    "triage_released": lambda x: triaged(x, "released"),
    "mil_nce_paper": lambda x: several_texts(x, "paper"),
    "mil_nce_released": lambda x: several_texts(x, "released"),
    "cxr_clip": lambda x: cxr_clip.cxr_clip(
        (x["image"], second(x["image"])),
        (x["text"], second(x["text"])),
        10.0,
        example_mask=x["mask"],
    )[0],
    "maco": lambda x: maco.correlation_weighted_contrast(
        x["image"], x["text"], x["word_attention"].sum(1), 10.0, example_mask=x["mask"]
    ),
    "refers": lambda x: convirt.convirt(
        x["image"], x["text"], variant="released", example_mask=x["mask"]
    ),
    "albef": with_queue,
    "mumc": lambda x: with_queue(x, unimodal_weight=0.5, unimodal_alpha=0.2),
    "distillation": lambda x: distillation.similarity_distillation(
        products(x), products({**x, "text": second(x["text"])}), example_mask=x["mask"]
    ),
    "nt_xent": lambda x: sum(nt_xent.nt_xent(x["image"], x["text"], example_mask=x["mask"])),
    "intra_sample_regions": lambda x: intra_sample(
        x, "patches", positives=local_intra_sample.spatial_positives(1, N)
    ),
    "intra_sample_sentences": lambda x: intra_sample(
        x, "words", mask=x["word_mask"], weights=x["word_attention"]
    ),
    "alignment": lambda x: uniformity.alignment(
        x["image"], x["text"], alpha=1.5, example_mask=x["mask"]
    ),
    "uniformity": lambda x: uniformity.uniformity(x["image"], example_mask=x["mask"]),
    "local_uniformity": lambda x: uniformity.local_uniformity(
        x["words"], x["word_mask"], example_mask=x["mask"]
    ),
    "word_region": lambda x: sum(
        word_region.word_region(local_scores(x), x["word_mask"], example_mask=x["mask"])
    ),
    "word_region_released": lambda x: sum(
        word_region.word_region(
            local_scores(x, variant="released", tile=3), x["word_mask"], example_mask=x["mask"]
        )
    ),
    "matching_triplet": lambda x: sum(
        word_region.matching_triplet(local_scores(x), example_mask=x["mask"])
    ),
    "info_nce": lambda x: nce.info_nce(x["image"], x["text"], 10.0, example_mask=x["mask"]),
    "convirt": lambda x: nce.info_nce(
        x["image"], x["text"], 10.0, image_to_text_weight=0.75, example_mask=x["mask"]
    ),
    "siglip": lambda x: siglip.siglip(x["image"], x["text"], 10.0, -10.0, example_mask=x["mask"]),
    "medclip_paper": lambda x: soft(x, True),
    "medclip_released": lambda x: soft(x, False),
    "token_paper": lambda x: tokens(x, "paper"),
    "token_released": lambda x: tokens(x, "released"),
    "prototype": lambda x: prototype.prototype_alignment(
        x["image"], x["text"], PROTOTYPES, example_mask=x["mask"]
    ),
    "captioning": lambda x: captioning.captioning(
        x["logits"], x["ids"], x["word_mask"], example_mask=x["mask"]
    )[0],
    "mlm": lambda x: masked.masked_language(x["logits"], x["labels"], example_mask=x["mask"])[0],
    "itm": lambda x: matching.matching(x["pair_logits"], x["pair_labels"], example_mask=x["mask"])[
        0
    ],
    "mim": lambda x: masked.masked_image(
        x["predicted"], x["pixels"], x["removed"], example_mask=x["mask"]
    ),
}
FLOATS = ("image", "text", "patches", "words", "logits", "pair_logits", "predicted")


@functools.cache
def compiled(name: str):
    """Value and gradients of a loss; compiled once per shape and placement for all tests."""

    def run(x):
        def of(floats):
            return LOSSES[name]({**x, **floats})

        return jax.value_and_grad(of)({k: jnp.asarray(x[k]) for k in FLOATS})

    return jax.jit(run)


@pytest.fixture(params=sorted(LOSSES))
def loss(request):
    return compiled(request.param)


def test_permuting_the_batch_changes_nothing(loss) -> None:
    x = inputs()
    order = np.random.default_rng(1).permutation(B)
    value, grads = loss(x)
    again, permuted = loss({k: v[order] for k, v in x.items()})
    np.testing.assert_allclose(again, value, rtol=2e-5)
    for key, grad in grads.items():
        np.testing.assert_allclose(permuted[key], grad[order], atol=1e-5)


def test_padded_rows_change_nothing(loss) -> None:
    x = inputs()
    value, grads = loss(x)
    junk = inputs(3, seed=5)
    padded = {
        k: np.concatenate([v, 50 * junk[k] if k in FLOATS else junk[k]]) for k, v in x.items()
    }
    padded["mask"][B:] = 0
    again, padded_grads = loss(padded)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for key, grad in grads.items():
        np.testing.assert_allclose(padded_grads[key][:B], grad, atol=1e-5)
        np.testing.assert_array_equal(padded_grads[key][B:], 0)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_number_of_devices_changes_nothing(loss, devices: int) -> None:
    """Compared with one device."""
    x = inputs()
    value, grads = loss(x)
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    placed = {
        k: jax.device_put(v, NamedSharding(mesh, PartitionSpec("data"))) for k, v in x.items()
    }
    again, again_grads = loss(placed)
    assert len(again.sharding.device_set) == devices
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for key, grad in grads.items():
        np.testing.assert_allclose(again_grads[key], grad, atol=1e-5)


@pytest.mark.parametrize(("rows", "factor"), [(B, 1e4), (B, 0.0), (1, 1.0), (1, 1e4)])
def test_extreme_inputs_stay_finite(loss, rows: int, factor: float) -> None:
    x = inputs(rows)
    x.update({k: x[k] * np.float32(factor) for k in FLOATS})
    value, grads = loss(x)
    assert np.isfinite(value)
    for key, grad in grads.items():
        assert np.all(np.isfinite(grad)), key
        # A zero vector has no direction: a normalised loss must not divide by its length.
        assert np.abs(grad).max() < 1e6, key


def test_nothing_to_learn_from_is_zero(loss) -> None:
    x = inputs()
    x["mask"][:] = 0
    value, grads = loss(x)
    assert float(value) == 0
    assert all(np.all(np.asarray(g) == 0) for g in grads.values())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_bfloat16_inputs_give_a_float32_loss(name: str) -> None:
    x = inputs()
    half = {k: jnp.asarray(v, jnp.bfloat16) if k in FLOATS else v for k, v in x.items()}
    shape = jax.eval_shape(LOSSES[name], half)
    assert shape.dtype == jnp.float32
    assert shape.shape == ()
