"""npz captures: label rows of all sequences one after another, in a few plain arrays.

| array | shape, dtype | meaning |
|---|---|---|
| `logits_NK` | [N, K] float32 | the K highest raw logits, descending; -inf where a row has fewer |
| `token_ids_NK` | [N, K] unsigned | their vocabulary ids |
| `logsumexp_NT` | [N, T] float32 | logsumexp(l / T) over the whole vocabulary, nats |
| `log_tail_mass_NT` | [N, T] float32 | log mass outside the K entries; optional in an import |
| `temperatures` | [T] float32 | the temperatures of the two above |
| `document_N` | [N] int | which sequence a row belongs to; rows of one lie together, by position |
| `input_token_N` | [N] int | last token of the row's context: the row is of the token that follows it |
| `label_token_N` | [N] int | the token that does follow; -1 if none; optional in an import |
| `record_id` | [S] str | by the values of `document_N` in order; optional in an import |
| `sample_index` | [S] int | beside `record_id`; optional in an import |
| `vocab_size` | int | V |

Shape legend: N label rows, K stored entries, T temperatures of the file (M elsewhere), S sequences.
"""
