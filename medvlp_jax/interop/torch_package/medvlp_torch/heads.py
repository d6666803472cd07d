"""Projections to the shared space."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Mlp


class LinearHead(nn.Module):
    """One linear layer."""

    def __init__(self, width: int, config: dict[str, Any]):
        super().__init__()
        self.fc = nn.Linear(width, config["features"], bias=config["use_bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D] to [B, features]."""
        return self.fc(x)


class MlpHead(Mlp):
    """Linear, activation, linear (ConVIRT)."""

    def __init__(self, width: int, config: dict[str, Any]):
        hidden, bias = config["hidden"] or width, config["use_bias"]
        super().__init__(width, hidden, config["features"], config["activation"], bias=bias)


class BatchNormHead(nn.Module):
    """Linear, BatchNorm, ReLU, linear, BatchNorm without affine (MGCA)."""

    def __init__(self, width: int, config: dict[str, Any]):
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(width, config["hidden"]), nn.BatchNorm1d(config["hidden"])
        self.fc2 = nn.Linear(config["hidden"], config["features"])
        self.norm2 = nn.BatchNorm1d(config["features"], affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D] to [B, features]."""
        return self.norm2(self.fc2(F.relu(self.norm1(self.fc1(x)))))


class BiovilImageHead(nn.Module):
    """1x1 convolution, BatchNorm, ReLU, 1x1 convolution (BioViL)."""

    def __init__(self, width: int, config: dict[str, Any]):
        super().__init__()
        features = config["features"]
        self.fc1 = nn.Conv2d(width, features, 1, bias=False)
        self.norm = nn.BatchNorm2d(features)
        self.fc2 = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D] or [B, N, D] to `features`."""
        y = x.reshape(x.shape[0], -1, x.shape[-1], 1).transpose(1, 2)
        y = self.fc2(F.relu(self.norm(self.fc1(y))))
        return y.transpose(1, 2).reshape(*x.shape[:-1], -1)


class BiovilTextHead(nn.Module):
    """Linear, GELU, LayerNorm, linear (CXR-BERT)."""

    def __init__(self, width: int, config: dict[str, Any]):
        super().__init__()
        features = config["features"]
        self.fc1, self.fc2 = nn.Linear(width, features), nn.Linear(features, features)
        self.norm = nn.LayerNorm(features, 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., D] to [..., features]."""
        return self.fc2(self.norm(F.gelu(self.fc1(x))))
