"""The clients: sessions replayed against a server, each answer watched as it streams.

`repro.run` and `repro.tools` drive loads; a scenario names shapes. Nothing here knows the server's inside.
"""
