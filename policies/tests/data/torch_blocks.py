"""Reference numbers for `encoders/resnet.rs`, `encoders/pool.rs` and `nn/transformer.rs`.

    python torch_blocks.py > torch_blocks.json        (torch 2.11.0, torchvision 0.26.0)

Weights and inputs are a formula of (name, index), so nothing but the results is stored.
"""

import json
import math

import torch
import torchvision
from torch import nn


def wave(name, shape, scale):
    """`scale * sin(0.7 i + n)` for the i-th number, n = the sum of the name's bytes modulo 97."""
    n = sum(name.encode()) % 97
    count = math.prod(shape)
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + n) * scale
    return values.to(torch.float32).reshape(shape)


def fill(module, rename=lambda name: name):
    with torch.no_grad():
        for name, p in module.named_parameters():
            name = rename(name)
            if p.dim() == 1:
                one = name.endswith("weight")
                p.copy_(wave(name, p.shape, 0.1) + (1.0 if one else 0.0))
            else:
                p.copy_(wave(name, p.shape, math.sqrt(2.0 / math.prod(p.shape[1:]))))


def digest(x):
    """Sum, sum of squares and eight numbers spread over the flattened tensor."""
    flat = x.detach().flatten().to(torch.float64)
    step = max(1, flat.numel() // 8)
    return {
        "shape": list(x.shape),
        "sum": flat.sum().item(),
        "squares": (flat * flat).sum().item(),
        "some": flat[::step][:8].tolist(),
    }


def resnet():
    """diffusion_policy: torchvision's resnet18, fc = Identity, BatchNorm -> GroupNorm(C / 16)."""
    net = torchvision.models.resnet18(weights=None)
    net.fc = nn.Identity()
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent = net.get_submodule(name.rpartition(".")[0])
            c = module.num_features
            setattr(parent, name.rpartition(".")[2], nn.GroupNorm(c // 16, c))
    fill(net)
    images = wave("images", (2, 3, 84, 96), 0.5) + 0.5
    return digest(net(images * 2 - 1))


class SpatialSoftmax(nn.Module):
    """robomimic's and lerobot's: a 1x1 convolution, softmax over places, expected (x, y)."""

    def __init__(self, channels, h, w, keypoints):
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1, bias=False)
        y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        self.grid = torch.stack([x.flatten(), y.flatten()], 1)

    def forward(self, maps):
        scores = self.nets(maps).flatten(2)
        return scores.softmax(-1) @ self.grid


def spatial_softmax():
    module = SpatialSoftmax(6, 3, 5, 4)
    fill(module, lambda name: "keypoints.weight")
    out = nn.Linear(8, 8)
    fill(out, lambda name: "out." + name)
    with torch.no_grad():
        # A plain bias, not one around 1.
        out.bias.copy_(wave("out.bias", (8,), 0.1))
    points = module(wave("maps", (2, 6, 3, 5), 3.0))
    return digest(out(points.flatten(1)).relu())


NAMES = {"self_attn": "self_attention", "multihead_attn": "cross_attention"}


def fill_layer(layer, norms):
    """The packed projections of PyTorch filled from our names; the key's bias is zero, as a softmax does not see it."""
    with torch.no_grad():
        for theirs, ours in norms.items():
            norm = getattr(layer, theirs)
            norm.weight.copy_(wave(ours + ".weight", norm.weight.shape, 0.1) + 1.0)
            norm.bias.copy_(wave(ours + ".bias", norm.bias.shape, 0.1))
        for theirs, ours in (("linear1", "feed_forward.up"), ("linear2", "feed_forward.down")):
            linear = getattr(layer, theirs)
            shape = linear.weight.shape
            linear.weight.copy_(wave(ours + ".weight", shape, math.sqrt(2.0 / shape[1])))
            linear.bias.copy_(wave(ours + ".bias", linear.bias.shape, 0.1))
        for theirs in ("self_attn", "multihead_attn"):
            attention = getattr(layer, theirs, None)
            if attention is None:
                continue
            ours = NAMES[theirs] if hasattr(layer, "multihead_attn") else "attention"
            w = attention.embed_dim
            scale = math.sqrt(2.0 / w)
            parts = [wave(f"{ours}.{p}.weight", (w, w), scale) for p in ("query", "key", "value")]
            attention.in_proj_weight.copy_(torch.cat(parts))
            bias = [wave(f"{ours}.query.bias", (w,), 0.1), torch.zeros(w)]
            attention.in_proj_bias.copy_(torch.cat([*bias, wave(f"{ours}.value.bias", (w,), 0.1)]))
            attention.out_proj.weight.copy_(wave(f"{ours}.out.weight", (w, w), scale))
            attention.out_proj.bias.copy_(wave(f"{ours}.out.bias", (w,), 0.1))


def transformer(norm_first):
    kwargs = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, **kwargs)
    fill_layer(encoder, {"norm1": "attention_norm", "norm2": "feed_forward_norm"})
    decoder = nn.TransformerDecoderLayer(8, 2, 16, **kwargs)
    norms = {"norm1": "self_norm", "norm2": "cross_norm", "norm3": "feed_forward_norm"}
    fill_layer(decoder, norms)
    memory = encoder(wave("memory", (2, 5, 8), 1.0))
    return digest(decoder(wave("x", (2, 3, 8), 1.0), memory))


print(
    json.dumps(
        {
            "resnet18": resnet(),
            "spatial_softmax": spatial_softmax(),
            "transformer_norm_first": transformer(True),
            "transformer_norm_last": transformer(False),
        },
        indent=1,
    )
)
