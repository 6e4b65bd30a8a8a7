"""Questions to the kernel's own type information: where in its structs is what we read there?"""

import struct

WORDS = struct.Struct("=III")  # how a type begins, and each member of a struct or union
STRUCT, UNION = 4, 5

# Bytes that follow a type's beginning, by kind: fixed, and for each of its entries.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_ENTRY = {STRUCT: 12, UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}


def member_offsets(btf, wanted):
    """{(struct, member): byte offset} of those that are there, members of nameless inner structs too.

    wanted: pairs of names. Raises ValueError when the blob is not BTF.
    """
    try:
        magic, _, _, header = struct.unpack_from("=HBBI", btf, 0)
        if magic != 0xEB9F:
            raise ValueError("not BTF")
        type_off, type_len, str_off, str_len = struct.unpack_from("=IIII", btf, 8)
        strings = btf[header + str_off : header + str_off + str_len]
        names = {_offset_of(strings, name) for name, _ in wanted}
        types, structs = [None], {}  # where each type is, by its number; by its name
        at, end = header + type_off, header + type_off + type_len
        while at < end:
            types.append(at)
            name, info, _ = WORDS.unpack_from(btf, at)
            kind = info >> 24 & 0x1F
            if kind == STRUCT and name in names:
                structs.setdefault(name, at)
            at += WORDS.size + _FIXED.get(kind, 0) + _PER_ENTRY.get(kind, 0) * (info & 0xFFFF)
        found = {}
        for name, member in wanted:
            place = structs.get(_offset_of(strings, name))
            offset = None
            if place is not None:
                offset = _in_struct(btf, types, place, _offset_of(strings, member))
            if offset is not None:
                found[name, member] = offset
        return found
    except (struct.error, IndexError) as error:
        raise ValueError("not BTF") from error


def _in_struct(btf, types, at, wanted, depth=8):
    """Byte offset of the member in the struct or union there, or None."""
    _, info, _ = WORDS.unpack_from(btf, at)
    if info >> 24 & 0x1F not in (STRUCT, UNION) or not depth:
        return None
    for i in range(info & 0xFFFF):
        name, kind, offset = WORDS.unpack_from(btf, at + WORDS.size * (i + 1))
        offset = (offset & 0xFFFFFF if info >> 31 else offset) // 8  # with bitfields, their sizes stand above
        if name == wanted:
            return offset
        if name == 0:
            inner = _in_struct(btf, types, types[kind], wanted, depth - 1)
            if inner is not None:
                return offset + inner
    return None


def _offset_of(strings, name):
    at = strings.find(b"\0" + name.encode() + b"\0")
    return None if at < 0 else at + 1


# What the C calls them -> where they are. Each group is of use only as a whole.
# To follow children:
TASK_MEMBERS = {
    "TASK_TGID_OFFSET": ("task_struct", "tgid"),
    "TASK_SIGNAL_OFFSET": ("task_struct", "signal"),
    "SIGNAL_LIVE_OFFSET": ("signal_struct", "live"),
}
# In a pid namespace of the agent's own:
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
    "FILE_INODE_OFFSET": ("file", "f_inode"),
    "FILE_PRIVATE_OFFSET": ("file", "private_data"),
    "INODE_MODE_OFFSET": ("inode", "i_mode"),
    "INODE_INO_OFFSET": ("inode", "i_ino"),
    "SOCKET_TYPE_OFFSET": ("socket", "type"),
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


def offsets_of(*groups, path="/sys/kernel/btf/vmlinux"):
    """For each group {its C name: byte offset}, or None where the kernel does not tell all of it."""
    try:
        with open(path, "rb") as f:
            found = member_offsets(f.read(), {pair for group in groups for pair in group.values()})
    except (OSError, ValueError):
        found = {}
    return [
        {name: found[pair] for name, pair in group.items()} if found.keys() >= set(group.values()) else None
        for group in groups
    ]
