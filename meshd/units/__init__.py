"""Engine specs, their rendering as systemd units, the diff, and the two appliers."""
