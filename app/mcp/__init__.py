"""The tools for agents (Model Context Protocol): text to image and image to image, on the use case.

Only what HTTP and stdio share: the endpoint is `app.api.mcp`, the command `app.cli.mcp`. Imported only if the extra
`mcp` is installed and wanted.
"""
