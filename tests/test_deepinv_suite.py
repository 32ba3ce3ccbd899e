"""deepinv's own physics tests, as they are shipped in its wheel, run against our operators.

They are plain functions that ask ``find_operator(name, ...)`` for what they test: here it gives ours.
A new operator is one row of ROWS.
"""

import importlib
import inspect
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from pnp_lofi.operators import (
    NUFFT,
    Blur,
    Derivatives,
    Downsample,
    FanBeam,
    Fourier,
    KaiserSquires,
    Mask,
    NormalEquations,
    Radon,
    Stacked,
    StreamedNUFFT,
    Weighted,
    random_frequencies,
    random_mask,
)

Shape = tuple[int, int]
SIZE = (16, 8)  # as deepinv's own


@dataclass(frozen=True)
class Row:
    name: str
    build: Callable[[Shape], LinearPhysics]
    norm: float | None = None  # ||A||^2; None: from the matrix
    complex_image: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.complex64 if self.complex_image else torch.float32


def coordinates(n: int, scale: float) -> Tensor:
    return scale * torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def streamed(shape: Shape) -> StreamedNUFFT:
    uv = coordinates(400, math.pi).T
    return NormalEquations(shape).add(uv, torch.ones(400, dtype=torch.complex128)).measurement()[0]


def eigenvalue(row: Row) -> float:
    """The largest one of A^H A, from the matrix."""
    basis, op = torch.eye(SIZE[0] * SIZE[1], dtype=row.dtype).reshape(-1, 1, *SIZE), row.build(SIZE)
    return float(torch.linalg.eigvalsh(op.A_adjoint(op.A(basis)).flatten(1))[-1])


KERNEL = torch.tensor([[1.0, 3, 1], [4, 9, 2], [0, 1, 1]]) / 22
ROWS = [
    Row("mask", lambda shape: Mask(random_mask(shape, 0.5)), 1.0),
    Row("blur", lambda shape: Blur(shape, KERNEL), 1.0),
    Row("blur-reflect", lambda shape: Blur(shape, KERNEL, boundary="reflect")),
    Row("blur-valid", lambda shape: Blur(shape, KERNEL, boundary="valid")),
    Row("downsample", lambda shape: Downsample(shape, 2, "box"), 1 / 4),
    Row("downsample-bicubic", lambda shape: Downsample(shape, 2, "bicubic"), 1 / 4),
    Row("fourier", lambda shape: Fourier(random_frequencies(shape, 2.0)), 1.0),
    Row("fourier-complex", lambda shape: Fourier(random_frequencies(shape, 2.0), real=False), 1.0, complex_image=True),
    Row("nufft", lambda shape: NUFFT(shape, coordinates(400, math.pi).T)),
    Row("nufft-complex", lambda shape: NUFFT(shape, coordinates(400, math.pi).T, real=False), complex_image=True),
    Row("derivatives", lambda shape: Derivatives(shape, coordinates(50, 1.0))),
    Row("shear", lambda shape: KaiserSquires(shape), 1.0),
    Row("shear-masked", lambda shape: KaiserSquires(shape, random_mask(shape, 0.7))),
    Row("radon", lambda shape: Radon(shape, 12)),
    Row("fan", lambda shape: FanBeam(shape, 24, source_origin=40.0, source_detector=60.0)),
    Row("weighted", lambda shape: Weighted(Radon(shape, 12), coordinates(6, 1.0).reshape(12, 1) + 0.1)),
    Row("streamed", streamed),
    Row("stacked", lambda shape: Stacked(Blur(shape, KERNEL), Mask(random_mask(shape, 0.5)))),
    Row("composed", lambda shape: Downsample(shape, 2, "box") * Blur(shape, KERNEL), 1 / 4),
]

