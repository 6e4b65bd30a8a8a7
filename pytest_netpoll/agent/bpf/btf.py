"""Finds offsets of struct members in the kernel's type information (BTF)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping

WORDS = struct.Struct("=III")  # the header of a type, and of each member of a struct or union
STRUCT, UNION, TYPEDEF, FUNCTION = 4, 5, 8, 12
_NOTHING = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"

# Bytes that follow a type's header, by kind: a fixed number, and more for each of its entries.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_ENTRY = {STRUCT: 12, UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}


class Types:
    """The types in a BTF blob. Raises ValueError if it isn't BTF."""

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self._at = [0]  # where each type begins, by its number; there is no type 0
        # (kind, offset of the name) -> number of the first type with that name
        self._numbers: dict[tuple[int, int], int] = {}
        try:
            magic, _, _, header = struct.unpack_from("=HBBI", blob, 0)
            if magic != 0xEB9F:
                raise ValueError("not BTF")
            type_off, type_len, str_off, str_len = struct.unpack_from("=IIII", blob, 8)
            self._strings = blob[header + str_off : header + str_off + str_len]
            at, end = header + type_off, header + type_off + type_len
            while at < end:
                name, info, _ = WORDS.unpack_from(blob, at)
                kind = info >> 24 & 0x1F
                if kind in (STRUCT, TYPEDEF):
                    self._numbers.setdefault((kind, name), len(self._at))
                self._at.append(at)
                at += WORDS.size + _FIXED.get(kind, 0) + _PER_ENTRY.get(kind, 0) * (info & 0xFFFF)
        except struct.error as error:
            raise ValueError("not BTF") from error

    def typedef(self, name: str) -> int | None:
        """The typedef's number, or None."""
        return self._number(TYPEDEF, name)

    def function(self, name: str) -> int | None:
        """The function's number, or None."""
        at = self._name(name)
        for number, where in enumerate(self._at[1:], 1):
            own, info, _ = WORDS.unpack_from(self._blob, where)
            if own == at and info >> 24 & 0x1F == FUNCTION:
                return number
        return None

    def offset(self, struct_name: str, member: str) -> int | None:
        """The member's offset in bytes, or None."""
        number = self._number(STRUCT, struct_name)
        wanted = self._name(member)
        return None if number is None or wanted is None else self._inside(number, wanted)

    def _inside(self, number: int, wanted: int, depth: int = 8) -> int | None:
        at = self._at[number]
        _, info, _ = WORDS.unpack_from(self._blob, at)
        if info >> 24 & 0x1F not in (STRUCT, UNION) or not depth:
            return None
        for i in range(info & 0xFFFF):
            name, kind, bits = WORDS.unpack_from(self._blob, at + WORDS.size * (i + 1))
            # If the struct has bitfields, the upper bits hold their sizes.
            offset: int = (bits & 0xFFFFFF if info >> 31 else bits) // 8
            if name == wanted:
                return offset
            if name == 0:
                inner = self._inside(kind, wanted, depth - 1)
                if inner is not None:
                    return offset + inner
        return None

    def _number(self, kind: int, name: str) -> int | None:
        at = self._name(name)
        return None if at is None else self._numbers.get((kind, at))

    def _name(self, name: str) -> int | None:
        at = self._strings.find(b"\0" + name.encode() + b"\0")
        return None if at < 0 else at + 1


def kernels(path: str = "/sys/kernel/btf/vmlinux") -> Types:
    """The running kernel's Types; empty if it has no BTF."""
    try:
        with open(path, "rb") as f:
            return Types(f.read())
    except (OSError, ValueError):
        return Types(_NOTHING)


