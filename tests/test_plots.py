"""The pictures: they show a penalty's own numbers, for any penalty, and are written whole or not at all."""

import sys

import matplotlib
import numpy as np
import pytest
import torch as th
from matplotlib.collections import QuadMesh

from sb3_klip import cli
from sb3_klip.penalties import GatePenalty, Number, Penalty, PenaltyInputs, available_penalties, make_penalty
from sb3_klip.plots import plot_penalties, plot_penalty
from sb3_klip.plots.probe import Probe, early_and_late, ratio_limit

SIGNS = {"Â = +1": 1.0, "Â = −1": -1.0}
COMBINED = {"early": {"name": "sigmoid", "softness": 0.1}, "late": {"name": "spo"}}


class Bump(GatePenalty):
    """A shape that nobody registered, with an edge far to the right."""

    height = Number(0.7)
    edge = Number(4.0)

    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        past = inputs.ratio > self.edge(inputs.progress_remaining)
        return th.where(past, self.height(inputs.progress_remaining), 0.0)


class OwnConstructor(Penalty):
    """A penalty that is no gate, declares no parameters, and has an argument without a default."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def beta(self, inputs: PenaltyInputs) -> th.Tensor:
        return th.full_like(inputs.ratio, self.size)


class Broken(GatePenalty):
    def gate(self, inputs: PenaltyInputs) -> th.Tensor:
        return inputs.ratio / 0 * 0


def panel(figure, title):
    (axes,) = (axes for axes in figure.axes if axes.get_title().startswith(title))
    return axes


def curves(axes):
    """What is drawn of the penalty itself: ratios and values by the label of the curve."""
    return {line.get_label(): line.get_data() for line in axes.lines if line.get_label() in SIGNS}


def own_numbers(penalty, method, ratio, advantage, clip_range=0.2, position=0.0, progress_remaining=1.0):
    ratio = th.tensor(np.asarray(ratio), dtype=th.float32)
    advantages = th.full_like(ratio, advantage)
    inputs = PenaltyInputs(ratio, advantages, clip_range, th.full_like(ratio, position), progress_remaining)
    return getattr(penalty, method)(inputs).numpy()


@pytest.mark.parametrize("name", available_penalties())
def test_pictures_show_the_penaltys_own_numbers(name):
    penalty = make_penalty(name)
    figure = plot_penalty(penalty, clip_range=0.1)
    assert figure.get_suptitle().startswith(name)
    for title, method in (("gate", "gate"), ("surrogate", "surrogate")):
        drawn = curves(panel(figure, title))
        assert drawn.keys() == SIGNS.keys()
        for label, (ratio, values) in drawn.items():
            assert 0 < ratio.min() < 0.01 and ratio.max() >= 2
            np.testing.assert_array_equal(values, own_numbers(penalty, method, ratio, SIGNS[label], clip_range=0.1))

    plane = panel(figure, "coefficient β")
    (mesh,) = (collection for collection in plane.collections if isinstance(collection, QuadMesh))
    beta, (low, high) = mesh.get_array(), mesh.get_clim()
    assert low == -high
    corners = mesh.get_coordinates()
    centres = (corners[1:, 1:] + corners[:-1, :-1]) / 2
    for row, column in ((0, 0), (-1, -1), (10, 200), (200, 30)):
        ratio, advantage = centres[row, column]
        np.testing.assert_allclose(
            beta[row, column], own_numbers(penalty, "beta", [ratio], advantage, 0.1)[0], rtol=1e-3, atol=1e-6
        )


def test_reference_is_ppo_clip():
    figure = plot_penalty("spo", clip_range=0.3)
    hard = make_penalty("hard")
    for title, method in (("gate", "gate"), ("surrogate", "surrogate")):
        references = [line.get_data() for line in panel(figure, title).lines if line.get_color() == "#888888"]
        for (ratio, values), advantage in zip(references, (1.0, -1.0), strict=True):
            np.testing.assert_array_equal(values, own_numbers(hard, method, ratio, advantage, clip_range=0.3))


@pytest.mark.parametrize("penalty", [Bump(), OwnConstructor(0.5), make_penalty("asymmetric", upper=Bump, lower="kl_fixed")])
def test_any_penalty_draws(penalty):
    figure = plot_penalty(penalty)
    for label, (ratio, values) in curves(panel(figure, "gate")).items():
        np.testing.assert_array_equal(values, own_numbers(penalty, "gate", ratio, SIGNS[label]))
    (cell,) = plot_penalties([penalty]).axes
    assert curves(cell).keys() == SIGNS.keys()


def test_the_last_edge_is_in_the_picture():
    assert ratio_limit(Probe(make_penalty("hard"))) == 2
    assert ratio_limit(Probe(make_penalty("spo"), clip_range=0.01)) == 2
    assert 3 < ratio_limit(Probe(make_penalty("dual_clip"))) < 4
    assert 4 < ratio_limit(Probe(Bump())) < 5


def test_schedules_are_read_at_the_progress():
    figure = plot_penalty("sigmoid", penalty_kwargs={"softness": "lin_0.4"}, progress_remaining=0.25)
    expected = make_penalty("sigmoid", softness=0.1)
    for label, (ratio, values) in curves(panel(figure, "gate")).items():
        np.testing.assert_allclose(values, own_numbers(expected, "gate", ratio, SIGNS[label]), atol=1e-6)
    assert "progress remaining 0.25" in figure.get_suptitle()


def test_position():
    """A given position is drawn alone; without one, the beginning and a time when nothing changes any more."""
    penalty = make_penalty("position_aware", **COMBINED, midpoint=40, width=5)
    for label, (ratio, values) in curves(panel(plot_penalty(penalty, position=43), "gate")).items():
        np.testing.assert_array_equal(values, own_numbers(penalty, "gate", ratio, SIGNS[label], position=43))

    figure = plot_penalty(penalty)
    drawn = {line.get_label(): line.get_data() for line in panel(figure, "gate").lines}
    early, late = (probe.position for probe in early_and_late(Probe(penalty)))
    assert early == 0 and 60 < late <= 200
    for position in (early, late):
        ratio, values = drawn[f"Â = +1, position {position:g}"]
        np.testing.assert_array_equal(values, own_numbers(penalty, "gate", ratio, 1.0, position=position))
        assert panel(figure, f"coefficient β at position {position:g}")
    planes = [axes for axes in figure.axes if axes.get_title().startswith("coefficient")]
    assert planes[0].collections[0].get_clim() == planes[1].collections[0].get_clim()

    same_all_along = make_penalty("position_aware", early="hard", late="hard")
    assert len(early_and_late(Probe(same_all_along))) == 1


def test_sheet_has_the_whole_family():
    figure = plot_penalties()
    figure.draw_without_rendering()
    cells = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(cells) == available_penalties()
    for name in set(cells) - {"kl_fixed", "kl_adaptive", "position_aware", "asymmetric"}:
        for label, (ratio, values) in curves(cells[name]).items():
            np.testing.assert_array_equal(values, own_numbers(make_penalty(name), "gate", ratio, SIGNS[label]))
    # Combinations are drawn with parts that differ: not as PPO-Clip
    for name in ("asymmetric", "position_aware"):
        assert len({tuple(line.get_ydata()) for line in cells[name].lines}) > 4
    # The analytic KL does not act through the ratio: its coefficient is drawn, and the cell says so
    for name in ("kl_fixed", "kl_adaptive"):
        (line,) = cells[name].lines
        assert set(line.get_ydata()) == {1.0} and "no gate" in cells[name].texts[0].get_text()


def test_nothing_is_cropped_or_overlaps():
    for figure in (plot_penalties(), plot_penalties(["hard"]), plot_penalty("kl_adaptive"), plot_penalty("none")):
        figure.draw_without_rendering()
        whole = figure.bbox
        texts = [*figure.texts, *figure.legends]
        boxes = [artist.get_window_extent() for artist in texts] + [axes.get_tightbbox() for axes in figure.axes]
        assert all(whole.x0 - 1 <= box.x0 and box.x1 <= whole.x1 + 1 for box in boxes)
        assert all(whole.y0 - 1 <= box.y0 and box.y1 <= whole.y1 + 1 for box in boxes)
        for index, one in enumerate(boxes):
            for other in boxes[index + 1 :]:
                width, height = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
                assert min(width, height) < 2  # pixels: neighbours may touch


def test_leaves_matplotlib_alone():
    """Neither the user's settings nor the state of pyplot is touched, and the settings do not change the figure."""
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 31.0, "lines.linewidth": 9.0}):
        figure = plot_penalty("hard")
        assert matplotlib.rcParams["font.size"] == 31.0
    assert dict(matplotlib.rcParams) == before
    assert figure.axes[0].xaxis.label.get_fontsize() < 12
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.fixture
def plot(capsys, tmp_path, monkeypatch):
    """Runs ``sb3-klip plot`` in an empty folder; gives its exit code, stdout, stderr and the files there."""
    monkeypatch.chdir(tmp_path)

    def plot(*arguments):
        before = set(tmp_path.iterdir())
        code = cli.main(("plot", *arguments))
        files = {path.name: path for path in set(tmp_path.iterdir()) - before if path.name != "__pycache__"}
        return code, *capsys.readouterr(), files

    return plot


