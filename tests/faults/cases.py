"""The fault matrix: every kind of fault that was thought of, one row each, also those that cannot be tried here."""

from tests.faults.case import Case, absent
from tests.faults.covered_elsewhere import ELSEWHERE
from tests.faults.injectors import damage, disk, kills, numbers, ranks, replicas, secrets

S = ("S",)


def refuse(code: int) -> tuple[str, ...]:
    return (f"R {code}",)


CAUGHT = ("R caught",)
TWO = ("pair",)
BUILD = ("build_points",)

KILLS = (
    Case(
        "A1", "SIGKILL at random times in training, also with a power cut", "P1 P2 P3", kills.at_random_time, S, 2, 120
    ),
    Case("A2", "SIGKILL at a trip point of a save", "P1 P2", kills.at_trip_point, S, 4, 60, needs=("save_points",)),
    Case("A3", "SIGKILL of one process during a save", "P1 P11", ranks.killed_while_saving, S, 2, 40, "d", needs=TWO),
    Case("A3b", "SIGKILL of one process at a random time", "P1 P11", ranks.killed, S, 1, 20, "d", needs=TWO),
    Case(
        "A4", "SIGKILL and power cut between rename and folder sync", "P1 P2", kills.between_rename_and_sync, S, 2, 20
    ),
    Case("A4b", "SIGKILL and power cut some steps after a save", "P1", kills.long_after_saving, S, 1, 20),
    Case("A5", "SIGTERM in forward, backward, update, data wait", "P3 P11", kills.asked_in, S, 4, 40),
    Case("A6", "SIGTERM in the middle of a save", "P3 P11", kills.asked_while_saving, S, 2, 20, needs=("save_points",)),
    Case("A7", "SIGTERM to one process only", "P3 P11", ranks.one_is_asked, S, 1, 20, "d", needs=TWO),
    Case("A8", "two or more signals in a row", "P3 P11", kills.asked_repeatedly, S, 2, 20),
    Case("A9", "grace period shorter than the save", "P1", kills.killed_while_stopping, S, 1, 20),
    absent("A10", "USR1 or USR2 reaches loader workers", "c", "loading has no worker processes"),
    Case("A11", "STOP file appears, deadline passes", "P3 P11", kills.asked_by_file_or_deadline, S, 2, 10),
    Case("A12", "exception in loop, loader, metrics", "P1 P11", kills.crashes, S, 3, 20),
    Case("A13", "segmentation fault, abort", "P1 P3", kills.dies_natively, S, 2, 15, needs=("halves",)),
    Case("A13b", "interpreter held for ever", "P8", kills.holds_the_interpreter, S, 1, 6),
    Case("A14", "killed while an old save is deleted", "P1 P2", kills.while_retiring, S, 2, 20),
    Case("A15", "killed during a build: trip points, random times", "P4", kills.while_building, S, 4, 60, needs=BUILD),
    Case(
        "A16",
        "killed during export or evaluation",
        "P2",
        kills.while_exporting,
        S,
        2,
        20,
        needs=("exported", "evaluated"),
    ),
    Case("A17", "a save copies so slowly that the next update overtakes it", "P3", kills.while_copying, S, 1, 10),
)

DAMAGE = (
    Case("B1", "one bit flipped in any file", "P2", damage.flipped_bit, S, 3, 200),
    Case("B2", "file cut short, emptied, half zeros", "P2", damage.cut_file, S, 4, 60),
    Case("B3", "a file is missing, or one too many", "P2", damage.missing_file, S, 2, 10),
    Case(
        "B3b", "of one process, a file is missing or damaged", "P2", ranks.file_of_one_damaged, S, 1, 10, "d", needs=TWO
    ),
    Case(
        "B4",
        "manifest missing, cut, wrong hash, other kind, newer schema",
        "P2",
        damage.hurt_manifest,
        ("S", "R 74"),
        6,
        24,
    ),
    Case("B5", "manifest of one step beside files of another", "P2", damage.mixed_steps, S, 2, 10),
    Case("B6", "staging, trash and bad folders lie about", "P2", damage.lying_about, S, 1, 10),
    Case("B7", "all saves damaged or gone", "P12", damage.all_damaged, refuse(74), 3, 6),
    Case("B8", "empty folder under a final name", "P2", damage.taken_name, S, 1, 6),
    Case("B9", "processes see different newest steps", "P3", ranks.seen_by_one, refuse(74), 1, 4, "d", needs=TWO),
    Case("B10", "other number of processes: 1-2, 2-1, 2-4, 4-2", "P3", ranks.other_size, S, 2, 16, "d"),
    Case("B11", "changed setting, tokenizer or data", "P3 P11", damage.changed_input, refuse(78), 4, 20),
    Case("B12", "pickle that runs code, every hash true", "P6", damage.pickled, ("R 65", "R 74", "R 78", "S"), 5, 10),
    Case(
        "B13",
        "reader of tensors returns nothing or raises a BaseException",
        "P12",
        damage.loads_nothing,
        ("R 65", "R 1"),
        2,
        6,
    ),
    Case("B14", "one step saved twice", "P2", damage.published_twice, refuse(74), 1, 6),
)

