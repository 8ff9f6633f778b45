"""Tools beside a run: calibrate a server, learn a profile, judge texts and events, serve. Entered by `repro.cli`."""
