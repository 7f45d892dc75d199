"""Confines the calling process to decoding one file: what a hostile video may still do once it runs code.

It works without privileges, in containers too. Each layer is used where the platform has it:

| layer | takes away | where |
| --- | --- | --- |
| resource limits | memory, endless computing, core dumps, writing files | Linux, macOS (no memory limit) |
| no_new_privs | gaining rights by executing | Linux |
| Landlock | every file but the one, TCP, signals to others | Linux 5.13 (files), 6.7 (TCP), 6.12 (signals) |
| seccomp | sockets, processes, programs, tracing others, changing modes, owners | Linux on x86-64 and ARM64 |

There is no kept library for both that does not need a system package, hence the kernel's interface by ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from pathlib import Path

from .budget import MOST_MEMORY, SOME_MEMORY

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9

# Landlock's system calls have these numbers on every architecture (linux/landlock.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _WRITE_FILE, _READ_DIR, _IOCTL_DEV = 1 << 2, 1 << 1, 1 << 3, 1 << 15
_FILE_ACCESSES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_FILE_ACCESSES = (1 << 16) - 1
_TCP, _SCOPES = 0b11, 0b11

# What a decoder that must not reach anything else never calls, by the kernel's number on each architecture.
_FORBIDDEN = {
    "x86_64": (
        *(41, 53, 42, 49, 50, 43, 288, 44, 46),  # socket ... sendmsg
        *(57, 58, 59, 322),  # fork, vfork, execve, execveat
        *(101, 310, 311, 434, 438),  # ptrace, process_vm_*, pidfd_open, pidfd_getfd
        *(62, 200, 424, 129, 297),  # kill, tkill, pidfd_send_signal, rt_sigqueueinfo, rt_tgsigqueueinfo
        *(425, 321, 298, 323, 304),  # io_uring_setup, bpf, perf_event_open, userfaultfd, open_by_handle_at
        *(248, 249, 250),  # add_key, request_key, keyctl
        *(90, 91, 268, 452, 92, 93, 94, 260),  # chmod ... fchmodat2, chown ... fchownat
        *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),  # utime ... utimensat, *setxattr, *removexattr
        *(165, 272, 308, 155, 161, 175, 313),  # mount, unshare, setns, pivot_root, chroot, *init_module
    ),
    "aarch64": (
        *(198, 199, 203, 200, 201, 202, 242, 206, 211),
        *(221, 281),
        *(117, 270, 271, 434, 438),
        *(129, 130, 424, 138, 240),
        *(425, 280, 241, 282, 265),
        *(217, 218, 219),
        *(52, 53, 452, 54, 55),
        *(88, 5, 6, 7, 14, 15, 16),
        *(40, 97, 268, 41, 51, 105, 273),
    ),
}
# clone, clone3, tgkill, prlimit64, seccomp: allowed for threads, oneself, oneself.
_PARTLY = {"x86_64": (56, 435, 234, 302, 317), "aarch64": (220, 435, 131, 261, 277)}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_CLONE_THREAD = 0x10000

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def die_with(parent: int) -> None:
    """Ends this process when the one that started it ends, however that ends (Linux)."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the process that wanted the video is gone")


def confine(path: Path, *, devices: bool = False) -> list[str]:
    """Gives up everything but reading one file, computing, and the pipes and memory that are open already.

    Args:
        devices: leave what a GPU's driver needs: reading files, writing below /dev, any amount of memory.

    Returns:
        The layers that took effect.
    """
    layers: list[str | None] = [_limit(memory=not devices)]
    if sys.platform == "linux":
        libc = _libc()
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            layers.append("no_new_privs")
            layers += [_landlock(libc, path, devices), _seccomp(libc)]
    return [layer for layer in layers if layer]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _limit(*, memory: bool) -> str:
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        # Private memory that can be written; address space alone costs nothing, and decoders reserve much.
        *([(resource.RLIMIT_DATA, MOST_MEMORY)] if memory and sys.platform == "linux" else []),
        # Linux counts threads and the user's other processes here: seccomp forbids processes instead.
        *([(resource.RLIMIT_NPROC, 0)] if sys.platform == "darwin" else []),
    ):
        hard = resource.getrlimit(limit)[1]
        beyond = 2 * SOME_MEMORY if limit == resource.RLIMIT_DATA else 0
        if hard == resource.RLIM_INFINITY or hard > most + beyond:
            resource.setrlimit(limit, (most, most + beyond))
    return "limits"


def _landlock(libc: ctypes.CDLL, path: Path, devices: bool) -> str | None:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return None
    files = _FILE_ACCESSES.get(version, _ALL_FILE_ACCESSES)
    if devices:
        files &= ~(_READ_FILE | _READ_DIR | 1)
    handled = struct.pack("=QQQ", files, _TCP, _SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), ctypes.c_uint32(0))
    if ruleset < 0:
        return None
    try:
        allowed = (Path("/dev"), (_WRITE_FILE | _IOCTL_DEV) & files) if devices else (path, _READ_FILE)
        beneath = os.open(allowed[0], os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", allowed[1], beneath)
            if libc.syscall(_ADD_RULE, ruleset, 1, rule, ctypes.c_uint32(0)) != 0:
                return None
        finally:
            os.close(beneath)
        return (
            f"landlock {version}" if libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)) == 0 else None
        )
    finally:
        os.close(ruleset)


def _seccomp(libc: ctypes.CDLL) -> str | None:
    machine = platform.machine()
    if machine not in _FORBIDDEN or sys.byteorder != "little":
        return None
    clone, clone3, tgkill, prlimit, seccomp = _PARTLY[machine]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    number, first_argument = (_LOAD, 0, 0, 0), (_LOAD, 0, 0, 16)
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        number,
        (_AT_LEAST, 0, 1, _X32),
        refuse,
        # glibc then takes clone, whose flags can be read.
        (_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for call in _FORBIDDEN[machine]:
        program += [(_EQUAL, 0, 1, call), refuse]
    for call, condition in (
        (clone, (_BITS, 1, 0, _CLONE_THREAD)),
        (tgkill, (_EQUAL, 1, 0, os.getpid())),
        (prlimit, (_EQUAL, 1, 0, 0)),
    ):
        program += [(_EQUAL, 0, 4, call), first_argument, condition, refuse, (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    set_filter, all_threads = 1, 1
    failed = libc.syscall(seccomp, ctypes.c_uint(set_filter), ctypes.c_uint(all_threads), header)
    return None if failed else "seccomp"
