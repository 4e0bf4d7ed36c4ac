"""Which inputs of layers are multiplied by an orthogonal matrix while the model runs, and by which one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import attrs
import torch
from torch import Tensor, nn

from tico_config import RotationConfig
from tico_modules import Edit, RotatedInput
from tico_observers.products import product
from tico_quantizers.equivalence._rotatable import Rotatable
from tico_quantizers.equivalence._rotation_trace import StreamWays
from tico_quantizers.equivalence._rotations import Rotation
from tico_quantizers.layers import FloatLayer, shape
from tico_quantizers.solvers import orthogonal_factors


@attrs.frozen(eq=False, kw_only=True)
class OnlineRotation:
    """A rotation R = outer ⊗ inner of the input of one layer, with both factors in float64.

    QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 4; R4 in SpinQuant.
    """

    path: str
    layer: FloatLayer
    outer: Tensor
    inner: Tensor

    @classmethod
    def drawn(cls, path: str, layer: FloatLayer, config: RotationConfig) -> OnlineRotation:
        """Return a rotation that depends on `path`, the width and the seed of `config` alone."""
        seed = seed_of(config.seed, path, "input")
        outer, inner = orthogonal_factors(shape(layer)[1], matrix=config.matrix, seed=seed)
        return cls(path=path, layer=layer, outer=outer, inner=inner)

    def columns(self, weight: Tensor, channels: Tensor) -> Tensor:
        """Return W R for a float64 `weight` (rows, columns); `channels` are all of them, in order."""
        outer, inner = self.outer.to(weight.device), self.inner.to(weight.device)
        parts = product(weight.reshape(-1, len(inner)), inner).view(len(weight), len(outer), len(inner))
        across = product(parts.transpose(1, 2).reshape(-1, len(outer)), outer)
        return across.view(len(weight), len(inner), len(outer)).transpose(1, 2).reshape(weight.shape)

    def put(self, root: nn.Module, edit: Edit) -> nn.Module:
        """Put the rotation in front of the layer, and return the root, which it is of a lone layer."""
        weight = self.layer.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        outer, inner = (each.to(weight.device, dtype) for each in (self.outer, self.inner))
        new = RotatedInput(self.layer, outer, inner)
        new.train(self.layer.training)
        return edit.replace(root, self.layer, new)


def seed_of(seed: int, path: str, part: int | str) -> int:
    """Return the seed of a part of what is drawn for the module at `path`."""
    digest = hashlib.sha256(f"{seed}|{path}|{part}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def online_inputs(
    ways: StreamWays, rotatable: Rotatable, rotations: Iterable[Rotation]
) -> tuple[dict[str, FloatLayer], frozenset[str]]:
    """Return the layers whose input may be rotated online, by path, and those that no data reached.

    What they read is no norm and has none of the `rotations`, so that nothing else spreads its channels. One
    that no data reached is among them if its peers are, as experts of one layer.
    """
    turned = {each.name for rotation in rotations for each in rotation.members() if each.channels is not None}
    shown = ways.passages
    inside = {id(each.layer) for each in rotatable.modules.values() if isinstance(each, RotatedInput)}

    def is_free(path: str) -> bool:
        layer = rotatable.layer(path)
        return layer is not None and id(layer) not in inside and path not in turned | shown.also_read.keys()

    def reads_norm(path: str) -> bool:
        return any(rotatable.norm(each.source or "") is not None for each in shown.readings[path])

    reached = [path for path in shown.readings if is_free(path) and not reads_norm(path)]
    peers = {rotatable.peers[path] for path in reached if path in rotatable.peers}
    unread = (path for path in rotatable.layers if is_free(path) and not ways.is_used(path))
    adopted = frozenset(path for path in unread if rotatable.peers.get(path) in peers)
    layers = {path: layer for path in rotatable.layers if (layer := rotatable.layer(path)) is not None}
    return {path: each for path, each in layers.items() if path in {*reached, *adopted}}, adopted
