"""Labelled images in memory, and where they are read from: Omniglot, folders, any Dataset."""

from bayesmeta.images.bank import Images as Images
from bayesmeta.images.datasets import of_dataset as of_dataset
