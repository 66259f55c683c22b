"""The model class of the configs, and the tiny model."""
