"""Without these, a leak between training and test would stay unseen until somebody trusts the result."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np

from medvlp_jax.data import check


def blurred_noise(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (120, 100), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 15), None, 0, 255, cv2.NORM_MINMAX)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def test_copies_have_equal_hashes_and_other_images_have_not() -> None:
    images = [blurred_noise(seed) for seed in range(20)]
    hashes = [check.image_hash(jpeg(image)) for image in images]
    assert len(set(hashes)) == 20
    same = [check.image_hash(cv2.imencode(".png", image)[1].tobytes()) for image in images]
    assert sum(a == b for a, b in zip(hashes, same, strict=True)) >= 16
    black, white = np.zeros((40, 40), np.uint8), np.full((40, 40), 255, np.uint8)
    assert check.image_hash(jpeg(black)) != check.image_hash(jpeg(white))


def test_report_of_a_clean_dataset(small) -> None:
    report = check.check_dataset("image_text_folder", small)
    assert report.counts == {"train": 23, "validation": 10, "test": 5}
    assert report.ok
    assert report.prevalence["even"]["train"] == (12, 23)
    assert report.prevalence["rare"]["train"] == (1, 22)  # one row is blank: unknown
    assert "no problems found" in str(report)
    assert "12/23" in str(report)


def test_leaks_and_lost_rows_are_problems() -> None:
    places = {
        "p1": Counter(train=2),
        "p2": Counter(train=1, test=1),
        "p3": Counter(test=3, train=1),
    }
    assert check._leaks(places, "patients") == ["2 patients occur in both test and train"]
    metadata = {"rows": 10, "dropped": {"blank_text": 2, "rejected": 1}}
    assert check._recorded_counts(metadata, {"train": 5, "test": 2}) == []
    (problem,) = check._recorded_counts(metadata, {"train": 5, "test": 1})
    assert "6 examples are here instead of 7" in problem
