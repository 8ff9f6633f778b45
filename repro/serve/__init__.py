"""The bundled GLM-5 stack. It imports `repro.base` alone and knows no fault, no scenario and no detector.

`stack.build` makes an engine of a configuration; targets, `repro serve`, benches and tests enter there.
"""
