"""Our own routes: /txt2img, /img2img.

Wire models and routes of POST /txt2img and POST /img2img, and nothing for other dialects. Strict: a field without a
meaning is rejected.
"""
