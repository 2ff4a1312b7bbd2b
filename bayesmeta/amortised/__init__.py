"""Fits whose Q_i is a function of θ₀: adapted by an algorithm, differentiated by a rule."""
