"""A snapshotter of containerd's: its snapshots API over gRPC, on any storage driver.

containerd asks over a socket (a *proxy plugin*); what it asks is a verb of the driver's::

    server.py     the socket, calls over gRPC, errors as status codes
      service.py    what each call means; filters.py: which snapshots a List is about
        mounts.py     what containerd mounts itself, and what is mounted for it
      messages.py   the messages, by containerd's names; protobuf.py: how they are written

The API is ``containerd.services.snapshots.v1`` of containerd, the same since version 1.0.
"""
