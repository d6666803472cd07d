"""Tokenizers, and the one import for everything about text (report handling is in `reports.py`).

Tokenizers are used through the `tokenizers` library, which needs neither PyTorch nor transformers;
`save_pretrained` writes the files that `transformers.AutoTokenizer` reads.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import heapq
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from medvlp_jax.data.reports import (
    clean_text,
    normalise_for_id,
    split_sections,
    split_sentences,
    stable_id,
)
from medvlp_jax.errors import UserError

__all__ = [
    "Tokenizer",
    "clean_text",
    "encode",
    "load_tokenizer",
    "normalise_for_id",
    "split_sections",
    "split_sentences",
    "stable_id",
    "train_wordpiece",
    "vocab_size",
]

BERT_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_SPECIAL = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
# Names of other families for the same role, tried in this order.
_ROLE_FALLBACK = {
    "cls_token": ("bos_token",),
    "sep_token": ("eos_token",),
    "pad_token": ("eos_token",),
}
_BERT_LIKE_LIMIT = 1_000


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A fast tokenizer with the names of its special tokens.

    Attributes:
        backend: the `tokenizers.Tokenizer`; never truncates or pads by itself.
        special: role (`"pad_token"`, `"mask_token"` ...) -> token; roles it lacks are absent.
        name: where it came from, for messages.
    """

    backend: tokenizers.Tokenizer
    special: dict[str, str]
    name: str

    def __len__(self) -> int:
        """Size of the vocabulary including added tokens: the embedding table needs this many rows."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def token_id(self, role: str) -> int | None:
        """Id of a special token by role, or None when the tokenizer has none."""
        token = self.special.get(role)
        return None if token is None else self.backend.token_to_id(token)

    def _required(self, role: str) -> int:
        found = self.token_id(role)
        if found is None:
            raise UserError(
                f"tokenizer {self.name} has no {role}; masked language modelling and fusion need a "
                "BERT-style tokenizer (pad, cls, sep and mask tokens)"
            )
        return found

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token; 0 when the tokenizer has none (padding is masked anyway)."""
        return self.token_id("pad_token") or 0

    @property
    def cls_token_id(self) -> int:
        """Id of the token that opens a sequence."""
        return self._required("cls_token")

    @property
    def sep_token_id(self) -> int:
        """Id of the token that closes a sequence."""
        return self._required("sep_token")

    @property
    def mask_token_id(self) -> int:
        """Id of the token that hides a piece in masked language modelling."""
        return self._required("mask_token")

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, sorted: never masked, never predicted."""
        ids = {self.backend.token_to_id(token) for token in self.special.values()}
        return tuple(sorted(i for i in ids if i is not None))

    @functools.cached_property
    def affix_lengths(self) -> tuple[int, int]:
        """Number of special tokens before and after the text."""
        mask = self.backend.encode("a").special_tokens_mask
        first = next((i for i, special in enumerate(mask) if not special), len(mask))
        last = next((i for i, special in enumerate(reversed(mask)) if not special), 0)
        return first, last

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Pieces of token ids, special tokens included."""
        return [self.backend.id_to_token(int(i)) or "" for i in ids]

    def save_pretrained(self, folder: str | os.PathLike[str], max_length: int = 512) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, as `AutoTokenizer` reads them.

        Args:
            folder: created if missing.
            max_length: recorded as the model's maximum, special tokens included.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            **self.special,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def vocab_size(tokenizer: Tokenizer) -> int:
    """Rows an embedding table needs for this tokenizer."""
    return len(tokenizer)


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> dict[str, np.ndarray]:
    """Tokenises, truncates and pads a batch of texts.

    Args:
        tokenizer: from `load_tokenizer` or `train_wordpiece`.
        texts: B strings.
        max_length: L; longer texts lose their end but keep the closing special token.

    Returns:
        `input_ids`, `attention_mask`, `word_ids`, each int32 [B, L]. `word_ids` is the index of the
        word a piece belongs to, -1 for special tokens and padding.
    """
    shape = (len(texts), max_length)
    input_ids = np.full(shape, tokenizer.pad_token_id, np.int32)
    attention_mask = np.zeros(shape, np.int32)
    word_ids = np.full(shape, -1, np.int32)
    for row, pieces in enumerate(encode_pieces(tokenizer, texts, max_length)):
        length = pieces.shape[1]
        input_ids[row, :length] = pieces[0]
        attention_mask[row, :length] = 1
        word_ids[row, :length] = pieces[1]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "word_ids": word_ids}


