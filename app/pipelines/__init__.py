"""The seam between the service and the model, and what stands behind it: the only code that imports torch."""
