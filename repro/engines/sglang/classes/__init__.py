"""SGLang's own cache classes in the place of the bundled stack's, on a CPU, on streams of our device layer.

    engine ─> cache (HiRadixCache, controller, pools, allocator: SGLang's) ─> kernels (ours) ─> device streams

`pinned` imports them, with `standins` for the kernels; the scheduler and the layers of a forward pass are ours.
"""
