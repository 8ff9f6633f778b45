"""The page of an experiment: its steps side by side, and how well acceptance tells wrong answers."""
