"""The core: from a request's fields to finished files, one device call at a time.

Use case, admission, queue, batching, device care, and the request fields that all dialects share. It knows neither
FastAPI nor torch: pipelines come through `app.pipelines.base`, pictures through `app.images`.
"""
