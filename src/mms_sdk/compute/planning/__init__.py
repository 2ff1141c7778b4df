"""Planning: what a training run needs of a target before anything runs. Memory, time, cost, and what to change."""
