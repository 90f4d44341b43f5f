"""A cluster whose head is gone is noticed in seconds; one that is only busy is left in peace."""

import socket
import time

import pytest

from labeler import head_watch
from labeler.head_watch import HeadWatch
from labeler.messages import ClusterLostError


@pytest.fixture
def head(monkeypatch):
    monkeypatch.setattr(head_watch, "SILENCE_SEC", 0.1)
    monkeypatch.setattr(head_watch, "HEAD_PATIENCE_SEC", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def watch_of(server):
    return HeadWatch(f"127.0.0.1:{server.getsockname()[1]}")


def silence(watch, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        watch.note(any_answer=False)
        time.sleep(0.02)


def test_workers_that_are_silent_below_a_head_that_answers_are_waited_for(head):
    watch = watch_of(head)
    silence(watch, 0.8)
    assert watch.is_in_contact
    assert not watch.is_gone


def test_a_head_that_is_gone_is_noticed(head):
    watch = watch_of(head)
    head.close()
    began = time.monotonic()
    with pytest.raises(ClusterLostError, match=r"127\.0\.0\.1.*run the same command again"):
        silence(watch, 5)
    assert 0.5 <= time.monotonic() - began < 1.5
    assert watch.is_gone
    assert not watch.is_in_contact


def test_answers_of_workers_count_even_if_the_head_takes_no_connections(head):
    watch = watch_of(head)
    head.close()
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        watch.note(any_answer=True)
        time.sleep(0.05)
    assert watch.is_in_contact
