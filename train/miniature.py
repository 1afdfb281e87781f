"""Make the miniature, from nothing but seeds, and measure it.

    python -m train.miniature --stage codec    --out runs/miniature    # the video codec, about 6 minutes
    python -m train.miniature --stage base     --out runs/miniature    # the WanDiT, 25 minutes or as long as you like
    python -m train.miniature --stage decoder  --out runs/miniature    # the codec's decoder, on what the base makes
    python -m train.miniature --stage evaluate --out runs/miniature    # lip sync, motion, quality on held-out clips
    python -m train.miniature --stage evaluate                         # the same of the shipped miniature
    python -m train.miniature --stage videos   --out runs/videos       # held-out videos as files, for train.evaluate
    python -m train.miniature --stage critic   --out runs/critic       # candidates, labels, a critic, its scores, pairs

Training reads seeds 0-99 only. `--stage base` goes on from a checkpoint that lies in `--out`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fantasy_core.errors import UserError, report
from fantasy_core.miniature.components import WEIGHTS
from fantasy_core.mixture import named


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stage",
        choices=["codec", "decoder", "base", "candidates", "rollouts", "evaluate", "videos", "table", "critic"],
        required=True,
    )
    parser.add_argument("--out", type=Path, help="run folder (evaluate: the shipped miniature if not given)")
    parser.add_argument("--minutes", type=float, help="how long to train (codec and decoder 6, base 25)")
    clips = "clips to draw (codec 800, base 2400) or to sample (decoder 160, candidates 64)"
    parser.add_argument("--clips", type=int, help=clips)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate of the base")
    parser.add_argument("--start", type=Path, help="folder of a trained miniature whose weights the base begins with")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--count", type=int, default=100, help="held-out clips to evaluate")
    parser.add_argument("--frames", type=int, default=81, help="frames of each")
    parser.add_argument("--steps", type=int, help="denoising steps (the model's default)")
    parser.add_argument("--shift", type=float, help="schedule shift (the model's default)")
    parser.add_argument("--scale", type=float, help="guidance scale (the model's default)")
    parser.add_argument("--voices", type=Path, nargs="+", help="evaluate on recorded voices instead of a split")
    parser.add_argument("--base", type=Path, help="folder of the miniature that makes candidates (the shipped one)")
    parser.add_argument("--skip", type=int, default=0, help="training inputs to leave out before candidates are made")
    parser.add_argument("--expert", nargs="+", default=[], metavar="NAME=FILE", help="evaluate, or sample, with these")
    parser.add_argument("--gate", help="evaluate with this gate: a file, or by hand as for animate (1 each)")
    parser.add_argument("--full", action="store_true", help="table: the ablations too")
    parser.add_argument("--report", type=Path, help="write figures (.json) and the contact sheet (.png) here")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
    return parser


def run(args: argparse.Namespace) -> None:
    if args.stage == "evaluate":
        from train.miniature_evaluate import evaluate, evaluate_voices

        if args.voices:
            evaluate_voices(args.out or WEIGHTS, args.voices, args)
        else:
            evaluate(args.out or WEIGHTS, args)
        return
    if args.out is None:
        raise UserError("no run folder", got="nothing", expected="--out DIR", do="say where to train")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "candidates":
        from train.miniature_candidates import make_candidates
        from train.miniature_evaluate import experts_of

        make_candidates(
            args.base or WEIGHTS, args.out, count=args.clips or 64, frames=args.frames, seed=args.seed,
            skip=args.skip, experts=experts_of(args),
        )  # fmt: skip
        return
    if args.stage == "videos":
        from train.miniature_videos import series_of, write_videos

        write_videos(args.out, series_of(args))
        return
    if args.stage == "rollouts":
        from train.miniature_rollouts import make_rollouts

        files = dict(map(named, args.expert))
        make_rollouts(
            args.base or WEIGHTS, args.out, files, inputs=args.clips or 64, each=8, frames=args.frames,
            seed=args.seed, skip=args.skip,
        )  # fmt: skip
        return
    if args.stage == "table":
        from train.miniature_table import make_table

        make_table(args.out, split=args.split, full=args.full)
        return
    if args.stage == "critic":
        from train.miniature_critic import make_critic

        make_critic(args.out)
        return
    needed = {"codec": None, "base": "codec", "decoder": "base"}[args.stage]
    if needed and not (args.out / f"{needed}.safetensors").exists():
        raise UserError(
            f"stage {args.stage} needs a {needed}",
            got=f"no {needed}.safetensors in {args.out}",
            expected="a trained one there",
            do=f"run --stage {needed} first",
        )
    if args.stage == "codec":
        from train.miniature_codec import train_codec

        train_codec(args.out, minutes=args.minutes or 6, clips=args.clips or 800, seed=args.seed)
    elif args.stage == "base":
        from train.miniature_base import train_base

        train_base(
            args.out, minutes=args.minutes or 25, clips=args.clips or 2400, seed=args.seed, rate=args.rate,
            start=args.start,
        )  # fmt: skip
    else:
        from train.miniature_decoder import train_decoder
        from train.miniature_evaluate import defaults_or

        settings = defaults_or(args)
        train_decoder(args.out, minutes=args.minutes or 6, seed=args.seed, clips=args.clips or 160, settings=settings)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = flags().parse_args(argv)
    return report(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    raise SystemExit(main())
