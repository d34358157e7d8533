"""The running of work: processes, progress, the run folder, per-sample results."""
