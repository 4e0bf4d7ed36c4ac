"""Modules of torch that need no quantization."""

from __future__ import annotations

from torch import nn

from tico_wrapq.base import register_pass_through

MOVES_VALUES = "it does not compute"

register_pass_through(
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Sequential,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Unfold,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
    nn.MaxUnpool1d,
    nn.MaxUnpool2d,
    nn.MaxUnpool3d,
    reason=MOVES_VALUES,
)
register_pass_through(
    *(
        kind
        for kind in vars(nn).values()
        if isinstance(kind, type) and issubclass(kind, nn.modules.loss._Loss | nn.CTCLoss)
    ),
    reason="it is a loss, which compares outputs with targets",
)
register_pass_through(
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    reason="it does nothing in evaluation mode",
)
