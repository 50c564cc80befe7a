"""Catalog of backbones: functions in keras.applications, and expected input.

Does not import Keras, so that wrong names are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from headct.declarations import did_you_mean, quoted
from headct.errors import UsageError


@dataclass(frozen=True)
class Backbone:
    """A network's constructor and input format.

    Attributes:
        maker: function in keras.applications; empty for a network of this package.
        normalization: a key of `image_layers.NORMALIZATIONS`.
        smallest: smallest image side, pixels.
    """

    maker: str
    normalization: str
    smallest: int = 32


BACKBONES: Mapping[str, Backbone] = MappingProxyType(
    {
        "resnet50": Backbone("ResNet50", "caffe"),
        "resnet101": Backbone("ResNet101", "caffe"),
        "resnet152": Backbone("ResNet152", "caffe"),
        "resnet50v2": Backbone("ResNet50V2", "tf"),
        "resnet101v2": Backbone("ResNet101V2", "tf"),
        "resnet152v2": Backbone("ResNet152V2", "tf"),
        "vgg16": Backbone("VGG16", "caffe"),
        "vgg19": Backbone("VGG19", "caffe"),
        "densenet121": Backbone("DenseNet121", "torch"),
        "densenet169": Backbone("DenseNet169", "torch"),
        "densenet201": Backbone("DenseNet201", "torch"),
        "efficientnetv2b0": Backbone("EfficientNetV2B0", "torch"),
        "efficientnetv2b1": Backbone("EfficientNetV2B1", "torch"),
        "efficientnetv2b2": Backbone("EfficientNetV2B2", "torch"),
        "efficientnetv2b3": Backbone("EfficientNetV2B3", "torch"),
        "efficientnetv2s": Backbone("EfficientNetV2S", "tf128"),
        "efficientnetv2m": Backbone("EfficientNetV2M", "tf128"),
        "efficientnetv2l": Backbone("EfficientNetV2L", "tf128"),
        "convnexttiny": Backbone("ConvNeXtTiny", "torch"),
        "convnextsmall": Backbone("ConvNeXtSmall", "torch"),
        "convnextbase": Backbone("ConvNeXtBase", "torch"),
        "convnextlarge": Backbone("ConvNeXtLarge", "torch"),
        # Of `resnext.ARCHITECTURES`; Keras has none of them, and no weights.
        "resnext50_32x4d": Backbone("", "torch"),
        "resnext101_32x4d": Backbone("", "torch"),
        "resnext101_32x8d": Backbone("", "torch"),
        "seresnext50_32x4d": Backbone("", "torch"),
        "seresnext101_32x4d": Backbone("", "torch"),
        # For CPUs and first tries: 2.4 million weights, trained from scratch.
        "smallresnet": Backbone("", "tf", smallest=16),
    }
)


def find_backbone(name: str, image_size: int, weights: str) -> Backbone:
    """Return the backbone called `name`, before anything is built.

    Raises:
        UsageError: the name is unknown, the image is too small, the file of the weights is missing,
            or the network has no pretrained weights.
    """
    if name not in BACKBONES:
        close = did_you_mean(name, BACKBONES)
        if "." in name:
            close = "; a function of Python's: trainer.train_run(model=function)"
        raise UsageError(f"--model {quoted(name)}: want one of {', '.join(BACKBONES)}{close}")
    backbone = BACKBONES[name]
    if image_size < backbone.smallest:
        raise UsageError(f"--image_size {image_size}: {name} takes {backbone.smallest} or more")
    if weights == "imagenet" and not backbone.maker:
        raise UsageError(f"--weights imagenet: {name} has none; use --weights none or a file")
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise UsageError(f"--weights {weights}: no such file; use imagenet, none or a file")
    return backbone