class Answers:
    """Answers questions about the running kernel's Types. They are large, so they are read only for new
    questions.

    known: question -> answer, for this kernel; new answers are added.
    """

    def __init__(self, known: Mapping[str, int | None] | None = None) -> None:
        self.known = dict(known or {})
        self._types: Types | None = None

    def typedef(self, name: str) -> int | None:
        """The typedef's number, or None."""
        return self._answer(name, lambda types: types.typedef(name))

    def function(self, name: str) -> int | None:
        """The function's number, or None."""
        return self._answer(f"{name}()", lambda types: types.function(name))

    def offsets(self, members: Mapping[str, tuple[str, str]]) -> dict[str, int] | None:
        """{what: byte offset} for {what: (struct, member)}; None unless all exist.

        Members of anonymous inner structs count as the outer struct's.
        """
        found = {}
        for what, (name, member) in members.items():
            offset = self._offset(name, member)
            if offset is None:
                return None
            found[what] = offset
        return found

    def first_offsets(self, groups: Iterable[Mapping[str, tuple[str, str]]]) -> dict[str, int] | None:
        """The offsets of the first group whose members all exist; None if there is no such group."""
        return next(filter(None, map(self.offsets, groups)), None)

    def _offset(self, name: str, member: str) -> int | None:
        return self._answer(f"{name}.{member}", lambda types: types.offset(name, member))

    def _answer(self, question: str, ask: Callable[[Types], int | None]) -> int | None:
        if question not in self.known:
            if self._types is None:
                self._types = kernels()
            self.known[question] = ask(self._types)
        return self.known[question]


