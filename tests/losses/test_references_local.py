"""Without these, a local loss could be plausible and still not be the one the released systems train with.

Values at 1e-4, gradients at 1e-3, against arrays recorded from the systems' own code.
"""

from __future__ import annotations

import json

import numpy as np

from medvlp_jax.losses import info_nce, local_intra_sample, nt_xent, word_region
from medvlp_jax.models.pooling import merge_word_pieces
from tests.losses.test_references import check, close, load, unit


def test_gloria_global(reference_dir) -> None:
    d = load(reference_dir, "gloria_global_loss")

    def loss(image, text):  # the code adds the two directions
        return 2 * info_nce.info_nce(unit(image), unit(text), 10.0)

    check(
        loss,
        {**d, "loss": d["loss0"] + d["loss1"]},
        "cnn_code rnn_code",
        "loss",
        "grad_cnn grad_rnn",
    )


def gloria_scores(d, image, words, tile=None):
    """The recorded arrays are [B,D,H,W] and [B,D,L]."""
    regions = image.reshape(*image.shape[:2], -1).swapaxes(1, 2)
    mask = np.arange(words.shape[2]) < d["cap_lens"][:, None]
    scores = word_region.word_region_scores(
        regions, words.swapaxes(1, 2), mask, variant="released", tile=tile
    )
    return word_region.word_region(scores, mask)


def test_gloria_local(reference_dir) -> None:
    d = load(reference_dir, "gloria_local_loss")
    close(gloria_scores(d, d["img_features"], d["words_emb"]), [d["loss0"], d["loss1"]])
    d["loss"] = d["loss0"] + d["loss1"]
    for tile in (None, 3):

        def loss(image, words, tile=tile):
            return sum(gloria_scores(d, image, words, tile))

        check(loss, d, "img_features words_emb", "loss", "grad_img grad_words")


def test_gloria_attention(reference_dir) -> None:
    d = load(reference_dir, "gloria_local_loss")
    for row in (0, 3):
        words = d["words_emb"][row, :, : d["cap_lens"][row]].T
        regions = d["img_features"][row].reshape(16, -1).T
        weights = word_region.attention_weights(words, regions, scale=4.0, queries_first=True)
        close(weights.reshape(-1, 5, 5), d[f"att_map{row}"][0])


def test_gloria_merges_word_pieces(reference_dir) -> None:
    """The code keeps [CLS] before the words and [SEP] behind them; ours are the words in between."""
    d = load(reference_dir, "gloria_aggregate_tokens")
    names = json.loads(str(d["_meta"]))["vocab"]
    for row, ids in enumerate(d["ids"]):
        pieces = [names[str(i)] for i in ids]
        words, word = [], -1
        for piece in pieces:
            word += not (piece.startswith("##") or piece[0] == "[")
            words.append(-1 if piece[0] == "[" else word)
        count = word + 1
        for layer, states in enumerate(d["embeddings"][row]):
            merged, mask = merge_word_pieces(states[None], np.array([words]))
            np.testing.assert_array_equal(mask[0], np.arange(8) < count)
            close(merged[0, :count], d["out"][row, layer, 1 : count + 1])
            assert count + 1 == d["cap_lens"][row]


def test_lovt_global(reference_dir) -> None:
    d = load(reference_dir, "lovt_global_nce")
    for same, names in ((False, ("loss_1to2", "loss_2to1")), (True, None)):
        got = nt_xent.nt_xent(unit(d["zg_1"]), unit(d["zg_2"]), same_modality=same)
        names = names or ("loss_1to2_same_mod", "loss_2to1_same_mod")
        close(got, [d[name] for name in names])

    def loss(one, two):
        return info_nce.info_nce(unit(one), unit(two), 1 / 0.1, image_to_text_weight=0.75)

    d["loss"] = 0.75 * d["loss_1to2"] + 0.25 * d["loss_2to1"]
    check(loss, d, "zg_1 zg_2", "loss", "grad1 grad2")


def test_lovt_regions(reference_dir) -> None:
    d = load(reference_dir, "lovt_local")
    positives = local_intra_sample.spatial_positives(3, 3)
    close(positives, d["pos_weights"].reshape(9, 9))

    def both(scan):
        return local_intra_sample.local_intra_sample(
            scan, d["scan_b"], positives=positives, weights=d["scan_w"]
        )

    close(both(d["scan_a"]), [d["scan_ab"], d["scan_ba"]])
    d["loss"] = d["scan_ab"] + d["scan_ba"]
    check(lambda scan: sum(both(scan)), d, "scan_a", "loss", "grad_scan_a")


def test_lovt_sentences(reference_dir) -> None:
    d = load(reference_dir, "lovt_local")

    def both(sentences):
        return local_intra_sample.local_intra_sample(
            sentences, d["sent_b"], mask=d["sent_mask"], weights=d["sent_w"]
        )

    close(both(d["sent_a"]), [d["sent_ab"], d["sent_ba"]])
    d["loss"] = d["sent_ab"] + d["sent_ba"]
    check(lambda sentences: sum(both(sentences)), d, "sent_a", "loss", "grad_sent_a")
