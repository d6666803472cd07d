"""The images of the rows of a batch: one, several of a study, a second view, the prior, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.data import samplers, transforms
from medvlp_jax.data.options import ImageOptions
from medvlp_jax.data.source import Examples
from medvlp_jax.data.studies import Studies
from medvlp_jax.errors import UserError


def image_fields(options: ImageOptions) -> tuple[str, ...]:
    """Stored features that hold the pixels."""
    return ("slices",) if options.frames else ("image",)


def require_pixels(source: Examples, options: ImageOptions) -> None:
    """Stops early when a dataset stores volumes and the config asks for images, or the other way.

    Raises:
        UserError: names the feature that the dataset lacks.
    """
    (field,) = image_fields(options)
    if field in source.feature_names:
        return
    if options.frames:
        raise UserError(
            f"data.image.frames={options.frames} needs the feature slices, which {source.name} does not "
            "store: build it with volume_folder, or set it to 0"
        )
    remedy = "set data.image.frames" if "slices" in source.feature_names else "build it again"
    raise UserError(f"dataset {source.name} stores no images: {remedy}")


def frame_indices(stored: int, wanted: int, offset: float) -> np.ndarray:
    """Positions of `wanted` slices at equal distances.

    The volume is cut into `wanted` equal parts, and the slice at `offset` of each part is taken; a volume
    with fewer slices repeats some.

    Args:
        stored: N, slices of the volume.
        wanted: D.
        offset: in [0, 1); 0.5 is the middle of each part.

    Returns:
        int64 [D], rising, in [0, N).
    """
    places = np.floor((np.arange(wanted) + offset) * stored / wanted).astype(np.int64)
    return np.minimum(places, stored - 1)


class ImageLoader:
    """Makes the image keys of a batch.

    With `seed` (training) each image has its own random changes, a function of the seed, the row's global
    position and the number of the image within the row; without, all views are fixed.
    """

    def __init__(
        self, options: ImageOptions, source: Examples, studies: Studies | None, seed: int | None
    ):
        self.options = options
        self.source = source
        self.studies = studies
        self.seed = seed

    @property
    def first(self) -> int:
        """An index that is there: what rows that only pad repeat."""
        return 0 if self.studies is None else int(self.studies.leaders[0])

    def rows(
        self, examples: Sequence[Mapping[str, Any]], indices: np.ndarray, first: int
    ) -> dict[str, np.ndarray]:
        """Image keys of consecutive rows, uint8.

        Args:
            examples: B stored examples.
            indices: their positions in the split, [B].
            first: global position of the first row.

        Returns:
            `image` [B,H,W,C] and what the options add: `image_2`, `prior_image` and `prior_mask`; with
            `per_study` n > 1 `image` [B,n,H,W,C] and `image_present`; with `frames` [B,D,H,W,C].
        """
        batch: dict[str, np.ndarray] = {}
        groups: list[list[Mapping[str, Any]]] = [[example] for example in examples]
        if self.options.per_study > 1:
            groups = self._study_images(examples, indices, first)
            number = range(self.options.per_study)
            present = [[float(k < len(group)) for k in number] for group in groups]
            batch["image_present"] = np.array(present, np.float32)
        batch["image"] = self._pixels(groups, first, samplers.IMAGE_AUGMENT)
        if self.options.views == 2:
            batch["image_2"] = self._pixels(groups, first, samplers.IMAGE_AUGMENT_2)
        if self.options.prior:
            batch.update(self._priors(indices, first))
        return batch

    def _rng(self, stream: int, position: int, number: int = 0) -> np.random.Generator | None:
        """Generator of an image; None in evaluation."""
        if self.seed is None:
            return None
        return samplers.row_rng(self.seed, stream, position, number)

    def _study_images(
        self, examples: Sequence[Mapping[str, Any]], indices: np.ndarray, first: int
    ) -> list[list[Mapping[str, Any]]]:
        """Up to `per_study` images of each row's study, in order of preference."""
        assert self.studies is not None
        limit = self.options.per_study
        chosen: list[tuple[int, ...]] = []
        for row, index in enumerate(indices):
            members = self.studies.members[int(index)]
            rng = self._rng(samplers.STUDY_IMAGES, first + row)
            if rng is not None and len(members) > limit:
                kept = np.sort(rng.permutation(len(members))[:limit])
                members = tuple(members[k] for k in kept)
            chosen.append(members[:limit])
        known = {int(index): example for index, example in zip(indices, examples, strict=True)}
        missing = sorted({i for members in chosen for i in members} - set(known))
        known.update(zip(missing, self.source.read(missing), strict=True))
        return [[known[i] for i in members] for members in chosen]

    def _pixels(
        self, groups: Sequence[Sequence[Mapping[str, Any]]], first: int, stream: int
    ) -> np.ndarray:
        """[B,H,W,C], or [B,n,H,W,C] with zeros where a study has fewer than n images."""
        number = self.options.per_study
        filled: np.ndarray | None = None
        for row, group in enumerate(groups):
            for place, example in enumerate(group):
                image = self._image(example, stream, first + row, place)
                if filled is None:
                    filled = np.zeros((len(groups), number, *image.shape), np.uint8)
                filled[row, place] = image  # at once, while the pixels are in the cache
        assert filled is not None
        return filled[:, 0] if number == 1 else filled

    def _image(
        self, example: Mapping[str, Any], stream: int, position: int, number: int = 0
    ) -> np.ndarray:
        """One image [H,W,C], or D slices [D,H,W,C] that are all changed alike."""
        if not self.options.frames:
            return self._view(example["image"], self._rng(stream, position, number))
        slices = example["slices"]
        if not slices:
            name = example.get("image_id") or "an example"
            raise UserError(f"{name} of {self.source.name} has no slices: build the dataset again")
        # One choice of slices for both views: they show the same anatomy.
        rng = self._rng(samplers.FRAME_OFFSET, position)
        offset = 0.5 if rng is None else rng.random()
        wanted = frame_indices(len(slices), self.options.frames, offset)
        return np.stack([self._view(slices[i], self._rng(stream, position)) for i in wanted])

    def _view(self, data: bytes, rng: np.random.Generator | None) -> np.ndarray:
        if rng is None:
            return transforms.eval_image(data, self.options)
        return transforms.train_image(data, self.options, rng)

    def _priors(self, indices: np.ndarray, first: int) -> dict[str, np.ndarray]:
        """The study before, with the random changes of the row's own image; zeros without one."""
        assert self.studies is not None
        prior = self.studies.prior[indices]
        rows = np.flatnonzero(prior >= 0)
        size = self.options.size
        images = np.zeros((len(indices), size, size, self.options.channels), np.uint8)
        for row, example in zip(rows, self.source.read(prior[rows]), strict=True):
            images[row] = self._image(example, samplers.IMAGE_AUGMENT, first + int(row))
        return {"prior_image": images, "prior_mask": (prior >= 0).astype(np.float32)}
