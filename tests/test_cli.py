"""Without these, a user's mistake would end in a traceback, or a verb would not start at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medvlp_jax.__main__ import main, split_overrides


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


TRAIN = ("train", "--workdir", "{w}", "--config")
SMOKE = "configs/quickstart.py:smoke"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TRAIN, SMOKE, "--config.optim.learnrate=1"), "optim.lr"),
        ((*TRAIN, "configs/nothing.py"), "does not exist"),
        ((*TRAIN, "configs/quickstart.py:smok"), "'smok' is unknown"),
        ((*TRAIN, SMOKE, "--config.data.dataset=nothing"), "unknown"),
        (("eval", "--workdir", "{w}"), "expected the --workdir of a training"),
        (("export", "--workdir", "{w}", "{w}/out"), "expected the --workdir of a training"),
        (
            ("export", "--workdir", "{w}", "--to", "jax", "--part", "text", "{w}/out"),
            "--part text belongs to --to hf",
        ),
        (("data", "build", "image_text_folder"), "give --manual-dir FOLDER"),
        (("data", "build", "synthetic_cxr/huge", "--data-dir", "{w}"), "it has default"),
        (("data", "check", "image_text_folder", "--data-dir", "{w}"), "is not built"),
    ],
)
def test_mistakes_give_one_message_and_exit_code_2(
    root, tmp_path, capsys, monkeypatch, arguments, message
) -> None:
    monkeypatch.chdir(root)
    filled = [a.replace("{w}", str(tmp_path / "w")) for a in arguments]
    code, _, err = run(capsys, *filled)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_overrides_are_taken_out_of_the_arguments() -> None:
    arguments, overrides = split_overrides(
        ["train", "--config", "x.py", "--config.a.b=1", "--workdir", "w"]
    )
    assert arguments == ["train", "--config", "x.py", "--workdir", "w"]
    assert overrides == ["a.b=1"]


def test_lists(root, capsys, monkeypatch) -> None:
    monkeypatch.chdir(root)
    code, out, _ = run(capsys, "configs")
    assert code == 0
    assert "configs/convirt.py" in out
    assert "common" not in out
    code, out, _ = run(capsys, "data", "list")
    assert code == 0
    assert "synthetic_cxr" in out
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "devices: 8" in out


def test_a_whole_run_from_the_command_line(root, tmp_path, capsys, monkeypatch) -> None:
    """quickstart, eval, zeroshot and embed on the tiny corpus."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    work = str(tmp_path / "w")
    code, out, err = run(
        capsys, "quickstart", "--workdir", work, "--config", "configs/quickstart.py:smoke"
    )
    assert code == 0, err
    for text in ("untrained", "zero-shot macro AUROC", "PyTorch weights", "not for clinical use"):
        assert text in out
    for name in (
        "summary.json",
        "metrics.jsonl",
        "learning_curve.png",
        "exported/model.safetensors",
    ):
        assert (tmp_path / "w" / name).is_file(), name
    assert list((tmp_path / "w").glob("eval/*/results.json"))
    code, out, _ = run(capsys, "eval", "--workdir", work, "--tasks", "retrieval")
    assert code == 0
    assert "recall_at_1" in out
    assert "zero_shot" not in out
    code, _, _ = run(
        capsys,
        "eval",
        "--workdir",
        work,
        "--tasks",
        "zero_shot",
        "--prompts",
        "gloria",
    )
    assert code == 0
    results = json.loads(next((tmp_path / "w").glob("eval/*/results.json")).read_text())
    assert len(results["tasks"]["zero_shot"]["prompts"]["Edema"]["positive"]) == 5
    code, _, err = run(
        capsys,
        "eval",
        "--workdir",
        work,
        "--tasks",
        "retrieval",
        "--prompts",
        "gloria",
    )
    assert code == 2
    assert "need a zero-shot task" in err
    for options, file in (
        (("--to", "jax"), "encode_text.stablehlo"),
        (("--to", "torch"), "medvlp_torch/model.py"),
        (("--part", "image"), "preprocessor_config.json"),
    ):
        target = tmp_path / options[1]
        code, out, err = run(capsys, "export", "--workdir", work, *options, str(target))
        assert code == 0, err
        assert "verified against our own outputs" in out
        assert (target / file).is_file()
        assert "**Not for clinical use.**" in (target / "README.md").read_text()
    import cv2

    image = tmp_path / "im.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (80, 90), dtype=np.uint8))
    code, out, _ = run(
        capsys, "zeroshot", "--workdir", work, "--prompts", "edema", "no edema", "--", str(image)
    )
    assert code == 0
    assert "im.png" in out
    code, _, _ = run(
        capsys, "embed", str(image), "--workdir", work, "--out", str(tmp_path / "e.npz")
    )
    assert code == 0
    with np.load(tmp_path / "e.npz") as file:
        np.testing.assert_allclose(np.linalg.norm(file["image_embed"], axis=1), 1, atol=1e-5)
    import medvlp_jax

    model = medvlp_jax.load(work)
    assert model.encode_text(["No pleural effusion."]).shape[0] == 1


@pytest.mark.slow
def test_an_image_tower_goes_to_timm_from_the_command_line(
    root, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    work, out = str(tmp_path / "w"), tmp_path / "exported"
    code, _, err = run(
        capsys, *TRAIN[:2], work, "--config", "configs/siglip.py:smoke", "--config.train.steps=2"
    )
    assert code == 0, err
    code, said, err = run(capsys, "export", "--workdir", work, "--to", "timm", str(out))
    assert code == 0, err
    assert "verified against our own outputs" in said
    assert json.loads((out / "config.json").read_text())["architecture"].startswith("vit_")
    assert "**Not for clinical use.**" in (out / "README.md").read_text()
    code, _, err = run(
        capsys, "export", "--workdir", work, "--to", "timm", "--part", "text", str(tmp_path / "t")
    )
    assert (code, "image towers only" in err) == (2, True)
