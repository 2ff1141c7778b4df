"""Each architecture against an independent one with the same weights: the logits must be equal.

The references are transformers' own models, Keras's, and PyTorch modules written here from `torch.nn` alone, with the
names that the libraries people have their weights from give to them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mms_sdk.compute import models
from mms_sdk.compute.models.functional import functional

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def logits(family: Any, path: Path, rows: Any) -> tuple[Any, models.Report]:
    """What a family says after importing a file, by the compiled route that the trainer takes."""
    loaded = models.load(family, path, input_shape=rows.shape[1:])
    taken = functional(loaded.module, rows.shape[1:])
    params, rest = taken.init(jax.random.key(0))
    return np.asarray(jax.jit(lambda p, r, x: taken.apply(p, r, x, None)[0])(params, rest, rows)), loaded.report


def pictures(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def stirred(module: Any) -> Any:
    """The torch module in evaluation mode, with no value left at nought or one: biases and running averages too."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                if name.endswith("running_var"):
                    value.copy_(1 + 0.3 * noise.abs())
                elif value.ndim <= 1 or "embed" in name or "token" in name:
                    value.add_(0.2 * noise)
                else:
                    value.copy_(noise / value[0].numel() ** 0.5)
    return module.eval()


def said(module: Any, rows: Any) -> Any:
    """What the torch module says of rows with channels last."""
    import torch

    with torch.no_grad():
        output = module(torch.from_numpy(np.moveaxis(rows, -1, -3).copy()))
    return np.asarray(getattr(output, "logits", output))


def compare(family: Any, reference: Any, rows: Any, folder: Path, layout: str) -> None:
    """Saves the reference's state dict, imports it, and compares logits."""
    import torch

    torch.save(reference.state_dict(), folder / "weights.pt")
    got, report = logits(family, folder / "weights.pt", rows)
    expected = said(reference, rows)

    print(f"{type(family).__name__}: {np.abs(got - expected).max():.1e} on logits to {np.abs(expected).max():.1f}")
    assert (report.layout, report.fresh, report.unused, report.resized) == (layout, (), (), ())
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5)


