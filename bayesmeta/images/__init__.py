"""Labelled images in memory, and where they are read from: Omniglot, folders, any Dataset."""

from bayesmeta.images.bank import Images
from bayesmeta.images.characters import omniglot
from bayesmeta.images.datasets import of_dataset
from bayesmeta.images.folders import folder
from bayesmeta.images.runs import Run, omniglot_runs

__all__ = ["Images", "Run", "folder", "of_dataset", "omniglot", "omniglot_runs"]
