"""POST /mcp: the tools for agents over streamable HTTP (Model Context Protocol), without sessions.

Only the endpoint; the tools are in `app.mcp`. Imported only if the extra `mcp` is installed and wanted.
"""
