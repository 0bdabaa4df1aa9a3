"""The service's core: who may use the device, when, and what comes of it. Knows neither FastAPI nor torch."""
