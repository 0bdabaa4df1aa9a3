"""The command line: serve, generate, pull, doctor, bench, tune and mcp.

A module here parses what people type, or runs one command and writes to stdout and files. HTTP stays in `app.api`: the
commands call `app.main`, `app.server` and the use case in `app.inference`.
"""
