"""Phrase grounding: where in the image a phrase is, against the boxes and masks of the dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from medvlp_jax.data.prompt_sets import TEMPLATES, load_prompts, prompt_path
from medvlp_jax.data.regions import box_mask, finding_mask
from medvlp_jax.data.source import Examples
from medvlp_jax.data.transforms import decode
from medvlp_jax.errors import UserError
from medvlp_jax.tasks import metrics, region_metrics
from medvlp_jax.tasks.base import (
    Access,
    EncodeText,
    EvalData,
    Metric,
    Task,
    TaskResult,
    slugs,
)
from medvlp_jax.tasks.similarity_map import Interpolation, smooth, to_image_size

_FIELDS = ("image", "boxes", "phrases", "mask")


class Query(NamedTuple):
    """A phrase and its boxes on one image.

    Attributes:
        phrase: text.
        label: finding, as index of the dataset's labels.
        boxes: [b, 4], b >= 1: ymin, xmin, ymax, xmax in [0, 1].
    """

    phrase: str
    label: int
    boxes: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grounding(Task):
    """Zero-shot phrase grounding with similarity maps, as BioViL does it (arXiv 2204.09817).

    The map is the cosine of each projected patch with the phrase, smoothed on the patch grid and resized to
    the stored image with the geometry of its crop; what was cropped away does not count. Datasets with
    `phrases` (MS-CXR) ask for each phrase with its boxes; those with `boxes` alone for each finding with a
    prompt. Metrics, as means over the phrases and per finding (`cnr`, `cnr_edema` ...): see
    `region_metrics`; with `mask_` before them against the pixels of the dataset's masks.

    Attributes:
        sigma: of the Gaussian filter, in patches; 0 = none.
        interpolation: "bilinear" (BioViL's examples) or "nearest" (the default of its code).
        thresholds: mIoU and Dice are means over these thresholds of the map.
        rescale: "none" = thresholds are cosines; "minmax" = of each map scaled to [0, 1].
        prompts: where the phrases of findings come from, as in `ZeroShot`; the first positive prompt counts.
        labels: findings to look for, () = all.
    """

    prefix: str = "grounding"
    sigma: float = 1.5
    interpolation: Interpolation = "bilinear"
    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    rescale: Literal["none", "minmax"] = "none"
    prompts: str | Mapping[str, Any] = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError for options out of range."""
        if self.interpolation not in ("nearest", "bilinear"):
            raise UserError(
                f"grounding interpolation={self.interpolation!r}: choose nearest or bilinear"
            )
        if self.rescale not in ("none", "minmax"):
            raise UserError(f"grounding rescale={self.rescale!r}: choose none or minmax")
        if self.sigma < 0 or not self.thresholds:
            raise UserError("grounding needs sigma >= 0 and at least one threshold")

    def __call__(self, data: EvalData, encode_text: EncodeText, logit_scale: float) -> TaskResult:
        """See the class.

        A model or dataset that cannot be grounded gives no metrics but the reason, so that other tasks of
        the same evaluation go on.

        Raises:
            UserError: a finding has no prompt.
        """
        del encode_text, logit_scale
        access = data.need_access("grounding")
        examples = access.examples(_FIELDS)
        if "boxes" not in examples.feature_names:
            reason = f"dataset {data.dataset} stores no boxes, so there is nothing to find"
            return TaskResult(artefacts={"skipped": reason})
        phrases = {} if "phrases" in examples.feature_names else self._phrases(data)
        try:
            rows = self._rows(data, access, examples, phrases)
        except CannotGround as error:
            return TaskResult(artefacts={"skipped": str(error)})
        if not rows:
            reason = f"no image of split {access.split} of {data.dataset} has a box"
            return TaskResult(artefacts={"skipped": reason})
        return self._result(data, rows)

    def _phrases(self, data: EvalData) -> dict[int, str]:
        """Label index -> phrase of the finding."""
        names = self.labels or data.label_names
        unknown = [name for name in names if name not in data.label_names]
        if unknown:
            raise UserError(
                f"grounding label {unknown[0]!r} is no label of {data.dataset}; it has "
                f"{', '.join(data.label_names)}"
            )
        found: Mapping[str, Any]
        if isinstance(self.prompts, str):
            dataset = data.dataset.partition("/")[0]
            source = self.prompts or (dataset if prompt_path(dataset).is_file() else TEMPLATES)
            found = load_prompts(source, names, seed=self.seed)
        else:
            found = self.prompts
        for name in names:
            if not found.get(name, {}).get("positive"):
                raise UserError(
                    f"grounding: label {name!r} has no positive prompt; add it to prompts"
                )
        return {data.label_names.index(name): found[name]["positive"][0] for name in names}

    def _rows(
        self, data: EvalData, access: Access, examples: Examples, phrases: Mapping[int, str]
    ) -> list[dict[str, Any]]:
        """One dict per phrase and image: `example_index`, `phrase`, `label`, `map` and the metrics."""
        rows: list[dict[str, Any]] = []
        for indices, images in access.images():
            stored = examples.read(indices)
            queries = [
                (place, query)
                for place, example in enumerate(stored)
                for query in find_queries(example, phrases, data.label_names)
                if not self.labels or data.label_names[query.label] in self.labels
            ]
            if not queries:
                continue
            places = [place for place, _ in queries]
            try:
                maps = access.ground(images[places], [query.phrase for _, query in queries])
            except UserError as error:
                raise CannotGround(str(error)) from error
            for (place, query), similarity in zip(queries, maps, strict=True):
                scores = self._score(similarity, query, stored[place], access)
                index = int(indices[place])
                row = {"example_index": index, "phrase": query.phrase, "label": query.label}
                rows.append({**row, "map": similarity, **scores})
        return rows

    def _score(
        self, similarity: np.ndarray, query: Query, example: Mapping[str, Any], access: Access
    ) -> dict[str, float]:
        height, width = decode(example["image"], 1).shape[:2]
        placed = to_image_size(
            smooth(similarity, self.sigma), height, width, access.image, self.interpolation
        )
        if self.rescale == "minmax":
            low, high = np.nanmin(placed), np.nanmax(placed)
            placed = (placed - low) / max(float(high - low), 1e-12)
        boxes = box_mask(query.boxes, height, width)
        scores = region_metrics.score_map(placed, boxes, self.thresholds)
        if example.get("mask"):
            mask = finding_mask(example["mask"], query.label)
            by_mask = region_metrics.score_map(placed, mask, self.thresholds)
            scores.update({f"mask_{name}": value for name, value in by_mask.items()})
        return scores

    def _result(self, data: EvalData, rows: Sequence[Mapping[str, Any]]) -> TaskResult:
        label = np.array([row["label"] for row in rows])
        index = np.array([row["example_index"] for row in rows])
        names = [f"{kind}{name}" for kind in ("", "mask_") for name in region_metrics.NAMES]
        values = {
            name: np.array([row.get(name, np.nan) for row in rows])
            for name in names
            if any(name in row for row in rows)
        }
        position = {int(i): row for row, i in enumerate(data.example_index)}
        patients = data.subject_id[[position[int(i)] for i in index]]
        found: dict[str, Metric] = {}
        finding = dict(enumerate(slugs(data.label_names)))
        for name, value in values.items():
            groups = {name: np.ones(len(value), bool)}
            groups |= {f"{name}_{finding[k]}": label == k for k in np.unique(label)}
            for key, members in groups.items():
                found[self.key(data, key)] = self._mean(value[members], patients[members])
        return TaskResult(
            metrics=found,
            predictions={
                "example_index": index,
                "phrase": np.array([row["phrase"] for row in rows]),
                "finding": label,
                "map": np.stack([row["map"] for row in rows]),
                **values,
            },
            artefacts={
                "label_names": list(data.label_names),
                "phrases": len(rows),
                "outside_the_crop": int(np.isnan(values["pointing_game"]).sum()),
                "thresholds": list(self.thresholds),
                "rescale": self.rescale,
                "sigma": self.sigma,
            },
        )

    def _mean(self, value: np.ndarray, patients: np.ndarray) -> Metric:
        """Mean of the defined values with its interval."""
        known = np.isfinite(value)
        if not known.any():
            return Metric(float("nan"))
        return metrics.bootstrap(
            metrics.mean,
            (value[known],),
            groups=patients[known],
            samples=self.bootstrap_samples,
            seed=self.seed,
        )


class CannotGround(Exception):
    """The model has no map; the message says why."""


def find_queries(
    example: Mapping[str, Any], phrases: Mapping[int, str], label_names: Sequence[str]
) -> list[Query]:
    """What to look for in an image.

    Args:
        example: `boxes` with `bbox` [b, 4] and `label` [b]; or in the form of MS-CXR, `phrases` with `phrase`
            and `category`, and `boxes` with `bbox` and `phrase`, the number of the phrase.
        phrases: label index -> phrase, where the dataset has none of its own.
        label_names: of the dataset.

    Returns:
        The queries that have a box.
    """
    boxes = example["boxes"]
    corners = np.asarray(boxes["bbox"], np.float32).reshape(-1, 4)
    if "phrases" not in example:
        label = np.asarray(boxes["label"], int)
        return [
            Query(phrases[int(k)], int(k), corners[label == k])
            for k in np.unique(label)
            if int(k) in phrases
        ]
    number = np.asarray(boxes["phrase"], int)
    own = zip(example["phrases"]["phrase"], example["phrases"]["category"], strict=True)
    return [
        Query(_text(phrase), list(label_names).index(_text(category)), corners[number == i])
        for i, (phrase, category) in enumerate(own)
        if (number == i).any()
    ]


def _text(value: Any) -> str:
    """TFDS hands out the texts of a list as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