def block_of(convolutions: list[Any], width: int, stride: int, inputs: int) -> Any:
    """A residual block with torchvision's names."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.number = len(convolutions)
            for number, convolution in enumerate(convolutions, 1):
                self.add_module(f"conv{number}", convolution)
                self.add_module(f"bn{number}", nn.BatchNorm2d(convolution.out_channels))
            self.downsample = None
            if stride > 1 or inputs != width:
                self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

        def forward(self, x: Any) -> Any:
            y = x
            for number in range(1, self.number + 1):
                y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
                y = y.relu() if number < self.number else y
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    return Block()


def torchvision_resnet(depths: tuple[int, ...], width: int, *, bottleneck: bool, small: bool = False) -> Any:
    from torch import nn

    def convolutions(inputs: int, inside: int, stride: int) -> list[Any]:
        def conv(i: int, o: int, side: int, stride: int = 1) -> Any:
            return nn.Conv2d(i, o, side, stride, side // 2, bias=False)

        if bottleneck:
            return [conv(inputs, inside, 1), conv(inside, inside, 3, stride), conv(inside, 4 * inside, 1)]
        return [conv(inputs, inside, 3, stride), conv(inside, inside, 3)]

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
            inputs = width
            for stage, depth in enumerate(depths):
                blocks = []
                for number in range(depth):
                    inside, stride = width * 2**stage, 2 if stage and not number else 1
                    outputs = inside * (4 if bottleneck else 1)
                    blocks.append(block_of(convolutions(inputs, inside, stride), outputs, stride, inputs))
                    inputs = outputs
                self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.fc = nn.Linear(inputs, 7)

        def forward(self, x: Any) -> Any:
            x = self.pool(self.bn1(self.conv1(x)).relu())
            for stage in range(1, 5):
                x = getattr(self, f"layer{stage}")(x)
            return self.fc(x.mean((2, 3)))

    return stirred(ResNet())


@pytest.mark.parametrize("side", [64, 45])
def test_resnet_18_equals_one_written_in_torch_with_the_names_of_torchvision(side: int, tmp_path: Path) -> None:
    reference = torchvision_resnet((2, 2, 2, 2), 8, bottleneck=False)
    compare(
        models.ResNet(num_classes=7, depth=18, width=8), reference, pictures(2, side, side, 3), tmp_path, "torchvision"
    )


def test_resnet_34_for_small_pictures_equals_one_written_in_torch(tmp_path: Path) -> None:
    reference = torchvision_resnet((3, 4, 6, 3), 8, bottleneck=False, small=True)
    family = models.ResNet(num_classes=7, depth=34, width=8, stem="small")
    compare(family, reference, pictures(2, 16, 16, 3), tmp_path, "torchvision")


def test_resnet_50_equals_that_of_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[3, 4, 6, 3], num_labels=7
    )
    reference = stirred(transformers.ResNetForImageClassification(config))
    compare(
        models.ResNet(num_classes=7, depth=50, width=8), reference, pictures(2, 64, 64, 3), tmp_path, "transformers"
    )


def torchvision_vgg(counts: tuple[int, ...], width: int, *, batch_norm: bool) -> Any:
    from torch import nn

    layers: list[Any] = []
    inputs = 3
    for count, times in zip(counts, (1, 2, 4, 8, 8), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width * times, 3, padding=1)]
            layers += [nn.BatchNorm2d(width * times)] if batch_norm else []
            layers += [nn.ReLU()]
            inputs = width * times
        layers += [nn.MaxPool2d(2, 2)]

    class VGG(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(
                nn.Linear(49 * inputs, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 20), nn.ReLU(), nn.Dropout()
            )
            self.classifier.append(nn.Linear(20, 7))

        def forward(self, x: Any) -> Any:
            return self.classifier(self.features(x).flatten(1))

    return stirred(VGG())


@pytest.mark.parametrize(("depth", "counts", "batch_norm"), [(11, (1, 1, 2, 2, 2), True), (16, (2, 2, 3, 3, 3), False)])
def test_vgg_equals_one_written_in_torch_with_the_names_of_torchvision(
    depth: int, counts: tuple[int, ...], batch_norm: bool, tmp_path: Path
) -> None:
    reference = torchvision_vgg(counts, 4, batch_norm=batch_norm)
    family = models.VGG(num_classes=7, depth=depth, width=4, hidden=(24, 20), batch_norm=batch_norm)
    compare(family, reference, pictures(2, 224, 224, 3), tmp_path, "torchvision")


def test_convnext_equals_that_of_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24], depths=[1, 2, 1], num_stages=3, num_labels=7, layer_scale_init_value=0.5
    )
    reference = stirred(transformers.ConvNextForImageClassification(config))
    family = models.ConvNeXt(num_classes=7, depths=(1, 2, 1), widths=(8, 16, 24))
    compare(family, reference, pictures(2, 50, 64, 3), tmp_path, "transformers")


def vit_config(**options: Any) -> Any:
    import transformers

    return transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=(32, 48),
        patch_size=8,
        num_labels=7,
        layer_norm_eps=1e-6,
        **options,
    )


VIT = models.ViT(num_classes=7, width=24, depth=3, heads=3, patch=8)


def test_vit_equals_that_of_transformers(tmp_path: Path) -> None:
    import transformers

    reference = stirred(transformers.ViTForImageClassification(vit_config()))
    compare(VIT, reference, pictures(2, 32, 48, 3), tmp_path, "transformers 5")


@pytest.mark.parametrize("kind", ["ViT", "ConvNext", "ResNet"])
def test_what_transformers_saves_is_loaded_as_it_lies(kind: str, tmp_path: Path) -> None:
    import transformers

    config, family, side = {
        "ViT": (vit_config(), VIT, (32, 48)),
        "ConvNext": (
            transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=7),
            models.ConvNeXt(num_classes=7, depths=(1, 1), widths=(8, 16)),
            (32, 32),
        ),
        "ResNet": (
            transformers.ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 16, 32, 64],
                depths=[2, 2, 2, 2],
                layer_type="basic",
                num_labels=7,
            ),
            models.ResNet(num_classes=7, depth=18, width=8),
            (32, 32),
        ),
    }[kind]
    reference = stirred(getattr(transformers, f"{kind}ForImageClassification")(config))
    reference.save_pretrained(tmp_path)
    rows = pictures(2, *side, 3)

    got, report = logits(family, tmp_path / "model.safetensors", rows)

    assert not report.fresh
    assert not report.unused
    np.testing.assert_allclose(got, said(reference, rows), rtol=1e-4, atol=2e-5)


def transformer_block(width: int, heads: int) -> Any:
    """Pre-normalised, on torch's own attention; its names are timm's."""
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)

        def forward(self, x: Any) -> Any:
            whole, _ = torch.nn.functional.multi_head_attention_forward(
                *[x.transpose(0, 1)] * 3,
                width,
                heads,
                self.qkv.weight,
                self.qkv.bias,
                None,
                None,
                False,
                0.0,
                self.proj.weight,
                self.proj.bias,
                need_weights=False,
            )
            return whole.transpose(0, 1)

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(width, 4 * width)
            self.fc2 = nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(width, 1e-6), Attention()
            self.norm2, self.mlp = nn.LayerNorm(width, 1e-6), Mlp()

        def forward(self, x: Any) -> Any:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    return Block()


def timm_vit(pool: Callable[[Any], Any]) -> Any:
    import torch
    from torch import nn

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, 24, 8, 8)

        def forward(self, x: Any) -> Any:
            return self.proj(x).flatten(2).transpose(1, 2)

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = Patches()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 24))
            self.pos_embed = nn.Parameter(torch.zeros(1, 25, 24))
            self.blocks = nn.Sequential(*[transformer_block(24, 3) for _ in range(3)])
            self.norm = nn.LayerNorm(24, 1e-6)
            self.head = nn.Linear(24, 7)

        def forward(self, x: Any) -> Any:
            x = self.patch_embed(x)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
            return self.head(pool(self.norm(self.blocks(x))))

    return stirred(ViT())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vit_equals_one_written_in_torch_with_the_names_of_timm(pooling: Any, tmp_path: Path) -> None:
    reference = timm_vit((lambda x: x[:, 0]) if pooling == "cls" else (lambda x: x[:, 1:].mean(1)))
    family = models.ViT(num_classes=7, width=24, depth=3, heads=3, patch=8, pooling=pooling)
    compare(family, reference, pictures(2, 32, 48, 3), tmp_path, "timm")


def test_convnext_equals_one_written_in_torch_with_the_names_of_its_authors(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width, 1e-6)
            self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gamma = nn.Parameter(torch.ones(width))

        def forward(self, x: Any) -> Any:
            y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
            y = self.gamma * self.pwconv2(nn.functional.gelu(self.pwconv1(y)))
            return x + y.permute(0, 3, 1, 2)

    class ChannelNorm(nn.LayerNorm):
        def forward(self, x: Any) -> Any:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class ConvNeXt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.downsample_layers = nn.ModuleList(
                [
                    nn.Sequential(nn.Conv2d(3, 8, 4, 4), ChannelNorm(8, 1e-6)),
                    nn.Sequential(ChannelNorm(8, 1e-6), nn.Conv2d(8, 16, 2, 2)),
                ]
            )
            self.stages = nn.ModuleList([nn.Sequential(Block(8)), nn.Sequential(Block(16), Block(16))])
            self.norm, self.head = nn.LayerNorm(16, 1e-6), nn.Linear(16, 7)

        def forward(self, x: Any) -> Any:
            for halve, stage in zip(self.downsample_layers, self.stages, strict=True):
                x = stage(halve(x))
            return self.head(self.norm(x.mean((2, 3))))

    family = models.ConvNeXt(num_classes=7, depths=(1, 2), widths=(8, 16))
    compare(family, stirred(ConvNeXt()), pictures(2, 32, 40, 3), tmp_path, "the authors")


def test_a_factorised_vit_equals_one_written_in_torch(tmp_path: Path) -> None:
    import torch
    from torch import nn

    width = 16

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

        def forward(self, x: Any) -> Any:
            heads = [layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
            weights = (heads[0] @ heads[1].transpose(-1, -2) / 8**0.5).softmax(-1)
            return self.out((weights @ heads[2]).transpose(1, 2).flatten(2))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
            self.attention = Attention()
            self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.project(nn.functional.gelu(self.expand(self.norm2(x))))

    class Encoder(nn.Module):
        def __init__(self, tokens: int, depth: int, patch: int = 0) -> None:
            super().__init__()
            self.cls = nn.Parameter(torch.zeros(1, 1, width))
            self.position = nn.Parameter(torch.zeros(1, tokens + 1, width))
            self.blocks, self.norm = nn.Sequential(*[Block() for _ in range(depth)]), nn.LayerNorm(width, 1e-6)
            if patch:
                self.patch = nn.Conv2d(3, width, patch, patch)

        def forward(self, x: Any) -> Any:
            x = self.patch(x).flatten(2).transpose(1, 2) if hasattr(self, "patch") else x
            x = torch.cat([self.cls.repeat(len(x), 1, 1), x], 1) + self.position
            return self.norm(self.blocks(x))[:, 0]

    class FactorisedViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ModuleDict({"frame": Encoder(6, 2, patch=8), "time": Encoder(4, 1)})
            self.head = nn.Linear(width, 7)

        def forward(self, clips: Any) -> Any:
            frames = [self.features["frame"](clips[:, number]) for number in range(clips.shape[1])]
            return self.head(self.features["time"](torch.stack(frames, 1)))

    family = models.FactorisedViT(num_classes=7, width=16, depth=2, time_depth=1, heads=2, patch=8)
    compare(family, stirred(FactorisedViT()), pictures(2, 4, 16, 24, 3), tmp_path, "PyTorch modules named as ours")


def test_an_autoencoder_equals_one_written_in_torch(tmp_path: Path) -> None:
    from torch import nn

    class Stage(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm = nn.GroupNorm(8, outputs, 1e-6)

        def forward(self, x: Any) -> Any:
            return self.norm(self.conv(x)).relu()

    class Half(nn.Module):
        def __init__(self, stages: list[Any], last: str, layer: Any, before: Any) -> None:
            super().__init__()
            self.stages, self.last, self.before = nn.ModuleList(stages), last, before
            self.add_module(last, layer)

        def forward(self, x: Any) -> Any:
            for stage in self.stages:
                x = stage(self.before(x))
            return getattr(self, self.last)(x)

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            encoder = [Stage(3, 8, 2), Stage(8, 16, 2)]
            decoder = [Stage(4, 16, 1), Stage(16, 8, 1)]
            self.features = Half(encoder, "code", nn.Conv2d(16, 4, 1), nn.Identity())
            self.head = Half(decoder, "out", nn.Conv2d(8, 3, 3, padding=1), nn.Upsample(scale_factor=2))

        def forward(self, x: Any) -> Any:
            return self.head(self.features(x)).permute(0, 2, 3, 1)

    family = models.Autoencoder(widths=(8, 16), code=4)
    compare(family, stirred(Autoencoder()), pictures(2, 12, 20, 3), tmp_path, "PyTorch modules named as ours")


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
def test_efficientnet_lite_equals_its_pytorch_package(variant: str, tmp_path: Path) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    reference = stirred(EfficientNet.from_name(f"efficientnet-{variant}", num_classes=7))
    side = {"lite0": 224, "lite2": 260}[variant]  # the package pads for this size only
    family = models.EfficientNetLite(num_classes=7, variant=variant)
    compare(family, reference, pictures(1, side, side, 3), tmp_path, "efficientnet_lite_pytorch")
