"""The bundled experiments: scenarios in steps. `repro.fleet` reads them."""
