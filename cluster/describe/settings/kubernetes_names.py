"""Names as Kubernetes takes them, so that a wrong one is known before pods are asked for and never come."""

from __future__ import annotations

import re
from typing import Annotated

from logitstore.common.section import of_form

LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
LABEL_NAME = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
PART_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Name of a container, a volume or a namespace."""

ObjectName = Annotated[
    str,
    of_form(
        r"((?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?",
        "an object of Kubernetes is named by at most 253 small letters, digits, '-' and '.', with a letter "
        "or digit at both ends; write the name that `kubectl get` shows",
    ),
]
""" "" or the name of a Secret, claim, account, class."""
Namespace = Annotated[
    str,
    of_form(
        PART_NAME.pattern,
        "a namespace is named by at most 63 small letters, digits and, within, '-'; write the name that "
        "`kubectl get namespaces` shows",
    ),
]
LabelName = Annotated[
    str,
    of_form(
        LABEL_NAME.pattern,
        "a label is named by at most 63 letters, digits, '-', '_' and '.', after a domain and '/' if it has "
        "one; write the name that `kubectl get nodes --show-labels` shows",
    ),
]
LabelValue = Annotated[
    str,
    of_form(
        LABEL_VALUE.pattern,
        "the value of a label has at most 63 letters, digits, '-', '_' and '.', with a letter or digit at "
        "both ends; write the value that `kubectl get nodes --show-labels` shows",
    ),
]
Label = Annotated[
    str,
    of_form(
        rf"({LABEL_NAME.pattern}={LABEL_VALUE.pattern})?",
        "a label is written as name=value, each of at most 63 letters, digits, '-', '_' and '.', for example "
        "'cloud.google.com/gke-spot=true'",
    ),
]
""" "" or one."""
