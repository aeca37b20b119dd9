"""What a node says of its own memory."""

from __future__ import annotations

from dataclasses import replace

from meshd.config.settings import Config, Limit, NodeSettings
from meshd.mesh.record import NodeRecord
from meshd.own_record import Moving, Self, own_record
from meshd.planner.layout import RAM
from meshd.planner.place import budgets_of
from tests.unit.worlds import GIB, MIB, config, node


def said(settings: Config, ram_gib: float, before: NodeRecord | None = None) -> NodeRecord:
    view = node(ram_gib=32)
    ram = replace(view.hardware.ram, available_bytes=int(ram_gib * GIB))
    view = replace(view, hardware=replace(view.hardware, ram=ram))
    budgets = budgets_of(view, settings)
    return own_record(Self("me"), settings, view, None, (), (), (), Moving(), budgets, before)


def plannable(record: NodeRecord) -> int:
    return next(one for one in record.devices if one.id == RAM).plannable_bytes


def limited(size_bytes: int) -> Config:
    return config(node=NodeSettings(limit=Limit(ram_bytes=size_bytes)))


def test_a_limit_is_said_to_the_byte_and_anything_else_is_rounded() -> None:
    assert plannable(said(limited(100 * MIB + 1), 20)) == 100 * MIB + 1
    assert plannable(said(limited(10 * GIB + 1), 5.99)) % (64 * MIB) == 0


def test_free_memory_that_moves_is_no_news_to_a_node_with_a_limit() -> None:
    first = said(limited(GIB), 20)
    assert said(limited(GIB), 19.9, first) == first


def test_a_limit_that_is_moved_a_little_is_news() -> None:
    first = said(limited(300 * MIB), 20)
    assert plannable(said(limited(320 * MIB), 20, first)) == 320 * MIB


def test_what_is_noise_to_the_machine_is_much_of_a_small_limit() -> None:
    first = said(limited(400 * MIB), 20)
    less = said(limited(400 * MIB), 1.2, first)
    assert plannable(less) == 192 * MIB
    back = said(limited(400 * MIB), 20, less)
    assert plannable(back) == 400 * MIB
