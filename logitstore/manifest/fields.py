"""What a store says of itself: who labeled what, and how to read it.

The manifest is everything a reader or trainer must check, since neither sees the labeler.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FORMAT_VERSION = 1
ABSENT_IF_DEFAULT = {"absent_if_default": True}
"""Metadata of a field that JSON leaves out where it is its default, so that stores from before the field
read, and write, the same bytes."""
RETOKENIZED = "retokenized"
"""Feature of stores whose rows were mapped to another tokenizer."""
STUDENT_PROMPTS = "student_prompts"
"""Feature of stores, and optional column of their shards: prompts of students other than the teacher's."""
GIVEN_ENTRIES = "given_entries"
"""Feature of stores whose entries are at ids that were given, and not the teacher's top ones."""
TEXTS_ONLY = "texts_only"
"""Feature of stores without label rows: what a teacher wrote, and nothing of its distribution."""
MAX_TEMPERATURES = 16
MAX_VOCAB_SIZE = 1 << 20
SEGMENTS = "segments"
"""Feature of stores, and optional column of their shards: what each token is within its sequence."""
RECORD_PARTS = "record_parts"
"""Feature of stores whose records are parts of the input's."""
PART_NAMES = {"turns": "turn", "texts": "text"}
"""What a part is called in its record's id, by `InputInfo.parts`."""
OPTIONAL_COLUMNS = (STUDENT_PROMPTS, SEGMENTS)
"""Packed columns that a shard has only where its store says so, in their order."""
MIXED = "mixed"
"""Mode or positions of a store that was merged of unlike ones, and the feature of such stores."""
VALUE_KINDS = ("logit_f16", "gap_f16")


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """Identity of the model that gave the labels."""

    model: str
    """Hugging Face id, or the folder's name."""
    revision: str | None
    fingerprint: str
    """sha256 over the model's config and weights index."""
    dtype: str
    """dtype of the logits' computation: "float32", "bfloat16", "float16"; "bfloat16_float32_sums" where the
    product of bf16 weights kept its float32 sums (as "float16_float32_sums")."""
    quantization: str | None
    engine: str
    """"vllm", or the name of an import's source."""
    engine_version: str
    capture: str
    """"in_engine" (normalisers exact at every temperature), "public_api" (only T=1), "import"."""


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """Identity of the tokenizer whose ids the store holds."""

    fingerprint: str
    """sha256 over the tokenizer's canonical serialisation; "" if unknown (imports)."""
    vocab_size: int
    """Ids the tokenizer can produce, special tokens included; may be below the logits' width."""


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """What a label row of the store holds."""

    vocab_size: int
    """V, the width of the teacher's logits; every id is below it."""
    top_k: int
    """K, the most entries a row may have."""
    temperatures: tuple[float, ...]
    """Temperatures with stored normalisers, ascending from 1.0."""
    value_kind: str
    """"logit_f16": raw logits, exact for bf16 and fp16 teachers. "gap_f16": gap to an fp32 top logit."""
    mode: str
    """"score" or "generate"; "mixed" after a merge of both."""
    positions: str
    """"response" or "all"; "mixed" after a merge of both."""
    alignment: str = "label"
    """Always "label": row i is p(x_i | x_<i). Anything else is refused."""
    teacher_vocab_size: int | None = field(default=None, metadata=ABSENT_IF_DEFAULT)
    """Width of the teacher's logits where the ids are those of another tokenizer (feature "retokenized"), so
    that it is not V; None where V is it."""
    extra_columns: tuple[str, ...] = field(default=(), metadata=ABSENT_IF_DEFAULT)
    """Which of OPTIONAL_COLUMNS the shards have, in that order; each is a feature of the store as well."""

    support: str = field(default="top", metadata=ABSENT_IF_DEFAULT)
    """"top": the entries of a row are the teacher's likeliest. "given": they are at ids that were given, so
    that the first ones of them are no top-K (feature "given_entries"). "none": there are no rows, only the
    tokens that the teacher wrote (feature "texts_only"; `top_k` is 1 then, and the only temperature 1)."""

    def __post_init__(self) -> None:
        """Lists become tuples, so that a spec may be a key whoever made it."""
        for name in ("temperatures", "extra_columns"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))

    @property
    def shard_features(self) -> tuple[str, ...]:
        """What the shards name as features: optional columns, and entries that are not the top ones."""
        return (*self.extra_columns, *self.support_features)

    @property
    def support_features(self) -> tuple[str, ...]:
        """The feature that says what the entries are; none where they are the top ones."""
        return {"given": (GIVEN_ENTRIES,), "none": (TEXTS_ONLY,)}.get(self.support, ())

    @property
    def fewest_entries(self) -> int | None:
        """The `top_k` of a reader that needs no entries: 1, or None, all, where they are at given ids."""
        return None if self.support == "given" else 1

    @property
    def num_outcomes(self) -> int:
        """Ids among which the teacher's mass lies, tail included."""
        return self.teacher_vocab_size or self.vocab_size


