"""What experiments are run with: the trainer, folders of runs, sweeps, processes, data, timing."""
