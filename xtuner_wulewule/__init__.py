"""The wulewule (悟了悟了) recipe as a plugin of XTuner. Import nothing heavy here: XTuner's every command passes through."""

__version__ = "0.1.0"
