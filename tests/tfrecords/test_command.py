"""How commands start and end: flags, help, exit codes, missing packages, closed pipes."""

import os
import subprocess
import sys
import textwrap

import pytest
from absl import flags

from tfrecords import command
from tfrecords.errors import FlagError, UserError, extra

USAGE = """Does something.

    python -m something [--image_height=256]
"""


@pytest.fixture
def values():
    found = flags.FlagValues()
    flags.DEFINE_integer(
        "image_height", 256, "pixels", lower_bound=1, upper_bound=16384, flag_values=found
    )
    flags.DEFINE_float("fraction", 0.2, "of it", lower_bound=0, upper_bound=1, flag_values=found)
    flags.DEFINE_integer("batch_size", 64, "photos", flag_values=found)
    flags.DEFINE_enum("resize", "stretch", ["stretch", "letterbox"], "how", flag_values=found)
    flags.DEFINE_boolean("overwrite", False, "replace what is there", flag_values=found)
    command.DEFINE_path("output", "~/data", "folder", flag_values=found)
    command.DEFINE_path("input", None, "folder", flag_values=found)
    return found


def parse(values, *argv, **more):
    return command.parse(values, list(argv), usage=USAGE, **more)


def test_flags_are_set_and_go_back_to_their_defaults_the_next_time(values):
    assert parse(values, "--image_height=8", "--overwrite", "--resize", "letterbox") == []
    assert (values.image_height, values.overwrite, values.resize) == (8, True, "letterbox")
    parse(values)
    assert (values.image_height, values.overwrite, values.resize) == (256, False, "stretch")
    assert values.input is None


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("--batch-size=3", "--batch_size"),
        ("--imageheight=3", "--image_height"),
        ("--Image_Height", "--image_height"),
        ("--image_heigth=3", "--image_height"),
        ("-image-height=3", "--image_height"),
        ("--no-overwrite", "--nooverwrite"),
        ("--over_write", "--overwrite"),
        ("--verbose", "--verbosity"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(values, argument, nearest):
    with pytest.raises(FlagError) as error:
        parse(values, argument)
    assert f"Did you mean {nearest}?" in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--image_height=0", "--image_height=0: 0 is not an integer in the range [1, 16384]"),
        ("--image_height=1.5", "--image_height=1.5: it is not an integer in the range [1, 16384]"),
        ("--fraction=1.5", "--fraction=1.5: 1.5 is not a number in the range [0, 1]"),
        ("--fraction=nan", "--fraction=nan: it is not a number in the range [0, 1]"),
        ("--fraction=half", "--fraction=half: it is not a number in the range [0, 1]"),
        ("--resize=crop", "--resize=crop: value should be one of <stretch|letterbox>"),
        ("--overwrite=perhaps", "--overwrite=perhaps: it is not true or false"),
        ("--nooverwrite=1", "--nooverwrite=1 does not take an argument"),
        ("--batch_size", "Missing value for flag --batch_size"),
        ("--output=", "--output=: it is empty: is a variable of the shell not set?"),
        ("--output=--overwrite", "is the path missing?"),
        ("--output=file://x", "absolute path"),
        ("--zzzz", "unknown flag --zzzz. --help shows all flags."),
        ("data", "unexpected argument 'data'"),
        ("--verbosity=loud", "--verbosity=loud"),
    ],
)
def test_a_mistake_is_named(values, argument, said):
    with pytest.raises(FlagError) as error:
        parse(values, argument)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~/x", "/home/me/x"),
        ("file:///x y", "/x y"),
        ("file:///~/x", "/~/x"),
        ("gs://bucket/x", "gs://bucket/x"),
        ("x/~", "x/~"),
    ],
)
def test_a_path_is_what_the_shell_would_make_of_it(values, given, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(values, f"--input={given}", given, positional="DIR") == [meant]
    assert values.input == meant


def test_arguments_that_are_no_flags_are_counted(values):
    assert parse(values, "a", "--overwrite", "b", positional="RUN RUN") == ["a", "b"]
    assert parse(values, "a", "-", "--", "-c", positional="PHOTO ...") == ["a", "-", "-c"]
    with pytest.raises(FlagError, match="RUN is missing"):
        parse(values, "a", positional="RUN RUN")
    with pytest.raises(FlagError, match="unexpected argument 'c'"):
        parse(values, "a", "b", "c", positional="RUN RUN")
    with pytest.raises(FlagError, match="DIR: it is empty"):
        parse(values, "", positional="DIR")


@pytest.fixture
def settings(values):
    """Adds a flag and its settings, each a flag of its own."""
    flags.DEFINE_string("config", None, "name", flag_values=values)
    flags.DEFINE_integer("config.batch_size", None, "photos in a step", flag_values=values)
    flags.DEFINE_float("config.optimizer.learning_rate", None, "rate", flag_values=values)
    flags.DEFINE_float("config.optimizer.ema", None, "decay", flag_values=values)
    flags.DEFINE_boolean("config.augment.flip", None, "mirror", flag_values=values)
    return values


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("--batch-size=3", "--batch_size"),
        ("--bs=3", "--batch_size"),
        ("--config.bs=3", "--config.batch_size"),
        ("--config-batch-size=3", "--config.batch_size"),
        ("--ema=3", "--config.optimizer.ema"),
        ("--optimizer_ema=3", "--config.optimizer.ema"),
        ("--config.ema=3", "--config.optimizer.ema"),
        ("--config.model.ema=3", "--config.optimizer.ema"),
        ("--lr=3", "--config.optimizer.learning_rate"),
        ("-lr=3", "--config.optimizer.learning_rate"),
        ("--config.lr=3", "--config.optimizer.learning_rate"),
        ("--optimizer.lr=3", "--config.optimizer.learning_rate"),
        ("--config.optimizer.lr=3", "--config.optimizer.learning_rate"),
        ("--learning-rate=3", "--config.optimizer.learning_rate"),
        ("--learnig_rate=3", "--config.optimizer.learning_rate"),
        ("--config.optimiser.learning_rate=3", "--config.optimizer.learning_rate"),
        ("--flip", "--config.augment.flip"),
        ("--no-flip", "--noconfig.augment.flip"),
        ("--noaugment.flip", "--noconfig.augment.flip"),
    ],
)
def test_a_setting_is_found_by_its_last_part_and_by_initials(settings, argument, nearest):
    with pytest.raises(FlagError) as error:
        parse(settings, argument)
    assert f"Did you mean {nearest}?" in str(error.value)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--set", "unknown flag --set. Write --config.KEY=VALUE; --helpfull shows every KEY."),
        ("--zzzz", "unknown flag --zzzz. --helpfull shows all flags."),
        ("--config.batch_size=x", "--config.batch_size=x: it is not an integer"),
        ("--config.augment.flip=x", "--config.augment.flip=x: it is not true or false"),
        ("--config.optimizer.ema=nan", "--config.optimizer.ema=nan: it is not a number"),
    ],
)
def test_a_mistake_in_a_setting_is_named(settings, argument, said):
    with pytest.raises(FlagError) as error:
        parse(settings, argument)
    assert said in str(error.value)


