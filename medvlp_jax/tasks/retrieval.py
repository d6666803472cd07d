"""Image-to-text and text-to-image retrieval inside one split."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.tasks import metrics
from medvlp_jax.tasks.base import EncodeText, EvalData, Metric, Task, TaskResult

TIE = 1e-6
"""Cosines closer than this count as equal: float32 products of equal vectors differ by some 1e-7."""

_CHUNK_ELEMENTS = 8_000_000  # similarities held at once: 32 MB float32


class Ranking(NamedTuple):
    """Where the best correct item of each query stands, ties counted in expectation; arrays [q].

    Attributes:
        above: items better than the best correct one.
        tied: items as good as it, itself included.
        correct: correct ones among `tied`.
        positives: correct items in the gallery.
    """

    above: np.ndarray
    tied: np.ndarray
    correct: np.ndarray
    positives: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Recall@k and median rank in both directions, with the chance level beside.

    Reports repeat ("No acute findings."), and the images of a study share a report. So every row with the
    text of the query counts as correct, not its own row alone; a text that is there m times among n makes
    chance larger than k/n, and the reported chance says how large.

    Ties are counted in expectation over a random order of the tied items, exactly: constant embeddings give
    the chance level. The gallery stays fixed in the bootstrap; queries are resampled by patient.

    Attributes:
        ks: the k of Recall@k.
        gallery: "all" = each row's text; "unique" = each distinct text once (then text-to-image has one query
            per distinct text).
        positives: "text" = every row with the same text is correct; "row" = only the own row, as many papers
            count it.
    """

    prefix: str = "retrieval"
    ks: tuple[int, ...] = (1, 5, 10)
    gallery: Literal["all", "unique"] = "all"
    positives: Literal["text", "row"] = "text"

    def __post_init__(self) -> None:
        """Raises UserError for unknown or contradicting options."""
        if self.gallery not in ("all", "unique") or self.positives not in ("text", "row"):
            raise UserError(
                f"retrieval gallery={self.gallery!r}, positives={self.positives!r}: choose all or unique, "
                "and text or row"
            )
        if self.gallery == "unique" and self.positives == "row":
            raise UserError("retrieval: gallery='unique' needs positives='text'")
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"retrieval ks={self.ks}: give positive numbers")

    def __call__(self, data: EvalData, encode_text: EncodeText, logit_scale: float) -> TaskResult:
        """See the class; needs neither prompts nor the scale."""
        del encode_text, logit_scale
        if not len(data):
            raise UserError(f"retrieval: the split of {data.dataset} is empty")
        ids = data.text_id if self.positives == "text" else np.arange(len(data))
        texts = np.arange(len(data))
        if self.gallery == "unique":
            texts = np.sort(np.unique(ids, return_index=True)[1])
        sides = {
            "image_to_text": (data.image_embed, ids, data.text_embed[texts], ids[texts]),
            "text_to_image": (data.text_embed[texts], ids[texts], data.image_embed, ids),
        }
        groups = {"image_to_text": data.subject_id, "text_to_image": data.subject_id[texts]}
        results: dict[str, Metric] = {}
        predictions: dict[str, np.ndarray] = {
            "example_index": data.example_index,
            "subject_id": np.asarray(data.subject_id),  # hashes
        }
        for direction, arrays in sides.items():
            ranking = rank(*arrays)
            found = self._measure(ranking, len(arrays[2]), groups[direction])
            results.update({self.key(data, f"{direction}_{k}"): v for k, v in found.items()})
            predictions[f"{direction}_rank"] = expected_rank(ranking)
        artefacts = {
            "gallery": {"texts": len(texts), "images": len(data)},
            "distinct_texts": len(np.unique(data.text_id)),
            "positives": self.positives,
        }
        return TaskResult(metrics=results, predictions=predictions, artefacts=artefacts)

    def _measure(self, ranking: Ranking, size: int, groups: np.ndarray) -> dict[str, Metric]:
        hits = [hit_probability(ranking, k) for k in self.ks]
        ranks = expected_rank(ranking)

        def columns(weight: np.ndarray) -> np.ndarray:
            recalls = [metrics.mean(hit, weight) for hit in hits]
            return np.stack([*recalls, metrics.median(ranks, weight)], axis=1)

        found = metrics.bootstrap_columns(
            columns, len(ranks), groups=groups, samples=self.bootstrap_samples, seed=self.seed
        )
        random = chance(ranking.positives, size)
        results: dict[str, Metric] = {}
        for k, metric in zip(self.ks, found, strict=False):
            results[f"recall_at_{k}"] = metric
            level = float(hit_probability(random, k).mean())
            results[f"recall_at_{k}_chance"] = Metric(level, n=len(ranks))
        results["median_rank"] = found[-1]
        level = float(np.median(expected_rank(random)))
        results["median_rank_chance"] = Metric(level, n=len(ranks))
        return results


def rank(
    queries: np.ndarray, query_ids: np.ndarray, gallery: np.ndarray, gallery_ids: np.ndarray
) -> Ranking:
    """Ranks the gallery for every query, a block of queries at a time.

    Args:
        queries: [q, D] L2-normalised.
        query_ids: [q]; an item is correct when its id equals the query's.
        gallery: [g, D] L2-normalised.
        gallery_ids: [g]; each query id occurs at least once.

    Returns:
        The ranking of the q queries; memory is a block of similarities, never q x g.
    """
    step = max(1, _CHUNK_ELEMENTS // max(len(gallery), 1))
    parts = []
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        similarity = queries[block] @ gallery.T
        correct = query_ids[block, None] == gallery_ids[None]
        best = np.where(correct, similarity, -np.inf).max(axis=1, keepdims=True)
        above = similarity > best + TIE
        tied = (similarity >= best - TIE) & ~above
        counts = [above, tied, tied & correct, correct]
        parts.append(np.stack([c.sum(axis=1) for c in counts]))
    return Ranking(*np.concatenate(parts, axis=1))


def chance(positives: np.ndarray, size: int) -> Ranking:
    """The ranking of a model that finds everything equally similar."""
    return Ranking(np.zeros_like(positives), np.full_like(positives, size), positives, positives)


def hit_probability(ranking: Ranking, k: int) -> np.ndarray:
    """P(a correct item is among the first k) [q] when tied items come in random order:
    1 - C(tied - correct, m) / C(tied, m) with m = k - above places left for them."""
    above, tied, correct, _ = (np.asarray(x, np.float64) for x in ranking)
    places = np.clip(k - above, 0, tied)
    miss = np.ones(len(above))
    for i in range(min(k, int(places.max(initial=0)))):
        wrong = np.maximum(tied - correct - i, 0) / np.maximum(tied - i, 1)
        miss *= np.where(i < places, wrong, 1.0)
    return 1.0 - miss


def expected_rank(ranking: Ranking) -> np.ndarray:
    """Expected rank [q] of the first correct item, counted from 1: above + (tied + 1) / (correct + 1)."""
    return ranking.above + (ranking.tied + 1) / (ranking.correct + 1)
