"""The KV cache: pages, the prefix tree over two tiers, and the copies between them; `sched` and `pd` use it."""
