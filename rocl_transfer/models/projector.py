"""The head that pre-training learns its similarity on, and that is kept apart afterwards."""

from torch import nn


def projector(num_features: int, hidden: int = 2048, dimensions: int = 128) -> nn.Sequential:
    """RoCL's projector: features (N, ``num_features``) -> (N, ``dimensions``), two linear layers, no BatchNorm (official code)."""
    return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dimensions))
