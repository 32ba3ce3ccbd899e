"""A learned change of coordinates: INR-LoFi, a U-Net and DnCNN transpose images, in and out of distribution.

Reads checkpoints of the recipe transpose, LoFi.safetensors, U-Net.safetensors, DnCNN.safetensors in a folder; which are
not there are trained first. Draws docs/images/transpose.png.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, parser, report, start
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.recipes.transpose import test, train

NETWORKS: dict[str, dict[str, Any]] = {
    "LoFi": {},
    "U-Net": {"steps": 1500, "objects": 8},
    "DnCNN": {"steps": 600, "objects": 4},
}


def main() -> None:
    made = parser(__doc__, "transpose")
    made.add_argument("--work", type=Path, help="folder of the checkpoints; default, a new one")
    made.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated (%(default)s)")
    args = start(made)
    work = args.work or Path(tempfile.mkdtemp())
    paths = {name: work / f"{name}.safetensors" for name in args.networks.split(",")}
    for name, path in paths.items():
        if not path.is_file():
            train(path, network=name, **NETWORKS[name])
    test(list(paths.values()), work / "transpose.json", overwrite=True)
    (ROOT / "docs" / "images" / "transpose.png").write_bytes((work / "transpose.png").read_bytes())
    found = json.loads((work / "transpose.json").read_text())
    networks = {}
    for name, path in paths.items():
        model, header = load_checkpoint(path)
        count = sum(p.numel() for p in model.parameters())
        steps = header["metrics"].get("step", header["settings"]["steps"])  # of a run broken off, its best
        networks[name] = {"parameters": count, "steps": steps, "objects": header["objects"]}
    report("transpose", found | {"networks": networks}, args.results)


if __name__ == "__main__":
    main()
