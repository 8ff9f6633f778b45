"""The bundled suites: what a night runs. `repro.fleet` reads them."""
