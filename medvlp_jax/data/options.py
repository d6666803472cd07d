"""The `data` part of a config, as dataclasses with the defaults; unknown keys stop with a message."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from medvlp_jax.errors import UserError

Crop = Literal["none", "random", "random_resized"]
Fit = Literal["crop", "pad"]
Sample = Literal["report", "findings", "impression", "section", "sentence", "sentences", "shuffle"]
Pairing = Literal["paired", "unpaired"]
Distinct = Literal["none", "patient", "text", "patient_text"]


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """Random changes of training images; the defaults change nothing.

    Attributes:
        crop: `"random"`: a size x size window of the image resized to `ImageOptions.resize`;
            `"random_resized"`: a window of random area and aspect, resized to size x size.
        crop_scale: range of the window's share of the image area (`random_resized`).
        crop_ratio: range of the window's width / height (`random_resized`).
        rotate: largest rotation in degrees, either way.
        translate: largest shift as a share of the size, either way and axis.
        zoom: range of the scale factor, 1 = unchanged.
        brightness: largest change b: pixels are multiplied by a factor from [1 - b, 1 + b].
        contrast: largest change c of the contrast around the image's mean, likewise.
        blur: range of the Gaussian sigma in pixels; (0, 0) = none.
        hflip: mirror left and right with probability 1/2. Off by default: it moves the heart to the
            other side and makes every "left" and "right" of the report wrong.
    """

    crop: Crop = "none"
    crop_scale: tuple[float, float] = (0.6, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotate: float = 0.0
    translate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    blur: tuple[float, float] = (0.0, 0.0)
    hflip: bool = False


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How stored images become arrays.

    Attributes:
        size: side H = W of the square the model sees.
        resize: shorter side before cropping; None = `size`.
        channels: C, 1 (grey) or 3 (RGB).
        mean: per channel (or one for all), in units of [0, 1]; subtracted on the device.
        std: likewise; the divisor.
        fit: without a random crop: `"crop"` cuts the centre square, `"pad"` keeps the whole image.
        augment: random changes in training.
        views: 2 = a second random view of every training image (`image_2`).
        per_study: n > 1 = a row is a study with up to n of its images (`image` [B,n,H,W,C],
            `image_present`), frontal ones first; more than n: a random choice of n in training.
        prior: add the frontal image of the patient's study before (`prior_image`, `prior_mask`).
        frames: D > 0 = `image` [B,D,H,W,C], D slices of a volume or frames of a clip at equal
            distances, with a random offset in training; the dataset stores `slices`.
    """

    size: int = 224
    resize: int | None = None
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: Fit = "crop"
    augment: AugmentOptions = dataclasses.field(default_factory=AugmentOptions)
    views: int = 1
    per_study: int = 1
    prior: bool = False
    frames: int = 0


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How texts become tokens.

    Attributes:
        tokenizer: source for `data.text.load_tokenizer`; None = train WordPiece on the train split.
        vocab_size: V of a trained tokenizer.
        max_length: L.
        lowercase: normalisation of a trained tokenizer.
        sample: the text of a training row: the whole report, one section (`"findings"`,
            `"impression"`, or `"section"`: a random one of the two), a random sentence (ConVIRT),
            `"sentences"`: a random non-empty subset of the sentences, in order (small corpora), or
            `"shuffle"`: all sentences in random order. A row that lacks the section gives its report.
            Evaluation reads the whole report instead of a random part.
        clean: remove de-identification masks and normalise (`clean_text`).
        per_image: n > 1 = up to n different texts per training row (`input_ids` [B,n,L] ...,
            `text_present`): n sentences, the sections in order, or n random texts of the kind `sample` says.
        second: a second text for training, `input_ids_2`, `attention_mask_2`, `word_ids_2`: that of a table
            (`second_text.load_second_texts`), e.g. back-translations, or the section `"findings"` or
            `"impression"` of the report. A row without one repeats its (first) text.
        sentence_ids: add `sentence_ids`, the sentence of each token.
    """

    tokenizer: str | None = None
    vocab_size: int = 8_000
    max_length: int = 128
    lowercase: bool = True
    sample: Sample = "report"
    clean: bool = True
    per_image: int = 1
    second: str | None = None
    sentence_ids: bool = False


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """The whole `config.data`.

    Attributes:
        dataset: built dataset, e.g. `"synthetic_cxr"`, `"image_text_folder/covid_cxr"`.
        data_dir: where datasets were built; None = `TFDS_DATA_DIR`, else `./data`.
        train_split: TFDS split (slices such as `"train[:1%]"` work).
        eval_split: split for evaluation during training.
        global_batch_size: B over all processes.
        image: image options.
        text: text options.
        pairing: `"paired"`: image and text of one example; `"unpaired"`: the text of another,
            independently shuffled stream (MedCLIP).
        text_dataset: unpaired only: dataset of the text stream; None = `dataset`.
        label_balance: draw training examples so that each label is about equally frequent.
        distinct: no two rows of a training batch are of one patient (`"patient"`), have equal texts
            (`"text"`; equal reports where `text.sample` is random), or either (`"patient_text"`).
        mixture: dataset -> weight: train on several datasets, each with its share of every batch
            (rounded to whole rows), labels joined by name; None = `dataset` alone. Evaluation
            during training is on `dataset`.
        workers: processes that prepare batches; 0 = threads of this process.
        threads: threads when `workers` is 0; 0 = prepare batches in the training thread.
        prefetch: batches prepared ahead.
        max_examples: use only the first examples of every split (tests, debugging); None = all.
    """

    dataset: str = "synthetic_cxr"
    data_dir: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    global_batch_size: int = 32
    image: ImageOptions = dataclasses.field(default_factory=ImageOptions)
    text: TextOptions = dataclasses.field(default_factory=TextOptions)
    pairing: Pairing = "paired"
    text_dataset: str | None = None
    label_balance: bool = False
    distinct: Distinct = "none"
    mixture: dict[str, float] | None = None
    workers: int = 0
    threads: int = 2
    prefetch: int = 4
    max_examples: int | None = None


_CHOICES: dict[str, tuple[str, ...]] = {
    "data.pairing": get_args(Pairing),
    "data.distinct": get_args(Distinct),
    "data.image.fit": get_args(Fit),
    "data.image.augment.crop": get_args(Crop),
    "data.text.sample": get_args(Sample),
}
_GROUPS = {"image": ImageOptions, "text": TextOptions, "augment": AugmentOptions}


def data_options(config: Mapping[str, Any] | DataOptions) -> DataOptions:
    """Checks `config.data` and fills in the defaults.

    Args:
        config: ConfigDict, dict or finished options (returned as they are).

    Raises:
        UserError: unknown key (with the nearest known one) or a value out of range.
    """
    if isinstance(config, DataOptions):
        return config
    options = _build(DataOptions, config, "data")
    _check_ranges(options)
    return options


def _build(kind: type[Any], config: Mapping[str, Any], path: str) -> Any:
    """Fills one dataclass from a mapping, recursively."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key in config:
        value = config[key]
        if key not in known:
            near = difflib.get_close_matches(key, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"config key {path}.{key} is unknown; {hint}")
        if key in _GROUPS:
            value = _build(_GROUPS[key], value or {}, f"{path}.{key}")
        elif key == "mixture" and value is not None:
            value = _weights(value, f"{path}.{key}")
        elif isinstance(value, list):
            value = tuple(value)
        choices = _CHOICES.get(f"{path}.{key}")
        if choices and value not in choices:
            raise UserError(
                f"config key {path}.{key}={value!r}: expected one of {', '.join(choices)}"
            )
        values[key] = value
    return kind(**values)


