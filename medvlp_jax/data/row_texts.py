"""The texts of the rows of a batch: which part of a report, and its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvlp_jax.data import text as text_lib
from medvlp_jax.data.offsets import sentence_ids
from medvlp_jax.data.options import TextOptions
from medvlp_jax.data.second_text import load_second_texts, second_text
from medvlp_jax.data.source import Examples, columns
from medvlp_jax.errors import UserError

_RANDOM_SAMPLES = ("section", "sentence", "sentences", "shuffle")
"""Values of `text.sample` that choose at random in training."""

_SECTIONS = ("findings", "impression")
"""Values of `text.second` that name a section of the same report instead of a file."""

_CACHED_TEXTS = 200_000


class TextEncoder:
    """Chooses, cleans and tokenises the texts of examples; remembers what it tokenised."""

    def __init__(self, options: TextOptions, tokenizer: text_lib.Tokenizer):
        self.options = options
        self.tokenizer = tokenizer
        self._second: Mapping[str, str] = {}
        if options.second and options.second not in _SECTIONS:
            self._second = load_second_texts(options.second)
        self._cache: dict[str, tuple[np.ndarray, int]] = {}
        self._cleaned: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_cleaned": {}}

    @property
    def is_random(self) -> bool:
        """Whether training chooses at random."""
        return self.options.sample in _RANDOM_SAMPLES

    def choose(self, example: Mapping[str, Any], rng: np.random.Generator | None) -> list[str]:
        """The texts of one row, at least one, at most `per_image`, all different.

        `rng` None (evaluation) never chooses at random: it gives the report instead.
        """
        clean = self._clean if self.options.clean else str
        report = clean(example.get("text") or "")
        sample, number = self.options.sample, self.options.per_image
        if sample == "report" or (rng is None and sample in _RANDOM_SAMPLES):
            return [report]
        found = self._sections(example, report)
        if rng is None or sample not in _RANDOM_SAMPLES:
            return [found.get(sample) or report]
        sections = [found[k] for k in _SECTIONS if found.get(k)]
        if sample == "section":
            if number > 1:
                return sections[:number] or [report]
            return [sections[int(rng.integers(len(sections)))] if sections else report]
        # Of findings and impression where they can be told apart: headers, indication and
        # technique say nothing about the image.
        sentences = text_lib.split_sentences("\n\n".join(sections) or report)
        return self._from_sentences(sentences, rng) or [report]

    def _sections(self, example: Mapping[str, Any], report: str) -> dict[str, str]:
        """Findings and impression, those stored or those of the report; "" or left out where missing."""
        clean = self._clean if self.options.clean else str
        found = {name: clean(example.get(name) or "") for name in _SECTIONS}
        return found if any(found.values()) else text_lib.split_sections(report)

    def _clean(self, text: str) -> str:
        """`clean_text`, remembered: an epoch later the same reports come again."""
        cleaned = self._cleaned.get(text)
        if cleaned is None:
            cleaned = text_lib.clean_text(text)
            if len(self._cleaned) < _CACHED_TEXTS:
                self._cleaned[text] = cleaned
        return cleaned

    def _from_sentences(self, sentences: list[str], rng: np.random.Generator) -> list[str]:
        """One or several random texts made of the sentences of a report."""
        sample, number = self.options.sample, self.options.per_image
        if not sentences:
            return []
        if sample == "sentence":
            if number == 1:
                return [sentences[int(rng.integers(len(sentences)))]]
            different = list(dict.fromkeys(sentences))
            return [different[index] for index in rng.permutation(len(different))[:number]]
        texts = []
        for _ in range(number):
            order = rng.permutation(len(sentences))
            if sample == "sentences":
                order = np.sort(order[: rng.integers(1, len(sentences) + 1)])
            texts.append(" ".join(sentences[index] for index in order))
        return list(dict.fromkeys(texts))

    def rows(self, texts: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Tokens of the texts of B rows.

        Returns:
            With n = `per_image` = 1 the keys of `encode`. Otherwise those with a second axis of n, and
            `text_present` float32 [B, n]; a text that is not there is encoded as "".
        """
        number = self.options.per_image
        if number == 1:
            return self.encode([row[0] for row in texts])
        padded = [text for row in texts for text in [*row, *[""] * number][:number]]
        batch = {
            key: value.reshape(len(texts), number, *value.shape[1:])
            for key, value in self.encode(padded).items()
        }
        present = [[float(k < len(row)) for k in range(number)] for row in texts]
        return {**batch, "text_present": np.array(present, np.float32)}

    def second_rows(
        self, examples: Sequence[Mapping[str, Any]], texts: Sequence[Sequence[str]]
    ) -> dict[str, np.ndarray]:
        """Tokens of the second texts of B rows, int32 [B, L], under the keys of `encode` with `_2`.

        Empty without `second`. A row that the table does not list, or whose report lacks the section, repeats
        the first of its `texts`.
        """
        if not self.options.second:
            return {}
        chosen = [
            self._find_second(example) or row[0]
            for example, row in zip(examples, texts, strict=True)
        ]
        encoded = self.encode(chosen)
        return {f"{key}_2": encoded[key] for key in ("input_ids", "attention_mask", "word_ids")}

    def _find_second(self, example: Mapping[str, Any]) -> str:
        clean = self._clean if self.options.clean else str
        if self.options.second in _SECTIONS:
            report = clean(example.get("text") or "")
            return self._sections(example, report).get(self.options.second, "")
        image, study = example.get("image_id") or "", example.get("study_id") or ""
        return clean(second_text(self._second, image_id=image, study_id=study))

    def require_second(self, source: Examples) -> None:
        """Reads the ids of a split once, to stop a training whose second texts are of other examples.

        Raises:
            UserError: no example has one.
        """
        if not self._second:
            return
        table = columns(source, ("image_id", "study_id"))
        ids = [i for pair in zip(*table.values(), strict=True) for i in pair if i]
        if not any(i in self._second for i in ids):
            raise UserError(
                f"data.text.second={self.options.second}: none of its ids is an image_id or study_id of "
                f"{source.name}; it has {next(iter(self._second))!r}, the dataset {ids[:2]}"
            )

    def _tokenise(self, texts: Sequence[str]) -> dict[str, tuple[np.ndarray, int]]:
        """Text -> ids, words (and sentences) of its pieces, int32 [2 or 3, length], and its id."""
        length = self.options.max_length
        pieces = text_lib.encode_pieces(self.tokenizer, texts, length)
        if self.options.sentence_ids:
            sentences = sentence_ids(self.tokenizer, texts, length)
            pieces = [
                np.concatenate([piece, row[None, : piece.shape[1]]])
                for piece, row in zip(pieces, sentences, strict=True)
            ]
        return {t: (piece, text_id(t)) for t, piece in zip(texts, pieces, strict=True)}

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokens of B texts, int32 [B, L], and `text_id` int32 [B]."""
        missing = list(dict.fromkeys(t for t in texts if t not in self._cache))
        fresh = self._tokenise(missing) if missing else {}
        if len(self._cache) < _CACHED_TEXTS:
            self._cache.update(fresh)
        shape = (len(texts), self.options.max_length)
        batch = {
            "input_ids": np.full(shape, self.tokenizer.pad_token_id, np.int32),
            "attention_mask": np.zeros(shape, np.int32),
            "word_ids": np.full(shape, -1, np.int32),
            "text_id": np.zeros(len(texts), np.int32),
        }
        if self.options.sentence_ids:
            batch["sentence_ids"] = np.full(shape, -1, np.int32)
        for row, text in enumerate(texts):
            piece, identity = fresh.get(text) or self._cache[text]
            width = piece.shape[1]
            batch["input_ids"][row, :width] = piece[0]
            batch["word_ids"][row, :width] = piece[1]
            batch["attention_mask"][row, :width] = 1
            batch["text_id"][row] = identity
            if self.options.sentence_ids:
                batch["sentence_ids"][row, :width] = piece[2]
        return batch


def text_id(text: str) -> int:
    """Id of a text: equal up to case, punctuation and blanks, equal ids."""
    return text_lib.stable_id(text_lib.normalise_for_id(text))
