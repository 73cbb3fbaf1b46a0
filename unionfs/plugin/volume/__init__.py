"""Docker's protocol for volume plugins, on the volumes of a store; Podman speaks it too.

`server` takes connections, `connection` reads their requests and writes the answers, `calls`
is what the requests mean.
"""
