"""Where a function's beginning is cheap to probe, in code that compilers have made."""

from __future__ import annotations

import pytest

from pytest_netpoll.gobinary.ready_sites import cheap_place


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("493b6610 0f86e2010000 4883ec50", 4),  # Go 1.19: cmp, jbe, sub
        ("493b6610 0f86e1010000 55 4889e5", 10),  # Go 1.21: cmp, jbe, push
        ("493b6610 7659 55 4889e5", 6),  # a short jbe
        ("4c8d6424c0 4d3b6610 7659 55 4889e5", 11),  # a large frame: lea, cmp, jbe, push
        ("4c8da42440ffffff 4d3b6610 7659 4883ec50", 12),  # a larger one, without push
        ("55 4889e5", 0),  # no check of the stack
        ("4883ec18 48896c2410", None),
        ("493b6610 4883ec50", None),
        ("", None),
    ],
)
def test_on_x86_64_it_is_the_push_or_the_jump_before_it(code: str, place: int | None) -> None:
    assert cheap_place(bytes.fromhex(code), "x86_64") == place


def test_on_arm64_it_is_the_branch_to_where_the_stack_grows() -> None:
    # ldr x16,[x28,#16]; cmp sp,x16; b.ls; str x30,[sp,#-80]!
    words = (0xF9400B90, 0xEB3063FF, 0x54000F89, 0xF81B0FFE)
    assert cheap_place(b"".join(word.to_bytes(4, "little") for word in words), "aarch64") == 8
    assert cheap_place((0xD503201F).to_bytes(4, "little") * 8, "aarch64") is None
