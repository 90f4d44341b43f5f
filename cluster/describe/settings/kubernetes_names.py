"""Names as Kubernetes takes them, so that a wrong one is known before pods are asked for and never come."""

from __future__ import annotations

import re

LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
LABEL_NAME = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
PART_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Of a container or volume, and of a namespace."""
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
MOST_LETTERS = 253


def check_object_name(name: str) -> str:
    """ "" or the name of a Secret, claim, account, class. Raises ValueError for another."""
    if name and (len(name) > MOST_LETTERS or not _OBJECT_NAME.fullmatch(name)):
        raise ValueError(
            f"an object of Kubernetes is named by at most {MOST_LETTERS} small letters, digits, '-' and '.', "
            "with a letter or digit at both ends; write the name that `kubectl get` shows"
        )
    return name


def check_namespace(name: str) -> str:
    """Raises ValueError for what is no name of a namespace."""
    if not PART_NAME.fullmatch(name):
        raise ValueError(
            "a namespace is named by at most 63 small letters, digits and, within, '-'; write the name that "
            "`kubectl get namespaces` shows"
        )
    return name


def check_label_name(name: str) -> str:
    """Raises ValueError for what is no name of a label."""
    if not LABEL_NAME.fullmatch(name):
        raise ValueError(
            "a label is named by at most 63 letters, digits, '-', '_' and '.', after a domain and '/' if it "
            "has one; write the name that `kubectl get nodes --show-labels` shows"
        )
    return name


def check_label_value(value: str) -> str:
    """Raises ValueError for what is no value of a label."""
    if not LABEL_VALUE.fullmatch(value):
        raise ValueError(
            "the value of a label has at most 63 letters, digits, '-', '_' and '.', with a letter or digit "
            "at both ends; write the value that `kubectl get nodes --show-labels` shows"
        )
    return value


def check_label(label: str) -> str:
    """ "" or name=value. Raises ValueError for another."""
    name, equals, value = label.partition("=")
    if label and not equals:
        raise ValueError("a label is written as name=value, for example 'cloud.google.com/gke-spot=true'")
    if label:
        check_label_name(name)
        check_label_value(value)
    return label
