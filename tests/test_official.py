"""LoFi in the authors' conventions equals an independent network in torch's own sampling (benchmarks/faithful.py)."""

import pytest
import torch

from benchmarks.faithful import Faithful, image_coordinates
from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.official import from_official

SIDE = 12  # of the training images
SMALL = {"image_size": SIDE, "hidden_dim": 7, "num_layers": 2, "N": 4, "M": 3}
SQUARE = {"patch_shape": "square", "N": 9, "M": 9}  # the authors' centre is [4, 4]


def theirs(seed=0, **config):
    """Float64, all weights random; multiples of 2^-12, so that float32 and a factor SIDE / 2 lose nothing."""
    torch.manual_seed(seed)
    model = Faithful(**(SMALL | config)).double()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name == "filter":
                model.filter = torch.nn.Parameter(torch.view_as_complex(grain(torch.randn(*value.shape, 2))))
            else:
                spread = {"patch": 0.5 / SIDE, "patch_scale": 0.2}.get(name, 0.1)
                value.copy_(grain(value + spread * torch.randn_like(value)))
    return model.requires_grad_(False)


def grain(x):
    return (x.double() * 4096).round() / 4096


def ours(reference, **told):
    told = {"residual": reference.residual_learning} | told
    if reference.filter is None:
        told |= {"image_size": SIDE}
    return from_official(reference.state_dict(), **told).double().requires_grad_(False)


def image(*shape, seed=1):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


NETWORKS = [
    {"c_in": channels, "c_out": channels, "network": network, "fourier_filtering": filtering, "residual_learning": rest}
    for channels in (1, 2, 3)
    for network in ("MultiMLP", "MLP")
    for filtering in (False, True)
    for rest in (False, True)
]
VARIANTS = [
    {"c_in": 3, "c_out": 1, "residual_learning": True},
    {"c_in": 1, "c_out": 4},
    {"num_filters": 2, "c_in": 1, "residual_learning": True},
    {"num_filters": 2, "c_in": 3, "c_out": 3},
    SQUARE,
    SQUARE | {"residual_learning": True},
    SQUARE | {"residual_learning": True, "network": "MLP", "CCPG": True},
    {"patch_shape": "random"},
    {"patch_shape": "random", "network": "MLP"},
    {"CCPG": True},
    {"CCPG": True, "n_deform": 2, "residual_learning": True},
    {"CCPG": True, "n_deform": 2, "network": "MLP", "c_in": 2, "c_out": 2, "residual_learning": True},
    {"coord_deform": True, "residual_learning": True},
    {"coord_deform": True, "network": "MLP", "fourier_filtering": False},
    {"num_layers": 1},
    {"N": 1, "M": 5},
    {"N": 5, "M": 1},
]


