"""Which facts of a source in the manifest follow from its rows; what remains are its settings and inputs."""

RESULT_KEYS = frozenset(
    {
        *("rows_read", "rows_skipped", "rows_kept", "rows_dropped", "reasons", "changed", "split", "truncated"),
        *("documents", "distinct_conversations", "held_out_documents", "tokens", "supervised_tokens"),
    }
)
