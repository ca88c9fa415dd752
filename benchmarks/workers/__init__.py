"""The measurements, one module each with `run(args) -> dict`. A module is imported only in its own process: no two frameworks meet."""
