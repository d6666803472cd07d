"""Without these, a row could get images of another study, or a later image as its prior."""

from __future__ import annotations

import numpy as np
import pytest

from medvlp_jax.data import pipeline, reports, studies, transforms
from medvlp_jax.data.options import ImageOptions, data_options
from medvlp_jax.data.row_images import ImageLoader
from medvlp_jax.errors import UserError

DATASET = "synthetic_cxr/tiny"
AUGMENT = {"crop": "random_resized", "rotate": 10.0, "brightness": 0.2}


class FakeSource(list):
    """A list of examples that can be indexed."""

    name, feature_names = "fake", frozenset({"image"})

    def with_fields(self, fields):
        return [{k: v for k, v in example.items() if k in fields} for example in self]


def row(subject, study, view, prior="", days=0) -> dict:
    names = ("subject_id", "study_id", "view_position", "prior_study_id", "days")
    return dict(zip(names, (subject, study, view, prior, days), strict=True))


SOURCE = FakeSource(
    [
        row("p", "s2", "LATERAL", "s1", 5),
        row("p", "s1", "LL"),
        row("p", "s1", "AP"),
        row("p", "s1", "PA"),
        row("p", "s2", "", "s1", 5),
        row("q", "s1", "PA", "s2"),  # "s2" of this patient is not there
        row("p", "s3", "AP", "s2", 4),  # the dates say that s2 is later
        row("p", "s4", "AP", "s5", 9),
        row("p", "s5", "LATERAL", "", 8),
        row("p", "", "PA", "s1", 9),
        row("p", "s6", "PA", "s6", 9),
    ]
)


def test_images_of_a_study_frontal_first() -> None:
    index = studies.index_studies(SOURCE)
    assert index.leaders.tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert index.members[3] == (3, 2, 1)
    assert index.members[4] == (4, 0)
    assert index.members[5] == (5,)


def test_prior_is_the_frontal_image_of_an_earlier_study_of_the_patient() -> None:
    prior = studies.index_studies(SOURCE).prior
    # Rows 0, 4 and 9 have s1 before them; the prior of row 7 has a lateral view only.
    assert prior.tolist() == [3, -1, -1, -1, 3, -1, -1, -1, -1, 3, -1]


def test_examples_without_ids_are_their_own_studies() -> None:
    index = studies.index_studies(FakeSource([{}, {"subject_id": "p"}, {}]))
    assert index.leaders.tolist() == [0, 1, 2]
    assert index.prior.tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("view", "rank"),
    [
        ("PA", 0),
        ("pa ", 0),
        ("AP", 1),
        ("AP AXIAL", 1),
        ("Frontal", 2),
        ("", 3),
        ("LL", 4),
        ("APX", 4),
    ],
)
def test_order_of_views(view, rank) -> None:
    assert studies.view_rank(view) == rank


def settings(config, built, **image) -> dict:
    return {
        **config,
        "dataset": DATASET,
        "data_dir": str(built),
        "image": {**config["image"], **image},
    }


@pytest.fixture
def examples(built) -> list[dict]:
    return list(pipeline.open_source(DATASET, "train", built))


