"""Trains and measures the demo model. Nothing in `app` imports this package."""
