"""Without these, a phrase could be looked for in another image, or with the boxes of another phrase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from medvlp_jax.data.options import ImageOptions
from medvlp_jax.errors import UserError
from medvlp_jax.tasks.grounding import Grounding, find_queries

NAMES = ("Edema", "Nodule")
LEFT, RIGHT = [0.0, 0.0, 1.0, 0.5], [0.0, 0.5, 1.0, 1.0]
PROMPTS = {name: {"positive": [f"see {name}", "unused"]} for name in NAMES}


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def example(boxes: list, labels: list[int], **further: Any) -> dict[str, Any]:
    return {
        "image": png(np.zeros((64, 64), np.uint8)),
        "boxes": {"bbox": np.array(boxes, np.float32).reshape(-1, 4), "label": np.array(labels)},
        **further,
    }


class Stored:
    """Examples in memory."""

    def __init__(self, examples: Sequence[dict]):
        self.all = list(examples)
        self.feature_names = frozenset(self.all[0])

    def read(self, indices: Sequence[int]) -> list[dict]:
        return [self.all[int(i)] for i in indices]


def left_map(image: int, phrase: str) -> np.ndarray:
    """Highest in the left half, whatever is asked."""
    return np.tile([1.0, 0.9, 0.1, 0.0], (4, 1)).astype(np.float32)


def run(fake: Any, examples: Sequence[dict], ground: Any = left_map, **options: Any) -> Any:
    n = len(examples)
    access = fake.access({"test": fake.features(np.ones((n, 2)), np.zeros((n, 2)))})
    asked: list[tuple[int, str]] = []

    def images() -> Any:
        # Batches of three, the last one shorter; a pixel value tells the example.
        for start in range(0, n, 3):
            index = np.arange(start, min(start + 3, n))
            yield index, np.broadcast_to(index[:, None, None, None], (len(index), 32, 32, 1))

    def maps(pixels: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        pairs = [(int(p[0, 0, 0]), phrase) for p, phrase in zip(pixels, phrases, strict=True)]
        asked.extend(pairs)
        return np.stack([ground(*pair) for pair in pairs])

    access.examples = lambda fields: Stored(examples)
    access.images, access.ground = images, maps
    data = fake.eval(access)
    object.__setattr__(data, "label_names", NAMES)
    access.image = ImageOptions(size=32, channels=1)
    task = Grounding(bootstrap_samples=20, **{"prompts": PROMPTS, **options})
    result = task(data, lambda texts: np.zeros(0), 1.0)
    values = {k.removeprefix("grounding/fake/"): m.value for k, m in result.metrics.items()}
    return result, values, asked


def test_a_map_on_the_box_and_one_beside_it(fake) -> None:
    result, values, asked = run(
        fake, [example([LEFT], [0]), example([], []), example([RIGHT, LEFT], [1, 0])]
    )
    assert sorted(asked) == [(0, "see Edema"), (2, "see Edema"), (2, "see Nodule")]
    assert values["pointing_game_edema"] == 1.0
    assert values["pointing_game_nodule"] == 0.0
    assert values["pointing_game"] == pytest.approx(2 / 3)
    assert values["signed_cnr_edema"] == pytest.approx(-values["signed_cnr_nodule"])
    assert values["cnr_edema"] == pytest.approx(values["cnr_nodule"])
    assert values["pointing_game_chance"] == 0.5
    assert values["miou_edema"] > 0.6 > 0.3 > values["miou_nodule"]
    assert result.metrics["grounding/fake/cnr_edema"].n == 2
    assert "mask_cnr" not in values
    assert result.predictions["map"].shape == (3, 4, 4)
    assert result.predictions["example_index"].tolist() == [0, 2, 2]
    assert result.predictions["finding"].tolist() == [0, 0, 1]


def test_exact_overlap_without_smoothing(fake) -> None:
    def exact(image: int, phrase: str) -> np.ndarray:
        return np.tile([0.6, 0.6, 0.0, 0.0], (4, 1)).astype(np.float32)

    options = dict(sigma=0.0, interpolation="nearest")
    _, values, _ = run(fake, [example([LEFT], [0])], exact, **options)
    assert values["miou"] == values["dice"] == values["pointing_game"] == 1.0
    _, values, _ = run(fake, [example([[0, 0, 1, 0.25]], [0])], exact, **options)
    assert values["miou"] == pytest.approx(0.5)
    assert values["dice"] == pytest.approx(2 / 3)
    assert values["pointing_game"] == 0.5  # half of the tied maxima

    def low(image: int, phrase: str) -> np.ndarray:
        return exact(image, phrase) / 10

    _, values, _ = run(fake, [example([LEFT], [0])], low, **options)
    assert values["miou"] == 0.0  # below all thresholds
    _, values, _ = run(fake, [example([LEFT], [0])], low, rescale="minmax", **options)
    assert values["miou"] == 1.0


def test_a_map_that_says_nothing_is_at_chance(fake) -> None:
    quarter = [0.0, 0.0, 0.5, 0.5]
    _, values, _ = run(fake, [example([quarter], [0])], lambda i, p: np.full((4, 4), 0.2))
    assert values["pointing_game"] == values["pointing_game_chance"] == 0.25
    assert values["cnr"] == 0.0


def test_masks_count_beside_boxes(fake) -> None:
    masks = np.zeros((64, 64), np.uint16)
    masks[:32, :32] = 1
    masks[:, 32:] |= 2
    stored = png(masks)
    _, values, _ = run(
        fake,
        [example([LEFT, LEFT], [0, 1], mask=stored), example([LEFT], [0], mask=png(masks * 0))],
        lambda i, p: np.tile([0.6, 0.6, 0.0, 0.0], (4, 1)),
        sigma=0.0,
        interpolation="nearest",
    )
    assert values["miou"] == 1.0
    assert values["mask_miou_edema"] == pytest.approx(0.5)  # the empty mask is left out
    assert values["mask_miou_nodule"] == 0.0
    assert values["mask_pointing_game_edema"] == 0.5


def ms_cxr_example() -> dict[str, Any]:
    return {
        "image": png(np.zeros((64, 64), np.uint8)),
        "phrases": {
            "phrase": [b"fluid left and right", b"a spot", b"without a box"],
            "category": [b"Edema", b"Nodule", b"Nodule"],
        },
        "boxes": {
            "bbox": np.array([LEFT, [0, 0.9, 1, 1], RIGHT], np.float32),
            "label": np.array([0, 1, 0]),
            "phrase": np.array([0, 1, 0]),
        },
    }


def test_phrases_of_the_dataset_with_their_boxes(fake) -> None:
    queries = find_queries(ms_cxr_example(), {}, NAMES)
    assert [(q.phrase, q.label, len(q.boxes)) for q in queries] == [
        ("fluid left and right", 0, 2),
        ("a spot", 1, 1),
    ]
    np.testing.assert_array_equal(queries[0].boxes, np.array([LEFT, RIGHT], np.float32))
    result, values, asked = run(fake, [ms_cxr_example()], prompts="")
    assert asked == [(0, "fluid left and right"), (0, "a spot")]
    assert values["pointing_game_edema"] == 1.0  # everything is in one of the two boxes
    assert np.isnan(values["cnr_edema"])
    assert values["pointing_game_nodule"] == 0.0
    assert result.predictions["phrase"].tolist() == ["fluid left and right", "a spot"]


def test_a_box_outside_the_crop_is_counted_and_left_out(fake) -> None:
    wide = example([[0.0, 0.0, 1.0, 0.1]], [0])
    wide["image"] = png(np.zeros((64, 128), np.uint8))  # the model sees columns 32 to 95
    result, values, _ = run(fake, [wide, example([LEFT], [0])])
    assert result.artefacts["outside_the_crop"] == 1
    assert result.metrics["grounding/fake/pointing_game"].n == 1
    assert values["pointing_game"] == 1.0
    result, values, _ = run(fake, [wide])
    assert np.isnan(values["pointing_game"])


def test_labels_choose_findings(fake) -> None:
    _, values, asked = run(fake, [example([LEFT, RIGHT], [0, 1])], labels=("Nodule",))
    assert asked == [(0, "see Nodule")]
    assert "cnr_edema" not in values
    _, _, asked = run(fake, [ms_cxr_example()], labels=("Nodule",))
    assert asked == [(0, "a spot")]


def test_what_cannot_be_grounded_says_why_and_lets_other_tasks_run(fake) -> None:
    def refuse(image: int, phrase: str) -> np.ndarray:
        raise UserError("this model has no image tokens")

    result, values, _ = run(fake, [example([LEFT], [0])], refuse)
    assert result.artefacts == {"skipped": "this model has no image tokens"}
    assert not values
    result, _, _ = run(fake, [example([], [])])
    assert "has a box" in result.artefacts["skipped"]
    result, _, _ = run(fake, [{"image": png(np.zeros((64, 64), np.uint8))}])
    assert "stores no boxes" in result.artefacts["skipped"]


@pytest.mark.parametrize(
    "options",
    [
        dict(interpolation="cubic"),
        dict(rescale="softmax"),
        dict(sigma=-1.0),
        dict(thresholds=()),
    ],
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(UserError):
        Grounding(**options)


def test_missing_prompts_and_labels_are_named(fake) -> None:
    with pytest.raises(UserError, match="'Nodule' has no positive prompt"):
        run(fake, [example([LEFT], [0])], prompts={"Edema": PROMPTS["Edema"]})
    with pytest.raises(UserError, match="'Mass' is no label"):
        run(fake, [example([LEFT], [0])], labels=("Mass",))
