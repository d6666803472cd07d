"""Without it BioViL's projections could read the released weights and compute something else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from medvlp_jax.interop import keys, pretrained
from medvlp_jax.models import biovil

torch = pytest.importorskip("torch")


def released_image_projector(width: int, features: int):
    """The layers of hi-ml's MLP with 1x1 convolutions."""
    module = torch.nn.Module()
    module.model = torch.nn.Sequential(
        torch.nn.Conv2d(width, features, 1, bias=False),
        torch.nn.BatchNorm2d(features),
        torch.nn.ReLU(),
        torch.nn.Conv2d(features, features, 1),
    )
    torch.nn.init.uniform_(module.model[1].running_var, 0.5, 2.0)
    torch.nn.init.normal_(module.model[1].running_mean)
    torch.nn.init.normal_(module.model[1].weight)
    torch.nn.init.normal_(module.model[1].bias)
    return module.eval()


def released_text_head(width: int, features: int):
    """The layers of CXR-BERT-specialized's head."""
    module = torch.nn.Module()
    module.dense_to_hidden = torch.nn.Linear(width, features)
    module.LayerNorm = torch.nn.LayerNorm(features, eps=1e-12)
    module.dense_to_output = torch.nn.Linear(features, features)
    torch.nn.init.normal_(module.LayerNorm.weight)
    torch.nn.init.normal_(module.LayerNorm.bias)
    return module.eval()


def load(head, x, module, prefix: str, tmp_path):
    """Our variables from a file that also holds another part, as the released ones do."""
    tensors = {prefix + k: v.numpy() for k, v in module.state_dict().items()}
    file = tmp_path / "released.safetensors"
    save_file({**tensors, "encoder.conv1.weight": np.zeros((2, 2), np.float32)}, file)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), x))
    return pretrained.load(head, dict(shapes), str(file))


def test_image_projector_reads_released_weights(tmp_path) -> None:
    torch.manual_seed(0)
    theirs = released_image_projector(24, 8)
    grid = np.random.default_rng(0).normal(size=(2, 3, 3, 24)).astype(np.float32)
    tokens = grid.reshape(2, 9, 24)
    head = biovil.ImageProjection(8)
    loaded = load(head, tokens, theirs, "projector.", tmp_path)
    assert (loaded.naming, loaded.prefix) == ("projector of BioViL's image model", "projector.")
    assert not loaded.random
    with torch.inference_mode():
        expected = theirs.model(torch.from_numpy(grid.transpose(0, 3, 1, 2).copy())).numpy()
    ours = head.apply(loaded.variables, tokens)
    np.testing.assert_allclose(
        ours, expected.transpose(0, 2, 3, 1).reshape(2, 9, 8), atol=1e-5, rtol=1e-5
    )
    np.testing.assert_allclose(head.apply(loaded.variables, tokens[:, 0]), ours[:, 0], atol=1e-6)


def test_text_head_reads_released_weights(tmp_path) -> None:
    torch.manual_seed(1)
    theirs = released_text_head(24, 8)
    x = np.random.default_rng(1).normal(size=(3, 24)).astype(np.float32)
    head = biovil.TextProjection(8)
    loaded = load(head, x, theirs, "cls_projection_head.", tmp_path)
    assert loaded.naming == "projection head of CXR-BERT-specialized"
    assert not loaded.random
    with torch.inference_mode():
        hidden = torch.nn.functional.gelu(theirs.dense_to_hidden(torch.from_numpy(x)))
        expected = theirs.dense_to_output(theirs.LayerNorm(hidden)).numpy()
    np.testing.assert_allclose(head.apply(loaded.variables, x), expected, atol=1e-5, rtol=1e-5)


def test_published_sizes() -> None:
    # BioViL-T: image states of 512 features, CXR-BERT of 768, 128 shared.
    count = {}
    for name, head, width in (
        ("image", biovil.ImageProjection(), 512),
        ("text", biovil.TextProjection(), 768),
    ):
        shapes = jax.eval_shape(lambda h=head, w=width: h.init(jax.random.key(0), jnp.ones((1, w))))
        count[name] = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert count == {"image": 512 * 128 + 2 * 128 + 128**2 + 128, "text": 115_200}


def test_reference_of_the_released_projector(reference_dir) -> None:
    """Training and running statistics, and the global embedding: the mean of the projected patches."""
    d = np.load(reference_dir / "biovil_projector.npz")
    tensors = {k.removeprefix("w."): d[k] for k in d.files if k.startswith("w.model")}
    grid = d["x"].transpose(0, 2, 3, 1)
    tokens = grid.reshape(2, 9, -1)
    head = biovil.ImageProjection(4)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), tokens))
    read = {
        name: keys.from_torch(
            {k: v for k, v in tensors.items() if not k.endswith("tracked")},
            tree,
            biovil.SOURCES["projector of BioViL's image model"],
            ignore=[".*"],
        )
        for name, tree in shapes.items()
    }

    def as_tokens(out):
        return out.transpose(0, 2, 3, 1).reshape(2, 9, 4)

    trained, updated = head.apply(read, tokens, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(trained, as_tokens(d["out_train"]), atol=1e-5)
    after = head.apply({**read, **updated}, tokens)
    np.testing.assert_allclose(after, as_tokens(d["out_eval_after"]), atol=1e-5)
    np.testing.assert_allclose(np.mean(after, axis=1), d["global_eval"], atol=1e-5)
