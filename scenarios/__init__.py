"""The bundled scenarios, TOML files: one a race or workload. `repro.scenario` reads them, nobody imports code here."""