@pytest.mark.parametrize("config", NETWORKS + VARIANTS, ids=str)
def test_equals_the_reference_at_every_pixel_and_between(config):
    reference = theirs(**config)
    model = ours(reference)
    assert model.in_channels == reference.c_in and model.out_channels == reference.c_out
    sizes = [(SIDE, SIDE), (SIDE + 4, SIDE + 4), (SIDE - 4, SIDE - 4)]
    sizes += [(9, 15), (15, 9)] if reference.filter is None else []
    for k, (h, w) in enumerate(sizes):
        q = image(2, reference.c_in, h, w, seed=k)
        expected = reference.whole(q, 1000)
        torch.testing.assert_close(model(q), expected, rtol=0, atol=1e-10)
        pixels = torch.randperm(h * w, generator=torch.Generator().manual_seed(k))[:20]
        drawn = expected.flatten(2)[..., pixels].transpose(1, 2)
        torch.testing.assert_close(model.at_pixels(q, pixels), drawn, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            model.at_pixels(q, torch.stack([pixels, pixels.flip(0)])),
            torch.stack([drawn[0], drawn[1].flip(0)]), rtol=0, atol=1e-10,
        )  # fmt: skip
        coords = 1.2 * image(2, 30, 2, seed=k + 9) - 0.1  # some outside
        torch.testing.assert_close(model.at(q, coords), reference(coords - 0.5, q), rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", [{}, {"CCPG": True}, {"coord_deform": True}], ids=str)
def test_any_grid(config):
    reference = theirs(**config)
    q = image(1, 1, SIDE, SIDE)
    fine = reference(image_coordinates(7, 21, dtype=q.dtype), q).transpose(1, 2).reshape(1, 1, 7, 21)
    torch.testing.assert_close(ours(reference)(q, shape=(7, 21), chunk=20), fine, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sides", [(7, 7), (5, 9), (9, 5), (11, 9)])
def test_the_centre_of_a_square_is_the_authors_whatever_its_sides(sides):
    """Ring 4, ray 4, which they have as a constant: the middle of 9 x 9 only."""
    reference = theirs(patch_shape="square", N=sides[0], M=sides[1], residual_learning=True)
    q = image(1, 1, SIDE, SIDE)
    torch.testing.assert_close(ours(reference)(q), reference.whole(q, 1000), rtol=0, atol=1e-10)


def test_points_far_outside_fold_back_as_theirs():
    reference = theirs(fourier_filtering=False)
    reference.patch_scale.fill_(20.0)
    q = image(1, 1, 5, 4)
    torch.testing.assert_close(ours(reference)(q), reference.whole(q, 1000), rtol=0, atol=1e-10)


def test_double_precision_survives():
    reference = theirs()
    with torch.no_grad():
        for value in reference.parameters():
            value.mul_(1 + 1e-9 * torch.pi)  # no float32 number any more
    q = image(1, 1, SIDE, SIDE)
    torch.testing.assert_close(
        from_official(reference.state_dict()).double()(q), reference.whole(q, 1000), rtol=0, atol=1e-12
    )


def test_single_precision():
    torch.manual_seed(0)
    reference = Faithful(**SMALL, residual_learning=True).requires_grad_(False)
    model = from_official(reference.state_dict(), residual=True)
    q = image(1, 1, 16, 16).float()
    assert model(q).dtype == torch.float32
    torch.testing.assert_close(model(q), reference.whole(q, 1000), rtol=0, atol=1e-5)


def test_the_reference_has_the_authors_layout():
    model = Faithful(CCPG=True, n_deform=2)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    fixed = {"patch": (9, 9, 2), "patch_scale": (1,), "filter": (1, 1, 138, 138), "deform_weights": (2,),
             "uniform_weights": (2,)}  # fmt: skip

    def dense(name, *widths):
        for k in range(len(widths) - 1):
            fixed[f"{name}.fcs.{k}.weight"] = (widths[k + 1], widths[k])
            fixed[f"{name}.fcs.{k}.bias"] = (widths[k + 1],)

    for ray in range(9):
        dense(f"MLP.{ray}", 27, 370, 370, 370, 100)
    dense("mixer_MLP", 900, 370, 370, 370, 1)
    for t in range(2):
        dense(f"MLP_deforms.{t}", 243, 128, 128, 128, 162)
    assert shapes == fixed
    assert model.filter.is_complex()


def test_rings_are_a_quarter_pixel_apart_at_the_training_size():
    model = from_official(Faithful(image_size=128, hidden_dim=4).state_dict())
    reach = model.geometry.offsets.norm(dim=-1)
    torch.testing.assert_close(reach, (torch.arange(9) / 4).expand(9, 9), rtol=0, atol=1e-6)  # n/4 pixel
    torch.testing.assert_close(model.geometry.offsets[0, 8], torch.tensor([2.0, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [{}, {"c_in": 2, "c_out": 2}], ids=str)
def test_the_batches_of_the_reference_do_not_matter(config):
    reference, q = theirs(**config), image(2, config.get("c_in", 1), SIDE, SIDE)
    for refilter in (False, True):
        torch.testing.assert_close(reference.whole(q, 7, refilter=refilter), reference.whole(q, 1000))


def test_round_trip_through_our_checkpoint(tmp_path):
    reference = theirs(CCPG=True, n_deform=2, c_in=2, c_out=2, residual_learning=True)
    path = tmp_path / "official.safetensors"
    save_checkpoint(path, from_official(reference.state_dict(), residual=True), trained_on="nothing")
    model, header = load_checkpoint(path)
    assert header["config"]["official"] and header["trained_on"] == "nothing"
    q = image(1, 2, SIDE, SIDE)
    torch.testing.assert_close(model.double()(q), reference.whole(q, 1000), rtol=0, atol=1e-10)


def test_what_their_state_dict_holds_besides_is_left_out():
    reference = theirs()
    state = reference.state_dict() | {"deform_weights": torch.zeros(1), "uniform_weights": torch.ones(1)}
    q = image(1, 1, SIDE, SIDE)
    torch.testing.assert_close(from_official(state).double()(q), reference.whole(q, 1000), rtol=0, atol=1e-10)


def test_the_original_is_left_alone():
    reference = theirs(fourier_filtering=False)
    before = {key: value.clone() for key, value in reference.state_dict().items()}
    model = ours(reference)
    for value in model.parameters():
        value.zero_()
    assert all(bool((value == before[key]).all()) for key, value in reference.state_dict().items())


@pytest.mark.parametrize("gone", ["patch", "patch_scale", "mixer_MLP.fcs.0.weight", "MLP.0.fcs.0.weight",
                                  "MLP.1.fcs.0.weight", "MLP_deforms.0.fcs.0.weight"])  # fmt: skip
def test_a_missing_entry_is_named(gone):
    state = theirs(CCPG=True).state_dict()
    state.pop(gone)
    named = "MLP.fcs.0.weight" if gone.startswith("mixer") else gone
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        from_official(state)


def test_a_foreign_state_dict_is_refused():
    with pytest.raises(ValueError, match="no state dict of the authors' LoFi"):
        from_official(torch.nn.Linear(2, 2).state_dict())


def test_without_a_filter_the_size_must_be_told():
    with pytest.raises(ValueError, match="pass image_size"):
        from_official(theirs(fourier_filtering=False).state_dict())


def test_their_filter_takes_squares_only():
    with pytest.raises(ValueError, match="square"):
        ours(theirs())(image(1, 1, 8, 10))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"network": "CNN"}, "MultiMLP"),
        ({"patch_shape": "hexagonal"}, "round"),
        ({"patch_shape": "square", "N": 4}, "odd"),
        ({"patch_shape": "random", "residual_learning": True}, "no centre"),
        ({"CCPG": True, "coord_deform": True}, "overwrites"),
    ],
)
def test_what_the_reference_refuses(config, message):
    with pytest.raises(ValueError, match=message):
        Faithful(**(SMALL | config))


def test_the_reference_filters_even_squares_only():
    with pytest.raises(ValueError, match="even"):
        theirs().whole(image(1, 1, 9, 9), 100)
