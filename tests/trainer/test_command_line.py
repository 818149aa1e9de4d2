import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainer import run_folder
from trainer.__main__ import main
from trainer.config import RANDOM, TrainConfig
from trainer.data.celeba import ATTRIBUTES
from trainer.presets import PRESETS


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "trainer", *arguments], capture_output=True, text=True, check=False)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def train(*arguments: object) -> int:
    """`python -m trainer train`, without the seconds that a process takes to import torch."""
    return main(["train", *map(str, arguments)])


def test_drawing_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faces", str(tmp_path / "faces"), "--count", "10"]) == 0
    wrote, following = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote 10 faces to {tmp_path / 'faces'}"
    assert following == f"next: python -m trainer train --data {tmp_path / 'faces'} --out RUN"


def test_commands_that_are_said_can_be_pasted(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / 'my faces\' "best"', tmp_path / "a run"
    data.symlink_to(faces)
    flags = ["--preset", "plain", "--epochs", "1", "--image-size", "32", "--channels", "8", "8", "8"]
    assert train(*flags, "--data", data, "--out", out) == 0
    evaluate, export = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ").split(", then ")
    assert shlex.split(evaluate) == ["python", "-m", "trainer", "evaluate", str(out), "--data", str(data)]
    assert shlex.split(export)[3:] == ["--run", str(out), "--out", "BUNDLE"]


def test_an_evaluation_needs_a_thread(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "run", "--data", "faces", "--threads", "0"]) == 2
    refusal(capsys, "--threads 0: must be at least 1")


def test_help_of_train_lists_the_presets_with_a_sentence_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train("--preset", "plain", "--help")
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, make in PRESETS.items():
        assert make.__doc__ is not None
        assert f"- {name}: {make.__doc__.splitlines()[0]}" in said
    assert f"(default: {PRESETS['plain']().lr})" in said


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = sorted((faces / "packed").glob("*"))
    flags = ["--preset", "plain", "--lr", "0.5", "--epochs", "3", "--batch-size", "50", "--image-size", "96"]
    assert train(*flags, "--data", faces, "--out", tmp_path / "run", "--precision", "bf16", "--dry-run") == 0
    said = json.loads(capsys.readouterr().out)
    assert TrainConfig.from_json(said["config"]).lr == 0.5
    assert said["config"]["preset"] == "plain"
    assert said["config"]["schedule"] == PRESETS["plain"]().schedule
    plan = said["plan"]
    assert plan["images"] == {"train": 160, "val": 20, "test": 20}
    assert plan["layout"] == "CelebA's layout"
    assert (plan["steps_per_epoch"], plan["steps"]) == (4, 12)
    assert plan["packed_bytes_to_write"] == 200 * 96 * 96 * 3
    assert plan["dtype"] == "bfloat16"
    assert plan["perceptual_weights"] == "none: no taps"
    assert not (tmp_path / "run").exists()
    assert sorted((faces / "packed").glob("*")) == packed


def test_a_dry_run_says_where_vggs_weights_would_come_from(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    weights = tmp_path / "vgg.pth"
    state = torch.nn.Conv2d(3, 64, 3).state_dict()
    torch.save({f"features.0.{name}": tensor for name, tensor in state.items()}, weights)
    flags = ["--data", faces, "--out", tmp_path / "run", "--taps", "relu1_1", "--dry-run"]
    for given, source in ((weights, f"the file {weights}"), ("random", "random ones")):
        assert train(*flags, "--vgg-weights", given) == 0
        assert json.loads(capsys.readouterr().out)["plan"]["perceptual_weights"] == source
    assert train(*flags) == 2
    refusal(capsys, "vgg19-dcbb9e9d.pth does not exist", "--vgg-weights FILE", "--vgg-weights random")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_json(preset: str) -> None:
    config = PRESETS[preset]()
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.preset == preset


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 0", ["--epochs 0", "at least 1"]),
        ("--image-size 50", ["--image-size 50", "positive multiple of 32"]),
        ("--channels 1 2", ["--channels 1 2", "such as 32 64 128 256 512"]),
        ("--taps relu9_9", ["unknown relu9_9", "VGG19 has relu1_1"]),
        ("--taps relu5_1 --image-size 8 --channels 8 8 8", ["--image-size 8: VGG19 halves it 4 times", "shallower"]),
        ("--lr -1", ["--lr -1.0", "above 0"]),
        ("--lr inf", ["--lr inf: must be a finite number"]),
        ("--kl-weight nan", ["--kl-weight nan: must be a finite number"]),
        ("--preset quikstart", ["--preset quikstart: must be one of", "did you mean quickstart?"]),
        ("--preset 17", [f"--preset 17: must be one of {', '.join(PRESETS)}"]),
        ("--preset", ["--preset : must be one of seed"]),
        ("--device cuda", ["--device cuda: PyTorch sees no NVIDIA GPU", "use --device cpu or auto"]),
        ("--crop 400", ["--crop 400: does not fit into --source 178 218", "use --crop 0"]),
        ("--crop 0 --source -5 10", ["--source -5 10: must be a width and a height above 0"]),
        ("--source 100 218", ["--crop 148: does not fit into --source 100 218"]),
        ("--align --crop 0", ["--align", "leave out --crop 0"]),
        ("--batch-size 53 --image-size 32", ["leaves one of the 160 training images", "choose another batch size"]),
        # Flags that would change nothing.
        ("--feature-weight 2", ["--feature-weight: has no effect here, as there are no taps", "give --taps"]),
        ("--feature-share=0.5", ["--feature-share: has no effect", "give --taps"]),
        ("--normalise-features", ["--normalise-features: has no effect", "give --taps"]),
        ("--no-normalise_features", ["--normalise-features: has no effect", "give --taps"]),
        ("--vgg-weights x.pth", ["--vgg-weights x.pth: of no use without taps", "give --taps"]),
        ("--muon-lr 0.1", ["--muon-lr: has no effect here, as the optimizer is adam", "add --optimizer muon"]),
        ("--lr-gamma 0.5", ["--lr-gamma: has no effect here, as the schedule is one-cycle", "add --schedule step"]),
        ("--kl-weight 0 --kl-warmup 0.1", ["--kl-warmup: has no effect here, as --kl-weight is 0", "leave it out"]),
        ("--rec-weight 0", ["--rec-weight 0.0", "more than 0"]),
        ("--pixel-weight 0", ["nothing would be reconstructed", "more than 0"]),
        # VGG's weights.
        ("--taps relu1_1 --vgg-weights none.pth", ["--vgg-weights /", "none.pth: no such file"]),
        (
            "--taps relu1_1 --vgg-weights pyproject.toml",
            ["pyproject.toml: not a file of PyTorch weights", "torch.save"],
        ),
    ],
)
def test_bad_values_name_the_flag_and_the_mend(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, words: list[str]
) -> None:
    packed = sorted((faces / "packed").glob("*"))
    where = ["--data", faces, "--out", tmp_path / "run"]
    assert train(*where, *([] if "--preset" in flags else ["--preset", "plain"]), *flags.split()) == 2
    refusal(capsys, *words)
    assert not (tmp_path / "run").exists()
    assert sorted((faces / "packed").glob("*")) == packed