def encode_pieces(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    """Token ids and word indices of each text, not padded: int32 [2, length] each, length <= L."""
    _, suffix = tokenizer.affix_lengths
    results = []
    for encoding in tokenizer.backend.encode_batch(list(texts)):
        ids = encoding.ids
        words = [-1 if w is None else w for w in encoding.word_ids]
        if len(ids) > max_length:
            # Not the backend's truncation: that is a setting shared by all threads of the process.
            keep = max_length - suffix
            ids = ids[:keep] + ids[len(ids) - suffix :]
            words = words[:keep] + words[len(words) - suffix :]
        results.append(np.array([ids, words], np.int32))
    return results


def load_tokenizer(source: str | os.PathLike[str]) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        source: a folder with `tokenizer.json`, `vocab.txt` or `vocab.json` + `merges.txt`; one
            `vocab.txt` or `tokenizer.json` file; or the name of a Hugging Face model.

    Raises:
        UserError: nothing there, or not a tokenizer.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _load_json(path, {}) if path.suffix == ".json" else _load_vocab(path, {})
    name = str(source)
    if path.suffix in (".txt", ".json") or name.startswith((".", "/")) or name.count("/") > 1:
        raise UserError(
            f"tokenizer file {source} does not exist: give a vocab.txt, a folder with tokenizer.json, "
            "or the name of a Hugging Face model such as bert-base-uncased"
        )
    return _load_from_hub(name)


def _load_folder(folder: pathlib.Path) -> Tokenizer:
    """Tokenizer of a Hugging Face folder, by the files it holds."""
    config: dict[str, Any] = {}
    for file_name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / file_name
        if file.is_file():
            config.update({k: v for k, v in _read_json(file).items() if v is not None})
    if (folder / "tokenizer.json").is_file():
        return _load_json(folder / "tokenizer.json", config)
    if (folder / "vocab.txt").is_file():
        return _load_vocab(folder / "vocab.txt", config)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _load_byte_bpe(folder, config)
    found = ", ".join(sorted(f.name for f in folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"folder {folder} holds no tokenizer (found {found}); expected tokenizer.json, vocab.txt, or "
        "vocab.json with merges.txt"
    )


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON ({error}); download it again") from error


def _load_json(file: pathlib.Path, config: dict[str, Any]) -> Tokenizer:
    """Tokenizer of a `tokenizer.json`; special tokens from the config or by their usual names."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{file} is not a tokenizer.json ({error}); download it again") from error
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, _special_tokens(backend, config), str(file.parent))


def _special_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> dict[str, str]:
    """Special token per role that exists in the vocabulary."""
    special = {}
    for role in BERT_SPECIAL:
        candidates = [config.get(role), BERT_SPECIAL[role], ROBERTA_SPECIAL[role]]
        candidates += [config.get(other) for other in _ROLE_FALLBACK.get(role, ())]
        for candidate in candidates:
            token = candidate.get("content") if isinstance(candidate, dict) else candidate
            if isinstance(token, str) and backend.token_to_id(token) is not None:
                special[role] = token
                break
    return special


def _load_vocab(file: pathlib.Path, config: dict[str, Any]) -> Tokenizer:
    """BERT WordPiece tokenizer of a `vocab.txt`, one piece per line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not a text file ({error}): expected one piece per line"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    vocab = {piece: i for i, piece in enumerate(lines)}
    missing = [token for token in BERT_SPECIAL.values() if token not in vocab]
    if missing:
        raise UserError(
            f"{file} is not a BERT vocabulary: it lacks {', '.join(missing)} (expected one WordPiece "
            "per line, special tokens included)"
        )
    if "do_lower_case" in config:
        lowercase = bool(config["do_lower_case"])
    else:
        # vocab.txt does not say; a cased vocabulary has pieces with capitals.
        lowercase = not any(p != p.lower() for p in lines if not p.startswith("["))
    return Tokenizer(_wordpiece_backend(vocab, lowercase), dict(BERT_SPECIAL), str(file))


def _wordpiece_backend(vocab: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """Normaliser, word splitter, WordPiece and [CLS] ... [SEP], as in BERT."""
    backend = tokenizers.Tokenizer(
        models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(BERT_SPECIAL.values()))
    return backend


def _load_byte_bpe(folder: pathlib.Path, config: dict[str, Any]) -> Tokenizer:
    """RoBERTa's byte-level BPE from `vocab.json` and `merges.txt`."""
    backend = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    special = _special_tokens(backend, config)
    if {"cls_token", "sep_token"} - set(special):
        raise UserError(
            f"{folder}/vocab.json has no <s> and </s> tokens: only RoBERTa-style byte-level BPE is "
            "read from vocab.json; save the tokenizer as tokenizer.json instead"
        )
    add_prefix = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix)
    cls, sep = special["cls_token"], special["sep_token"]
    # RobertaProcessing renamed its arguments between releases; the template is the same thing.
    backend.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, sep, "$B", sep],
        special_tokens=[(cls, backend.token_to_id(cls)), (sep, backend.token_to_id(sep))],
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(sorted(set(special.values())))
    return Tokenizer(backend, special, str(folder))


def _load_from_hub(name: str) -> Tokenizer:
    """Tokenizer of a Hugging Face model; the files come from the local cache or the hub."""
    import huggingface_hub  # only needed for names that are not on the disk

    try:
        folder = huggingface_hub.snapshot_download(
            name,
            allow_patterns=[
                "tokenizer.json",
                "vocab.txt",
                "vocab.json",
                "merges.txt",
                "tokenizer_config.json",
                "special_tokens_map.json",
            ],
        )
    except Exception as error:  # many kinds: offline, not found, gated, invalid name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"tokenizer {name!r} is neither a file or folder here nor available from the Hugging "
            f"Face hub ({reason}); give the path of a vocab.txt or of a folder with tokenizer.json"
        ) from error
    return dataclasses.replace(_load_folder(pathlib.Path(folder)), name=name)


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """Trains a WordPiece vocabulary by merging the most frequent pair of pieces.

    The trainer of the `tokenizers` library gives another vocabulary in every run (its ties follow
    hash order); this one breaks ties by the pieces themselves, so equal texts in any order give equal
    vocabularies, and a checkpoint can be reproduced.

    Args:
        texts: the corpus; only word counts are kept in memory.
        vocab_size: V, special tokens included; smaller when the corpus is exhausted before.
        lowercase: BERT-uncased normalisation (also strips accents).

    Returns:
        A BERT-style tokenizer: specials first ([PAD] is 0), then characters, then merged pieces.

    Raises:
        UserError: no words in the texts, or `vocab_size` too small for the characters.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += 1
    if not counts:
        raise UserError("cannot train a tokenizer: the texts hold no words")
    words = sorted(w for w in counts if len(w) <= 100)
    alphabet = _alphabet(words, counts, limit=_BERT_LIKE_LIMIT)
    vocab = list(BERT_SPECIAL.values()) + alphabet
    if vocab_size < len(vocab):
        raise UserError(
            f"text.vocab_size={vocab_size} is too small: special tokens and characters of these "
            f"texts alone are {len(vocab)}; choose at least {2 * len(vocab)}"
        )
    known = set(alphabet)
    pieces = [[p for p in _characters(w) if p in known] for w in words]
    vocab += _merge_pairs(pieces, [counts[w] for w in words], vocab_size - len(vocab), set(vocab))
    index = {piece: i for i, piece in enumerate(vocab)}
    return Tokenizer(_wordpiece_backend(index, lowercase), dict(BERT_SPECIAL), "trained WordPiece")


def _characters(word: str) -> list[str]:
    return [word[0]] + ["##" + c for c in word[1:]]


def _alphabet(words: list[str], counts: collections.Counter[str], limit: int) -> list[str]:
    """Single-character pieces, the `limit` most frequent ones, sorted."""
    frequency: collections.Counter[str] = collections.Counter()
    for word in words:
        for piece in _characters(word):
            frequency[piece] += counts[word]
    return sorted(sorted(frequency, key=lambda p: (-frequency[p], p))[:limit])


def _merge_pairs(
    words: list[list[str]], counts: list[int], number: int, taken: set[str]
) -> list[str]:
    """Merges pairs of neighbouring pieces, most frequent first, until `number` new pieces exist.

    `words` is changed in place. A heap with outdated entries (checked on removal) keeps each merge
    proportional to the words it touches.
    """
    pair_count: collections.Counter[tuple[str, str]] = collections.Counter()
    where: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for i, pieces in enumerate(words):
        for pair in itertools.pairwise(pieces):
            pair_count[pair] += counts[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(heap)
    new: list[str] = []
    while heap and len(new) < number:
        negative, pair = heapq.heappop(heap)
        if -negative != pair_count[pair] or not negative:
            continue
        merged = pair[0] + pair[1].removeprefix("##")
        if merged not in taken:
            taken.add(merged)
            new.append(merged)
        changed: set[tuple[str, str]] = set()
        for i in where.pop(pair):
            before, words[i] = words[i], _merge(words[i], pair, merged)
            for old in itertools.pairwise(before):
                pair_count[old] -= counts[i]
                changed.add(old)
            for pair_now in zip(words[i], words[i][1:], strict=False):
                pair_count[pair_now] += counts[i]
                where[pair_now].add(i)
                changed.add(pair_now)
        for pair_now in changed:
            if pair_count[pair_now] > 0:
                heapq.heappush(heap, (-pair_count[pair_now], pair_now))
    return new


def _merge(pieces: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    """Replaces each occurrence of `pair` from left to right."""
    result, i = [], 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            result.append(merged)
            i += 2
        else:
            result.append(pieces[i])
            i += 1
    return result
