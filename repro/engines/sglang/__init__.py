"""SGLang, pinned: `classes` plays its cache classes on our device, `server` perturbs a whole server of it.

`pinned` finds and checks the installed version; `fits` says which scenarios its classes can play.
"""
