"""A classifier of digits: which of the ten is it, and what are its features?

The first half of the U-Net (networks/mnist_unet.py), 28 -> 14 -> 7, then the mean over the image and a linear layer.
The mean is a vector of features: images whose features are close look alike to this network, however much their pixels
differ. Left out: dropout, residual blocks, and a class for "not a digit": it always names one. Next: judge.py.
"""

from torch import Tensor, nn

from minidiff.networks.mnist_unet import conv_block, down_block, flatten


class Classifier(nn.Module):
    """Logits of the ten digits. 267,010 parameters at width 24.

    width: D, the channels of the first level; there are 4D features
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
            raise ValueError(f"expected images (B, 1, 28, 28), got {tuple(x.shape)}: resize or crop them")
        # fmt: off
        a = self.enter(x)                    # D,  28
        b = self.down1(a)                    # 2D, 14
        return self.flatten(self.down2(b))   # 4D, 7 -> 4D
        # fmt: on

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 1, 28, 28), pixels in [0, 1] -> (B, 10) logits."""
        return self.read(self.features(x))
