"""Hugging Face's inference API.

Its wire models, its one route and its large JSON bodies: only the translation between that dialect and our params. No
other dialect imports from here.
"""
