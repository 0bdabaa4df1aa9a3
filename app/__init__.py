"""SDXL-Turbo behind HTTP: one process, one device, one model, one warm pipeline per mode."""

__version__ = "0.1.0"
