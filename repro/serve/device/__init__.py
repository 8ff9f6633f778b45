"""The device that the stack runs on: streams, events, virtual time and prices; only `repro.serve` enqueues on it.

`base` is the contract, with CUDA's rules of order; `sim` and `streams` carry it out; `cost` says how long each
operation takes. `cuda` carries the contract out on a GPU, in real time: the litmus tests run on it, the stack does not
yet.
"""
