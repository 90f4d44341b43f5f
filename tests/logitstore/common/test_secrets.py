"""One rule says what is a secret; nothing of it is left in what the rule has cleaned."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from logitstore.common.secrets import (
    blanked_places,
    redact_text,
    redact_uri,
    redacted,
    secret_places,
)

PLANTED = "hunter2XQZ"

OF_OPTIONS: list[dict[str, Any]] = [
    {"key": PLANTED},
    {"secret": PLANTED},
    {"passwd": PLANTED},
    {"sas": PLANTED},
    {"sasToken": PLANTED},
    {"auth": ["user", PLANTED]},
    {"list": [{"secret": PLANTED}]},
    {"connection_string": f"AccountName=a;AccountKey={PLANTED}"},
    {"client_kwargs": {"headers": {"Authorization": PLANTED}}},
    {"client_kwargs": {"headers": {"X-Of-Ours": PLANTED}}},
    {"credentials": {"type": "service_account", "private_key": PLANTED}},
    {"proxies": {"https": f"http://me:{PLANTED}@proxy:8080"}},
    {"endpoint_url": f"https://host/?X-Amz-Signature={PLANTED}"},
    {"password": 12345},
    {"query": f"Expires=1&Signature={PLANTED}"},
    {"query": f"sig={PLANTED}"},
    {"headers": [["Authorization", PLANTED], ["X-Of-Ours", PLANTED]]},
    {"jwt": PLANTED},
    {"creds": PLANTED},
    {"oauth": PLANTED},
    {"hmac": {"access": PLANTED}},
]


@pytest.mark.parametrize("options", OF_OPTIONS, ids=lambda options: next(iter(options)))
def test_a_secret_of_storage_options_is_found_and_blanked(options: dict[str, Any]) -> None:
    document = {"output": {"storage_options": options}}
    left = json.dumps(redacted(document))
    assert PLANTED not in left
    assert "12345" not in left
    assert list(secret_places(document))
    assert list(secret_places(redacted(document))) == []
    assert list(blanked_places(redacted(document)))


HARMLESS = {
    "storage_options": {
        "anon": False,
        "endpoint_url": "http://127.0.0.1:9000",
        "config_kwargs": {"signature_version": "s3v4"},
        "use_listings_cache": True,
        "token": "",
    },
    "max_tokens": 512,
    "unit_tokens": 65_536,
    "seconds_per_token": 0.5,
    "fatal_token_id": 7,
    "eos_token": "</s>",
    "hf_token": True,
    "tokenizer_mode": "auto",
    "token_ids": "ids",
    "uri": "https://host/in.jsonl?download=true",
    "stop": ("###", "Basic English"),
    "rate": float("nan"),
}


def test_settings_that_only_sound_alike_are_no_secrets() -> None:
    assert list(secret_places(HARMLESS)) == []
    assert redacted(HARMLESS) == HARMLESS


def test_uris_lose_user_and_signature_and_nothing_else() -> None:
    assert redact_uri("http://u:p@host:8/a?x=1&sig=abc#f") == "http://***@host:8/a?x=1&sig=***#f"
    assert redact_uri("s3://AKIA:SEC@bucket/x") == "s3://***@bucket/x"
    assert redact_uri("/plain/path?.jsonl") == "/plain/path?.jsonl"
    text = "404, message='', url='https://host/in.jsonl?X-Amz-Credential=AB&X-Amz-Signature=cd'"
    assert (
        redact_text(text)
        == "404, message='', url='https://host/in.jsonl?X-Amz-Credential=***&X-Amz-Signature=***'"
    )


@pytest.mark.parametrize(
    "secret",
    [
        "AKIA" + "ABCDEFGH12345678",
        "hf_" + "a1B2" * 8,
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_a_secret_is_known_by_its_form_under_any_name(secret: str) -> None:
    assert redacted({"note": f"use {secret} here"}) == {"note": "use *** here"}


@pytest.mark.parametrize("unit", ["x", "?", "&a", "hf_", "://", "Bearer ", "@", "-----BEGIN KEY"])
def test_long_texts_take_no_time_out_of_proportion(unit: str) -> None:
    began_sec = time.process_time()
    redacted({"text": unit * 300_000})
    assert time.process_time() - began_sec < 2
