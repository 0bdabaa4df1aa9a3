"""Routes for operators and tools: health checks, metrics, the documentation pages.

Nothing here makes a picture, and no check waits for the device.
"""
