"""Two models that a user might bring, with their tasks: a ResNet-18 and a U-Net, both narrow."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from aigc_compress.models import data
from aigc_compress.task import Quality


class BasicBlock(nn.Module):
    def __init__(self, inplanes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            conv = nn.Conv2d(inplanes, planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(planes))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + identity)


class ResNet18(nn.Module):
    def __init__(self, width=16, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for stage in range(1, 5):
            blocks = [
                BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2),
                BasicBlock(widths[stage], widths[stage]),
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, image):
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class UNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.enc1, self.enc2 = self.double(1, width), self.double(width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.bottom = self.double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.dec2 = self.double(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.dec1 = self.double(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    @staticmethod
    def double(before, after):
        layers = []
        for width in (before, after):
            conv = nn.Conv2d(width, after, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.LeakyReLU(0.1)]
        return nn.Sequential(*layers)

    def forward(self, image):
        one = self.enc1(image)
        two = self.enc2(self.pool(one))
        x = self.dec2(torch.cat([self.up2(self.bottom(self.pool(two))), two], dim=1))
        return self.out(self.dec1(torch.cat([self.up1(x), one], dim=1)))


def trained(module, task, steps=60):
    """The user's own training, which is none of our business."""
    torch.manual_seed(0)
    for each in module.modules():
        if hasattr(each, "reset_parameters"):
            each.reset_parameters()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for index in range(steps):
        batch = task.batch(index, size=64, seed=0)
        loss = task.loss(module.train()(*task.inputs(batch)), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


class Pictures:
    """What both tasks share: pictures of clothes."""

    def __init__(self):
        self.train = data.calibration_images()
        self.held = {split: data.images(split) for split in ("validation", "test")}

    def feeds(self, batch, *, seed, length=1):
        picks = np.random.default_rng(seed).integers(len(self.train.labels), size=batch)
        return {"image": data.to_unit_range(self.train.pixels[picks])}

    def dynamic_axes(self):
        return {"image": {0: "batch"}}

    def calibration(self, count, *, seed):
        yield self.feeds(count, seed=seed)

    def exhibit(self, runner, *, seed=0):
        return None

    def batch(self, index, *, size, seed):
        picks = np.random.default_rng([seed, index]).integers(len(self.train.labels), size=size)
        images = torch.from_numpy(data.to_unit_range(self.train.pixels[picks]))
        return images, torch.from_numpy(self.train.labels[picks].astype(np.int64))

    def inputs(self, batch):
        return batch[:1]

    def evaluate(
        self,
        runner,
        *,
        split,
        samples=None,
        seed=0,
        on_step=None,
        reference=None,
        with_details=True,
    ):
        held = self.held[split]
        images, labels = held.pixels[:500], held.labels[:500]
        images = data.to_unit_range(images)
        (outputs,) = runner.run({"image": images}).values()
        metric, value, higher = self.score(outputs, images, labels)
        return Quality(metric, float(value), higher, len(images), split)


class Classify(Pictures):
    name = "own_models:Classify"

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs.float(), batch[1].to(outputs.device))

    def score(self, outputs, images, labels):
        return "top-1 %", 100 * (outputs.argmax(1) == labels).mean(), True


class Repeat(Pictures):
    name = "own_models:Repeat"

    def loss(self, outputs, batch):
        return F.mse_loss(outputs.float(), batch[0].to(outputs.device))

    def score(self, outputs, images, labels):
        return "squared error", np.square(outputs - images).mean(), False


def resnet():
    return trained(ResNet18(), Classify())


def unet():
    return trained(UNet(), Repeat(), steps=30)
