"""Our own routes: /txt2img, /img2img, /inpaint.

Their routes and forms, and nothing for other dialects. Strict: a field without a meaning is rejected.
"""
