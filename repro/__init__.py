"""repro: reproduces races of LLM serving."""

import os

# Torch's threads sleep between two products instead of spinning: the model's products are small, and on a
# busy machine a spinning thread keeps the other from its core (measured: 13 times slower with two cores taken).
# OpenMP reads this when it is loaded, so it has to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
