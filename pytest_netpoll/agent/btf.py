"""Questions to the kernel's own type information: where in task_struct is what we read there?"""

import struct

KIND_STRUCT = 4
MEMBER = struct.Struct("=III")

# Bytes that follow a type's 12-byte header, by kind; those that depend on vlen are computed.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_ENTRY = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


def member_offset(btf, struct_name, member_name):
    """Byte offset of a member in a struct of the BTF blob, or None when it is not there.

    Raises ValueError when the blob is not BTF.
    """
    try:
        magic, _, _, header = struct.unpack_from("=HBBI", btf, 0)
        if magic != 0xEB9F:
            raise ValueError("not BTF")
        type_off, type_len, str_off, str_len = struct.unpack_from("=IIII", btf, 8)
        strings = btf[header + str_off : header + str_off + str_len]
        wanted = _offset_of(strings, struct_name)
        member = _offset_of(strings, member_name)
        if wanted is None or member is None:
            return None
        at, end = header + type_off, header + type_off + type_len
        while at < end:
            name, info, _ = struct.unpack_from("=III", btf, at)
            at += 12
            kind, entries = info >> 24 & 0x1F, info & 0xFFFF
            if kind == KIND_STRUCT and name == wanted:
                bitfields = info >> 31
                for i in range(entries):
                    name, _, offset = MEMBER.unpack_from(btf, at + i * 12)
                    if name == member:
                        return (offset & 0xFFFFFF if bitfields else offset) // 8
                return None
            at += _FIXED.get(kind) or entries * _PER_ENTRY.get(kind, 0)
    except struct.error as error:
        raise ValueError("not BTF") from error
    return None


def _offset_of(strings, name):
    at = strings.find(b"\0" + name.encode() + b"\0")
    return None if at < 0 else at + 1


# What the C calls them -> where they are. The first are needed to follow children, the others in a pid
# namespace of the agent's own.
TASK_MEMBERS = {
    "TASK_TGID_OFFSET": ("task_struct", "tgid"),
    "TASK_SIGNAL_OFFSET": ("task_struct", "signal"),
    "SIGNAL_LIVE_OFFSET": ("signal_struct", "live"),
}
PID_MEMBERS = {
    "TASK_THREAD_PID_OFFSET": ("task_struct", "thread_pid"),
    "PID_NUMBERS_OFFSET": ("pid", "numbers"),
    "PID_LEVEL_OFFSET": ("pid", "level"),
}


def offsets_of(members, path="/sys/kernel/btf/vmlinux"):
    """Byte offset of each of the members, or None when the kernel does not tell."""
    try:
        with open(path, "rb") as f:
            blob = f.read()
        offsets = {name: member_offset(blob, *member) for name, member in members.items()}
    except (OSError, ValueError):
        return None
    return None if None in offsets.values() else offsets
