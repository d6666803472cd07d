"""Random weights for the PyTorch models of the parity tests, also in processes of their own."""

from __future__ import annotations

from typing import Any


def randomise(model: Any) -> Any:
    """Gives a torch model random values everywhere, so that biases and norms are tested too."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # A buffer that the file does not hold is a constant, e.g. Swin's attention mask.
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                noise = torch.randn(value.shape, generator=generator)
                if name.endswith("running_var"):
                    value.copy_(1 + 0.3 * noise.abs())
                elif value.ndim == 1:
                    value.copy_((1 if "weight" in name else 0) + 0.1 * noise)
                elif value.ndim > 1:
                    value.copy_(noise * (1.0 / value[0].numel()) ** 0.5)
    return model.eval()
