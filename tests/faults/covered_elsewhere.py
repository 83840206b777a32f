"""Kinds of faults that other tests plant, nearer to the code they concern, or that nothing plants yet."""

from tests.faults.case import Case

SHARDS = ("tests/unit/data/test_shards.py", "tests/unit/data/inspect/test_verify.py")
BAD_INPUT = "tests/integration/test_bad_input.py"
ROWS = ("tests/unit/data/sources/test_rows.py", "tests/unit/data/sources/test_files.py")
HOSTILE = "tests/unit/chat/test_encode_hostile_text.py"
SLURM = ("tests/slurm/test_batch_scripts.py", "tests/slurm/test_script_files.py")
MISTAKES = "tests/unit/config/test_loading_mistakes.py"


def tested(case_id: str, text: str, promise: str, *files: str) -> Case:
    """A kind that other tests plant."""
    return Case(case_id, text, promise, None, (), 0, 0, "c", f"in {', '.join(files)}", files=files)


def open_kind(case_id: str, text: str, where: str, reason: str) -> Case:
    """A kind that nothing plants yet."""
    return Case(case_id, text, "", None, (), 0, 0, where, reason)


ELSEWHERE = (
    tested("C1", "bit flip in a shard", "P2", *SHARDS, BAD_INPUT),
    tested("C2", "shard truncated, missing, extra, renamed, swapped", "P2", *SHARDS),
    open_kind("C3", "Arrow stream cut between batches", "c", "no streams are read or written, shards are Arrow files"),
    tested("C4", "a source's hash or revision differs", "P4", "tests/unit/data/sources/test_lockfile.py"),
    tested("C5", "large-file pointer in place of data", "P11", "tests/unit/data/sources/test_files.py", BAD_INPUT),
    tested("C6", "broken JSON line, cut gzip, wrong columns", "P11", *ROWS, BAD_INPUT),
    tested("C7", "bad UTF-8, lone surrogates, mojibake", "P11", *ROWS, "tests/unit/data/filters/test_mojibake.py"),
    tested("C8", "empty answers, wrong roles, giant rows", "P11", *ROWS, "tests/integration/test_build_memory.py"),
    tested("C9", "all rows dropped", "P11", "tests/unit/data/build/test_build_fails.py"),
    tested("C10", "duplicate rows or ids", "P4", "tests/unit/data/build/test_selection.py"),
    tested("C11", "a worker dies or hangs in a build", "P4 P8", "tests/integration/test_build_restart.py"),
    tested("C12", "other workers, hash seed, locale, time zone", "P4", "tests/integration/test_pipeline.py"),
    tested("C13", "no supervised token remains", "P7", "tests/unit/chat/test_encode.py"),
    tested("C14", "mask one token off", "P5", "tests/unit/chat/test_supervision.py"),
    tested("C15", "end of data within a batch", "P3", "tests/unit/data/batches/test_sampler.py"),
    tested("D1", "a control token's text in any field", "P5", HOSTILE),
    tested("D2", "markers split, normalised, look-alike", "P5", HOSTILE),
    tested(
        "D3",
        "random strings over markers and Unicode",
        "P5",
        "tests/unit/chat/test_encode_ten_thousand_hostile_texts.py",
    ),
    tested("D4", "control token not flagged special", "P5", "tests/unit/chat/test_tokenizer.py"),
    tested("D5", "answer that holds a forged turn", "P5", "tests/unit/chat/test_supervision.py", HOSTILE),
    tested("D6", "role name from data", "P5", "tests/unit/chat/test_conversation.py"),
    tested("D7", "template or markup syntax in text", "P5", "tests/unit/export/test_chat_template.py"),
    tested("D8", "terminal escapes in shown text", "P5", "tests/unit/data/inspect/test_show.py"),
    open_kind("E1", "archive with paths that lead outside", "c", "no archive is unpacked"),
    tested("E2", "decompression bomb", "P6", "tests/integration/test_build_memory.py"),
    open_kind("E3", "path that leads outside, in a recipe or manifest", "c", "nothing plants it yet"),
    tested("E4", "remote code or pickled weights in a model folder", "P6", "tests/unit/model/test_hf_folder.py"),
    tested("E5", "YAML tags, interpolation of the environment", "P6", "tests/unit/config/test_yaml_text.py"),
    open_kind("E6", "run name with slash, quote, 300 characters", "c, s", "nothing plants it yet"),
    open_kind("I1", "time limit, pre-emption, ten requeues", "s", "nothing plants it yet"),
    tested("I2", "warning early or never", "P1", *SLURM),
    tested("I3", "only the batch shell, or only the step, gets the signal", "P1", *SLURM),
    open_kind("I4", "requeue of a run without progress", "s", "nothing plants it yet"),
    open_kind("I5", "sick node", "s", "nothing plants it yet"),
    open_kind("I6", "array task repeated or doubled", "s", "nothing plants it yet"),
    open_kind("I7", "missing module, wrong environment", "s", "nothing plants it yet"),
    tested("I8", "log file after a requeue", "P11", *SLURM),
    tested("K1", "every key misspelt by one letter", "P11", MISTAKES),
    tested("K2", "wrong type, range, choice, contradiction", "P11", "tests/unit/config/test_loading.py", MISTAKES),
    tested("K3", "sizes that do not divide", "P11", "tests/unit/config/test_fields.py"),
    tested("K4", "model or data of another tokenizer", "P11", BAD_INPUT),
    tested("K5", "run folder of another run", "P11 P12", BAD_INPUT, "tests/unit/train/test_run_folder.py"),
    tested("K6", "setting that no code reads", "P11", "tests/unit/config/test_fields.py"),
    open_kind("L1", "checkpoint vanishes while it is evaluated", "d", "nothing plants it yet"),
    open_kind("L2", "one evaluation task fails", "c", "nothing plants it yet"),
    tested("L3", "exported folder differs from the checkpoint", "P2", "tests/unit/export/test_hf_export.py"),
    open_kind("L4", "result of other data or another tokenizer", "c", "nothing plants it yet"),
    tested("L5", "generation never ends", "P8", "tests/unit/inference/test_generate.py"),
)
