"""DeviceSession: the union served on /dev/fuse itself, by threads.

Reader threads (`fuse.placement` says which, and on which CPU) take requests from the device.
A request runs on its reader to the end, under the one lock of the union's state, and is
replied to at once. One that has to wait lets go of the lock meanwhile, and where nobody
else would read it is handed, at its first `Blocking` call, to a worker thread: so one slow
file never stops the rest. Only this module knows that threads exist.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import queue
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from unionfs.errors import MountError
from unionfs.fuse import mounting, protocol
from unionfs.fuse.interface import FileSystem
from unionfs.fuse.openless import OpenlessRequests
from unionfs.fuse.placement import HIDDEN, NOBODY, Placement, Reader
from unionfs.fuse.protocol import Init, Opcode, Valid
from unionfs.fuse.refusals import NOT_SERVED, errno_of, opcode_name
from unionfs.fuse.requests import Handler, Reply, Requests, Timeouts
from unionfs.fuse.rereading import NOT_WANTED, RereadingRequests
from unionfs.fuse.workers import Workers
from unionfs.log import Log
from unionfs.options import MountOptions
from unionfs.waiting import Blocking

log = Log(__name__)

#: What the device says when the mount is gone: unmounted, aborted, or closed by ourselves.
_DISCONNECTED: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)
#: What it says of a request that its process took back before it was read.
_AGAIN: Final = (errno.ENOENT, errno.EINTR, errno.EAGAIN)
#: Replies to these opcodes do not exist.
_WITHOUT_REPLY: Final = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))
#: The kernel makes these by itself, as nobody's: who caused them goes on meanwhile.
_UNAWAITED: Final = _WITHOUT_REPLY | {Opcode.RELEASE, Opcode.RELEASEDIR}
#: Writes of less copy so little that others need not read meanwhile; such reads are not `brief`.
_MUCH: Final = 64 * 1024

_WANTED: Final = (
    Init.ASYNC_READ
    | Init.EXPORT_SUPPORT
    | Init.BIG_WRITES
    | Init.DONT_MASK
    | Init.HAS_IOCTL_DIR
    | Init.AUTO_INVAL_DATA
    | Init.DO_READDIRPLUS
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.POSIX_ACL
    | Init.MAX_PAGES
    | Init.NO_OPENDIR_SUPPORT
    | Init.CACHE_SYMLINKS
    | Init.HANDLE_KILLPRIV_V2
    | Init.INIT_EXT
)

_unpack_header: Final = protocol.IN_HEADER.unpack_from
_HEADER_SIZE: Final = protocol.IN_HEADER.size
_pack_header: Final = protocol.OUT_HEADER.pack
_REPLY_HEADER_SIZE: Final = protocol.OUT_HEADER.size
#: Replies of up to this size (bytes) are put together before they are written.
_SMALL: Final = 4096

Request = Coroutine[Blocking, Any, Reply]


class DeviceSession:
    """See ``fuse.interface.Session``, and ``fuse.interface.Kernel`` for what it offers."""

    name = "device"

    def __init__(self, filesystem: FileSystem, options: MountOptions) -> None:
        self._fs = filesystem
        self._options = options
        self._handlers: dict[int, Handler] = {}
        #: Held while any code of the union runs.
        self._lock = threading.Lock()
        #: Set when no more requests are begun.
        self._ending = False
        self._workers = Workers()
        #: The readers that wait for a request now: while there is one, another may wait longer.
        self._reading: set[Reader] = set()
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._fd = -1
        self._target = b""
        self._minor: int | None = None
        self._is_ours_to_unmount = False
        self._unknown: set[int] = set()
        self._passthrough = False
        self.counts: Counter[int] = Counter()
        filesystem.connect(self)

    # The mount

    def mount(self, target: bytes, source: str, words: Sequence[str]) -> None:
        self._target = target
        given = mounting.device_of(target)
        if given is None:
            self._fd = mounting.mount(target, source, words)
            self._is_ours_to_unmount = True
        else:
            self._fd = given
        # Now: who serves need not see the mount later.
        self._minor = mounting.minor_of(target)

    def serve(self, ready: Callable[[], None]) -> None:
        self._negotiate()
        self._workers.begin()
        # Requests wait until all that belongs to the start is done: who has had an answer knows.
        with self._lock:
            Placement(self._options.placement).start(self._read_requests)
            ready()
        self._events.get()
        self._end()

    def stop(self) -> None:
        self._events.put("stop")

    def counted(self) -> str:
        found = sorted(self.counts.copy().items())
        return " ".join(f"{opcode_name(opcode)}={count}" for opcode, count in found)

    def _end(self) -> None:
        """Let what was begun come to its end, begin nothing more, and sync the upper."""
        with self._lock:
            self._ending = True
        self._workers.finish()
        # For good: what the workers could not finish stays as it is.
        self._lock.acquire()
        if self._options.debug:
            log.debug("requests: %s", self.counted())
        request = self._fs.syncfs()
        with contextlib.suppress(StopIteration):
            step = request.send(None)
            while True:
                step = request.send(step.call())

    def close(self, *, unmount: bool) -> None:
        if self._fd < 0:
            return
        if unmount and self._is_ours_to_unmount:
            mounting.unmount_own(self._target)
        # Replaced, not closed: a thread may be about to use the number, which another file
        # would have by then.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, self._fd, inheritable=False)
        os.close(null)
        self._fd = -1

    # What the file system may ask of the kernel

    def open_backing(self, fd: int) -> int:
        if not self._passthrough:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        # Only with a buffer that it may write does ioctl return what the kernel does.
        argument = bytearray(protocol.BACKING_MAP.pack(fd, 0, 0))
        backing: int = fcntl.ioctl(self._fd, protocol.DEV_IOC_BACKING_OPEN, argument)
        return backing

    def close_backing(self, backing: int) -> None:
        argument = backing.to_bytes(4, protocol.BYTE_ORDER)
        with contextlib.suppress(OSError):  # the connection is gone, and the backing with it
            fcntl.ioctl(self._fd, protocol.DEV_IOC_BACKING_CLOSE, argument)

    def attributes_changed(self, node: int) -> None:
        body = protocol.INVAL_INODE_OUT.pack(node, -1, 0)
        head = protocol.OUT_HEADER.pack(
            protocol.OUT_HEADER.size + len(body), protocol.NOTIFY_INVAL_INODE, 0
        )
        with contextlib.suppress(OSError):  # ENOENT: the kernel does not know the node any more
            os.write(self._fd, head + body)

    # Requests

    def _negotiate(self) -> None:
        """Answer INIT, the first request, before any other thread reads."""
        buffer = bytearray(protocol.BUFFER_SIZE)
        size = self._read(buffer)
        _, opcode, unique, *_ = _unpack_header(buffer)
        if size < _HEADER_SIZE + protocol.INIT_IN.size or opcode != Opcode.INIT:
            raise MountError(f"{os.fsdecode(self._target)}: the kernel did not begin with INIT")
        body = memoryview(buffer)[_HEADER_SIZE:size]
        request = protocol.parse_init(body)
        if request.major != protocol.MAJOR or request.minor < protocol.OLDEST_MINOR:
            self._reply(unique, errno.EPROTO, None)
            raise MountError(
                f"FUSE protocol {request.major}.{request.minor}: Linux 5.4 or newer is needed"
            )
        flags = self._choose(request.flags)
        self._reply(
            unique,
            0,
            protocol.init_reply(request, flags, stack_depth=int(self._passthrough)),
        )
        mounting.raise_readahead(self._minor, protocol.MAX_DATA)

    def _choose(self, offered: Init) -> Init:
        """Choose what to take of what the kernel offers, and so how files are opened.

        Passthrough needs an OPEN for every file, and so do files that others change; else
        there is none at all.
        """
        timeouts = Timeouts(*map(Valid.of, self._options.timeouts()))
        changing = self._options.layers_change
        own = _WANTED & ~Init.POSIX_ACL if self._options.noacl else _WANTED
        wanted = own & ~NOT_WANTED if changing else own
        if self._options.passthrough != "off" and mounting.may_pass_through():
            self._passthrough = bool(offered & Init.PASSTHROUGH)
        if self._passthrough or changing:
            requests = (RereadingRequests if changing else Requests)(self._fs, timeouts)
            self._handlers = requests.handlers()
            if self._passthrough:
                wanted |= Init.PASSTHROUGH
            # With this, OPEN does the truncation; so it must not be answered ENOSYS.
            return offered & (wanted | Init.ATOMIC_O_TRUNC)
        self._handlers = OpenlessRequests(self._fs, timeouts).handlers()
        return offered & (own | Init.NO_OPEN_SUPPORT)

    def _read(self, buffer: bytearray) -> int:
        """Read one request into *buffer*; its size, 0 when the mount is gone."""
        while True:
            try:
                return os.readv(self._fd, (buffer,))
            except OSError as error:
                if error.errno in _DISCONNECTED:
                    return 0
                if error.errno not in _AGAIN:
                    raise

    def _read_requests(self, reader: Reader) -> None:
        """Take and run requests until the mount is gone."""
        buffer = bytearray(protocol.BUFFER_SIZE)
        view = memoryview(buffer)
        try:
            while True:
                reader.await_turn(others_read=bool(self._reading))
                self._reading.add(reader)
                size = self._read(buffer)
                self._reading.discard(reader)
                if size == 0:
                    break
                client = self._run(view[:size], reader)
                if client < 0:
                    # A worker goes on with the request and what was read of it.
                    buffer = bytearray(protocol.BUFFER_SIZE)
                    view = memoryview(buffer)
                    client = ~client
                reader.served(client)
        except Exception:
            log.exception("reading requests failed")
        finally:
            self._events.put("gone")

    def _run(self, raw: memoryview, reader: Reader) -> int:
        """Run a request until it ends, or has to wait while nobody else reads.

        Return the thread that waits for it (``NOBODY``, or ``HIDDEN`` in another pid
        namespace), inverted (and so negative, even for 0) if a worker goes on with it.
        """
        pid: int
        try:
            size, opcode, unique, node, uid, gid, pid, _, _ = _unpack_header(raw)
        except struct.error:
            log.warning("%d bytes are no request", len(raw))
            return NOBODY
        self.counts[opcode] += 1
        client = pid or (NOBODY if opcode in _UNAWAITED else HIDDEN)
        handler = self._handlers.get(opcode)
        if handler is None or size != len(raw):
            self._refuse(opcode, unique, errno.ENOSYS if handler is None else errno.EINVAL)
            return client
        reply: Reply = None
        request: Request | None = None
        step: Blocking | None = None
        code = 0
        with self._lock:
            if self._ending:
                return client  # it ends with the mount
            try:
                answer = handler(node, raw[_HEADER_SIZE:], (uid, gid, pid))
            except Exception as error:  # noqa: BLE001 - becomes an errno
                code = errno_of(opcode, error)
            else:
                if answer is None or isinstance(answer, (bytes, bytearray, memoryview)):
                    reply = answer
                else:
                    request = answer
                    step, reply, code = self._advance(opcode, request, None, None)
        if request is not None and step is not None:
            copies_little = step.brief and size < _MUCH and opcode == Opcode.WRITE
            if not copies_little:
                reader.apart()
            return client if self._go_on(opcode, unique, request, step) else ~client
        if opcode not in _WITHOUT_REPLY:
            self._reply(unique, code, reply)
        return client

    def _go_on(self, opcode: int, unique: int, request: Request, step: Blocking | None) -> bool:
        """Make the calls that *request* waits for, and reply; false if a worker does it."""
        reply: Reply = None
        code = 0
        while step is not None:
            if step.brief:
                step, reply, code = self._resume(opcode, request, step)
            elif self._reading:
                with self._workers.another():
                    step, reply, code = self._resume(opcode, request, step)
            else:
                self._workers.start(partial(self._finish, opcode, unique, request, step))
                return False
        self._reply(unique, code, reply)
        return True

    def _finish(self, opcode: int, unique: int, request: Request, step: Blocking | None) -> None:
        """Run what is left of a request, its waiting included, in a worker thread."""
        reply: Reply = None
        code = 0
        while step is not None:
            step, reply, code = self._resume(opcode, request, step)
        self._reply(unique, code, reply)

    def _resume(
        self, opcode: int, request: Request, step: Blocking
    ) -> tuple[Blocking | None, Reply, int]:
        """Make the call that *request* waits for, without the lock, and go on with it."""
        result: Any = None
        failure: BaseException | None = None
        try:
            result = step.call()
        except BaseException as error:  # noqa: BLE001 - the request's own to handle
            failure = error
        with self._lock:
            return self._advance(opcode, request, result, failure)

    def _advance(
        self, opcode: int, request: Request, result: Any, failure: BaseException | None
    ) -> tuple[Blocking | None, Reply, int]:
        """Run *request* up to its next wait: that wait, or its reply and errno."""
        try:
            if failure is None:
                return request.send(result), None, 0
            return request.throw(failure), None, 0
        except StopIteration as end:
            return None, end.value, 0
        except Exception as error:  # noqa: BLE001 - becomes an errno
            return None, None, errno_of(opcode, error)

    def _refuse(self, opcode: int, unique: int, code: int) -> None:
        if opcode in _WITHOUT_REPLY:
            return  # INTERRUPT: requests run to their end; whoever was interrupted gets the answer
        if opcode not in NOT_SERVED and opcode not in self._unknown:
            self._unknown.add(opcode)
            log.warning("%s is answered %s", opcode_name(opcode), errno.errorcode[code])
        self._reply(unique, code, None)

    def _reply(self, unique: int, code: int, body: Reply) -> None:
        body = body or b""
        head = _pack_header(_REPLY_HEADER_SIZE + len(body), -code, unique)
        try:
            if len(body) <= _SMALL:
                os.write(self._fd, head + body)  # one buffer costs less than two
            else:
                os.writev(self._fd, (head, body))
        except OSError as error:
            # ENOENT: nobody waits for it any more.
            if error.errno not in (*_DISCONNECTED, errno.ENOENT):
                log.warning("a reply was refused: %s", error)
