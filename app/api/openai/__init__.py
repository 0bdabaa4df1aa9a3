"""OpenAI's Images API.

Its wire models and routes: only the translation between that dialect and our params. No other dialect imports from
here.
"""
