"""Do seams show? Long videos of the miniature, read back by the exact judge: `python tests/benchmarks/bench_seams.py`.

For each person a voice of their own world is animated in overlapping windows. Compared between the frames around the
seams (the cross-fade and four frames on either side) and all other frames: head acceleration, error to the best
drawing; and lip sync before and after the first seam.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from fantasy_core.animate import Inputs, render_window
from fantasy_core.flags import Settings, parser
from fantasy_core.miniature import load_components
from fantasy_core.miniature.judge import judge, lip_sync
from fantasy_core.miniature.world import TEST, draw_clip
from fantasy_core.windows import assemble, plan_windows

MARGIN = 4  # frames counted as seam on either side of a cross-fade


def long_video(components, clip, settings, seed: int) -> torch.Tensor:
    """[1, T, 3, S, S] in 0..1."""
    windows = plan_windows(len(clip.pose), settings.window, settings.overlap)
    text = components.text([""])
    inputs = Inputs(clip.video()[:1] * 2 - 1, None, components.voice(torch.from_numpy(clip.waveform)), text, text)
    with torch.inference_mode(), components.dit() as dit:

        def render(window, tail):
            return render_window(
                window, tail, components=components, dit=dit, inputs=inputs, settings=settings, seed=seed
            )

        return torch.cat(list(assemble(windows, render)))[None] / 2 + 0.5


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--people", type=int, default=4)
    flags.add_argument("--frames", type=int, default=217, help="three windows are 217, eight 557")
    args = flags.parse_args()
    components = load_components()
    own = parser().parse_args(["--portrait", "p", "--audio", "a", "--out", "v.mp4"])
    settings = replace(Settings.from_flags(own, components.defaults))
    rows = []
    for person in range(args.people):
        clip = draw_clip(TEST[person], 1, args.frames)
        found = judge(long_video(components, clip, settings, person), clip.identity[None], clip.mouth[None])
        acceleration = found["pose"][0, :, :2].diff(dim=0).diff(dim=0).norm(dim=1)  # of frames 1 ... T-2
        seam = torch.zeros(args.frames, dtype=torch.bool)
        for window in plan_windows(args.frames, settings.window, settings.overlap)[1:]:
            seam[window.start - MARGIN : window.start + settings.overlap + MARGIN] = True
        inner = seam[1:-1]
        opening, asked, cut = found["pose"][..., 2], clip.mouth[None, :, 0], settings.window - settings.overlap
        quality = -10 * torch.log10(torch.stack([found["error"][0][seam].mean(), found["error"][0][~seam].mean()]))
        step = settings.window - settings.overlap  # what a window adds; the last one's overlap goes with it
        for start in range(0, args.frames - settings.overlap, step):
            part = slice(start, start + step)
            synced = lip_sync(found["pose"][:, part, 2], clip.mouth[None, part, 0])[0]
            quality_of = -10 * torch.log10(found["error"][0, part].mean())
            print(f"person {person}, frames from {start}: lip sync {synced:.2f}, {quality_of:.1f} dB", flush=True)
        rows.append(
            [acceleration[inner].mean(), acceleration[~inner].mean(), *quality]
            + [lip_sync(o, a)[0] for o, a in ((opening[:, :cut], asked[:, :cut]), (opening[:, cut:], asked[:, cut:]))]
        )
    table = torch.tensor([[float(x) for x in row] for row in rows])
    print("| | at seams | elsewhere |\n|---|---|---|")
    for name, i in (("head acceleration, pixels a frame^2", 0), ("quality, dB", 2)):
        scale = 32 if i == 0 else 1  # coordinates run over 2, pixels over 64
        print(f"| {name} | {scale * table[:, i].mean():.3g} | {scale * table[:, i + 1].mean():.3g} |")
    print(f"\nlip sync in the first window {table[:, 4].mean():.2f}, in the later ones {table[:, 5].mean():.2f}")


if __name__ == "__main__":
    main()
