"""A cluster whose head is gone is noticed in seconds."""

import socket
import time

import pytest

from labeler.errors import ClusterLostError
from labeler.on_ray import head_watch
from labeler.on_ray.head_watch import HeadWatch


@pytest.fixture
def head(monkeypatch):
    monkeypatch.setattr(head_watch, "CHECK_SEC", 0.1)
    monkeypatch.setattr(head_watch, "HEAD_PATIENCE_SEC", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def watch_of(server):
    return HeadWatch(f"127.0.0.1:{server.getsockname()[1]}")


def note_for(watch, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        watch.note()
        time.sleep(0.02)


def test_a_head_that_answers_is_left_in_peace(head):
    watch = watch_of(head)
    note_for(watch, 0.8)
    while not watch.is_in_contact:  # a busy machine may let the last answer grow old
        watch.note()
    assert not watch.is_gone


def test_a_head_that_is_gone_is_noticed(head):
    began = time.monotonic()
    watch = watch_of(head)
    head.close()
    with pytest.raises(ClusterLostError, match=r"127\.0\.0\.1.*run the same command again"):
        note_for(watch, 60)
    assert time.monotonic() - began >= head_watch.HEAD_PATIENCE_SEC
    assert watch.is_gone
    assert not watch.is_in_contact