def test_rows_are_studies(built, config, tokenizer, examples) -> None:
    chosen = settings(config, built, per_study=3)
    iterator = pipeline.train_iterator(chosen, tokenizer, seed=0)
    of_study: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        of_study.setdefault(example["study_id"], []).append(index)
    assert iterator.num_examples == len(of_study) < len(examples)
    view = data_options(chosen).image
    seen = []
    for _ in range(iterator.steps_per_epoch):
        batch = next(iterator)
        assert batch["image"].shape == (4, 3, 32, 32, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["image_present"].dtype == np.float32
        for number, index in enumerate(batch["example_index"]):
            example = examples[index]
            members = of_study[example["study_id"]]
            assert batch["image_present"][number].tolist() == [
                float(k < len(members)) for k in range(3)
            ]
            assert example["view_position"] == "PA"
            expected = [transforms.eval_image(examples[i]["image"], view) for i in members]
            found = batch["image"][number]
            np.testing.assert_array_equal(found[0], transforms.eval_image(example["image"], view))
            for k in range(len(members)):
                assert any((found[k] == image).all() for image in expected)
            assert len({found[k].tobytes() for k in range(len(members))}) == len(members)
            assert not found[len(members) :].any()
            seen.append(example["study_id"])
    assert len(set(seen)) == len(seen)


def test_more_images_than_wanted_are_chosen_at_random(built, config, tokenizer, examples) -> None:
    source = FakeSource(row("p", "s", view) for view in ("PA", "AP", "LL", "LATERAL"))
    read = [{**e, "image": example["image"]} for e, example in zip(source, examples, strict=False)]
    fake = FakeSource(read)
    fake.read = lambda indices: [read[i] for i in indices]
    options = ImageOptions(size=16, channels=1, mean=(0.5,), std=(0.5,), per_study=2)
    index = studies.index_studies(fake)
    views = [transforms.eval_image(e["image"], options).tobytes() for e in read]
    pairs = set()
    for first in range(40):
        loader = ImageLoader(options, fake, index, 0)
        images = loader.rows([read[0]], np.array([0]), first)["image"][0]
        pairs.add(tuple(views.index(image.tobytes()) for image in images))
    assert pairs == {(a, b) for a in range(4) for b in range(a + 1, 4)}
    fixed = ImageLoader(options, fake, index, None).rows([read[0]], np.array([0]), 0)["image"][0]
    assert [views.index(image.tobytes()) for image in fixed] == [0, 1]


def test_images_of_a_study_are_changed_independently(built, config, tokenizer, examples) -> None:
    fake = FakeSource({**row("p", "s", "PA"), "image": examples[0]["image"]} for _ in range(2))
    fake.read = lambda indices: [fake[i] for i in indices]
    chosen = data_options(settings(config, built, per_study=2, views=2, augment=AUGMENT)).image
    loader = ImageLoader(chosen, fake, studies.index_studies(fake), 0)
    batch = loader.rows([fake[0]], np.array([0]), 7)
    assert batch["image_2"].shape == batch["image"].shape == (1, 2, 32, 32, 1)
    shown = [*batch["image"][0], *batch["image_2"][0]]
    assert len({image.tobytes() for image in shown}) == 4


def test_evaluation_shows_every_study_once(built, config, tokenizer) -> None:
    chosen = settings(config, built, per_study=2, augment=AUGMENT)
    batches = pipeline.eval_batches(chosen, tokenizer, "test")
    source = pipeline.open_source(DATASET, "test", built)
    names = [e["study_id"] for e in source]
    index = np.concatenate([b["example_index"] for b in batches])
    mask = np.concatenate([b["example_mask"] for b in batches])
    assert batches.num_examples == len(set(names)) == mask.sum()
    assert sorted(names[i] for i in index[mask > 0]) == sorted(set(names))
    assert (index[mask == 0] == -1).all()
    for batch in batches:
        real = batch["example_mask"] > 0
        again = [reports.stable_id(names[i]) for i in batch["example_index"][real]]
        assert batch["study_id"][real].tolist() == again


def test_prior_images(built, config, tokenizer, examples) -> None:
    chosen = settings(config, built, prior=True)
    iterator = pipeline.train_iterator(chosen, tokenizer, seed=0)
    view = data_options(chosen).image
    with_prior = 0
    for _ in range(iterator.steps_per_epoch):
        batch = next(iterator)
        assert batch["prior_image"].shape == batch["image"].shape
        assert batch["prior_image"].dtype == np.uint8
        assert batch["prior_mask"].dtype == np.float32
        for number, index in enumerate(batch["example_index"]):
            name = examples[index]["prior_study_id"]
            before = [e for e in examples if name and e["study_id"] == name]
            assert batch["prior_mask"][number] == float(bool(before))
            if not before:
                assert not batch["prior_image"][number].any()
                continue
            with_prior += 1
            (frontal,) = (e for e in before if e["view_position"] == "PA")
            assert frontal["subject_id"] == examples[index]["subject_id"]
            assert frontal["days"] < examples[index]["days"]
            np.testing.assert_array_equal(
                batch["prior_image"][number], transforms.eval_image(frontal["image"], view)
            )
    assert with_prior > 10


def test_prior_gets_the_random_changes_of_its_row(built, config, tokenizer) -> None:
    chosen = data_options(settings(config, built, prior=True, augment=AUGMENT)).image
    source = pipeline.open_source(DATASET, "train", built)
    same = studies.Studies(np.arange(len(source)), {}, np.arange(len(source)))  # prior = itself
    rows = np.array([3, 8])
    batch = ImageLoader(chosen, source, same, 5).rows(source.read(rows), rows, 40)
    np.testing.assert_array_equal(batch["prior_image"], batch["image"])
    other = ImageLoader(chosen, source, same, 5).rows(source.read(rows), rows, 42)
    assert (other["image"] != batch["image"]).any()


def test_prior_outside_the_slice_is_none(built, config, tokenizer, examples) -> None:
    chosen = {**settings(config, built, prior=True), "train_split": "train[:8]"}
    iterator = pipeline.train_iterator(chosen, tokenizer, seed=0)
    there = {e["study_id"] for e in examples[:8]}
    for _ in range(2):
        batch = next(iterator)
        names = [examples[i]["prior_study_id"] for i in batch["example_index"]]
        assert batch["prior_mask"].tolist() == [float(name in there) for name in names]


def test_missing_features_stop_a_training_but_not_an_evaluation(small, config, tokenizer) -> None:
    chosen = {**config, "image": {**config["image"], "prior": True}}
    with pytest.raises(UserError, match=r"prior=True needs the feature prior_study_id"):
        pipeline.train_iterator(chosen, tokenizer, seed=0)
    batch = next(iter(pipeline.eval_batches(chosen, tokenizer, "test")))
    assert not batch["prior_mask"].any()
    with pytest.raises(UserError, match="per_study=2 needs the feature study_id, which fake"):
        studies.require_study_fields(SOURCE, prior=False, per_study=2)
