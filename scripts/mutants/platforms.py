"""Mutants of what is different on a device without float64, on Windows and on macOS."""

from mutant import mutant

COARSE = "trainer/test_coarse_device.py::test_every_number_is_that_of_the_cpu[methods0]"
WINDOWS = "project/test_like_windows.py::test_a_run_is_saved_resumed_and_reported"

MUTANTS = [
    mutant(
        "tokens_stay_on_a_device_without_float64",
        "a method's functions compute on the device itself",
        ("rollout/batch.py", "return beside_float64(tokens, self.route_B.device)", "return tokens"),
        tests=(COARSE,),
    ),
    mutant(
        "mps_has_float64",
        "MPS is asked for float64",
        ("loss/float64.py", 'device.type != "mps"', "True"),
        tests=("trainer/test_coarse_device.py::test_mps_is_such_a_device",),
    ),
    mutant(
        "files_flushed_as_they_are_read",
        "a checkpoint's files are flushed through descriptors that only read",
        ("host/staging.py", ' if os.name == "posix" else os.O_RDWR', ""),
        tests=(WINDOWS,),
    ),
    mutant(
        "alarms_on_windows",
        "math-verify is asked for a time limit where there are no alarms",
        ("rewards/maths.py", 'os.name == "posix" and threading', "threading"),
        tests=(WINDOWS,),
    ),
]
