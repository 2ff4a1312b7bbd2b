"""Choice 1: which Q_i stands for a task's posterior."""
