"""Docker's health check: exits with 0 if the service is ready, or prints the reason, which `docker inspect` shows."""  # noqa: INP001 - a script

import http.client
import os
import sys

# For a client, 0.0.0.0 and :: mean this machine too.
host = os.environ.get("TURBO_HOST") or "127.0.0.1"
port = int(os.environ.get("TURBO_PORT") or 8000)
connection = http.client.HTTPConnection(host, port, timeout=4)
try:
    connection.request("GET", "/healthz/ready")
    answer = connection.getresponse()
    body = answer.read().decode()
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"{host}, port {port}: {error}")
sys.exit(None if answer.status == http.HTTPStatus.OK else body)