@dataclass(frozen=True, slots=True)
class InputInfo:
    """Where the records came from and how their ids were made, so that `verify --against` can redo it."""

    uri: str
    kind: str
    """"messages", "prompt", "prompt_response", "text", "token_ids", or "import"."""
    fields: dict[str, str]
    """Names of the record's fields by role: "id", "messages", "prompt", "response", "text", "token_ids"."""
    limit: int | None = None
    """Only this many records from the start of the input belong to the job; None for all."""
    parts: str = field(default="", metadata=ABSENT_IF_DEFAULT)
    """"turns" or "texts" where a record of the input is several of the store, one for each of the assistant's
    turns or for each text of a list (feature "record_parts"; `inputs/parts.py`); "" where it is one."""


@dataclass(frozen=True, slots=True)
class Retokenized:
    """Whence the labels of a store come that is of another tokenizer than its teacher."""

    source_digests: tuple[str, ...]
    """`LogitStore.digest` of the stores that the teacher labeled; several after a merge."""
    source_tokenizer: TokenizerInfo
    """The teacher's."""
    merged_spans: bool
    """Whether a student's token that is several of the teacher's has an entry by their product."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The immutable head of a store. Shards and units are listed beside it, not in it."""

    teacher: TeacherInfo
    tokenizer: TokenizerInfo
    labels: LabelSpec
    input: InputInfo
    created: str
    """UTC, ISO 8601."""
    codebooks: str | None = None
    """Hash that names the store's codebook set; None until one is trained, and for single-codebook shards."""
    features: tuple[str, ...] = ()
    """Format features beyond version 1; a reader refuses any it does not know."""
    config: dict[str, object] = field(default_factory=dict)
    """The resolved configuration of the job, without secrets."""
    format_version: int = FORMAT_VERSION
    retokenized: Retokenized | None = field(default=None, metadata=ABSENT_IF_DEFAULT)
    """Where the ids are not of the teacher's tokenizer; with the feature of that name."""

    @property
    def has_top_entries(self) -> bool:
        """Whether the first entry of a row is the teacher's likeliest token: neither where entries are at
        given ids, nor where the likeliest may have had no equal token in another tokenizer."""
        return self.labels.support == "top" and self.retokenized is None


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One committed work unit: the row that a worker returns, a commit record holds and a manifest lists."""

    unit_id: str
    unit_index: int
    """Place of the unit in the plan; the order of shards everywhere."""
    name: str
    """Object name of the shard below the store, attempt-unique; "" if every record was rejected."""
    num_sequences: int
    num_rows: int
    """Label rows."""
    num_tokens: int
    """Tokens of the sequences, prompts included."""
    num_bytes: int
    checksum: str
    """"blake2b-128:<hex>" of the whole file."""
    num_rejects: int
    seconds: float
    """Engine and writing time spent on the unit."""
    worker: str
    """Who wrote it, for people."""
    committed_sec: float = 0.0
    """Unix time of the commit by the writer's clock, for people and progress; 0 if unknown."""
