"""A job's configuration: what is refused, in which words, and what a store keeps of it."""

import subprocess
import sys

import pytest

from labeler.config.label_settings import MOVED_TO_SAMPLING, SamplingConfig
from labeler.config.loading import describe_difference, identity, load_job, resolved
from logitstore.common.config_file import ConfigError
from tests.labeler.jobs import overrides_for

MINIMAL = ["teacher.model=m", "input.uri=in.jsonl", "input.kind=prompt_response", "output.uri=out"]


def load(*overrides, environ=None):
    return load_job(None, [*MINIMAL, *overrides], environ or {})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workers.replicas=0", ["workers.replicas = 0", "greater than or equal to 1"]),
        (
            "workers.replica=2",
            ["workers.replica is not a setting", "did you mean workers.replicas?", "remove it"],
        ),
        (
            "teacher.engine_args.model=x",
            ["'model'", "the labeler sets it itself", "set teacher.model instead"],
        ),
        ("teacher.engine_args.max_logprobs=9", ["'max_logprobs'", "set labels.top_k instead"]),
        ("labels.temperatures=[2.0, 1.0]", ["[2.0, 1.0]", "ascend from 1.0", "for example"]),
        ("labels.temperatures=[]", ["ascend from 1.0"]),
        (f"labels.temperatures={[1.0 + n for n in range(17)]}", ["17 temperatures", "than the 16"]),
        ("input.kind=prompt", ["no response to score", 'labels.mode = "generate"']),
        ("input.fields.prompts=x", ["role 'prompts'", "prompt, response"]),
        (
            "input.chat_template_kwargs={add_generation_prompt = false}",
            ["'add_generation_prompt', which is set for every record", "remove it"],
        ),
        ("sampling.stop_token_ids=[-1]", ["sampling.stop_token_ids.0 = -1", "greater than or equal to 0"]),
        ("sampling.stop=['']", ["sampling.stop.0 = ''", "at least 1 character"]),
        ("workers.resources={GPU = 2.0}", ["'GPU' is what workers.gpus sets", "remove it"]),
        ("workers.resources={rack = -1.0}", ["'rack' has the amount -1", "0 or more"]),
        ("input.kind=chat", ["input.kind = 'chat'", "'messages'"]),
        ("teacher.model=", ["model is missing", "teacher.model"]),
        ("sampling.top_p=1.5", ["sampling.top_p = 1.5", "less than or equal to 1"]),
        ("teacher.tensor_parallel_size=2", ["tensor_parallel_size = 2", "workers.cores is 1", "at least 2"]),
        ("teacher.pipeline_parallel_size=2", ["= 1 and 2 stages", "workers.cores is 1", "at least 2"]),
        ("workers.machines=2", ["pipeline_parallel_size = 1", "to 2 or a multiple of it"]),
        ("workers.gpus=1.5", ["workers.gpus = 1.5", "neither whole nor a part of one", "share a GPU"]),
        ("teacher.engine_args.nnodes=2", ["'nnodes'", "set workers.machines instead"]),
        ("teacher.engine_args.enable_lora=true", ["'enable_lora' is not supported", "merge_and_unload"]),
        ("teacher.engine_args.data_parallel_size=2", ["set workers.replicas instead"]),
        ("teacher.head_dtype=float32_sums", ["needs a GPU", "workers.gpus is 0", '= "float32"']),
        (
            "teacher.engine_args.hf_overrides={head_dtype = 'float32'}",
            ["'head_dtype'", "set teacher.head_dtype instead"],
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(override, words):
    with pytest.raises(ConfigError) as caught:
        load(override)
    for word in words:
        assert word in str(caught.value)


def test_replicas_of_one_rank_may_share_a_gpu():
    assert load("workers.gpus=0.5").shares_gpu
    assert not load("workers.gpus=1").shares_gpu
    with pytest.raises(ConfigError, match=r"need as many gpus as 2 there, workers\.gpus is 0\.5"):
        load_job(None, [*MINIMAL, "workers.gpus=0.5", "teacher.tensor_parallel_size=2"], {})


def test_a_missing_section_says_how_to_give_it():
    with pytest.raises(
        ConfigError,
        match=r"output is missing; add a table \[output\] to the file or give --set output.uri=URI",
    ):
        load_job(None, MINIMAL[:3], {})


@pytest.mark.parametrize("override", ["workers", "replicas=2", ".replicas=2", "workers.=2"])
def test_an_override_without_section_and_value_is_refused(override):
    with pytest.raises(ConfigError, match=r"must look like section\.key=value"):
        load(override)


def test_an_override_cannot_reach_into_a_value():
    with pytest.raises(ConfigError, match=r"output\.uri is a value, not a section"):
        load("output.uri.folder=x")


def test_text_alone_has_no_response_to_label():
    assert load("input.kind=text").positions == "all"
    with pytest.raises(ConfigError, match="plain text has none"):
        load("input.kind=text", "labels.positions=response")
    with pytest.raises(ConfigError, match="no prompt to answer"):
        load("input.kind=text", "labels.mode=generate")


def test_auto_positions_follow_what_a_record_holds():
    assert load().positions == "response"
    assert load("labels.positions=all").positions == "all"
    assert load("input.kind=token_ids").positions == "all"
    assert load("input.kind=token_ids", "input.fields.response_token_ids=r").positions == "response"
    assert load("input.kind=token_ids", "labels.mode=generate").positions == "response"


def test_values_are_read_as_toml_and_else_as_text():
    job = load("workers.replicas=3", "sampling.stop=['a', 'b']", "output.uri=s3://bucket/x", "input.id=uid")
    assert (job.workers.replicas, job.sampling.stop, job.output.uri) == (3, ("a", "b"), "s3://bucket/x")
    assert job.input.field_names() == {"prompt": "prompt", "response": "response", "id": "uid"}


def test_a_file_is_read_and_overridden(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(
        '[teacher]\nmodel = "m"\n[input]\nuri = "a"\nkind = "text"\n[output]\nuri = "o"\nunit_size = 8\n'
    )
    job = load_job(str(path), ["output.unit_size=16"], {})
    assert (job.output.unit_size, job.input.kind) == (16, "text")


def test_a_resolved_job_loads_back_as_the_same_job(tmp_path):
    import json

    job = load("input.fields.response=answer", "labels.temperatures=[1.0, 3.0]")
    path = tmp_path / "job.json"
    path.write_text(json.dumps(resolved(job)))
    assert load_job(str(path), [], {}) == job


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no job file at"), ("teacher = [", "not a valid job file"), ("\xff", "not a valid job file")],
)
def test_an_unreadable_file_is_refused(tmp_path, content, words):
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=words):
        load_job(str(path), [], {})


def test_secrets_stay_out_of_the_resolved_copy():
    job = load('output.storage_options={secret = "hush", client_kwargs = {aws_secret_access_key = "hush2"}}')
    assert job.output.storage_options["secret"] == "hush"
    assert "hush" not in str(resolved(job))


def test_ray_address_comes_from_the_environment_unless_set():
    environ = {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert load(environ=environ).workers.address == "10.0.0.1:6379"
    assert load("workers.address=10.0.0.2:6379", environ=environ).workers.address == "10.0.0.2:6379"


def test_identity_ignores_what_does_not_change_labels_and_shows_what_does():
    before = identity(load())
    assert identity(load("workers.replicas=4", "output.unit_size=8", "workers.gpus=1")) == before
    more_machines = ("teacher.pipeline_parallel_size=2", "workers.machines=2", "workers.gpus=1")
    assert identity(load(*more_machines)) == before
    # The manifest has what it came to, so that a job begun before "auto" meant another head can go on.
    assert identity(load("teacher.head_dtype=model")) == before
    newer = {"labels.reasoning.budget": 9, "labels.speech.voice": "a", "labels.mode.of": 1}
    assert describe_difference({**before, **newer}, before) == [
        f"{name}: {value!r} in the store, which needs the newer version"
        for name, value in sorted(newer.items())
    ]
    changes = describe_difference(before, identity(load("labels.top_k=16", "teacher.engine_args.x=1")))
    assert "labels.top_k: 64 in the store, 16 now" in changes
    assert "teacher.engine_args.x: None in the store, 1 now" in changes
    assert len(changes) == 2, "a table that was empty is no difference of its own"


@pytest.mark.parametrize("change", ["sampling.max_tokens=9", "sampling.n=2", "filters.max_tokens=9"])
def test_what_only_written_responses_depend_on_is_fixed_where_there_are_some(change):
    score, generate = "labels.mode=score", "labels.mode=generate"
    before, after = identity(load(score)), identity(load(score, change))
    assert describe_difference(before, after) == []
    older = {**before, "sampling.max_tokens": 512, "sampling.n": 1, "filters.max_tokens": None}
    assert describe_difference(older, after) == [], "as an earlier version kept it"
    assert len(describe_difference(identity(load(generate)), identity(load(generate, change)))) == 1


@pytest.mark.parametrize("change", ["filters.duplicate_prompts=drop", "sampling.stop_token_ids=[5]"])
def test_what_given_responses_depend_on_is_fixed_too(change):
    score = "labels.mode=score"
    assert len(describe_difference(identity(load(score)), identity(load(score, change)))) == 1


def test_a_limit_may_be_raised_and_not_lowered():
    few, more, all_of_it = (identity(load(*limit)) for limit in (["input.limit=10"], ["input.limit=20"], []))
    assert describe_difference(few, more) == describe_difference(more, all_of_it) == []
    assert describe_difference(more, few) == ["input.limit: 20 in the store, 10 now"]
    assert describe_difference(all_of_it, few) == ["input.limit: None in the store, 10 now"]


def test_the_configuration_needs_neither_ray_nor_torch_nor_vllm():
    code = "import labeler.config.loading, sys; print({'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "n", "seed", "stop"])
def test_an_old_name_of_sampling_is_refused_with_the_new_one(name):
    with pytest.raises(ConfigError, match=rf"set sampling\.{name} instead of labels\.{name}"):
        load(f"labels.{name}=1")


def _identity_before_sampling(job):
    """What a version without `[sampling]` stored for the same job."""
    flat = identity(job)
    for name in SamplingConfig.model_fields.keys() - MOVED_TO_SAMPLING:
        del flat[f"sampling.{name}"]
    return {
        name.replace("sampling.", "labels."): value for name, value in flat.items() if name != "labels.top_k"
    } | {"labels.top_k": flat["labels.top_k"]}


def test_lists_that_were_refused_may_be_cut_to_their_first_later_and_not_otherwise():
    """A job of a version that took the first text of a prompt without being asked goes on by saying so."""
    refused, first, joined = (
        identity(load(f"input.list_of_texts={choice}")) for choice in ("refuse", "first", "join")
    )
    assert describe_difference(refused, first) == []
    older = {name: value for name, value in refused.items() if name != "input.list_of_texts"}
    assert describe_difference(older, first) == []
    assert len(describe_difference(first, refused)) == 1
    assert len(describe_difference(refused, joined)) == 1


def test_an_identity_of_an_earlier_version_is_read_at_the_new_places():
    job = load("labels.mode=generate", "sampling.temperature=0.5", "labels.top_k=7")
    stored = _identity_before_sampling(job)
    assert stored["labels.temperature"] == 0.5
    assert describe_difference(stored, identity(job)) == []
    warmer = load("labels.mode=generate", "sampling.temperature=0.6", "labels.top_k=7")
    assert describe_difference(stored, identity(warmer)) == [
        "sampling.temperature: 0.5 in the store, 0.6 now"
    ]
    cut = load("labels.mode=generate", "sampling.temperature=0.5", "labels.top_k=7", "sampling.min_p=0.1")
    assert describe_difference(stored, identity(cut)) == ["sampling.min_p: 0.0 in the store, 0.1 now"]


def test_a_least_length_is_fixed_with_the_store_and_below_the_most():
    longer = identity(load("labels.mode=generate", "sampling.min_tokens=5"))
    assert describe_difference(identity(load("labels.mode=generate")), longer) == [
        "sampling.min_tokens: 0 in the store, 5 now"
    ]
    with pytest.raises(
        ConfigError, match=r"min_tokens = 9 is above max_tokens = 8.*set sampling\.max_tokens"
    ):
        load("labels.mode=generate", "sampling.max_tokens=8", "sampling.min_tokens=9")
    load("labels.mode=generate", "sampling.max_tokens=8", "sampling.min_tokens=8")


def test_paths_in_the_users_home_are_found_there(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    base = ["input.uri=in", "input.kind=text", "output.uri=out"]
    job = load_job(None, [*base, "teacher.model='~/models/x'", "input.chat_template='~/chat.jinja'"], {})
    assert (job.teacher.model, job.input.chat_template) == ("/somewhere/models/x", "/somewhere/chat.jinja")
    assert load_job(None, [*base, "teacher.model=org/name~1"], {}).teacher.model == "org/name~1"


def test_an_input_in_the_users_home_is_the_same_from_everywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/somewhere")
    base = ["teacher.engine=fake", "input.uri='~/in.jsonl'", "input.kind=prompt_response", "output.uri=out"]
    job = load_job(None, [*base, "labels.given='~/first'"], {})
    assert (job.input.uri, job.labels.given) == ("/somewhere/in.jsonl", "/somewhere/first")
    here = identity(job)
    monkeypatch.chdir(tmp_path)
    assert identity(load_job(None, base, {})) == here
    assert here["input.uri"] == "/somewhere/in.jsonl"
    earlier = here | {"input.uri": "/folder/of/that/run/~/in.jsonl"}
    assert describe_difference(earlier, here) == [], "as an earlier version wrote it"
    assert len(describe_difference(here | {"input.uri": "/folder/in.jsonl"}, here)) == 1


def test_whole_numbers_of_toml_are_those_of_lists_and_tables_too(tmp_path):
    """The least of them is one that TOML has."""
    overrides = overrides_for(tmp_path)
    for value in (f"{{max_num_seqs={2**63}}}", f"{{sizes=[1, {-(2**63) - 1}]}}"):
        with pytest.raises(ConfigError, match=r"engine_args has 64 bits; .* write a smaller one"):
            load_job(None, [*overrides, f"teacher.engine_args={value}"], {})
    load_job(None, [*overrides, f"teacher.engine_args={{least={-(2**63)}}}"], {})
