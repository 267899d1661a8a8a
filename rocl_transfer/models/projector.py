"""The heads that pre-training learns its similarity on, and that are kept apart afterwards."""

from torch import nn


def projector(num_features: int, hidden: int = 2048, dimensions: int = 128) -> nn.Sequential:
    """RoCL's projector: features (N, ``num_features``) -> (N, ``dimensions``), two linear layers, no BatchNorm (official code)."""
    return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dimensions))


def normalized_projector(num_features: int, hidden: int = 512, dimensions: int = 512) -> nn.Sequential:
    """ACL's projector: features (N, ``num_features``) -> (N, ``dimensions``), BatchNorm behind each of its three linear layers (official code)."""
    return nn.Sequential(
        nn.Linear(num_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, dimensions, bias=False), nn.BatchNorm1d(dimensions),
    )  # fmt: skip
