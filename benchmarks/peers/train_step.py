"""One training step in Python PyTorch: the same models, batch and optimiser as `trainers/examples/train_step.rs`.

Models are written here from the papers in the plainest PyTorch: modules, `torch.optim.AdamW` (its default, the foreach
implementation, and with `fused=True`), `clip_grad_norm_`, `zero_grad(set_to_none=True)`. A step is: noise, forward, backward,
clip, AdamW, EMA over all parameters.

    python train_step.py --model unet|vla --threads N --seconds S
"""

import argparse
import json
import math
import time

import torch
from torch import nn
from torch.nn import functional as F

B = 64


class Sinusoidal(nn.Module):
    def __init__(self, dim):
        super().__init__()
        half = dim // 2
        self.register_buffer("freq", torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1))))

    def forward(self, t):
        angles = t.float()[:, None] * self.freq[None]
        return torch.cat([angles.sin(), angles.cos()], -1)


def conv_block(inputs, outputs, kernel, groups=8):
    return nn.Sequential(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish())


class Residual(nn.Module):
    def __init__(self, inputs, outputs, cond, kernel=5):
        super().__init__()
        self.outputs = outputs
        self.first, self.second = conv_block(inputs, outputs, kernel), conv_block(outputs, outputs, kernel)
        self.cond = nn.Sequential(nn.Mish(), nn.Linear(cond, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, cond):
        scale, shift = self.cond(cond)[:, :, None].chunk(2, 1)
        return self.second(self.first(x) * scale + shift) + self.skip(x)


class Unet(nn.Module):
    """ConditionalUnet1D (Chi et al. 2023) with the low-dimensional preset: 65.8 M parameters."""

    def __init__(self, action=2, cond=40, dims=(256, 512, 1024), embed=256):
        super().__init__()
        self.embed = nn.Sequential(Sinusoidal(embed), nn.Linear(embed, 4 * embed), nn.Mish(), nn.Linear(4 * embed, embed))
        width = embed + cond
        ins = (action, *dims[:-1])
        pair = lambda i, o: nn.ModuleList([Residual(i, o, width), Residual(o, o, width)])
        self.down = nn.ModuleList(pair(i, o) for i, o in zip(ins, dims))
        self.shorten = nn.ModuleList(nn.Conv1d(d, d, 3, 2, 1) for d in dims[:-1])
        self.mid = pair(dims[-1], dims[-1])
        up = list(zip(reversed(dims[1:]), reversed(dims[:-1])))
        self.up = nn.ModuleList(pair(2 * i, o) for i, o in up)
        self.lengthen = nn.ModuleList(nn.ConvTranspose1d(o, o, 4, 2, 1) for _, o in up)
        self.last = nn.Sequential(conv_block(dims[0], dims[0], 5), nn.Conv1d(dims[0], action, 1))

    def forward(self, x, t, cond):
        cond = torch.cat([self.embed(t), cond], -1)
        x, skips = x.transpose(1, 2), []
        for i, pair in enumerate(self.down):
            for block in pair:
                x = block(x, cond)
            skips.append(x)
            if i < len(self.shorten):
                x = self.shorten[i](x)
        for block in self.mid:
            x = block(x, cond)
        for pair, double in zip(self.up, self.lengthen):
            x = torch.cat([x, skips.pop()], 1)
            for block in pair:
                x = block(x, cond)
            x = double(x)
        return self.last(x).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm self-attention and a feed-forward part of 4 x width."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=i != 1) for i in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        h = self.norm1(x)
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.q(h)), split(self.k(h)), split(self.v(h)))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def alphas_cumprod(n=100):
    bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = [min(1 - bar((i + 1) / n) / bar(i / n), 0.999) for i in range(n)]
    return torch.cumprod(1 - torch.tensor(betas), 0)


def unet():
    net, bar = Unet(), alphas_cumprod()
    actions, cond = torch.randn(B, 16, 2), torch.randn(B, 40)

    def loss():
        t, z = torch.randint(0, 100, (B,)), torch.randn_like(actions)
        a = bar[t].view(B, 1, 1)
        return (net(a.sqrt() * actions + (1 - a).sqrt() * z, t, cond) - z).square().mean(-1).mean()

    return net, loss


class CrossBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to a memory, feed-forward."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own = nn.ModuleList(nn.Linear(width, width, bias=i != 1) for i in range(4))
        self.other = nn.ModuleList(nn.Linear(width, width, bias=i != 1) for i in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, layers, x, memory):
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(layers[0](x)), split(layers[1](memory)), split(layers[2](memory)))
        return layers[3](y.transpose(1, 2).flatten(2))

    def forward(self, x, memory):
        h = self.norms[0](x)
        x = x + self.attend(self.own, h, h)
        x = x + self.attend(self.other, self.norms[1](x), memory)
        return x + self.fc2(F.gelu(self.fc1(self.norms[2](x))))


class Vla(nn.Module):
    """ViT (patch 12, 192, 6 blocks, mean over patches) and a state MLP; a readout token and 4 blocks of 256 over both;
    flow matching with a decoder of 4 blocks of 256."""

    def __init__(self, proprio=2, action=2, chunk=16):
        super().__init__()
        small = lambda *shape: nn.Parameter(0.02 * torch.randn(*shape))
        self.patches, self.positions = nn.Conv2d(3, 192, 12, 12), small(64, 192)
        self.vit, self.vit_norm = nn.ModuleList(Block(192, 3) for _ in range(6)), nn.LayerNorm(192)
        self.state = nn.Sequential(nn.Linear(proprio, 192), nn.SiLU(), nn.Linear(192, 192))
        self.project = nn.ModuleList(nn.Linear(192, 256) for _ in range(2))
        self.modality, self.places, self.readout = small(2, 256), small(2, 256), small(1, 1, 256)
        self.fuse, self.fuse_norm = nn.ModuleList(Block(256, 4) for _ in range(4)), nn.LayerNorm(256)
        self.level = nn.Sequential(Sinusoidal(256), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 256))
        self.memory, self.input, self.steps = nn.Linear(256, 256), nn.Linear(action, 256), small(1, chunk, 256)
        self.decoder, self.norm = nn.ModuleList(CrossBlock(256, 4) for _ in range(4)), nn.LayerNorm(256)
        self.output = nn.Linear(256, action)

    def forward(self, x, t, image, proprio):
        h = self.patches(image.permute(0, 3, 1, 2).float() / 255 * 2 - 1).flatten(2).transpose(1, 2) + self.positions
        for block in self.vit:
            h = block(h)
        parts = torch.stack([self.state(proprio), self.vit_norm(h).mean(1)], 1)
        tokens = torch.stack([p(parts[:, i]) for i, p in enumerate(self.project)], 1) + self.modality + self.places
        h = torch.cat([self.readout.expand(B, -1, -1), tokens], 1)
        for block in self.fuse:
            h = block(h)
        memory = torch.cat([self.level(t)[:, None], self.memory(self.fuse_norm(h)[:, 1:])], 1)
        h = self.input(x) + self.steps
        for block in self.decoder:
            h = block(h, memory)
        return self.output(self.norm(h))


def vla():
    net = Vla()
    actions, proprio = torch.randn(B, 16, 2), torch.randn(B, 2)
    image = torch.randint(0, 256, (B, 96, 96, 3), dtype=torch.uint8)

    def loss():
        t, z = torch.rand(B), torch.randn_like(actions)
        x = z + t.view(B, 1, 1) * (actions - z)
        return (net(x, 100 * t, image, proprio) - (actions - z)).square().mean(-1).mean()

    return net, loss


def measure(model, threads, seconds, fused):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    net, loss_of = {"unet": unet, "vla": vla}[model]()
    params = list(net.parameters())
    average = [p.detach().clone() for p in params]
    optimiser = torch.optim.AdamW(params, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, fused=fused or None)
    times = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(times) < 4:
        start = time.perf_counter(), time.process_time()
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 0.01)
        loss.item()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    times = times[2:]
    median = lambda xs: sorted(xs)[len(xs) // 2]
    return {
        "engine": "python" + (" fused" if fused else ""),
        "model": model,
        "parameters": sum(p.numel() for p in params),
        "wall_ms": 1e3 * median([w for w, _ in times]),
        "cpu_ms": 1e3 * sum(c for _, c in times) / len(times),
        "steps": len(times),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["unet", "vla"], required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--fused", action="store_true")
    args = parser.parse_args()
    print(json.dumps(measure(args.model, args.threads, args.seconds, args.fused)))
