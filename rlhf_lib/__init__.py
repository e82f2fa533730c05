"""RLHF from Scratch: the library that the course zooms into. Importing it loads nothing heavy."""

__version__ = "0.1.0"
