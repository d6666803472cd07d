"""Keys of batches and model outputs, and the shape letters used in every docstring.

Shape letters: B batch, N image tokens, L text length, H height, W width, C channels, D width, K classes,
V vocabulary, P patch size.

A `Batch` is a dict of arrays whose leading axis is the (global) batch:

==================  ===================  =======================================================
key                 shape, dtype         meaning
==================  ===================  =======================================================
image               [B,H,W,C] uint8|f32  pixels; uint8 on the host, normalised float32 on the device
input_ids           [B,L] int32          token ids
attention_mask      [B,L] int32          1 for real tokens
word_ids            [B,L] int32          word that a piece belongs to; -1 for special tokens and padding
label               [B,K] float32        finding of the image: 1 present, 0 absent, -1 uncertain
label_mask          [B,K] float32        1 where the label is known (uncertain is known), 0 where missing
text_label(_mask)   [B,K] float32        the same for the row's text (differs from `label` when unpaired)
subject_id          [B] int32            hash of the patient id
study_id            [B] int32            hash of the study id
text_id             [B] int32            hash of the normalised text: equal texts have equal ids
example_index       [B] int32            position in the split
example_mask        [B] float32          1 for real rows, 0 for rows that pad the last batch
image_2             as `image`           another random view of it, in training (`image.views=2`)
prior_image         [B,H,W,C]            image of the patient's study before, else zeros (`image.prior`)
prior_mask          [B] float32          1 where there is a prior image
image_present       [B,n] float32        1 where the row's study has an n-th image (`image.per_study=n`)
sentence_ids        [B,L] int32          sentence of each token, -1 where `word_ids` is (`text.sentence_ids`)
input_ids_2         [B,L] int32          the row's second text, in training, with `attention_mask_2` and
                                         `word_ids_2` (`text.second`)
text_present        [B,n] float32        1 where the row has an n-th text (`text.per_image=n`)
entity_positions    [B,P,K] int8         triplets of the text: 1 = entity K is at position P, 0 = it is not,
                                         -1 uncertain, -2 not mentioned (read by `entity_query`)
image_keep_ids      [B,Nk] int32         patches that stay visible (written by `MaskImage`)
image_restore_ids   [B,N] int32          argsort that restores the patch order (written by `MaskImage`)
image_mask          [B,N] float32        1 = patch removed (written by `MaskImage`)
mlm_labels          [B,L] int32          token to predict, -100 = no prediction (written by `MaskText`)
itm_label           [B] int32            1 = pair matches, 0 = not (written by `MismatchPairs`)
==================  ===================  =======================================================

With `data.image.per_study=n` > 1 `image` is [B,n,H,W,C] (zeros where there is none), with
`data.image.frames=D` it is [B,D,H,W,C]. With `data.text.per_image=n` > 1 `input_ids`, `attention_mask` and
`word_ids` of training are [B,n,L] and `text_id` is [B,n]; a text that is not there is that of "".

`Outputs` is what a model returns, again a dict:

=====================  ============  ==========================================================
key                    shape         meaning
=====================  ============  ==========================================================
image_pooled           [B,Di]        pooled output of the image encoder
image_tokens           [B,N,Di]      patch (or grid) tokens, without the class token
image_embed            [B,D]         projected, L2-normalised, float32
image_token_embed      [B,N,D]       projected patch tokens, not normalised
image_attention        [B,h,T,T]     last block's attention, when the encoder returns it
text_pooled            [B,Dt]        pooled output of the text encoder
text_tokens            [B,L,Dt]      token (or merged word) states
text_token_mask        [B,L]         1 where `text_tokens` holds a real token or word
text_embed             [B,D]         projected, L2-normalised, float32
text_token_embed       [B,L,D]       projected token states, not normalised
fused_image_tokens     [B,N+1,Df]    image stream after fusion, class token first
fused_text_tokens      [B,L,Df]      text stream after fusion
fused_image_layers     tuple         input of every fusion layer, then the output
fused_text_layers      tuple         input of every fusion layer, then the output
fused_pooled           [B,2*Df]      pooled text and image streams, concatenated
decoder_logits         [B,L,V]       scores of the next token, given the image and the tokens so far
=====================  ============  ==========================================================
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Batch = dict[str, Any]
Outputs = dict[str, Any]
Params = Any
Metrics = dict[str, Any]

PIXEL_KEYS = ("image", "image_2", "prior_image")
"""Keys of a batch that hold pixels."""

IGNORE_INDEX = -100
"""Value of `mlm_labels` where nothing is predicted (the convention of PyTorch's cross entropy)."""
