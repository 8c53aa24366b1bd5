"""The command line, from the user's side: what it writes, prints and returns."""

import re
import shlex
import subprocess
import sys

import pytest
import yaml

import sb3_klip
from sb3_klip import KLipPPO
from sb3_klip.cli import COMMANDS, main
from sb3_klip.errors import explain
from sb3_klip.penalties import available_penalties, make_penalty

TINY = ("-n", "64", "-params", "n_envs:2", "n_steps:16", "batch_size:16", "n_epochs:1")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; gives its exit code, stdout and stderr."""

    def run(*arguments):
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


def run_process(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def assert_sentence(err, *, command="train"):
    """One line that says which command it is from."""
    assert err.startswith(f"sb3-klip {command}: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in err


def test_imports_are_light():
    """Neither the package nor its command line needs what only a subcommand needs."""
    heavy = ["torch", "stable_baselines3", "rl_zoo3", "optuna", "matplotlib", "plotly", "ray", "seaborn", "wandb"]
    code = f"import sys, sb3_klip, sb3_klip.cli; print(*(name for name in {heavy} if name in sys.modules))"
    process = run_process("-c", code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == ""


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command.name in out and command.summary in out for command in COMMANDS)


def test_version(run):
    code, out, _ = run("--version")
    assert (code, out.split()) == (0, ["sb3-klip", sb3_klip.__version__])


@pytest.mark.parametrize("name", ["train", "enjoy", "verify"])
def test_help_of_a_command_has_examples(run, name):
    (command,) = (command for command in COMMANDS if command.name == name)
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"usage: sb3-klip {name}" in out
    assert all(f"  {example}" in out for example in command.examples)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_are_commands(command):
    """An example is a command line that a shell takes, of the command that it is an example of."""
    assert command.examples
    for example in command.examples:
        assert shlex.split(example)[:2] == ["sb3-klip", command.name]


def test_train_then_enjoy(tmp_path):
    """In processes of their own, as users start them, and enjoy by the very line that train prints."""
    process = run_process("-m", "sb3_klip", "train", "--env", "CartPole-v1", *TINY, "--eval-freq", "32", "--seed", "1")
    assert process.returncode == 0, process.stderr
    run_folder = tmp_path / "logs/klip_ppo/CartPole-v1_1"
    for file in ("CartPole-v1.zip", "best_model.zip", "CartPole-v1/config.yml"):
        assert (run_folder / file).is_file()
        assert str((run_folder / file).relative_to(tmp_path)) in process.stdout

    (line,) = re.findall(r"sb3-klip (enjoy .*)", process.stdout)
    process = run_process("-m", "sb3_klip", *shlex.split(line), "--no-render", "-n", "200")
    assert process.returncode == 0, process.stderr
    assert "Mean reward" in process.stdout


def test_masks_are_used_in_training_evaluation_and_replay(run):
    arguments = ("--algo", "maskable_klip_ppo", "--env", "InvalidActionEnvDiscrete-v0")
    code, _, err = run("train", *arguments, "-n", "64", "-params", "n_steps:32", "batch_size:16", "--eval-freq", "32")
    assert code == 0, err
    code, out, err = run("enjoy", *arguments, "--no-render", "-n", "500")
    assert code == 0, err
    # Of eighty actions twenty are valid: whoever ignores the masks gets about 1.25 of 100 at random, who heeds them 5
    (reward,) = re.findall(r"Mean reward: ([\d.]+)", out)
    assert float(reward) > 2.5


def test_memory_is_used_in_training_and_replay(run):
    arguments = ("--algo", "klip_ppo_lstm", "--env", "CartPoleNoVel-v1")
    code, _, err = run("train", *arguments, *TINY, "penalty:'spo'", "--eval-freq", "32")
    assert code == 0, err
    code, out, err = run("enjoy", *arguments, "--no-render", "-n", "200")
    assert code == 0 and "Mean reward" in out, err


OWN_SHAPE = """
from sb3_klip.penalties import GatePenalty, Number, register_penalty

@register_penalty("cauchy")
class Cauchy(GatePenalty):
    scale = Number(0.1, above=0.0)

    def gate(self, inputs):
        past = self.distance(inputs).clamp(min=0.0) / self.scale(inputs.progress_remaining)
        return past**2 / (1 + past**2)