def test_settings_are_shown_by_full_help_only(settings, capsys):
    shown = {}
    for argument in ("--help", "--helpfull"):
        with pytest.raises(SystemExit):
            parse(settings, argument)
        shown[argument] = capsys.readouterr().out
    assert "--config: name" in shown["--help"]
    assert "config.augment" not in shown["--help"]
    assert "--[no]config.augment.flip: mirror" in shown["--helpfull"]


def beam():
    return ["--direct_num_workers", "--experiments", "--runner"]


def test_flags_of_somebody_else_are_handed_on_in_order(values):
    given = ["--direct_num_workers=2", "--experiments", "x", "--runner=DirectRunner", "--", "-y"]
    rest = parse(values, given[0], "--image_height=5", *given[1:], known_elsewhere=beam)
    assert rest == given
    assert values.image_height == 5


def test_the_nearest_flag_may_be_somebody_elses(values):
    with pytest.raises(FlagError, match="Did you mean --direct_num_workers"):
        parse(values, "--direct-num-worker=2", known_elsewhere=beam)


def test_nobody_else_is_asked_when_all_is_known(values):
    parse(values, "--image_height=5", known_elsewhere=lambda: pytest.fail("asked"))


def test_a_negative_number_may_be_somebody_elses_value(values):
    assert parse(values, "--runner", "-1.5", known_elsewhere=beam) == ["--runner", "-1.5"]


@pytest.mark.parametrize(
    "argv",
    [["cars.zip"], ["--overwrite", "yes"], ["--runner=DirectRunner", "cars.zip"]],
)
def test_an_argument_that_can_be_no_value_is_refused(values, argv):
    with pytest.raises(FlagError, match=f"unexpected argument '{argv[-1]}'"):
        parse(values, *argv, known_elsewhere=beam)


def test_flags_may_stand_in_a_file(values, tmp_path):
    (tmp_path / "flags").write_text("--image_height=7\n# a remark\n--overwrite\n")
    parse(values, f"--flagfile={tmp_path / 'flags'}")
    assert (values.image_height, values.overwrite) == (7, True)


def test_commands_do_not_share_flags(values):
    other = flags.FlagValues()
    flags.DEFINE_string("image_height", "tall", "another", flag_values=other)
    parse(values, "--image_height=5")
    command.parse(other, ["--image_height=high"], usage="")
    assert (values.image_height, other.image_height) == (5, "high")


@pytest.mark.parametrize("argument", ["--help", "-h", "-help"])
def test_help_shows_the_usage_and_these_flags_only(values, capsys, argument):
    with pytest.raises(SystemExit) as left:
        parse(values, "--nonsense", argument)
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("Does something. python -m something [--image_height=256] ")
    assert "--image_height: pixels (default: 256; an integer in the range [1, 16384])" in shown
    assert "--[no]overwrite: replace what is there (default: false)" in shown
    assert "stretch|letterbox" in shown
    assert "--input: folder (a path)" in shown
    assert "verbosity" not in shown