# deepinv's test -> its arguments besides the operator's name, one run for each
TESTS: dict[str, list[dict[str, object]]] = {
    "test_operators_adjointness": [{}],
    "test_adjointness_test": [{"num_samples": 1}, {"num_samples": 3}],
    "test_operators_norm": [{"verbose": False}],
    "test_pseudo_inverse": [{"implicit_backward_solver": True}, {"implicit_backward_solver": False}],
    "test_concatenation": [{}],
    "test_operators_differentiability": [{}],
    "test_device_consistency": [{}],
    "test_physics_state_dict": [{}],
    "test_adjoint_autograd": [{}],
    "test_clone": [{}],
    "test_operator_cropper": [{}],
    "test_operator_multiscale_wrapper": [{}],
    "test_multiscale_coarse_adjointness": [{}],
    "test_multiscale_A_adjoint_A": [{}],
}
COMPLEX_IMAGES, COMPLEX_DATA = ("fourier-complex", "nufft-complex"), ("fourier", "nufft")
OWN = "the data of streamed have an inner product of their own, in which A^H y = y; it asks for the usual one"
PARTS = "the data of stacked are a TensorList, which it does not take"
# deepinv's test -> (rows that it cannot be applied to, what it raises there, why)
CANNOT: dict[str, list[tuple[tuple[str, ...], type[Exception], str]]] = {
    "test_operators_adjointness": [(("streamed",), AssertionError, OWN), (("stacked",), RuntimeError, PARTS)],
    "test_concatenation": [(("streamed",), AssertionError, OWN), (("stacked",), AttributeError, PARTS)],
    "test_operators_differentiability": [(
        COMPLEX_DATA, NotImplementedError, "it applies torch's mse_loss to the data, which complex data do not have",
    )],
    "test_adjoint_autograd": [
        (COMPLEX_IMAGES, RuntimeError, "it differentiates (z * A^H y).sum(), complex here; it names complex data"),
        (("stacked",), RuntimeError, PARTS),
    ],
    "test_clone": [(("shear",), AttributeError, "it asks for mask.dtype where there is no mask")],
    "test_multiscale_coarse_adjointness": [
        (
            COMPLEX_DATA, AssertionError,
            "deepinv's wrapper has deepinv's adjointness_test, whose complex inner product no real image satisfies",
        ),
        (("streamed",), AssertionError, OWN),
    ],
}  # fmt: skip


def refusal(test: str, row: Row) -> type[Exception] | None:
    """What the test raises where it cannot be applied."""
    return next((error for rows, error, _ in CANNOT.get(test, []) if row.name in rows), None)


# deepinv's tests that are of no use to a row, and why
NOT_RUN = {
    "test_decomposable": "looks at DecomposablePhysics only, and none of ours is one",
    **dict.fromkeys(
        ("test_upsampling", "test_nonlinear_operators", "test_phase_retrieval", "test_noise"),
        "its names are those of other classes of deepinv: Upsampling, non-linear operators, phase retrieval, noise",
    ),
    "test_squared_or_non_squared_norms": "compares deepinv's power iteration with itself, for its own BlurFFT",
    "test_ultrasound_planewave": "its names are those of one class of deepinv",
}


def test_every_test_of_deepinv_is_run_or_listed(suite: ModuleType) -> None:
    """Those without a name build operators of deepinv themselves: nothing can be put in their place."""
    named = {
        name
        for name, f in vars(suite).items()
        if name.startswith("test_") and "name" in inspect.signature(f).parameters
    }
    named |= {"test_squared_or_non_squared_norms", "test_noise"}  # ask for an operator, or a noise, by a fixed name
    assert named == TESTS.keys() | NOT_RUN.keys()


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("deepinv.tests.test_physics")


def run(suite: ModuleType, monkeypatch: pytest.MonkeyPatch, test: str, row: Row, options: dict[str, object]) -> None:
    def find_operator(
        name: str, device: object, imsize: tuple[int, ...] | None = None, get_physics_param: bool = False
    ):
        size = (1, *(imsize or SIZE)[-2:])  # whatever number of channels it asks for
        op = row.build((size[-2], size[-1]))
        norm = (row.norm or eigenvalue(row)) if test == "test_operators_norm" else 1.0
        found = (op, size, norm, row.dtype)
        return (*found, []) if get_physics_param else found  # no arguments of A that derivatives could be taken in

    monkeypatch.setattr(suite, "find_operator", find_operator)
    monkeypatch.setattr(suite, "OPERATORS", [row.name])
    function = getattr(suite, test)
    known = {"name": row.name, "device": torch.device("cpu"), "rng": torch.Generator().manual_seed(0), **options}
    torch.manual_seed(0)
    function(**{k: v for k, v in known.items() if k in inspect.signature(function).parameters})


def cases(expected: bool) -> list[object]:
    """Those that should pass, or those that cannot be applied."""
    return [
        pytest.param(
            test, row, options, id="-".join([test.removeprefix("test_"), row.name, *map(str, options.values())])
        )
        for (test, runs), row in itertools.product(TESTS.items(), ROWS)
        for options in runs
        if expected == (refusal(test, row) is None)
    ]


@pytest.mark.parametrize(("test", "row", "options"), cases(True))
def test_deepinv(suite, monkeypatch, tmp_path, test, row, options) -> None:
    monkeypatch.chdir(tmp_path)  # test_physics_state_dict writes into the working directory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one input physics is a DecomposablePhysics|.*omplex")
        run(suite, monkeypatch, test, row, options)


@pytest.mark.parametrize(("test", "row", "options"), cases(False))
def test_cannot_be_applied(suite, monkeypatch, test, row, options) -> None:
    """The day that deepinv's test learns to, this fails, and the row comes out of the table."""
    with pytest.raises(refusal(test, row)):
        run(suite, monkeypatch, test, row, options)
