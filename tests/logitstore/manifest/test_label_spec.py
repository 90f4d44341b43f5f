"""What a label row holds, as a key."""

from dataclasses import replace

from tests.logitstore.random_labels import make_manifest


def test_lists_make_the_same_spec_as_tuples() -> None:
    """A writer's schema is found by it, and a list in it ended the writing in a TypeError."""
    spec = make_manifest().labels
    of_lists = replace(spec, temperatures=list(spec.temperatures), extra_columns=list(spec.extra_columns))
    assert of_lists == spec
    assert hash(of_lists) == hash(spec)
