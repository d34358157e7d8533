"""How work runs: processes, progress, the run folder, what is recorded per sample."""
