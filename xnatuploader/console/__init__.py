"""What a person sees and presses: progress bars, Ctrl-C, log files, the last lines of a run."""
