"""HTTP: requests in, answers out.

Beside `app.main`, only this room and `app.server` know FastAPI, Starlette or uvicorn. A room in here has one purpose:
`gate` rejects, each dialect has its wire models and routes, `operations` and `playground` serve pages and probes.
Nothing here decodes pictures, waits for the device or knows the model.
"""
