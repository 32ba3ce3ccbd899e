"""What solvers refuse, and that they say how to mend it."""

import math

import deepinv
import numpy as np
import pytest
import torch
from deepinv.optim import PnP
from deepinv.utils import TensorList
from solver_pieces import SOLVERS, Shrink, operator, rand, solver

from pnp_lofi import ADMM, Consensus, LoFiPrior
from pnp_lofi.operators import Mask, Stacked

EVERY = [*SOLVERS, "Consensus"]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sigma_d": 0}, "sigma_d must be finite and > 0, got 0"),
        ({"sigma_d": torch.tensor([0.1, -0.1])}, "sigma_d must be finite and > 0"),
        ({"alpha": -2.0}, "alpha must be finite and > 0, got -2.0; leave it out to have it chosen"),
        ({"alpha": math.inf}, "alpha"),
        ({"max_iter": 0}, "max_iter"),
        ({"nonneg": True, "box": (0, 1)}, "pass nonneg or box, not both"),
        ({"box": (1, 0)}, r"box must be \(low, high\) with low < high"),
        ({"sigma_n": -1}, "sigma_n must be finite and >= 0"),
        ({"sigma_n": math.nan}, "sigma_n"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_parameters_are_checked(name, wrong, message):
    if name == "Consensus" and "sigma_n" in wrong:
        wrong, message = {"sigma_n": [wrong["sigma_n"]]}, "Consensus needs a noise level > 0"
    with pytest.raises(ValueError, match=message):
        solver(name, Mask(torch.ones(4, 4)), Shrink(1.0), **wrong)


WRONG_PRIORS = [
    ("radio", r"got the name 'radio'; use LoFiPrior\('radio'\)"),
    (torch.nn.Identity(), r"called as prior\(x, sigma\), Identity is called as Identity\(input"),
    (lambda x: x, r"called as prior\(x, sigma\)"),
    (None, r"such as LoFiPrior\('natural'\), got NoneType"),
    (LoFiPrior, "got LoFiPrior"),
    (PnP(Shrink(1.0)), "got deepinv's PnP; pass the denoiser inside it"),
]


@pytest.mark.parametrize(
    ("prior", "message"), WRONG_PRIORS, ids=["name", "identity", "function", "none", "class", "deepinv"]
)
@pytest.mark.parametrize("name", EVERY)
def test_prior_is_checked(name, prior, message):
    with pytest.raises(TypeError, match=message):
        solver(name, Mask(torch.ones(4, 4)), prior)


def test_prior_may_be_any_function_of_an_image_and_a_level():
    op = Mask(torch.ones(4, 4), sigma=0.1)
    y = rand(1, 1, 4, 4)
    for name in EVERY:
        found = [solver(name, op, prior)([y] if name == "Consensus" else y)
                 for prior in (lambda x, sigma: x / (1 + sigma**2), Shrink(1.0))]  # fmt: skip
        torch.testing.assert_close(*found)
    for prior in (deepinv.models.TVDenoiser(), deepinv.models.DnCNN(1, 1, pretrained=None), LoFiPrior("natural")):
        ADMM(op, prior)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_in_the_data(value):
    y = rand(1, 1, 6, 7)
    y[0, 0, 1, 1] = value
    op = Stacked(operator("blur"), operator("blur"))
    for one, data in ((ADMM(operator("blur"), Shrink(1.0)), y), (ADMM(op, Shrink(1.0)), TensorList([y.abs(), y]))):
        with pytest.raises(ValueError, match=r"y holds NaN or inf; flag such data \(weight 0\) or leave them out"):
            one(data)


def test_data_of_another_kind():
    one = ADMM(operator("blur"), Shrink(1.0), sigma_n=0.1)
    with pytest.raises(TypeError, match=r"ADMM expects y as a torch tensor, got ndarray; use torch.from_numpy\(y\)"):
        one(np.ones((1, 1, 6, 7)))
    with pytest.raises(ValueError, match=r"x0 must have shape \(1, 1, 6, 7\), got \(1, 1, 6, 5\)"):
        one.solve(rand(1, 1, 6, 7), x0=rand(1, 1, 6, 5))
    for given in ({"sigma_n": torch.ones(3)}, {"sigma_d": torch.ones(3)}, {"alpha": lambda k: torch.ones(3)}):
        with pytest.raises(ValueError, match="expected a number, or one for each of 2 images"):
            ADMM(operator("blur"), Shrink(1.0), **{"sigma_n": 0.1} | given)(rand(2, 1, 6, 7))


def test_parts_of_a_consensus():
    ops, y = [operator("mask", sigma=0.1), operator("blur")], [rand(1, 1, 6, 7)] * 2
    for parts, message in (
        (([], [Shrink(1.0)]), "Consensus needs operators and priors, got 0 and 1"),
        ((ops, []), "got 2 and 0"),
        ((ops, [Shrink(1.0)]), r"a noise level > 0 for each of 2 operators, got \[0.1, None\]; pass sigma_n"),
    ):
        with pytest.raises(ValueError, match=message):
            Consensus(*parts)
    for weights in ([1.0, 1.0], [1.0], [1.5, -0.5]):
        with pytest.raises(ValueError, match="weights must be 2 numbers > 0 that sum to one"):
            Consensus(ops, [Shrink(1.0)] * 2, weights=weights, sigma_n=[0.1, 0.1])
    one = Consensus(ops, [Shrink(1.0)], sigma_n=[0.1, 0.1])
    with pytest.raises(TypeError, match=r"a list of 2 data, got a tensor; use \[y\]"):
        one(y[0])
    with pytest.raises(ValueError, match="a TensorList of 2 parts, got 1 parts"):
        one(y[:1])
    with pytest.raises(TypeError, match="takes no operator in a call"):
        one.solve(y, ops[0])
