"""Worker processes, on this machine or on a Ray cluster, for any room that has many calls to make.

The room imports only `repro.base`: what a call does is its function's business. `hunt`, `shrink`, `mutate`,
`campaign`, `experiment`, `nightly` and `bench` all make their runs through a `Pool`.
"""
