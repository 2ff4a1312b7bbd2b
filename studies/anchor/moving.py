"""The anchor moves to and fro, and the minimum follows in jumps: a loop for the screen."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bayesmeta.plots import style
from studies.anchor import figures
from studies.anchor.measure import ONE
from studies.anchor.waves import F64

FURTHEST = 4.2


def animation(frames: int = 60) -> FuncAnimation:
    """θ₀ from one end to the other and back; left the losses, right θ* against θ₀."""
    path = [-FURTHEST * math.cos(2 * math.pi * k / frames) for k in range(frames)]
    minima = ONE.minima(torch.tensor(path, dtype=F64))[0].tolist()
    with style():
        figure = Figure(figsize=(6.4, 2.9))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.07, right=0.985, bottom=0.16, top=0.9, wspace=0.22)
        lines = figures.losses(left, path[0])
        figure.legend(*left.get_legend_handles_labels(), loc="upper center", ncols=5, frameon=False)
        left.set(xlabel="θ", ylabel="nats")
        figures.follow(right)
        right.set(xlabel="anchor θ₀", ylabel="minimum θ*", xlim=(-4.6, 4.6))
        dot = right.plot([path[0]], [minima[0]], **figures.STAR, markersize=10)[0]

    def show(frame: int) -> list[Artist]:
        figures.move(lines, path[frame])
        dot.set_data(np.array([path[frame]]), np.array([minima[frame]]))
        return [dot]

    return FuncAnimation(figure, show, frames=frames)
