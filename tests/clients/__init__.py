"""Other programs' clients make pictures through the service. `make test-clients` installs them into build/clients.

Each program is called by a short script in its own language, in python/ or node/. A script gets the service's URL, a
key, a picture and the name of a case. Masks lie beside the picture. The script prints one line of JSON about what the
program returned. The tests compare the pictures with those of the service's own routes, which are deterministic.

Gradio's client is not among them: it speaks Gradio's own protocol (`/config`, `/queue/join`), which the service lacks.
"""
