"""Small reference networks: LeNet-5, which torch.nn or convnorm.nn can fill; others in plain torch.nn, to convert."""

from .lenet import LeNet5
from .mobilenet import MobileNetV2
from .resnet import ResNet, resnet18, resnet50
from .unet import UNet
from .vgg import VGG, vgg_bn

__all__ = ["VGG", "LeNet5", "MobileNetV2", "ResNet", "UNet", "resnet18", "resnet50", "vgg_bn"]