def test_without_a_preset_it_is_best_and_the_first_line_says_so(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--data", faces, "--out", tmp_path / "run", "--vgg-weights", "random", "--dry-run"]
    with caplog.at_level("INFO"):
        assert train(*flags) == 0
    assert caplog.records[0].getMessage().startswith("preset best, as --preset is not given: ")
    config = TrainConfig.from_json(json.loads(capsys.readouterr().out)["config"])
    assert config == replace(PRESETS["best"](), vgg_weights=RANDOM)
    caplog.clear()
    assert train(*flags, "--preset", "seed") == 0
    assert "--preset is not given" not in caplog.text
    with pytest.raises(SystemExit):
        train("--help")
    assert f"(default: {PRESETS['best']().muon_lr})" in capsys.readouterr().out


def test_a_resumed_run_needs_its_flags_only_where_they_change(
    faces: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", faces, "--out", trained, "--resume", "--dry-run"]
    config, _ = run_folder.load_config(trained)
    for more, expected in (([], config), (["--epochs", "2", "--preset", "plain"], replace(config, epochs=2))):
        assert train(*where, *more) == 0
        assert TrainConfig.from_json(json.loads(capsys.readouterr().out)["config"]) == expected


def test_a_run_of_another_preset_is_told_before_anything_is_looked_for(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the data nor VGG19's weights are there."""
    assert train("--preset", "best", "--data", tmp_path / "none", "--out", trained, "--resume") == 2
    refusal(capsys, f"--preset best: {trained} was trained with --preset plain; leave it out, as --resume takes")
    assert train("--latent-dim", "8", "--data", tmp_path / "none", "--out", trained, "--resume") == 2
    refusal(capsys, "was trained with another configuration (latent_dim: 16 -> 8); resume with the same one")


def test_names_that_begin_with_a_hyphen_are_no_flags_to_the_next_command(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["faces", "./-f", "--count", "10"]) == 0
    assert capsys.readouterr().out.endswith(f"--data {tmp_path}/-f --out RUN\n")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """One line on stderr, `error: ...`, that has all these words."""
    stderr = capsys.readouterr().err.strip()
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    for word in words:
        assert word in stderr


def test_an_idle_value_of_the_preset_itself_is_no_mistake(faces: Path, tmp_path: Path) -> None:
    """`quickstart` sets Muon's learning rate and weights of features; leaving Muon and VGG out need not undo that."""
    flags = ["--preset", "quickstart", "--optimizer", "adam", "--taps", "--dry-run"]
    assert train(*flags, "--data", faces, "--out", tmp_path / "run") == 0


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", ["is a file", "give a folder"]),
        ("file/run", ["file cannot be written to", "choose another place"]),
        ("data/run", ["lies inside the data set", "choose a folder outside of it"]),
        ("data", ["lies inside the data set", "choose a folder outside of it"]),
        ("old", ["holds a run already", "add --resume"]),
        ("theirs", ["holds a model.safetensors of something else than a run", "choose another --out"]),
        ("/proc/run", ["/proc cannot be written to", "choose another place"]),
    ],
)
def test_a_run_folder_that_cannot_be_used_is_named(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, words: list[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").touch()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").touch()
    (tmp_path / "data").symlink_to(faces)
    for resume in ([], ["--resume"]) if out != "old" else ([],):
        assert train("--preset", "plain", "--data", tmp_path / "data", "--out", tmp_path / out, *resume) == 2
        refusal(capsys, f"--out {tmp_path / out}: ", *words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("none", ["none does not exist", "python -m trainer faces"]),
        ("file", ["file is a file", "give the folder"]),
        ("empty", ["empty holds no images", "give a folder of images"]),
        ("few", ["few holds 1 image(s)", "add more, at least 20"]),
        ("half", ["half/img_align_celeba/ is missing", "CelebA's layout is"]),
        ("x" * 300, ["file name too long", "see that it is there"]),
    ],
)
def test_a_data_set_that_cannot_be_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, words: list[str]
) -> None:
    for folder in ("empty", "few", "half"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "few" / "face.png").touch()
    (tmp_path / "half" / ATTRIBUTES).touch()
    assert train("--preset", "plain", "--data", tmp_path / data, "--out", tmp_path / "run") == 2
    refusal(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_images_without_labels_cannot_be_learnt_from_by_attribute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(25):
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / f"{number}.png")
    flags = ["--data", tmp_path / "photos", "--out", tmp_path / "run", "--crop", "0", "--dry-run"]
    assert train(*flags, "--preset", "plain", "--attribute-weight", "0.1") == 2
    refusal(capsys, "--attribute-weight 0.1: ", "photos is a plain folder of images", "leave it out")
    assert (
        train(*flags, "--preset", "quickstart", "--vgg-weights", "random") == 0
    )  # the preset's own attribute term is left out
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["images"] == {"train": 23, "val": 1, "test": 1}
    assert (plan["layout"], plan["attributes"]) == ("plain folder of images", 0)