def test_full_help_shows_absls_flags_too(values, capsys):
    with pytest.raises(SystemExit) as left:
        parse(values, "--helpfull")
    assert left.value.code == 0
    assert "--stderrthreshold" in capsys.readouterr().out


# Whole processes.

SCRIPT = '''
"""Usage of a small command."""
import sys
import threading
from absl import flags, logging
from tfrecords import command
from tfrecords.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_integer("lines", 1, "to print", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_enum("end", "well", ["well", "mistake", "defect", "interrupt", "pipe"], "how",
                  flag_values=FLAGS)

def main(argv):
    command.parse(FLAGS, argv, usage=__doc__)
    logging.info("an info")
    logging.warning("a warning")
    for i in range(FLAGS.lines):
        print("line", i)
    if FLAGS.end == "mistake":
        raise UserError("mend it")
    if FLAGS.end == "defect":
        raise ValueError("a defect")
    if FLAGS.end == "interrupt":
        threading.Thread(target=threading.Event().wait).start()  # Python waits for it at its end
        raise KeyboardInterrupt
    if FLAGS.end == "pipe":
        raise BrokenPipeError("another pipe")

if __name__ == "__main__":
    command.run(main)
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SCRIPT)
    return path


def run(*words, **more):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        words, capture_output=True, text=True, timeout=120, env=environment, **more
    )


@pytest.mark.parametrize(
    ("argument", "code", "said", "traceback"),
    [
        ("--end=well", 0, "", False),
        ("--end=mistake", 1, "error: mend it\n", False),
        ("--end=defect", 1, "ValueError: a defect\n", True),
        ("--end=pipe", 1, "BrokenPipeError: another pipe\n", True),
        ("--end=interrupt", 130, "interrupted\n", False),
        ("--lines=-1", 2, "error: flag --lines=-1: -1 is not a non-negative integer\n", False),
        ("--line=1", 2, "error: unknown flag --line=1. Did you mean --lines?\n", False),
        ("--pdb=maybe", 2, "=maybe: it is not true or false\n", False),
    ],
)
def test_exit_codes(script, argument, code, said, traceback):
    done = run(sys.executable, script, argument)
    assert done.returncode == code
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == traceback


def test_logging_is_absls(script):
    done = run(sys.executable, script)
    assert "a warning" in done.stderr
    assert "an info" not in done.stderr
    assert "an info" in run(sys.executable, script, "--verbosity=0").stderr
    assert "a warning" not in run(sys.executable, script, "--verbosity", "-2").stderr
    assert run(sys.executable, script, "--stderrthreshold=error").returncode == 0


def test_help_of_a_process(script):
    done = run(sys.executable, script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage of a small command.\n\n  --lines: to print (default: 1;")
    assert done.stderr == ""


@pytest.mark.parametrize("more", ["", "--end=mistake"])
@pytest.mark.parametrize("lines", [3, 100_000])
def test_a_pipe_that_is_closed_ends_the_command_quietly(script, lines, more):
    command_line = f"{sys.executable} {script} --verbosity=-2 --lines={lines} {more}"
    done = run("bash", "-c", f"{command_line} | head -n 1; echo ${{PIPESTATUS[0]}}")
    first, code = done.stdout.splitlines()
    assert first == "line 0"
    assert code == "141" or lines == 3
    assert done.stderr in ("", "error: mend it\n")


# Packages that are not there.


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(UserError) as error, extra("preprocess"):
        import surely_not_installed  # noqa: F401
    assert str(error.value) == (
        "this command needs surely_not_installed, which is not installed:"
        " pip install 'carbox[preprocess]'"
    )


@pytest.mark.parametrize("name", ["tfrecords.nothing", "trainer", "json.nothing"])
def test_a_missing_module_of_ours_or_of_python_is_a_defect(name):
    with pytest.raises(ModuleNotFoundError), extra("train"):
        raise ModuleNotFoundError(name=name)


@pytest.mark.parametrize(
    ("module", "absent", "name"),
    [
        ("trainer.task", "tensorflow", "train"),
        ("trainer.task", "keras", "train"),
        ("trainer.task", "matplotlib", "train"),
        ("trainer.evaluate", "tensorflow", "train"),
        ("preprocess.sample", "PIL", "preprocess"),
    ],
)
def test_commands_say_which_extra_they_need(tmp_path, module, absent, name):
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import sys
            sys.modules[{absent!r}] = None
        """)
    )
    path = f"{tmp_path}{os.pathsep}{os.getcwd()}"
    done = subprocess.run(
        [sys.executable, "-m", module],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: this command needs {absent}, which is not installed:"
        f" pip install 'carbox[{name}]'\n"
    )