def test_command_writes_a_picture(plot):
    code, out, _, files = plot("penalty", "sigmoid", "--kwargs", "softness:0.05", "-o", "file.png")
    assert (code, out, list(files)) == (0, "file.png\n", ["file.png"])
    assert files["file.png"].read_bytes().startswith(b"\x89PNG")
    for suffix, start in ((".svg", b"<?xml"), (".PDF", b"%PDF")):
        code, _, _, files = plot("penalty", "hard", "-o", f"file{suffix}")
        assert code == 0 and files[f"file{suffix}"].read_bytes().startswith(start)


def test_command_has_default_files(plot):
    assert list(plot("penalty", "spo")[-1]) == ["spo.png"]
    assert list(plot("penalties", "hard", "spo")[-1]) == ["penalties.png"]


def test_command_takes_a_class_of_the_users(plot, tmp_path):
    (tmp_path / "my_gates.py").write_text(
        "from sb3_klip.penalties import GatePenalty, Number\n"
        "class MyGate(GatePenalty):\n"
        "    height = Number(0.5)\n"
        "    def gate(self, inputs):\n"
        "        return self.height(inputs.progress_remaining) * (self.distance(inputs) > 0)\n"
    )
    code, _, err, files = plot("penalty", "my_gates.MyGate", "--kwargs", "height:lin_0.9", "--progress", "0.5")
    assert (code, err, list(files)) == (0, "", ["MyGate.png"])
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        ("softness:lin_0.1", {"softness": "lin_0.1"}),
        ("softness:'lin_0.1'", {"softness": "lin_0.1"}),
        ("softness:1e-3", {"softness": 1e-3}),
        ("upper:sigmoid", {"upper": "sigmoid"}),
        ("upper:none", {"upper": "none"}),
        ("clip_range:None", {"clip_range": None}),
        ("upper:{'name': 'sigmoid', 'softness': 0.1}", {"upper": {"name": "sigmoid", "softness": 0.1}}),
        ("upper:{name: sigmoid, softness: 1e-3}", {"upper": {"name": "sigmoid", "softness": 1e-3}}),
        ("upper:dict(name='asymmetric', lower=dict(name='spo'))", {"upper": {"name": "asymmetric", "lower": {"name": "spo"}}}),
        ("upper:__import__('os').getcwd()", {"upper": "__import__('os').getcwd()"}),
    ],
)
def test_values_are_data(given, spec):
    from sb3_klip.commands.literals import key_value

    assert dict([key_value(given)]) == spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["penalty", "sigmiod"], "did you mean 'sigmoid'?"),
        (["penalty", "nowhere.MyGate"], "is not defined here"),
        (["penalty", "hard", "--kwargs", "softness:1"], "has no parameter 'softness'"),
        (["penalty", "sigmoid", "--kwargs", "softness:-1"], "softness must be > 0"),
        (["penalty", "sigmoid", "--kwargs", "softness=0.1"], "is not of the form key:value"),
        (["penalty", "sigmoid", "--kwargs", "softness:{a: ["], "neither a Python literal nor YAML"),
        (["penalty", "tests.test_plots.OwnConstructor"], "size"),
        (["penalty", "tests.test_plots.Broken"], "must not return NaN"),
        (["penalty", "sigmoid", "-o", "file.bmp"], "file.bmp does not end in .png, .svg or .pdf"),
        (["penalty", "sigmoid", "-o", "nowhere/file.png"], "nowhere is not a folder"),
        (["penalty", "sigmoid", "--clip-range", "1.5"], "clip_range must be > 0 and < 1"),
        (["penalty", "sigmoid", "--clip-range", "wide"], "invalid float value"),
        (["penalty", "position_aware", "--position", "-3"], "position must be"),
        (["penalty", "sigmoid", "--progress", "nan"], "progress_remaining must be"),
        (["penalties", "hard", "sigmiod"], "did you mean 'sigmoid'?"),
        (["penalty"], "required"),
        (["sigmoid"], "invalid choice"),
        ([], "required"),
    ],
)
def test_bad_input_is_one_sentence(plot, arguments, message):
    code, out, err, files = plot(*arguments)
    assert (code, out, files) == (2, "", {})
    assert err.startswith("sb3-klip plot: ") and err.count("\n") == 1 and message in err


def test_an_interrupted_write_leaves_nothing(plot, monkeypatch):
    def fill_the_disk(figure, path, **options):
        path.write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill_the_disk)
    code, _, err, files = plot("penalty", "hard", "-o", "hard.png")
    assert (code, err, files) == (2, "sb3-klip plot: cannot write hard.png: No space left on device\n", {})


def test_without_matplotlib(plot, monkeypatch):
    for module in [name for name in sys.modules if name.startswith(("sb3_klip.plots", "sb3_klip.commands.plot"))]:
        monkeypatch.delitem(sys.modules, module)
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err, _ = plot("penalties")
    assert (code, err) == (2, 'sb3-klip plot: matplotlib is not installed; run: pip install "sb3-klip[plots]"\n')
