"""HTTP: what goes over the wire, how it becomes params and comes back. Beside `app.main`, all that knows FastAPI."""
