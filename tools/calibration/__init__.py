"""Makes the texts of share/calibration anew: ``python -m tools.calibration``."""
