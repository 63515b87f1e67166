"""torchvision's ResNet-18 on a farm: its ``resnet.py`` as it is, SGD with momentum, a rate that falls by the epoch."""

import torch
from pictures import CLASSES, pictures
from torch.nn.functional import cross_entropy
from vision.models.resnet import resnet18

ROWS = 2048


def build_model(config):
    torch.manual_seed(0)
    return resnet18(num_classes=CLASSES)


def make_dataset(config, seed=0):
    return torch.utils.data.TensorDataset(*pictures(config.get("rows", ROWS), seed))


def loss(model, batch):
    images, labels = batch
    scores = model(images)
    return {"loss": cross_entropy(scores, labels), "accuracy": (scores.argmax(1) == labels).float().mean()}


def build_optimizer(model, config):
    return torch.optim.SGD(model.parameters(), lr=config.get("lr", 0.01), momentum=0.9, weight_decay=1e-4)


def build_scheduler(optimizer, config):
    return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.3), "interval": "epoch"}
