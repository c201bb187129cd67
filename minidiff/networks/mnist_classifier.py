"""A reader of digits: which of the ten is it, and how does it look to the network?

The way down of the U-Net (networks/mnist_unet.py) and no way up: 28 -> 14 -> 7, the mean over what is left of the picture, and a
linear layer. The mean is a vector of features: two pictures whose features are near look alike to this network, whatever their
pixels say. Left out: dropout, residual blocks; pictures that are no digit (it names one all the same). Next: reader.py.
"""

from torch import Tensor, nn

from minidiff.networks.mnist_unet import conv_block, down_block, flatten


class Classifier(nn.Module):
    """Ten digits. 267,010 parameters at width 24.

    width: D, channels of the first level; it has 4D features
    """

    def __init__(self, width: int = 24):
        super().__init__()
        D = width
        self.width = width
        self.enter = conv_block(1, D)
        self.down1 = down_block(D, 2 * D)
        self.down2 = down_block(2 * D, 4 * D)
        self.flatten = nn.Sequential(flatten(), nn.Flatten())
        self.read = nn.Linear(4 * D, 10)

    def features(self, x: Tensor) -> Tensor:
        """x (B, 1, 28, 28), pixels in [0, 1] -> (B, 4D). Raises ValueError when x has another shape."""
        if x.shape != (len(x), 1, 28, 28):
            raise ValueError(
                f"this classifier is built for images (B, 1, 28, 28), got {tuple(x.shape)}: resize or crop them"
            )
        a = self.enter(x)  # D,  28
        b = self.down1(a)  # 2D, 14
        return self.flatten(self.down2(b))  # 4D, 7 -> 4D

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 1, 28, 28), pixels in [0, 1] -> (B, 10), logits: their softmax is the probability of each digit."""
        return self.read(self.features(x))
