"""The page of an experiment: its steps side by side, and how well acceptance separates wrong and clean answers."""