def _weights(value: Any, key: str) -> dict[str, float]:
    """Dataset -> weight, checked."""
    weights = dict(value) if hasattr(value, "keys") else {}  # a ConfigDict is no Mapping
    numbers = [w for w in weights.values() if isinstance(w, int | float) and w > 0]
    if not weights or len(numbers) < len(weights):
        raise UserError(
            f"config key {key}: expected a dict of datasets and positive weights such as "
            f'{{"mimic_cxr": 0.7, "openi": 0.3}}, got {value!r}'
        )
    return {name: float(weight) for name, weight in weights.items()}


def _check_ranges(options: DataOptions) -> None:
    """Stops at numbers that cannot work."""
    image, text, augment = options.image, options.text, options.image.augment
    checks = [
        (options.global_batch_size >= 1, "data.global_batch_size", "a positive number"),
        (image.size >= 1, "data.image.size", "a positive number of pixels"),
        (image.resize is None or image.resize >= image.size, "data.image.resize", "at least size"),
        (image.channels in (1, 3), "data.image.channels", "1 (grey) or 3 (RGB)"),
        (
            len(image.mean) in (1, image.channels),
            "data.image.mean",
            "one value per channel, or one",
        ),
        (len(image.std) in (1, image.channels), "data.image.std", "one value per channel, or one"),
        (all(s > 0 for s in image.std), "data.image.std", "positive values"),
        (text.max_length >= 3, "data.text.max_length", "at least 3 (special tokens included)"),
        (text.per_image >= 1, "data.text.per_image", "at least 1"),
        (image.views in (1, 2), "data.image.views", "1 or 2"),
        (image.per_study >= 1, "data.image.per_study", "at least 1"),
        (image.frames >= 0, "data.image.frames", "0 (still images) or a number of slices"),
        (
            image.per_study == 1 or not image.frames,
            "data.image.per_study",
            "1 together with data.image.frames",
        ),
        (
            not image.prior or (image.per_study == 1 and not image.frames),
            "data.image.prior",
            "False together with data.image.per_study > 1 or data.image.frames",
        ),
        (options.workers >= 0, "data.workers", "0 (threads) or a number of processes"),
        (options.threads >= 0, "data.threads", "0 or more"),
        (options.prefetch >= 1, "data.prefetch", "at least 1 batch"),
        (
            0 < augment.crop_scale[0] <= augment.crop_scale[1] <= 1,
            "data.image.augment.crop_scale",
            "a range within (0, 1]",
        ),
        (
            0 < augment.crop_ratio[0] <= augment.crop_ratio[1],
            "data.image.augment.crop_ratio",
            "a range of positive numbers",
        ),
        (0 < augment.zoom[0] <= augment.zoom[1], "data.image.augment.zoom", "a positive range"),
        (0 <= augment.brightness < 1, "data.image.augment.brightness", "a number in [0, 1)"),
        (0 <= augment.contrast < 1, "data.image.augment.contrast", "a number in [0, 1)"),
        (0 <= augment.translate < 1, "data.image.augment.translate", "a share in [0, 1)"),
        (
            options.text_dataset is None or options.pairing == "unpaired",
            "data.text_dataset",
            'None, or data.pairing="unpaired"',
        ),
    ]
    for correct, key, expected in checks:
        if not correct:
            raise UserError(f"config key {key}: expected {expected}, got {_value(options, key)!r}")


def _value(options: DataOptions, key: str) -> Any:
    value: Any = options
    for part in key.split(".")[1:]:
        value = getattr(value, part)
    return value
