"""Command line: `python -m medvlp_jax VERB ...` (what `./run.sh VERB ...` calls).

Heavy imports happen inside the verbs, so `--help` and errors of usage come at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from medvlp_jax.errors import UserError

_EXAMPLES = """examples:
  quickstart --workdir runs/quickstart
  train --config configs/quickstart.py --workdir runs/q --config.optim.lr=3e-4
  train --config configs/convirt.py:smoke,data=image_text_folder --workdir runs/covid
  eval --workdir runs/q --tasks zero_shot,retrieval
  data build image_text_folder --manual-dir /path/to/folder
  export --workdir runs/q --to hf exported/
  export --workdir runs/q --to onnx exported_onnx/
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="medvlp",
        description="Medical vision-language pretraining in JAX/Flax.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of user errors")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_run_verbs(verbs)
    _add_data_verb(verbs)
    _add_model_verbs(verbs)
    bench = verbs.add_parser("bench", help="benchmarks of this project beside its peers")
    bench.add_argument("name", help="a file in benchmarks/, e.g. input; `bench NAME --help`")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the benchmark")
    bench.set_defaults(run=_bench)
    verbs.add_parser("configs", help="list the configs with one line each").set_defaults(
        run=_configs
    )
    verbs.add_parser("doctor", help="devices, versions, what is missing").set_defaults(run=_doctor)
    return parser


def _add_run_verbs(verbs: argparse._SubParsersAction) -> None:
    quick = verbs.add_parser(
        "quickstart", help="pretrain, evaluate and export on the embedded corpus"
    )
    quick.add_argument("--workdir", default="runs/quickstart")
    quick.add_argument("--config", default="")
    quick.set_defaults(run=_quickstart)
    train = verbs.add_parser(
        "train", help="pretrain; resumes by itself if the workdir has a checkpoint"
    )
    train.add_argument("--config", required=True, metavar="FILE[:ARG]")
    train.add_argument("--workdir", required=True)
    train.add_argument(
        "--mode", choices=("run", "dry"), default="run", help="dry: only build and show"
    )
    train.set_defaults(run=_train)
    evaluation = verbs.add_parser("eval", help="run downstream tasks on a checkpoint")
    evaluation.add_argument("--workdir", required=True)
    evaluation.add_argument("--tasks", default="", help="comma-separated; default: the config's")
    evaluation.add_argument("--dataset", default="", help="default: the config's")
    evaluation.add_argument("--split", default="", help="default: the config's test split")
    evaluation.add_argument(
        "--prompts",
        default="",
        help="of zero-shot tasks: chexzero, gloria, biovil ... or a .json file",
    )
    evaluation.add_argument("--step", type=int, default=None, help="default: best, else newest")
    evaluation.set_defaults(run=_eval)

    folds = verbs.add_parser("folds", help="pool the retrieval results of a cross-validation")
    folds.add_argument("workdirs", nargs="+", help="evaluated runs, one per fold")
    folds.add_argument("--split", default="test")
    folds.set_defaults(run=_folds)


def _add_data_verb(verbs: argparse._SubParsersAction) -> None:
    data = verbs.add_parser("data", help="list, build or check datasets")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="datasets with access rules").set_defaults(run=_data_list)
    for action, run in (("build", _data_build), ("check", _data_check)):
        sub = actions.add_parser(action)
        sub.add_argument("name")
        sub.add_argument("--data-dir", default="", help="default: $TFDS_DATA_DIR or ./data")
        sub.set_defaults(run=run)
        if action == "build":
            sub.add_argument(
                "--manual-dir",
                default="",
                help="folder with the files you obtained; default: public ones are fetched",
            )
            sub.add_argument(
                "--option",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help="option of the builder, e.g. size=512 (repeatable)",
            )
            sub.add_argument(
                "--beam",
                default="",
                metavar="RUNNER",
                help="Apache Beam runner for large datasets, e.g. DirectRunner (docs/datasets_at_scale.md)",
            )
            sub.add_argument(
                "--beam-option",
                action="append",
                default=[],
                metavar="KEY=VALUE",
                help="option of the runner, e.g. direct_num_workers=8 (repeatable)",
            )
        else:
            _add_check_options(sub)
    label = actions.add_parser("label", help="CheXpert's 14 findings of reports, by rules")
    label.add_argument("reports", help=".csv, .tsv or .jsonl with an id and a text column")
    label.add_argument("--out", default="", help="table of labels to write, .csv")
    label.add_argument("--gold", default="", help="table of true labels: print the agreement")
    label.add_argument("--id-column", default="", help="default: image_id, study_id, uid ...")
    label.add_argument("--text-column", default="", help="default: text, report, or the sections")
    label.set_defaults(run=_data_label)