"""


@pytest.mark.parametrize("name", ["own_shapes.Cauchy", "cauchy"])
def test_shape_of_ones_own_in_train_and_enjoy(tmp_path, name):
    """A module in the current folder, named by its path or imported as RL Zoo imports packages of environments."""
    (tmp_path / "own_shapes.py").write_text(OWN_SHAPE)
    packages = ["--gym-packages", "own_shapes"] if name == "cauchy" else []
    parameters = [*TINY, f"penalty:'{name}'", "penalty_kwargs:dict(scale=0.3)"]
    process = run_process("-m", "sb3_klip", "train", "--env", "CartPole-v1", *parameters, "--eval-freq", "-1", *packages)
    assert process.returncode == 0, process.stderr
    (line,) = re.findall(r"sb3-klip (enjoy .*)", process.stdout)
    process = run_process("-m", "sb3_klip", *shlex.split(line), "--no-render", "-n", "50")
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("penalty", available_penalties())
def test_every_shape_trains_from_the_command_line_and_from_a_file(run, tmp_path, penalty, env_id):
    code, _, err = run("train", "--env", env_id, *TINY, f"penalty:'{penalty}'", "--eval-freq", "-1")
    assert code == 0, err

    entry = dict(policy="MlpPolicy", n_timesteps=64, n_steps=32, batch_size=16, n_epochs=2)
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({env_id: {**entry, "penalty": make_penalty(penalty).spec()}}))
    code, _, err = run("train", "--env", env_id, "-conf", "mine.yml", "--eval-freq", "-1")
    assert code == 0, err

    for run_id in ("1", "2"):
        model = KLipPPO.load(tmp_path / f"logs/klip_ppo/{env_id}_{run_id}/{env_id}.zip")
        assert model.penalty.spec() == make_penalty(penalty).spec()
        code, _, err = run("enjoy", "--env", env_id, "--exp-id", run_id, "--no-render", "-n", "10")
        assert code == 0, err


def test_shape_on_the_command_line(run, tmp_path):
    parameters = (*TINY, "penalty:'none'", "use_sde:False")
    code, _, _ = run("train", "--env", "Pendulum-v1", *parameters, "--eval-freq", "-1", "-f", "my logs")
    assert code == 0
    folder = tmp_path / "my logs/klip_ppo/Pendulum-v1_1"
    assert KLipPPO.load(folder / "Pendulum-v1.zip").penalty.name == "none"
    saved = yaml.load((folder / "Pendulum-v1/config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert dict(saved)["penalty"] == "none"

    code, out, _ = run("enjoy", "--env", "Pendulum-v1", "--no-render", "-n", "300", "-f", "my logs")
    assert code == 0 and "Episode Reward" in out


def test_shape_in_a_file(run, tmp_path):
    entry = {"policy": "MlpPolicy", "n_timesteps": 32, "n_steps": 16, "batch_size": 16, "n_epochs": 1}
    spec = {"name": "sigmoid", "softness": "lin_0.1"}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"CartPole-v1": {**entry, "penalty": spec}}))
    code, _, _ = run("train", "-conf", "mine.yml", "--eval-freq", "-1")
    assert code == 0
    model = KLipPPO.load(tmp_path / "logs/klip_ppo/CartPole-v1_1/CartPole-v1.zip")
    assert model.penalty.spec() == {**model.penalty.spec(), **spec}


def test_algorithms_of_the_zoo(run, tmp_path):
    code, out, _ = run("train", "--algo", "ppo", *TINY, "--eval-freq", "-1")
    assert code == 0 and "--algo ppo" in out
    assert (tmp_path / "logs/ppo/CartPole-v1_1/CartPole-v1.zip").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-params penalty:\"'harrd'\"", "did you mean 'hard'"),
        ("-params penalty:hard", "a text needs quotes of its own"),
        ("-params penalty:3", "a penalty is a name"),
        ("-params penalty:\"{'name': 'sigmoid', 'sofness': 0.1}\"", "has no parameter 'sofness'"),
        ("-params penalty:\"'sigmoid'\" penalty_kwargs:\"dict(softness='soft')\"", "softness must be a number"),
        ("-params penalty:\"'sigmoid'\" penalty_kwargs:dict(softness=-1)", "softness must be > 0"),
        ("-params penalty:\"'sigmoid'\" penalty_kwargs:dict(tau_pos=1)", "belongs to sapo"),
        ("-params penalty_kwargs:0.05", "penalty_kwargs must be a dict"),
        ("-params batch_sise:3", "did you mean batch_size"),
        ("-params batch_size:'3", "is not a Python expression"),
        ("-params batch_size", "is not of the form key:value"),
        ("--env CartPole-v7", "did you mean CartPole-v1"),
        ("--env qqqqqqqq", "unknown environment"),
        ("--algo klipp_ppo", "'klip_ppo'"),
        ("-n many", "invalid int value: 'many'"),
        ("--no-such-option", "--no-such-option"),
        ("-conf missing.yml", "cannot read the hyperparameters in missing.yml"),
        ("-conf ./", "there are no hyperparameters at './'"),
        ("-i missing.zip", "--trained-agent"),
        ("--gym-packages no_such_package", "no Python package 'no_such_package'"),
        ("--env HumanoidStandup-v2", "gymnasium-robotics"),
    ],
)
def test_bad_input(run, tmp_path, arguments, message):
    code, _, err = run("train", *shlex.split(arguments, posix=True) if '"' in arguments else arguments.split())
    assert code == 2
    assert_sentence(err)
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("CartPole-v1: [1", "is not valid YAML"),
        ("- 1", "one entry per environment"),
        ("Other-v1: {policy: MlpPolicy}", "no hyperparameters for CartPole-v1"),
        ("CartPole-v1:", "no hyperparameters for CartPole-v1"),
        ("CartPole-v1: {policy: MlpPolicy, n_timesteps: 100, penaltyy: hard}", "did you mean penalty"),
        ("CartPole-v1: {policy: MlpPolicy, n_timesteps: 100, env_wrapper: no_such_package.Wrapper}", "'no_such_package'"),
        ("CartPole-v1: {policy: MlpPolicy, n_timesteps: 100, policy_kwargs: dict(net_arch=}", "SyntaxError"),
    ],
)
def test_bad_file(run, tmp_path, content, message):
    file = tmp_path / "mine.yml"
    file.write_text(content)
    code, _, err = run("train", "-conf", "mine.yml")
    assert code == 2
    assert_sentence(err)
    assert message in err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("env_id", "module", "extra"), [("HalfCheetah-v5", "mujoco", "mujoco"), ("LunarLander-v3", "Box2D", "box2d")]
)
def test_missing_extra(run, tmp_path, monkeypatch, env_id, module, extra):
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.mujoco", "gymnasium.envs.box2d"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run("train", "--env", env_id)
    assert code == 2
    assert_sentence(err)
    assert f'pip install "sb3-klip[{extra}]"' in err
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_enjoy(run, tmp_path):
    code, _, err = run("enjoy", "--env", "CartPole-v1")
    assert code == 2
    assert_sentence(err, command="enjoy")
    assert "logs/klip_ppo" in err and "sb3-klip train" in err
    assert list(tmp_path.iterdir()) == []


def test_unknown_command(run):
    code, _, err = run("trian")
    assert code == 2 and "did you mean train" in err and err.count("\n") == 1


def test_no_command(run):
    code, _, err = run()
    assert code == 2 and "COMMAND" in err and err.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("SB3_KLIP_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown command"):
        main(["trian"])


def raising(error):
    def command(*_):
        raise error

    return command


def test_bugs_are_not_hidden(monkeypatch):
    monkeypatch.setattr("sb3_klip.commands.zoo_scripts.run", raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        main(["train"])


def test_interrupt(monkeypatch):
    monkeypatch.setattr("sb3_klip.commands.zoo_scripts.run", raising(KeyboardInterrupt()))
    assert main(["train"]) == 130


def test_broken_import_is_a_bug():
    with pytest.raises(ImportError) as caught:
        from sb3_klip import no_such_name  # noqa: F401
    assert explain(caught.value) is None
