"""Choice 2: how θ, or Q_i, is adapted to one task; all tasks at once."""