def _add_check_options(check: argparse.ArgumentParser) -> None:
    check.add_argument("--out", default="", metavar="FILE.json", help="the findings, in full")
    check.add_argument(
        "--sheet", default="", metavar="FILE.png", help="page with random examples of each split"
    )
    check.add_argument("--seed", type=int, default=0, help="of the choice for --sheet")
    check.add_argument(
        "--captions",
        choices=("id", "label", "text"),
        default="id",
        help="below the images of --sheet: id alone, also labels, or also the text",
    )


def _add_model_verbs(verbs: argparse._SubParsersAction) -> None:
    export = verbs.add_parser(
        "export",
        help="write a trained model for use without this package, verified, with a model card",
    )
    export.add_argument("out", help="folder to make; only an earlier export there is replaced")
    export.add_argument("--workdir", required=True)
    export.add_argument(
        "--to",
        choices=("hf", "jax", "torch", "onnx", "timm"),
        default="hf",
        help="hf: transformers; jax: StableHLO programs; torch: module file and weights without "
        "transformers; onnx: ONNX graphs; timm: the image tower (docs/export.md says what fits)",
    )
    export.add_argument(
        "--part",
        choices=("both", "image", "text"),
        default="both",
        help="hf only: one tower as a plain model of transformers (ViTModel, BertModel ...)",
    )
    export.add_argument("--step", type=int, default=None, help="default: best, else newest")
    export.set_defaults(run=_export)
    checkpoint = verbs.add_parser(
        "import", help="check that pretrained weights fit a tower, and what of them is read"
    )
    checkpoint.add_argument("source", help="checkpoint file, folder or Hugging Face name")
    checkpoint.add_argument("--name", required=True, help="tower: a file in medvlp_jax/models")
    checkpoint.add_argument("--variant", required=True, help="its size, e.g. B/16 or base")
    checkpoint.add_argument("--image-size", type=int, default=224, help="pixels")
    checkpoint.add_argument("--channels", type=int, choices=(1, 3), default=3)
    checkpoint.set_defaults(run=_import)
    zero = verbs.add_parser("zeroshot", help="score images against prompts")
    zero.add_argument("images", nargs="+", help="image files or folders (PNG, JPEG, TIFF, DICOM)")
    zero.add_argument("--workdir", required=True)
    zero.add_argument("--prompts", nargs="+", required=True, metavar="PROMPT")
    zero.set_defaults(run=_zeroshot)
    embed = verbs.add_parser("embed", help="embeddings of images as an .npz file")
    embed.add_argument("images", nargs="+")
    embed.add_argument("--workdir", required=True)
    embed.add_argument("--out", required=True, help=".npz with image_embed [n,D] and file_name [n]")
    embed.set_defaults(run=_embed)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.a.b=value` out of the arguments: `(other arguments, overrides)`."""
    marker = "--config."
    overrides = [a.removeprefix(marker) for a in argv if a.startswith(marker)]
    return [a for a in argv if not a.startswith(marker)], overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit code: 0, 2 for an error the user can fix, 130 for Ctrl-C."""
    arguments, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    parsed = make_parser().parse_args(arguments)
    parsed.overrides = overrides
    # Chatter of the C++ runtimes would hide the progress lines.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.DEBUG if parsed.debug else logging.ERROR)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        if overrides and parsed.verb not in ("train", "quickstart"):
            raise UserError(
                f"--config.KEY=VALUE belongs to train and quickstart, not to {parsed.verb}"
            )
        return run(parsed)
    except UserError as error:
        if parsed.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _start_devices() -> None:
    from medvlp_jax.parallel import distributed

    distributed.initialize()


def _train(args: argparse.Namespace) -> int:
    from medvlp_jax import config, runs

    settings = config.load_config(args.config, args.overrides)
    _start_devices()
    if args.mode == "dry":
        print(runs.run_dry(settings, args.workdir))
        return 0
    runs.run_training(settings, args.workdir)
    return 0


def _quickstart(args: argparse.Namespace) -> int:
    from medvlp_jax import config, quickstart

    default = pathlib.Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"
    settings = config.load_config(args.config or str(default), args.overrides)
    quickstart.quickstart(settings, pathlib.Path(args.workdir))
    return 0


def _eval(args: argparse.Namespace) -> int:
    from medvlp_jax import evaluate, runs

    _start_devices()
    names = tuple(filter(None, args.tasks.split(",")))
    results = runs.run_evaluation(
        args.workdir,
        split=args.split,
        dataset=args.dataset,
        tasks=names,
        prompts=args.prompts,
        step=args.step,
    )
    print(evaluate.table(results))
    return 0


def _folds(args: argparse.Namespace) -> int:
    from medvlp_jax import folds

    print(folds.table(folds.pool(args.workdirs, split=args.split)))
    return 0


def _data_list(args: argparse.Namespace) -> int:
    from medvlp_jax.data import build

    del args
    print(build.list_datasets())
    return 0


def _data_build(args: argparse.Namespace) -> int:
    from medvlp_jax.data import build

    options = {}
    for item in args.option:
        key, separator, value = item.partition("=")
        if not separator:
            raise UserError(f"--option {item}: expected KEY=VALUE")
        options[key] = value
    path = build.build_dataset(
        args.name,
        args.data_dir or None,
        manual_dir=args.manual_dir or None,
        options=options,
        beam=args.beam,
        beam_options=args.beam_option,
    )
    print(f"built {path}")
    return 0


def _data_check(args: argparse.Namespace) -> int:
    from medvlp_jax.data import check

    if args.sheet:
        from medvlp_jax.data import sample_sheet

        sources = check.open_splits(args.name, args.data_dir or None)
        sample_sheet.write_sheet(args.sheet, sources, seed=args.seed, captions=args.captions)
        print(f"wrote {args.sheet}")
    report = check.check_dataset(args.name, args.data_dir or None)
    print(report)
    if args.out:
        check.write_json(report, args.out)
        print(f"wrote {args.out}")
    return 0 if report.ok else 1


def _data_label(args: argparse.Namespace) -> int:
    from medvlp_jax.data import label_table

    if not (args.out or args.gold):
        raise UserError("data label: give --out labels.csv, or --gold G to measure, or both")
    columns = dict(id_column=args.id_column, text_column=args.text_column)
    if args.out:
        count = label_table.label_file(args.reports, args.out, **columns)
        print(f"wrote {args.out}: {count} reports")
    if args.gold:
        print(label_table.agreement_table(label_table.measure(args.reports, args.gold, **columns)))
    return 0


def _export(args: argparse.Namespace) -> int:
    from medvlp_jax import runs

    runs.run_export(args.workdir, args.out, step=args.step, to=args.to, part=args.part)
    return 0


def _import(args: argparse.Namespace) -> int:
    from medvlp_jax import warm_start

    sizes = dict(image_size=args.image_size, channels=args.channels)
    print(warm_start.try_checkpoint(args.source, args.name, args.variant, **sizes))
    return 0


def _zeroshot(args: argparse.Namespace) -> int:
    from medvlp_jax import runs

    files, images = runs.read_images(args.workdir, args.images)
    scores = runs.load_predictor(args.workdir).zero_shot(images, list(args.prompts))
    width = max(len(str(f)) for f in files)
    print(f"{'file':<{width}}  " + "  ".join(args.prompts))
    for file, row in zip(files, scores, strict=True):
        print(f"{file!s:<{width}}  " + "  ".join(f"{value:.3f}" for value in row))
    print("Research use only, not for clinical use.")
    return 0


def _embed(args: argparse.Namespace) -> int:
    import numpy as np

    from medvlp_jax import runs

    files, images = runs.read_images(args.workdir, args.images)
    embeddings = runs.load_predictor(args.workdir).encode_image(images)
    names = np.asarray([str(f) for f in files])
    np.savez(args.out, image_embed=embeddings, file_name=names)
    print(f"wrote {args.out}: {embeddings.shape[0]} x {embeddings.shape[1]}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    import importlib

    root = pathlib.Path(__file__).resolve().parent.parent
    if not (root / "benchmarks").is_dir():
        raise UserError("benchmarks/ is not installed: run `./run.sh bench` in a checkout")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    names = sorted(
        f.stem for f in (root / "benchmarks").glob("*.py") if "def main(" in f.read_text()
    )
    if args.name not in names:
        raise UserError(f"benchmark {args.name!r} is unknown; there are {', '.join(names)}")
    return importlib.import_module(f"benchmarks.{args.name}").main(args.arguments) or 0


def _configs(args: argparse.Namespace) -> int:
    import ast

    del args
    folder = pathlib.Path(__file__).resolve().parent.parent / "configs"
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if "get_config" in names:
            first = (ast.get_docstring(tree) or "").split("\n")[0]
            print(f"configs/{path.name:<22} {first}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from medvlp_jax import doctor

    del args
    print(doctor.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
