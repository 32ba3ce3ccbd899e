"""M87 as the EHT saw it on 11 April 2017: self-calibrated, then CLEAN, TV and LoFi-ADMM, by the recipe `eht_m87`."""

import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.common import ROOT, need, parser, report, start
from pnp_lofi.recipes.eht_m87 import image_m87

FILE = "SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits"
FIGURE = ROOT / "docs" / "images" / "radio_m87.png"
STARTS = ("disk:50", "disk:70", "gaussian:40", "gaussian:60", "ring:45", "ring:60")


def main() -> None:
    made = parser(__doc__, "radio_m87", data=True)
    made.add_argument("--prior", default="radio", help="shipped name or checkpoint")
    made.add_argument("--figure", type=Path, default=FIGURE, metavar="PATH.png")
    args = start(made)
    path = args.data / "radio" / "eht_m87" / FILE
    need(path)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        found = image_m87(path, Path(folder), prior=args.prior, starts=STARTS)
        seconds = time.perf_counter() - begin
        shutil.copyfile(Path(folder) / "eht_m87.png", args.figure)
    report("radio_m87", found | {"file": FILE, "prior": Path(args.prior).name, "seconds_all": seconds}, args.results)


if __name__ == "__main__":
    main()
