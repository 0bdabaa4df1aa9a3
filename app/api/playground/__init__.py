"""The playground: one live page and its static files.

`page` serves the page with the facts that it needs; `static/` has no build step. The page uses the public routes only.
"""
