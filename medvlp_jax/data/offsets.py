"""Where sentences and words of a text are, in characters and in tokens (for sentence-level objectives)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medvlp_jax.data.reports import split_sentences
from medvlp_jax.data.text import Tokenizer


class TextOffsets(NamedTuple):
    """Places in a text, counted in characters: `text[start:end]`.

    Attributes:
        sentences: int32 [S, 2], in the order of `split_sentences`.
        words: int32 [W, 2]; row w is the word that `text.encode` calls w in `word_ids`.
        word_sentence: int32 [W], the sentence of each word.
    """

    sentences: np.ndarray
    words: np.ndarray
    word_sentence: np.ndarray


def sentence_offsets(text: str) -> np.ndarray:
    """Start and end of the sentences of `split_sentences`, int32 [S, 2], in characters of `text`."""
    spans = []
    position = 0
    for sentence in split_sentences(text):
        # Sentences hold the words of the text with single blanks between them.
        words = sentence.split()
        start, end = -1, -1
        while end < 0:
            start = text.index(words[0], max(position, start + 1))
            end = _match(text, words, start)
        spans.append((start, end))
        position = end
    return np.array(spans, np.int32).reshape(-1, 2)


def _match(text: str, words: Sequence[str], start: int) -> int:
    """End of the words, with any white space between them, at `start`; -1 if they are not there."""
    for word in words:
        while text[start : start + 1].isspace():
            start += 1
        if not text.startswith(word, start):
            return -1
        start += len(word)
    return start


def text_offsets(tokenizer: Tokenizer, text: str) -> TextOffsets:
    """Sentences and words of a text in characters.

    Args:
        tokenizer: whose words count.
        text: exactly the string that is encoded; not truncated here.
    """
    sentences = sentence_offsets(text)
    encoding = tokenizer.backend.encode(text)
    spans: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        if word is not None:
            first, last = spans.get(word, (start, end))
            spans[word] = (min(first, start), max(last, end))
    words = np.array([_strip(text, *spans[w]) for w in sorted(spans)], np.int32).reshape(-1, 2)
    return TextOffsets(sentences, words, _sentence_of(sentences, words[:, 0]))


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """Byte-level tokenizers count the blank before a word as part of it."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end


def _sentence_of(sentences: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sentence index of places, int32 [n]: the first sentence that ends behind the place.

    So what belongs to no sentence (list numbers) counts to the next one, and to the last one at the end;
    a text without a sentence is one.
    """
    index = np.searchsorted(sentences[:, 1], starts, side="right")
    return np.minimum(index, max(len(sentences) - 1, 0)).astype(np.int32)


def sentence_ids(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> np.ndarray:
    """Sentence of each token, aligned with `text.encode` and `text.encode_pieces`.

    Args:
        tokenizer: the one that encodes.
        texts: B strings, exactly those that are encoded.
        max_length: L, as there.

    Returns:
        int32 [B, L], 0 for the first sentence and so on; -1 for special tokens and padding.
    """
    _, suffix = tokenizer.affix_lengths
    ids = np.full((len(texts), max_length), -1, np.int32)
    encodings = tokenizer.backend.encode_batch(list(texts))
    for row, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        starts = np.array([start for start, _ in encoding.offsets], np.int32)
        found = _sentence_of(sentence_offsets(text), starts)
        found[[word is None for word in encoding.word_ids]] = -1
        if len(found) > max_length:
            # As in encode_pieces: the text loses its end, the closing token stays.
            found = np.concatenate([found[: max_length - suffix], found[len(found) - suffix :]])
        ids[row, : len(found)] = found
    return ids