# The C's name -> (struct, member). A group is used as a whole or not at all.
# To follow children:
TASK_MEMBERS = {
    "TASK_TGID_OFFSET": ("task_struct", "tgid"),
    "TASK_SIGNAL_OFFSET": ("task_struct", "signal"),
    "SIGNAL_LIVE_OFFSET": ("signal_struct", "live"),
}
# At an exec, whether only its user controls the new program:
CREDENTIAL_MEMBERS = {
    "TASK_CRED_OFFSET": ("task_struct", "cred"),
    "CRED_UID_OFFSET": ("cred", "uid"),
    "CRED_EUID_OFFSET": ("cred", "euid"),
    "CRED_SUID_OFFSET": ("cred", "suid"),
    "CRED_FSUID_OFFSET": ("cred", "fsuid"),
    "CRED_GID_OFFSET": ("cred", "gid"),
    "CRED_EGID_OFFSET": ("cred", "egid"),
    "CRED_SGID_OFFSET": ("cred", "sgid"),
    "CRED_FSGID_OFFSET": ("cred", "fsgid"),
    "CRED_CAPABILITIES_OFFSET": ("cred", "cap_permitted"),
    "CRED_USER_NS_OFFSET": ("cred", "user_ns"),
    "USER_NS_LEVEL_OFFSET": ("user_namespace", "level"),
}
# and whether it is dumpable, so that its user may inspect it; since Linux 7.2, and before.
DUMPABLE_MEMBERS = (
    {
        "TASK_EXEC_STATE_OFFSET": ("task_struct", "exec_state"),
        "EXEC_STATE_DUMPABLE_OFFSET": ("task_exec_state", "dumpable"),
    },
    {"TASK_MM_OFFSET": ("task_struct", "mm"), "MM_FLAGS_OFFSET": ("mm_struct", "flags")},
)
# If the agent has a pid namespace of its own:
PID_MEMBERS = {
    "TASK_THREAD_PID_OFFSET": ("task_struct", "thread_pid"),
    "PID_NUMBERS_OFFSET": ("pid", "numbers"),
    "PID_LEVEL_OFFSET": ("pid", "level"),
}
# From a descriptor to the two ends of its connection:
FILE_MEMBERS = {
    "TASK_FILES_OFFSET": ("task_struct", "files"),
    "FILES_FDT_OFFSET": ("files_struct", "fdt"),
    "FDT_FD_OFFSET": ("fdtable", "fd"),
    "FDT_MAX_FDS_OFFSET": ("fdtable", "max_fds"),
    "FILE_INODE_OFFSET": ("file", "f_inode"),
    "FILE_PRIVATE_OFFSET": ("file", "private_data"),
    "INODE_MODE_OFFSET": ("inode", "i_mode"),
    "INODE_INO_OFFSET": ("inode", "i_ino"),
    "SOCKET_TYPE_OFFSET": ("socket", "type"),
    "SOCKET_FILE_OFFSET": ("socket", "file"),
    "SOCKET_SK_OFFSET": ("socket", "sk"),
    "SOCK_FAMILY_OFFSET": ("sock_common", "skc_family"),
    "SOCK_STATE_OFFSET": ("sock_common", "skc_state"),
    "SOCK_PORT_OFFSET": ("sock_common", "skc_num"),
    "SOCK_PEER_PORT_OFFSET": ("sock_common", "skc_dport"),
    "SOCK_ADDRESS_OFFSET": ("sock_common", "skc_rcv_saddr"),
    "SOCK_PEER_ADDRESS_OFFSET": ("sock_common", "skc_daddr"),
    "SOCK_ADDRESS6_OFFSET": ("sock_common", "skc_v6_rcv_saddr"),
    "SOCK_PEER_ADDRESS6_OFFSET": ("sock_common", "skc_v6_daddr"),
}
# What explains a spurious wakeup: the socket's error queue, and where else it is registered.
SOCKET_MEMBERS = {
    "SOCK_ERROR_QUEUE_OFFSET": ("sock", "sk_error_queue"),
    "QUEUE_LENGTH_OFFSET": ("sk_buff_head", "qlen"),
}
REGISTRATIONS = ({"FILE_EPOLL_OFFSET": ("file", "f_ep")}, {"FILE_EPOLL_LIST_OFFSET": ("file", "f_ep_links")})
# Whether a write to a TCP socket is held back, and when it was sent:
TCP_MEMBERS = {
    "SOCK_PROTOCOL_OFFSET": ("sock", "sk_protocol"),
    "TCP_WRITE_SEQ_OFFSET": ("tcp_sock", "write_seq"),
    "TCP_SND_NXT_OFFSET": ("tcp_sock", "snd_nxt"),
    "TCP_SND_UNA_OFFSET": ("tcp_sock", "snd_una"),
    "TCP_SND_SML_OFFSET": ("tcp_sock", "snd_sml"),
    "TCP_SND_WND_OFFSET": ("tcp_sock", "snd_wnd"),
    "TCP_CWND_OFFSET": ("tcp_sock", "snd_cwnd"),
    "TCP_MSS_OFFSET": ("tcp_sock", "mss_cache"),
    "TCP_PACKETS_OUT_OFFSET": ("tcp_sock", "packets_out"),
    "TCP_NONAGLE_OFFSET": ("tcp_sock", "nonagle"),
    "TCP_FIRST_TX_OFFSET": ("tcp_sock", "first_tx_mstamp"),
}
# To what is queued on a socket, in addition to these:
INBOX_MEMBERS = {
    "SOCK_PROTOCOL_OFFSET": ("sock", "sk_protocol"),
    "SOCK_SHUTDOWN_OFFSET": ("sock", "sk_shutdown"),
    "SOCK_QUEUE_OFFSET": ("sock", "sk_receive_queue"),
    "QUEUE_LAST_OFFSET": ("sk_buff_head", "prev"),
    "SKB_SK_OFFSET": ("sk_buff", "sk"),
    "TCP_RCV_NXT_OFFSET": ("tcp_sock", "rcv_nxt"),
    "TCP_COPIED_OFFSET": ("tcp_sock", "copied_seq"),
    "ICSK_ACCEPT_QUEUE_OFFSET": ("inet_connection_sock", "icsk_accept_queue"),
    "RSKQ_TAIL_OFFSET": ("request_sock_queue", "rskq_accept_tail"),
    "REQUEST_SK_OFFSET": ("request_sock", "sk"),
}
MPTCP_MEMBERS = {"MPTCP_FIRST_OFFSET": ("mptcp_sock", "first")}