NUMBERS = (
    Case("F1", "NaN or inf in loss or gradient", "P7", numbers.spoiled_step, S, 2, 30),
    Case("F2", "three such steps in a row", "P7 P11", numbers.spoiled_steps, refuse(70), 2, 6),
    Case("F3", "no supervised token in a micro-batch, a step", "P7", numbers.nothing_supervised, S, 2, 10),
    Case("F4", "fp16 overflow: once, always at the smallest scale", "P7", numbers.overflow, ("S", "R 70"), 2, 6),
    Case("F1b", "NaN or inf on one process only", "P7", ranks.spoiled_on_one, S, 2, 20, "d", needs=TWO),
    Case("F5", "loss ten or a thousand times too high", "P7", numbers.spike, S, 2, 10),
    Case("F6", "NaN offered to the window of recent losses", "P7", numbers.spoilt_window, S, 1, 5),
    Case("F7", "replicas drift apart", "P7 P11", replicas.drifted_replica, refuse(71), 1, 5, "d"),
    Case("F8", "planted bug: wrong normaliser under accumulation", "P3", numbers.wrong_normaliser, CAUGHT, 1, 5),
    Case("F9", "planted bug: schedule off by one after a resume", "P3", numbers.wrong_schedule, CAUGHT, 1, 5),
    Case("F10", "NaN on its way to the metrics", "P7", numbers.unprintable, S, 1, 3),
)

PEERS = (
    Case("G1", "a process stops (SIGSTOP)", "P8", ranks.stopped, refuse(71), 1, 10, "d", needs=TWO),
    Case("G1b", "a process hangs", "P8", ranks.hangs, refuse(71), 1, 10, "d", needs=TWO),
    Case("G2", "a process exits early or leaves out a collective", "P8", ranks.gone, refuse(71), 2, 10, "d", needs=TWO),
    Case("G3", "a process is slower than the others", "P8", ranks.slow, S, 1, 5, "d", needs=TWO),
    Case("G4", "the loader of one process fails or hangs", "P8", ranks.without_data, refuse(71), 1, 10, "d", needs=TWO),
    Case(
        "G5", "port busy, peer missing, numbers contradict", "P8 P11", ranks.nobody_meets, ("R 71", "R 78"), 3, 9, "d"
    ),
    absent("G6", "GPU error, out of memory", "g", "needs a GPU"),
)

POINTS = ("save_points",)
DISK = (
    Case("H1", "disk full within a save", "P2", disk.full_while_saving, S, 3, 40),
    Case("H1b", "disk full for good", "P2 P11", disk.full_for_good, refuse(74), 1, 8),
    Case("H2", "disk full under metrics or log", "P1", disk.full_log, ("S", "R 74"), 4, 8),
    Case("H3", "read-only, permission lost, out of inodes", "P11", disk.refusing, refuse(74), 4, 12),
    Case("H4", "EIO, stale handle, EINTR, quota, slow write", "P2", disk.flaky, S, 5, 40, needs=POINTS),
    Case("H4b", "a checkpoint's file cannot be read", "P1", disk.flaky_reading, S, 3, 12),
    Case("H5", "fsync fails", "P2", disk.failing_sync, S, 2, 8, needs=POINTS),
    Case("H5b", "fsync of the name fails, stop in the same step", "P2 P11", disk.failing_sync_of_name, S, 1, 4),
    Case("H6", "folder visible late on another node", "P3", ranks.seen_late, S, 1, 10, "d", needs=TWO),
    absent("H7", "staging on another file system", "c", "staging is a sibling by construction, no setting names it"),
    Case("H8", "two jobs on one run folder", "P10", disk.two_jobs, refuse(74), 1, 20),
    Case("H9", "lock of a dead job, of a living one", "P10", disk.locks, ("S", "R 74"), 2, 10),
    Case("H10", "wall clock jumps by a day", "P11", disk.jumping_clock, S, 2, 10),
    Case("H11", "file times contradict the steps", "P2", disk.contradicting_times, S, 1, 3),
)

SECRETS = (
    Case("J1", "key in the environment", "P9", secrets.key_in_environment, S, 2, 10),
    Case("J2", "key as a setting", "P9", secrets.key_in_settings, refuse(78), 2, 8),
    Case("J2b", "key in place of another value", "P9", secrets.key_in_value, refuse(78), 1, 4),
    Case("J3", "key in the text of an exception", "P9", secrets.key_in_exception, S, 1, 5),
    Case("J4", "tracker down, slow, rejects the key", "P11", secrets.tracker_fails, S, 6, 12),
    Case("J5", "step goes back after a fall-back", "P3", secrets.step_goes_back, S, 1, 4),
)

OURS = (*KILLS, *DAMAGE, *NUMBERS, *PEERS, *DISK, *SECRETS)
CASES: dict[str, Case] = {case.id: case for case in sorted((*OURS, *ELSEWHERE), key=lambda case: case.family)}
