"""The recipe as a chain of XTuner's own commands."""
