"""Weights of the LoFi authors' code, for use in ours: LoFi(official=True) repeats their conventions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pnp_lofi.filters import OFFICIAL_PADDING
from pnp_lofi.lofi import LoFi

UNUSED = {"deform_weights", "uniform_weights"}  # stand in their state dict, take no part in their network


def from_official(
    state: Mapping[str, Tensor], *, image_size: int | None = None, residual: bool = False, square: bool = False
) -> LoFi:
    """A LoFi that computes what the authors' network of this state dict computes.

    Read their file with ``torch.load(path, weights_only=True)``, convert it once, and keep the result with
    ``save_checkpoint``.

    :param Mapping state: ``patch`` (rings, rays, 2), ``patch_scale``, ``filter`` complex (1, c, N + 10, N + 10),
        ``MLP.{ray}.fcs.{k}.weight/bias`` (or ``MLP.fcs.{k}`` of a single MLP), ``mixer_MLP.fcs.{k}``,
        ``MLP_deforms.{t}.fcs.{k}``, ``INR.fcs.{k}``.
    :param int image_size: N, the side of the training images [pixel]; read off the filter where there is one.
    :param bool residual: their ``residual_learning``, which the state dict does not tell.
    :param bool square: their ``patch_shape == 'square'``; a patch of shape (1, rings, rays, 2) says so itself.
    :raises ValueError: if image_size is needed, or the layout is another one (names the first odd entry).
    Source: arXiv 2411.04995 and its code (MIT); the layout is described in words, no line is copied.
    """
    state = {key: value.detach() for key, value in state.items() if key not in UNUSED}
    for key in ("patch", "patch_scale"):
        if key not in state:
            raise ValueError(f"this is no state dict of the authors' LoFi: it has no {key!r}, only {sorted(state)[:6]}")
    if "filter" in state:
        image_size = state["filter"].shape[-1] - 2 * OFFICIAL_PADDING
    if image_size is None:
        raise ValueError("without a filter the state dict does not tell the training images' side; pass image_size")
    patch = state["patch"]
    square = square or patch.ndim == 4
    patch = patch.reshape(patch.shape[-3:])
    rings, rays, _ = patch.shape
    config = _config(state, rings, rays) | {"residual": residual, "layout": "square" if square else "circular"}
    if config["ccpg"] and config["inr"]:
        raise ValueError("in the authors' code the INR discards what CCPG has found; drop MLP_deforms from the state")
    model = LoFi(**config).to(patch.dtype)
    found = _weights(state, rings, rays, config)
    found["geometry.offsets"] = patch.transpose(0, 1) * (image_size / 2)  # their unit is half the image
    found["geometry.scale"] = state["patch_scale"].reshape(1)
    for t in range(config["ccpg"]):
        last = max(int(key.split(".")[-1]) for key in found if key.startswith(f"ccpg.networks.{t}.weights"))
        for kind in ("weights", "biases"):
            key = f"ccpg.networks.{t}.{kind}.{last}"
            each = found[key].reshape(-1, rings, rays, 2).transpose(1, 2)
            found[key] = each.reshape(found[key].shape) * (image_size / 2)
    model.load_state_dict({key: value.contiguous() for key, value in found.items()})
    return model.eval()


def _config(state: Mapping[str, Tensor], rings: int, rays: int) -> dict[str, Any]:
    multi = "mixer_MLP.fcs.0.weight" in state
    first, mixer = _layers(state, "MLP.0" if multi else "MLP"), _layers(state, "mixer_MLP") if multi else []
    seen = first[0][0].shape[1] // (rings if multi else rings * rays)
    fields = state["filter"].shape[1] if "filter" in state else 0
    channels = seen - 2 * fields
    pair = channels == 2 and fields == 1
    count = fields if pair else fields // channels
    spectral: dict[str, Any] | None = None
    if fields:
        spectral = {"kind": "spectral", "size": state["filter"].shape[-1], "complex_pair": pair, "count": count}
    last = mixer if multi else first
    return {
        "in_channels": channels, "out_channels": last[-1][0].shape[0], "rays": rays, "rings": rings,
        "head": "multi" if multi else "single", "hidden": [w.shape[0] for w, _ in first[:-1]],
        "features": first[-1][0].shape[0], "mixer": [w.shape[0] for w, _ in mixer[:-1]],
        "learned_scale": True, "centred": False, "equivariant": False, "official": True,
        "filter": spectral, "inr": "INR.fcs.0.weight" in state,
        "ccpg": len({key.split(".")[1] for key in state if key.startswith("MLP_deforms.")}),
    }  # fmt: skip


def _weights(state: Mapping[str, Tensor], rings: int, rays: int, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Our names and layouts; what reads a whole patch reads (channel, ray, ring) here, (channel, ring, ray) there."""
    found: dict[str, Tensor] = {}

    def put(name: str, prefix: str, whole_patch: bool) -> None:
        for k, (weight, bias) in enumerate(_layers(state, prefix)):
            if whole_patch and k == 0:
                weight = weight.reshape(len(weight), -1, rings, rays).transpose(2, 3).flatten(1)
            found[f"{name}weights.{k}"], found[f"{name}biases.{k}"] = weight.T, bias

    if config["head"] == "multi":
        each = [_layers(state, f"MLP.{ray}") for ray in range(rays)]
        for k in range(len(each[0])):
            found[f"mlp.ray_weights.{k}"] = torch.stack([layers[k][0].T for layers in each])
            found[f"mlp.ray_biases.{k}"] = torch.stack([layers[k][1][None] for layers in each])
        put("mlp.mixer_", "mixer_MLP", False)
    else:
        put("mlp.", "MLP", True)
    for t in range(config["ccpg"]):
        put(f"ccpg.networks.{t}.", f"MLP_deforms.{t}", True)
    if config["inr"]:
        put("inr.", "INR", False)
    if config["filter"]:
        found["filter.response"] = torch.stack([state["filter"][0].real, state["filter"][0].imag])
    return found


def _layers(state: Mapping[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    layers: list[tuple[Tensor, Tensor]] = []
    while f"{prefix}.fcs.{len(layers)}.weight" in state:
        key = f"{prefix}.fcs.{len(layers)}"
        layers.append((state[f"{key}.weight"], state[f"{key}.bias"]))
    if not layers:
        raise ValueError(f"this is no state dict of the authors' LoFi: it has no {prefix}.fcs.0.weight")
    return layers
