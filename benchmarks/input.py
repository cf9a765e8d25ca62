"""The input pipeline on real KITTI files, beside PyTorch's DataLoader on the same files.

    python benchmarks/input.py --kitti FOLDER [--json PATH]

Both decode the PNG files, resize them to --height x --width (bilinear) and normalise them to
float32, in batches, from the disk's cache. Ours decodes in threads and resizes in the compiled
step, on the device; the peer does all of it with torchvision's usual operations, written out here
in plain torch, in its workers. The figures are images a second over two passes after the first
batch, the time to the first batch, and the memory of all processes.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from PIL import Image

from benchmarks.common import parser, print_table, record, write_json
from jaxcomp import data
from jaxcomp.config import load_config
from jaxcomp.feed import Feeder
from jaxcomp.models.transform import frames_of, network_input

WORKERS = (0, 1, 2, 4)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def memory() -> float:
    """Resident MB of this process and its children."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(folder.name) == os.getpid() or int(fields[1]) == os.getpid():
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return total / 1e6


def measure(batches: Any, count: int, size: int) -> dict[str, float]:
    """Images a second after the first batch, seconds to it, and the memory at the end."""
    began = time.perf_counter()
    np.asarray(next(batches))
    first = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(count):
        batch = next(batches)
    jax.block_until_ready(batch)
    return {
        "rate": count * size / (time.perf_counter() - began),
        "first": first,
        "memory": memory(),
    }


def ours(args: Any, workers: int, count: int) -> dict[str, float]:
    """Our pipeline up to the network's input."""
    overrides = {
        "data.dir": args.kitti, "data.height": args.height, "data.width": args.width,
        "data.resize": "stretch", "data.workers": workers, "data.num_threads": min(workers, 1),
        "data.cache": False, "data.augment": False, "training.batch_size": args.batch,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in overrides.items()]
    splits = data.make_splits(load_config("configs/detector.py:kitti", words))
    canvas = (args.height, args.width)
    prepare = jax.jit(lambda batch: network_input(frames_of(batch, canvas)))
    compiled = next(splits.validation())
    jax.block_until_ready(prepare(_inputs(compiled)))  # compiling is not reading
    if workers == 0:
        return measure(map(prepare, map(_inputs, splits.train())), count, args.batch)
    with Feeder(splits.train(), lambda batch: jax.device_put(_inputs(batch))) as feeder:
        found = (prepare(feeder.next()) for _ in itertools.count())
        return measure(found, count, args.batch)


def _inputs(batch: Any) -> dict[str, Any]:
    return {key: batch[key] for key in ("image", "native_size", "image_size")}


def peer(args: Any, workers: int, count: int) -> dict[str, float]:
    """PyTorch's DataLoader on the same files."""
    import torch

    class Files(torch.utils.data.Dataset):
        def __init__(self) -> None:
            names = (Path(args.kitti) / "ImageSets" / "train.txt").read_text().split()
            folder = Path(args.kitti) / "training" / "image_2"
            self.files = [p for name in names if (p := folder / f"{name}.png").exists()]

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            with Image.open(self.files[index]) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB")))
            x = pixels.permute(2, 0, 1).float().div(255)[None]
            size = (args.height, args.width)
            x = torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)[0]
            return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    loader = torch.utils.data.DataLoader(
        Files(), args.batch, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    return measure(iter(endless), count, args.batch)


def main() -> None:
    """Prints the table."""
    words = parser(__doc__)
    words.add_argument(
        "--kitti", required=True, metavar="FOLDER", help="with training/ and ImageSets/"
    )
    words.add_argument("--batch", type=int, default=4)
    words.add_argument("--batches", type=int, default=30, help="measured ones")
    words.add_argument("--height", type=int, default=384)
    words.add_argument("--width", type=int, default=1280)
    args = words.parse_args()
    try:
        import torch  # noqa: F401

        with_peer = True
    except ImportError:
        with_peer = False
        print("PyTorch is not installed: no peer")
    records = []
    for workers in WORKERS:
        mine = ours(args, workers, args.batches)
        other = peer(args, workers, args.batches) if with_peer else {}
        rows = (("rate", "images/s", 1.0), ("first", "s", None), ("memory", "MB", None))
        for key, unit, goal in rows:
            records.append(
                record(
                    f"{key}, {workers} workers", mine[key], unit,
                    peer="torch DataLoader" if other else None, peer_value=other.get(key),
                    goal=goal, higher_is_better=key == "rate",
                )
            )  # fmt: skip
    print_table(records)
    if args.json:
        write_json(args.json, records)


if __name__ == "__main__":
    main()
