"""A record for each turn and for each text: planned, labeled, verified, changed, selected and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import logitstore.__main__ as store_command
from labeler.config.loading import load_job
from labeler.driver.plan_pass import contents_in_words, new_planner, read_input
from labeler.job.dry_run import estimate
from labeler.planning.plan import Plan
from labeler.planning.preflight import prepare
from labeler.planning.relabeling import replace_changed
from labeler.records import Lease
from logitstore.common.config_file import ConfigError
from logitstore.manifest.fields import RECORD_PARTS
from logitstore.records import SEGMENT_NAMES
from logitstore.store import LogitStore
from tests.labeler.jobs import label_and_commit
from tests.labeler.worker.test_actor import set_up

EACH = ("labels.turns=each", "limits.max_reject_share=1")


def chat(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CHATS = [
    {"uid": "a", "messages": chat("Two and two?", "It is 4.", "And three?", "It is 5.")},
    {"uid": "b", "messages": chat("One?", "It is 1.")},
    {"uid": "c", "messages": chat("Who?", "Me.", "And then?")},
]
IDS = ["a#turn-1", "a#turn-2", "b#turn-1", "c#turn-1"]


def label_all(
    folder: Path, items: list[dict[str, Any]], *overrides: str, kind: str = "messages"
) -> LogitStore:
    worker, units, setup = set_up(folder, items, *overrides, kind=kind)
    for number, unit in enumerate(units):
        label_and_commit(worker, Lease(number, unit, "w"))
    planner = new_planner(setup.job, setup.prepared, Plan(setup.prepared.objects).known(), None)
    planner.run(read_input(setup.job), lambda _: None)
    setup.prepared.objects.put("rejects.jsonl", planner.rejects.content())
    return LogitStore.open(folder / "store")


def verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = store_command.main(["verify", str(folder / "store"), "--against", str(folder / "in.jsonl")])
    return status, capsys.readouterr().out


def test_each_turn_is_a_sequence_whose_conversation_ends_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = label_all(tmp_path, CHATS, *EACH)
    sequences = list(store.iter_sequences())
    assert [one.record_id for one in sequences] == IDS
    texts = [bytes(int(i) for i in one.token_ids_T if i < 256).decode() for one in sequences]
    assert texts[0] == "user\nTwo and two?\nassistant\nIt is 4."
    assert texts[1] == "user\nTwo and two?\nassistant\nIt is 4.\nuser\nAnd three?\nassistant\nIt is 5."
    assert [one.rows.num_rows for one in sequences] == [9, 9, 9, 4]
    manifest = store.manifest
    assert (manifest.input.parts, RECORD_PARTS in manifest.features) == ("turns", True)
    assert verify(tmp_path, capsys)[0] == 0


def test_a_changed_turn_is_found_and_only_it_is_labeled_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label_all(tmp_path, CHATS, *EACH)
    changed = [
        {"uid": "a", "messages": chat("Two and two?", "It is 4.", "And three?", "It is 6.")},
        *CHATS[1:],
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(item) + "\n" for item in changed))
    status, out = verify(tmp_path, capsys)
    assert (status, out.count("[content_changed]"), "record 'a#turn-2'" in out) == (1, 1, True)
    settings = [
        "teacher.engine=fake",
        f"input.uri='{tmp_path}/in.jsonl'",
        "input.kind=messages",
        "input.id=uid",
    ]
    job = load_job(None, [*settings, f"output.uri='{tmp_path}/store'", *EACH], {})
    prepared = prepare(job)
    planner = new_planner(job, prepared, Plan(prepared.objects).known(), None, keep_changed=True)
    totals = planner.run(read_input(job), lambda _: None)
    assert (totals.num_changed, totals.num_planned) == (1, 4)
    assert [one.planned.prompt.record_id for one in planner.changed.values()] == ["a#turn-2"]


def test_a_turn_that_is_labeled_again_has_the_segments_of_what_it_says_now(tmp_path: Path) -> None:
    label_all(tmp_path, CHATS, *EACH)
    texts = ("Two and two?", "It is 4.", "And three?", "It is five.")
    grown = [{"uid": "a", "messages": chat(*texts)}, *CHATS[1:]]
    worker, _, setup = set_up(tmp_path, grown, *EACH, kind="messages")
    objects = setup.prepared.objects
    planner = new_planner(setup.job, setup.prepared, Plan(objects).known(), None, keep_changed=True)
    planner.run(read_input(setup.job), lambda _: None)

    def uncommit(unit_ids: set[str]) -> set[str]:
        store = LogitStore.open(tmp_path / "store", writing=True)
        labeled = {entry.unit_id: entry.name for entry in store.shards() if entry.unit_id in unit_ids}
        return (unit_ids - labeled.keys()) | set(store.uncommit(labeled.values()))

    assert replace_changed(objects, planner.changed, uncommit) == 1
    for number, unit in enumerate(Plan(objects).units()):
        label_and_commit(worker, Lease(number, unit, "w"))
    found = {one.record_id: one for one in LogitStore.open(tmp_path / "store").iter_sequences()}
    assert sorted(found) == IDS
    segments_T = found["a#turn-2"].segments_T
    assert segments_T is not None
    written = [SEGMENT_NAMES[number] for number in segments_T[found["a#turn-2"].prompt_length :]]
    assert written == ["answer"] * len("It is five.") + ["end"]


def test_further_turns_of_a_conversation_are_new_records(tmp_path: Path) -> None:
    label_all(tmp_path, CHATS, *EACH)
    grown = [
        *CHATS[:2],
        {"uid": "c", "messages": [*CHATS[2]["messages"], {"role": "assistant", "content": "You."}]},
    ]
    worker, units, _ = set_up(tmp_path, grown, *EACH, kind="messages")
    label_and_commit(worker, Lease(9, units[-1], "w"))
    assert units[-1].num_records == 1
    assert [one.record_id for one in LogitStore.open(tmp_path / "store").iter_sequences()][-1] == "c#turn-2"


def test_a_conversation_is_taken_down_with_all_of_its_turns_also_later_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label_all(tmp_path, CHATS, *EACH)
    (tmp_path / "ids").write_text("a\nc\n")
    store, ids = str(tmp_path / "store"), str(tmp_path / "ids")
    assert store_command.main(["delete", store, "--ids", ids, "--reason", "asked for"]) == 0
    assert [one.record_id for one in LogitStore.open(store).iter_sequences()] == ["b#turn-1"]
    assert store_command.main(["compact", store, "--purge"]) == 0
    assert verify(tmp_path, capsys)[0] == 0
    grown = [
        *CHATS[:2],
        {"uid": "c", "messages": [*CHATS[2]["messages"], {"role": "assistant", "content": "You."}]},
    ]
    _, units, setup = set_up(tmp_path, grown, *EACH, kind="messages")
    assert len(units) == 1
    assert (setup.totals.num_records, setup.totals.num_deleted) == (5, 4)
    assert contents_in_words(setup.totals) == [
        "4 records of the input were taken down and get no labels again"
    ]
    left = b"".join(path.read_bytes() for path in Path(store).rglob("*") if path.is_file())
    assert b"a#turn-1" not in left
    assert b"c#turn-2" not in left


def test_equal_conversations_without_ids_are_repeats_turn_by_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [{"messages": CHATS[0]["messages"]}] * 2
    store = label_all(tmp_path, items, *EACH, "input.id=null")
    ids = [one.record_id for one in store.iter_sequences()]
    parent = ids[0].removesuffix("#turn-1")
    assert ids == [f"{parent}{end}" for end in ("#turn-1", "#turn-2", "#turn-1-2", "#turn-2-2")]
    assert verify(tmp_path, capsys)[0] == 0
    assert store_command.main(["cat", str(tmp_path / "store"), "--where", f"parent_id = {parent}"]) == 0
    assert capsys.readouterr().out.count("\n") == 4


def test_where_the_teacher_writes_every_turn_is_a_prompt(tmp_path: Path) -> None:
    store = label_all(tmp_path, CHATS, *EACH, "labels.mode=generate", "sampling.max_tokens=4")
    assert [one.record_id for one in store.iter_sequences()] == [*IDS, "c#turn-2"]


@pytest.mark.parametrize("mode", ["score", "generate"])
def test_a_conversation_of_which_nothing_is_to_be_learned_is_rejected_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    shown = {"uid": "z", "messages": [CHATS[1]["messages"][0], {**CHATS[1]["messages"][1], "weight": 0}]}
    store = label_all(tmp_path, [*CHATS, shown], *EACH, f"labels.mode={mode}", "sampling.max_tokens=4")
    assert "z" not in "".join(one.record_id for one in store.iter_sequences())
    rejects = [json.loads(line) for line in (tmp_path / "store/rejects.jsonl").read_text().splitlines()]
    (reject,) = [reject for reject in rejects if reject["record_id"] == "z"]
    assert (reject["line"], reject["kind"], "weight 0" in reject["reason"]) == (4, "no_response", True)
    assert verify(tmp_path, capsys)[0] == 0


def test_a_record_for_each_text_of_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"uid": 1, "prompt": "Q", "response": ["A", "BB"]}, {"uid": 2, "prompt": "Q", "response": "C"}]
    store = label_all(tmp_path, items, "input.list_of_texts=each", kind="prompt_response")
    sequences = list(store.iter_sequences())
    assert [one.record_id for one in sequences] == ["1#text-1", "1#text-2", "2"]
    assert [one.rows.num_rows for one in sequences] == [2, 3, 2]
    assert verify(tmp_path, capsys)[0] == 0


@pytest.mark.parametrize(
    ("choice", "num_planned", "kinds"),
    [("refuse", 0, {"list_of_texts": 1}), ("join", 1, {}), ("each", 2, {}), ("first", 1, {})],
)
def test_a_list_of_prompts_is_never_cut_without_being_asked(
    tmp_path: Path, choice: str, num_planned: int, kinds: dict[str, int]
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"turns": ["First?", "Second?"]}) + "\n")
    settings = ["teacher.engine=fake", f"input.uri='{tmp_path}/in.jsonl'", "input.kind=prompt"]
    settings += ["input.fields.prompt=turns", "labels.mode=generate", f"output.uri='{tmp_path}/store'"]
    found = estimate(load_job(None, [*settings, f"input.list_of_texts={choice}"], {}))
    assert (found.totals.num_planned, found.totals.rejects_by_kind) == (num_planned, kinds)
    shown = "\n".join(found.seen)
    assert ("1 records of the input make 2, one for each text of a list" in shown) == (choice == "each")


def test_a_merge_keeps_parts_beside_whole_records(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    label_all(tmp_path / "one", CHATS, *EACH)
    label_all(tmp_path / "two", CHATS[1:2])
    out = str(tmp_path / "merged")
    assert (
        store_command.main(["merge", str(tmp_path / "one/store"), str(tmp_path / "two/store"), "--out", out])
        == 0
    )
    merged = LogitStore.open(out)
    assert sorted(one.record_id for one in merged.iter_sequences()) == sorted([*IDS, "b"])
    assert RECORD_PARTS in merged.manifest.features


@pytest.mark.parametrize(
    "settings",
    [
        ["input.kind=text", "labels.turns=each"],
        ["input.kind=messages", "labels.turns=each", "input.fields.student_messages=theirs"],
    ],
)
def test_settings_that_cannot_be_together(settings: list[str]) -> None:
    base = ["teacher.engine=fake", "input.uri=in", "output.uri=out"]
    with pytest.raises(ConfigError, match=r"labels\.turns"):
        load_job(None, [*base, *settings], {})
