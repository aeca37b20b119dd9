"""How much the cache may take, and what goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from meshd.seeding.quota import Disk, Held, Quota, evictions


def held(*files: tuple[str, int, int]) -> list[Held]:
    return [Held(*file) for file in files]


def test_a_share_of_the_disk_and_never_the_last_of_it() -> None:
    quota = Quota(share=0.2, keep_free=0.05)
    assert quota.allowed_bytes(Disk(1000, 900), 0) == 200
    assert quota.allowed_bytes(Disk(1000, 150), 0) == 100
    assert quota.allowed_bytes(Disk(1000, 150), 70) == 170, "what it holds is not lost twice"
    assert quota.allowed_bytes(Disk(1000, 10), 30) == 0
    assert quota.allowed_bytes(Disk(1000, 10), 0) == 0


def test_the_least_recently_used_goes_first_and_what_is_needed_stays() -> None:
    files = held(("new", 10, 9), ("old", 10, 1), ("needed", 10, 0), ("older", 10, 0))
    assert evictions(files, 0, 40, {"needed"}) == ()
    assert evictions(files, 10, 40, {"needed"}) == ("older",)
    assert evictions(files, 11, 40, {"needed"}) == ("older", "old")
    assert evictions(files, 30, 40, {"needed"}) == ("older", "old", "new")
    assert evictions(files, 31, 40, {"needed"}) is None


@given(
    some.lists(some.tuples(some.integers(1, 50), some.integers(0, 9)), max_size=12),
    some.integers(0, 300),
    some.integers(0, 300),
    some.sets(some.integers(0, 11)),
)
def test_enough_goes_and_not_one_file_more(
    files: list[tuple[int, int]], needed: int, allowed: int, keep: set[int]
) -> None:
    there = [Held(str(n), size, used) for n, (size, used) in enumerate(files)]
    names = {str(number) for number in keep}
    gone = evictions(there, needed, allowed, names)
    sizes = {file.cache_name: file.size_bytes for file in there}
    if gone is None:
        kept = sum(size for name, size in sizes.items() if name in names)
        assert kept + needed > allowed
        return
    assert not names & set(gone)
    assert sum(sizes.values()) - sum(sizes[name] for name in gone) + needed <= allowed or not gone
    if gone:
        without_last = sum(sizes[name] for name in gone[:-1])
        assert sum(sizes.values()) - without_last + needed > allowed
