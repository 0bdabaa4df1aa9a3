"""uvicorn, made to drain and to bound its connections.

A module here starts or ends the process, opens the port, or limits a TCP connection below HTTP requests. Routes,
authentication and everything that reads a request's content belong to `app.api`.
"""