def test_attributes_of_few_images_are_warned_of_in_one_line_before_the_run(
    broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = broken / ATTRIBUTES
    count, names, *rows = path.read_text().splitlines()
    path.write_text("\n".join([count, f"Never Always {names}", *(row.replace(" ", " -1 1 ", 1) for row in rows)]))
    assert train("--preset", "plain", "--data", broken, "--out", tmp_path / "run", "--dry-run") == 0
    (said,) = (line for line in warnings(caplog) if "no direction" in line)
    assert said.startswith("no direction for Never (0 have it, 160 do not), Always (160 have it, 0 do not)")
    assert said.endswith("; each side needs 20 images")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--preset seed --vgg-weights random",  # 3 steps an epoch
            ["its 30 steps amount to 3 at the peak", "more images (now 160)", "an --lr-gamma nearer to 1 (now 0.1)"],
        ),
        ("--preset plain", ["its 30 steps amount to 16 ", "--batch-size (now 64) or more --epochs (now 10); training"]),
        ("--preset plain --schedule constant --epochs 33", ["its 99 steps amount to 99 "]),
        ("--preset plain --epochs 70", []),
        ("--preset seed --vgg-weights random --lr-gamma 1 --epochs 34", []),
    ],
)
def test_a_run_too_short_to_learn_is_warned_of(
    faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: str, said: list[str]
) -> None:
    assert train(*flags.split(), "--data", faces, "--out", tmp_path / "run", "--dry-run") == 0
    assert all(words in warnings(caplog)[0] for words in said)
    assert len(warnings(caplog)) == bool(said)


def test_a_short_run_is_not_warned_of_where_it_goes_on_from_trained_weights(
    trained: Path, faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = ["--data", faces, "--dry-run"]
    assert train(*where, "--out", trained, "--resume") == 0
    model = ["--image-size", "32", "--latent-dim", "16", "--channels", "16", "16", "32", "32", "32"]
    assert train("--preset", "plain", *model, *where, "--out", tmp_path / "new", "--init-from", trained) == 0
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "--count", "3"], ["--count is 3", "at least 10"]),
        (["new", "--count", "99999999999"], ["--count 99999999999: takes about", "MB free; give fewer"]),
        (["new", "--seed", "-1"], ["--seed is -1", "at least 0"]),
        (["old"], ["old exists and is not an empty folder", "give another folder"]),
        (["old/file"], ["file exists and is not an empty folder", "give another folder"]),
        (["old/file/new"], ["new cannot be made (Not a directory)", "another place"]),
        (["/proc/new"], ["/proc/new cannot be made", "another place"]),
    ],
)
def test_faces_that_cannot_be_drawn_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    assert main(["faces", str(tmp_path / arguments[0]), *arguments[1:]]) == 2
    refusal(capsys, *words)
    assert not (tmp_path / "new").exists()


def test_bad_data_ends_a_process_with_one_line(tmp_path: Path) -> None:
    ended = run("train", "--preset", "plain", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.strip().splitlines()) == 1


def test_what_is_no_run_is_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--data", str(tmp_path)]) == 2
    refusal(capsys, f"{tmp_path} is not a run folder")
