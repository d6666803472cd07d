"""The two PyTorch pipelines that `bench input` compares with: what the field writes, and a tuned one."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from medvlp_jax.data import text as text_lib

CROP_SCALE = (0.6, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def random_window(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a window of random area and aspect, as torchvision draws it."""
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(10):
        area = rng.uniform(*CROP_SCALE) * height * width
        ratio = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, height, width


class FieldDataset:
    """Files opened with PIL, three channels normalised in float32, text tokenised anew each time."""

    def __init__(
        self, files: Sequence[tuple[pathlib.Path, str]], tokenizer: Any, size: int, length: int
    ):
        self.files = files
        self.tokenizer = tokenizer
        self.size = size
        self.length = length

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, report = self.files[index]
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        top, left, height, width = random_window(image.height, image.width, np.random.default_rng())
        box = (left, top, left + width, top + height)
        image = image.crop(box).resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), np.float32)
        pixels -= _MEAN
        pixels /= _STD
        tokens = self.tokenizer(
            report, padding="max_length", truncation=True, max_length=self.length
        )
        return {
            "image": pixels,
            "input_ids": np.array(tokens["input_ids"]),
            "attention_mask": np.array(tokens["attention_mask"]),
        }


class TunedDataset:
    """Whole batches from stored bytes with OpenCV: grey uint8 pixels, texts tokenised beforehand."""

    def __init__(self, stored: Sequence[bytes], ids: np.ndarray, mask: np.ndarray, size: int):
        self.ends = np.cumsum([len(data) for data in stored])
        self.bytes = np.frombuffer(b"".join(stored), np.uint8)
        self.ids, self.mask = ids, mask
        self.size = size

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Any]:
        import torch

        rng = np.random.default_rng()
        images = np.empty((len(indices), self.size, self.size, 1), np.uint8)
        for row, index in enumerate(indices):
            start = self.ends[index - 1] if index else 0
            image = cv2.imdecode(self.bytes[start : self.ends[index]], cv2.IMREAD_GRAYSCALE)
            assert image is not None
            top, left, height, width = random_window(image.shape[0], image.shape[1], rng)
            window = image[top : top + height, left : left + width]
            cv2.resize(window, (self.size, self.size), dst=images[row, :, :, 0])
        return {
            "image": torch.from_numpy(images),
            "input_ids": torch.from_numpy(self.ids[indices]),
            "attention_mask": torch.from_numpy(self.mask[indices]),
        }


def _one_thread(_: int) -> None:
    """Workers are parallel already."""
    cv2.setNumThreads(0)


def endless(loader: Any) -> Iterator[dict[str, Any]]:
    """Batches of a DataLoader, epoch after epoch."""
    while True:
        yield from loader


def field_batches(
    files: Sequence[tuple[pathlib.Path, str]],
    tokenizer: text_lib.Tokenizer,
    *,
    size: int,
    length: int,
    batch: int,
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Endless batches as the field's repositories make them.

    Args:
        files: JPEG files and their texts.
        tokenizer: the same vocabulary for all.
        size: pixels of a side.
        length: tokens.
        batch: examples.
        workers: processes.
    """
    import torch
    import transformers

    special: dict[str, Any] = dict(tokenizer.special)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **special)
    dataset: Any = FieldDataset(files, fast, size, length)
    return endless(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
        )
    )


def tuned_batches(
    stored: Sequence[bytes],
    texts: Sequence[str],
    tokenizer: text_lib.Tokenizer,
    *,
    size: int,
    length: int,
    batch: int,
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Endless batches as fast as a DataLoader makes them: a batch per call, so that nothing is collated.

    Args: as `field_batches`, with the stored bytes of the images and the texts apart.
    """
    import torch

    ids = np.full((len(texts), length), tokenizer.pad_token_id, np.int32)
    mask = np.zeros((len(texts), length), np.int32)
    for row, piece in enumerate(text_lib.encode_pieces(tokenizer, texts, length)):
        ids[row, : piece.shape[1]] = piece[0]
        mask[row, : piece.shape[1]] = 1
    dataset: Any = TunedDataset(stored, ids, mask, size)
    order: Any = torch.utils.data.RandomSampler(dataset)
    sampler: Any = torch.utils.data.BatchSampler(order, batch, drop_last=True)
    return endless(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=True,
            prefetch_factor=4,
            worker_init_fn=_one_thread,
        )
    )
