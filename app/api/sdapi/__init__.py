"""Stable Diffusion WebUI's API at /sdapi/v1.

As AUTOMATIC1111's server has it and its clients use it. Its wire models and routes: only the translation between that
dialect and our params, and the lists that its clients want to see. No other dialect imports from here.
"""
