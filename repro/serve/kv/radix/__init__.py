"""The prefix tree over two tiers: nodes, the tree and its pins, eviction, invariants. `kv` and `sched` use it."""
