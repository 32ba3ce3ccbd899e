"""`pnp-lofi solve ...` that was broken off goes on to the same picture."""

import numpy as np
import pytest
import torch
from PIL import Image

import pnp_lofi.inpainting
import pnp_lofi.radio_file
from pnp_lofi.inpainting import inpaint_file
from pnp_lofi.observation import write_observation
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.radio_file import image_file
from pnp_lofi.radio_simulation import simulate
from pnp_lofi.skies import radio_sky


class BreaksOff(LoFiPrior):
    """Ctrl-C in the fifth call."""

    calls = 0

    def forward(self, x, sigma=None, **kwargs):
        BreaksOff.calls += 1
        if BreaksOff.calls == 5:
            raise KeyboardInterrupt
        return super().forward(x, sigma, **kwargs)


@pytest.fixture
def photo(tmp_path):
    ramp = np.linspace(0, 255, 24 * 30).reshape(24, 30).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_inpainting(photo, tmp_path, monkeypatch):
    options = {"keep": 0.5, "iterations": 12, "precision": "float32"}
    inpaint_file(photo, tmp_path / "whole.png", **options)
    out = tmp_path / "part.png"
    monkeypatch.setattr(BreaksOff, "calls", 0)
    monkeypatch.setattr(pnp_lofi.inpainting, "LoFiPrior", BreaksOff)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match=r"after iteration 4; .*part\.png\.run"):
        inpaint_file(photo, out, **options)
    assert not out.exists() and (tmp_path / "part.png.run").is_file()
    with pytest.raises(FileExistsError, match="go on with --resume, or start anew with --overwrite"):
        inpaint_file(photo, out, **options)
    with pytest.raises(ValueError, match="max_iter 12 there, 13 here"):
        inpaint_file(photo, out, **options | {"iterations": 13}, resume=True)
    inpaint_file(photo, out, **options, resume=True)
    assert out.read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert not (tmp_path / "part.png.run").exists()
    with pytest.raises(FileNotFoundError, match="no interrupted run to resume"):
        inpaint_file(photo, out, **options, resume=True, overwrite=True)


def test_radio(tmp_path, monkeypatch):
    sky = radio_sky(1, 32, seed=3)[0, 0].numpy()
    write_observation(tmp_path / "obs.h5", simulate(sky, hours=0.5, integration=600.0))
    options = {"iterations": 8}
    image_file(tmp_path / "obs.h5", tmp_path / "whole.fits", **options)
    monkeypatch.setattr(BreaksOff, "calls", 0)
    monkeypatch.setattr(pnp_lofi.radio_file, "LoFiPrior", BreaksOff)
    out = tmp_path / "part.fits"
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="resume goes on with it"):
        image_file(tmp_path / "obs.h5", out, **options)
    image_file(tmp_path / "obs.h5", out, **options, resume=True)
    from astropy.io import fits

    whole, part = (torch.from_numpy(fits.getdata(tmp_path / f"{n}.fits").astype("f4")) for n in ("whole", "part"))
    assert torch.equal(whole, part)
