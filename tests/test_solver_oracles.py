"""The solvers against deepinv's own, against closed forms, and against loops by hand in dense matrices."""

import deepinv
import numpy as np
import pytest
import torch
from deepinv.optim import L2, PnP
from solver_pieces import (
    CG,
    SHAPE,
    SOLVERS,
    Explode,
    Nan,
    Shrink,
    Smooth,
    by_hand,
    flat,
    matrix,
    operator,
    rand,
    solver,
    tamed,
)

from pnp_lofi import ADMM, PGD, Consensus
from pnp_lofi.operators import Mask, Stacked
from pnp_lofi.pgd import MOMENTUM
from pnp_lofi.schedules import dpir

EVERY = [*SOLVERS, "Consensus"]
# alpha over L: what each algorithm is stable with
ALPHA = {"ADMM": 0.1, "HQS": 0.1, "PGD": 1.01, "FISTA": 1.01, "RED": 0.2, "RED+": 0.2, "Consensus": 0.1}


def zeros(y, physics):
    return torch.zeros_like(physics.A_adjoint(y))


def deepinvs(name, op, y, prior, alpha, sigma_d, iterations):
    """The same with deepinv.optim."""
    common = {"data_fidelity": L2(), "max_iter": iterations, "early_stop": False, "custom_init": zeros}
    pair = {**common, "custom_init": lambda y, physics: (zeros(y, physics),) * 2}
    if name == "RED":
        found = deepinv.optim.GD(
            prior=deepinv.optim.RED(prior), stepsize=1 / (op.norm + alpha), lambda_reg=alpha, g_param=sigma_d, **common
        )
    elif name == "FISTA":  # deepinv's momentum after step k is 1 - 1 / (k + a), ours k / (k + MOMENTUM): a(k) does it
        a = [(k + MOMENTUM) / MOMENTUM - k for k in range(iterations)]
        settings = {"stepsize": 1 / alpha, "g_param": sigma_d, "lambda": 1.0, "a": a}
        found = deepinv.optim.FISTA(prior=PnP(prior), params_algo=settings, **pair)
    else:
        options = pair if name == "ADMM" else common
        found = getattr(deepinv.optim, name)(prior=PnP(prior), stepsize=1 / alpha, g_param=sigma_d, **options)
    return found(y, op)


@pytest.mark.parametrize("case", ["mask", "nufft", "blur"])
@pytest.mark.parametrize("name", ["ADMM", "HQS", "PGD", "FISTA", "RED"])
def test_equals_deepinv_over_40_iterations(tiny, name, case):
    op, prior = operator(case, (16, 20)), tamed(tiny)
    y, alpha = op.A(rand(1, 1, 16, 20).abs()), ALPHA[name] * op.norm
    x = solver(name, op, prior, sigma_n=0.01, sigma_d=0.1, alpha=alpha, max_iter=40, tol=0, **CG)(y)
    reference = deepinvs(name, op, y, prior, alpha, 0.1, 40)
    assert float(x.norm()) > 1
    torch.testing.assert_close(x, reference, rtol=0, atol=1e-10 * float(reference.abs().max()))


def test_dpir_equals_deepinvs(tiny):
    """The two lines of HQS's docstring; deepinv has 0.23 the same way."""
    op, prior = operator("blur", (16, 20), sigma=0.02), tamed(tiny)
    y = op.A(rand(1, 1, 16, 20).abs())
    x = solver("HQS", op, prior, sigma_d=dpir(0.02), max_iter=8, tol=0)(y, x0=op.A_adjoint(y))
    reference = deepinv.optim.DPIR(0.02, denoiser=prior)(y, op)  # which has its levels in single precision
    torch.testing.assert_close(x, reference, rtol=0, atol=1e-5)


# ---- closed forms ----------------------------------------------------------------------------------------


def fixed_point(name, A, b, K, sigma_n, sigma_d, alpha):
    """Where the algorithm rests with D = (1 + sigma_d^2 K)^-1, and D for Consensus's level."""
    eye = torch.eye(len(K), dtype=K.dtype)
    D = torch.linalg.inv(eye + sigma_d**2 * K)
    if name in ("ADMM", "PGD", "FISTA"):  # x = D(x - A^T (A x - y) / alpha)
        return torch.linalg.solve(A.T @ A + alpha * sigma_d**2 * K, A.T @ b)
    if name == "Consensus":  # A^T (A x - y) / sigma_n^2 + alpha sigma_d^2 K x = 0
        return torch.linalg.solve(A.T @ A / sigma_n**2 + alpha * sigma_d**2 * K, A.T @ b / sigma_n**2)
    x = torch.linalg.solve(A.T @ A + alpha * (eye - D), A.T @ b)  # A^T (A x - y) + alpha (x - D x) = 0
    return D @ x if name == "HQS" else x


@pytest.mark.parametrize("case", ["mask", "nufft", "blur"])
@pytest.mark.parametrize("name", EVERY)
def test_fixed_point_of_a_linear_denoiser(name, case):
    op = operator(case)
    y, A = op.A(rand(1, 1, *SHAPE)), matrix(op)
    unit = 1.0 if name == "Consensus" else op.norm  # alpha of Consensus is in units of 1 / sigma_n^2
    sigma_n, sigma_d, alpha = 0.6, 0.9, 1.1 * unit
    expected = fixed_point(name, A, flat(y), Smooth().K(SHAPE), sigma_n, sigma_d, alpha)
    noise = [sigma_n] if name == "Consensus" else sigma_n
    found = solver(
        name, op, Smooth(), sigma_n=noise, sigma_d=sigma_d, alpha=alpha, max_iter=3000, tol=1e-13, **CG
    ).solve([y] if name == "Consensus" else y)
    assert found.status == "converged"
    torch.testing.assert_close(found.x.flatten(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("weights", [None, (0.3, 0.7)])
def test_consensus_of_two_operators_and_two_denoisers(weights):
    """sum_i A_i^T (A_i z - y_i) / sigma_i^2 + alpha sigma_d^2 sum_j w_j K_j z = 0."""
    ops, noise = [operator("mask"), operator("nufft")], [0.3, 0.8]
    priors, y = [Smooth(0.7), Shrink(2.0)], [op.A(rand(1, 1, *SHAPE)) for op in ops]
    found = Consensus(
        ops, priors, weights=weights, sigma_n=noise, sigma_d=0.6, alpha=2.0, max_iter=3000, tol=1e-13, **CG
    ).solve(y)
    assert found.status == "converged"
    K = [priors[0].K(SHAPE), 2.0 * torch.eye(42, dtype=torch.float64)]
    left = sum(2.0 * 0.6**2 * w * k for w, k in zip(weights or (0.5, 0.5), K, strict=True))
    right = torch.zeros(42, dtype=torch.float64)
    for op, part, sigma in zip(ops, y, noise, strict=True):
        A = matrix(op)
        left, right = left + A.T @ A / sigma**2, right + A.T @ flat(part) / sigma**2
    torch.testing.assert_close(found.x.flatten(), torch.linalg.solve(left, right), rtol=0, atol=1e-10)
    assert found.metrics["sigma_n"] == 1  # whitened


def test_stacked_and_consensus_agree():
    """Where they have one fixed point: data of one noise level, one denoiser that is a proximal step."""
    ops = [operator("mask"), operator("blur")]
    y = [op.A(rand(1, 1, *SHAPE, seed=k)) for k, op in enumerate(ops)]
    options = {"sigma_d": 0.5, "alpha": 4.0, "max_iter": 3000, "tol": 1e-13, **CG}
    stacked = Stacked(*ops, weights=[4.0, 4.0])
    one = ADMM(stacked, Smooth(), sigma_n=1.0, **options)(stacked.whiten(y))
    torch.testing.assert_close(Consensus(ops, [Smooth()], sigma_n=[0.5, 0.5], **options)(y), one, rtol=0, atol=1e-10)


def test_momentum_has_the_rate_that_it_is_for():
    """F(x_k) - F(x) <= a^2 L ||x||^2 / (2 (k + a - 1)^2) (Chambolle and Dossal 2015, theorem 1), which the plain steps,
    whose bound falls as 1 / k, break where small eigenvalues hold the image."""
    d = torch.logspace(0, -2, 42, dtype=torch.float64).reshape(SHAPE)
    op = deepinv.physics.LinearPhysics(A=lambda x, **_: d * x, A_adjoint=lambda y, **_: d * y, img_size=(1, *SHAPE))
    x, a, above = torch.ones(1, 1, *SHAPE, dtype=torch.float64), MOMENTUM - 1, {}
    for accelerated in (True, False):
        cost: list[float] = []
        PGD(
            op, lambda x, sigma: x, accelerated=accelerated, sigma_n=0.1, sigma_d=0.1, alpha=1.0, max_iter=400, tol=0,
            callback=lambda at, cost=cost: cost.append(float((d * (at.x - x)).square().sum()) / 2),
        )(op.A(x))  # fmt: skip
        bound = [a**2 * float(x.square().sum()) / (2 * (k + a - 1) ** 2) for k in range(1, 401)]
        above[accelerated] = sum(c > b for c, b in zip(cost, bound, strict=True))
    assert above[True] == 0 and above[False] > 100


# ---- against loops by hand -------------------------------------------------------------------------------


def smoothed(shape, level):
    """D by hand, on the real vector of one image, real and imaginary parts one after the other."""
    return lambda x, k: np.concatenate(
        [Smooth().matrix(level(k), shape).numpy() @ part for part in np.split(x, len(x) // (shape[0] * shape[1]))]
    )


def close(x, expected):
    torch.testing.assert_close(flat(x), torch.from_numpy(expected), rtol=0, atol=1e-10 * float(np.abs(expected).max()))


@pytest.mark.parametrize("case", ["fourier-complex", "nufft-complex", "nufft"])
@pytest.mark.parametrize("name", SOLVERS)
def test_complex_images_are_pairs_of_real_ones(name, case):
    op = operator(case)
    x = rand(1, 1, *SHAPE) + (1j * rand(1, 1, *SHAPE, seed=1) if op.complex_images else 0)
    y, alpha = op.A(x), ALPHA[name] * op.norm
    found = solver(name, op, Smooth(), sigma_n=0.1, sigma_d=0.7, alpha=alpha, max_iter=25, tol=0, **CG)(y)
    assert found.is_complex() == op.complex_images
    expected = by_hand(name, matrix(op), flat(y), smoothed(SHAPE, lambda k: 0.7), lambda k: alpha, 25, norm=op.norm)
    close(found, expected)


@pytest.mark.parametrize("name", SOLVERS)
def test_schedules(name):
    """Levels and penalties that change from one iteration to the next; ADMM's u is rescaled."""
    op = operator("blur")
    y = op.A(rand(1, 1, *SHAPE))

    def alpha(k):
        return ALPHA[name] * op.norm * (1 + 0.8 * np.cos(k) ** 2)

    def level(k):
        return 0.9 * 0.9**k

    found = solver(name, op, Smooth(), sigma_n=0.1, sigma_d=level, alpha=alpha, max_iter=25, tol=0)(y)
    close(found, by_hand(name, matrix(op), flat(y), smoothed(SHAPE, level), alpha, 25))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("box", [(0.0, None), (-0.2, 0.3)])
def test_box(name, box):
    op = operator("mask")
    y, alpha = op.A(rand(1, 1, *SHAPE)), ALPHA[name]
    options = {"sigma_n": 0.1, "sigma_d": 0.7, "alpha": alpha, "max_iter": 25, "tol": 0}
    found = solver(name, op, Smooth(), box=box, **options)(y)
    low, high = box
    expected = by_hand(
        name, matrix(op), flat(y), smoothed(SHAPE, lambda k: 0.7), lambda k: alpha, 25, lambda x: np.clip(x, low, high)
    )
    close(found, expected)
    assert float(found.min()) == low and (high is None or float(found.max()) == high)
    if high is None:
        assert torch.equal(solver(name, op, Smooth(), nonneg=True, **options)(y), found)


def test_box_of_consensus_and_of_complex_images():
    op = operator("nufft-complex")
    y = op.A(rand(1, 1, *SHAPE) + 1j * rand(1, 1, *SHAPE, seed=1))
    for name in ("ADMM", "Consensus"):
        level = {"sigma_n": [0.3]} if name == "Consensus" else {"sigma_n": 0.3}
        x = solver(name, op, Smooth(), box=(-0.1, 0.2), sigma_d=0.3, max_iter=30, **level)([y] if "n" in name else y)
        for part in (x.real, x.imag):
            assert float(part.min()) == pytest.approx(-0.1) and float(part.max()) == pytest.approx(0.2)


@pytest.mark.parametrize("shape", [(6, 7), (6, 6)])
@pytest.mark.parametrize("name", SOLVERS)
def test_turns(name, shape):
    """In iteration k the denoiser sees the k-th of the eight orientations: as permutations of pixels, by numpy."""
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    ways = [np.rot90(flipped, k) for flipped in (index, np.fliplr(index)) for k in range(4)]
    assert len({(way.shape, way.tobytes()) for way in ways}) == 8

    def denoise(x, k):
        way, out = ways[k % 8], np.empty_like(x)
        out[way.ravel()] = Smooth().matrix(0.7, way.shape).numpy() @ x[way.ravel()]
        return out

    op = operator("blur", shape)
    y, alpha = op.A(rand(1, 1, *shape)), ALPHA[name] * op.norm
    options = {"sigma_n": 0.1, "sigma_d": 0.7, "alpha": alpha, "max_iter": 19, "tol": 0}
    found = solver(name, op, Smooth(), turns=True, **options)(y)
    close(found, by_hand(name, matrix(op, shape), flat(y), denoise, lambda k: alpha, 19))
    assert not torch.allclose(found, solver(name, op, Smooth(), **options)(y), atol=1e-3)


# ---- batches, channels, starts ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_channels_are_images_of_their_own(name, tiny):
    op, prior = Mask(torch.ones(12, 12)), tamed(tiny)
    y = rand(2, 3, 12, 12).abs()
    level = {"sigma_n": [0.1]} if name == "Consensus" else {"sigma_n": 0.1}
    one = solver(name, op, prior, sigma_d=0.1, alpha=1.5, max_iter=10, tol=0, **level)
    expected = one(y.reshape(6, 1, 12, 12) if name != "Consensus" else [y.reshape(6, 1, 12, 12)])
    found = one(y if name != "Consensus" else [y])
    torch.testing.assert_close(found, expected.reshape(2, 3, 12, 12), rtol=0, atol=1e-13)


def of_item(level, i):
    if callable(level):
        return lambda k: level(k)[i]
    return level[i] if isinstance(level, torch.Tensor) else level


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("case", ["blur", "nufft", "nufft-complex"])
@pytest.mark.parametrize(
    "levels",
    [
        {"sigma_n": (0.1, 0.4, 0.02)},
        {"sigma_n": (0.1, 0.4, 0.02), "sigma_d": (0.3, 0.2, 0.1)},
        {"sigma_n": 0.1, "alpha": (2.0, 3.0, 4.0)},
        {"sigma_n": 0.1, "sigma_d": lambda k: torch.tensor([0.3, 0.2, 0.1]).double() / (1 + k), "alpha": 3.0},
        {},
    ],
    ids=["noise", "noise-and-level", "penalty", "schedule", "as-chosen"],
)
def test_a_batch_is_its_items(name, case, levels):
    """To the last digits, whatever each item's levels, chosen or given, and its range."""
    if not levels and case != "blur":
        levels = {"sigma_n": 0.1}
    op = operator(case)
    x = rand(3, 1, *SHAPE) * torch.tensor([1.0, 30.0, 0.2]).double().view(3, 1, 1, 1)
    y = op.A(x + 0j if op.complex_images else x)
    given = {k: torch.tensor(v, dtype=torch.float64) if isinstance(v, tuple) else v for k, v in levels.items()}
    found = solver(name, op, Smooth(), max_iter=8, tol=0, **given)(y)
    for i in range(3):
        own = {k: of_item(v, i) for k, v in given.items()}
        alone = solver(name, op, Smooth(), max_iter=8, tol=0, **own)(y[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-12 * float(alone.abs().max()))


def test_noise_is_estimated_item_by_item():
    """By the operator's own estimate (Blur), and by trial reconstructions (NUFFT), with levels that the user gave."""
    for case, given in (("blur", {}), ("nufft", {}), ("nufft", {"sigma_d": torch.tensor([0.3, 0.2]).double()})):
        op = operator(case, (16, 20))
        x = torch.nn.functional.interpolate(rand(2, 1, 4, 5), (16, 20), mode="bicubic")
        clean = op.A(x)
        noise = (torch.view_as_complex(rand(2, 1, 300, 2)) if op.complex_data else rand(*clean.shape, seed=5)) * (
            torch.tensor([0.05, 0.3]).double().view(2, *(1,) * (clean.ndim - 1))
        )
        solution = ADMM(op, Shrink(3.0), max_iter=5, tol=0, **given).solve(clean + noise)
        for i, level in enumerate((0.05, 0.3)):
            own = {name: of_item(value, i) for name, value in given.items()}
            alone = ADMM(op, Shrink(3.0), max_iter=5, tol=0, **own).solve((clean + noise)[i : i + 1])
            assert alone.metrics["sigma_n"] == pytest.approx(solution.metrics["sigma_n"][i], rel=1e-9)
            assert alone.metrics["sigma_n"] == pytest.approx(level, rel=0.5)  # what they are worth: test_noise.py
            torch.testing.assert_close(solution.x[i : i + 1], alone.x, rtol=0, atol=1e-9)


def test_noise_of_each_item_that_deepinvs_physics_knows():
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(torch.tensor([0.1, 0.4])))
    y = rand(2, 1, 12, 12)
    found = ADMM(physics, Shrink(1.0), max_iter=6).solve(y)
    assert found.metrics["sigma_n"] == pytest.approx([0.1, 0.4])
    given = ADMM(physics, Shrink(1.0), sigma_n=torch.tensor([0.1, 0.4]), max_iter=6)(y)
    torch.testing.assert_close(found.x, given)


@pytest.mark.parametrize("name", EVERY)
def test_start(name):
    """From where it comes to rest it does not move, from elsewhere it does."""
    op = operator("mask")
    y = op.A(rand(1, 1, *SHAPE))
    data = [y] if name == "Consensus" else y
    options = {"sigma_n": [0.5] if name == "Consensus" else 0.5, "sigma_d": 0.5, "alpha": 1.1}
    rest = solver(name, op, Smooth(), max_iter=4000, tol=1e-13, **options)(data)
    one = solver(name, op, Smooth(), max_iter=1, tol=0, **options)
    moved = float((one.solve(data, x0=rest).x - rest).norm() / rest.norm())
    assert moved < (1e-10 if name not in ("ADMM", "Consensus") else 0.5)  # whose u starts at zero
    assert moved < float((one.solve(data, x0=5 + rest).x - rest).norm() / rest.norm())
    assert not torch.equal(one.solve(data, x0=rest).x, one.solve(data).x)


# ---- when it goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [Explode, Nan])
@pytest.mark.parametrize("name", EVERY)
def test_divergence_gives_the_best_iterate(name, prior):
    op, seen = operator("mask"), []
    options = {"max_iter": 400, "tol": 0, "sigma_d": 0.5, "alpha": 20.0}
    options |= {"sigma_n": [0.1] if name == "Consensus" else 0.1}
    y = op.A(rand(1, 1, *SHAPE).abs())
    with pytest.warns(UserWarning, match="diverged at iteration") as told:
        found = solver(name, op, prior(), callback=seen.append, **options).solve([y] if name == "Consensus" else y)
    assert name == "Consensus" or told[0].filename == __file__  # the line that the user wrote
    assert found.status == "diverged" and found.iterations == len(found.residuals) == len(seen) + 1
    best = min(seen, key=lambda at: max(at.primal, at.dual))
    assert bool(found.x.isfinite().all()) and torch.equal(found.x, best.x)


def test_iterates_tell_what_was_done():
    """Of a schedule the levels of the iteration, the time, and the distance from the truth."""
    op, x, seen = operator("mask"), rand(2, 1, *SHAPE), []
    level = torch.tensor([0.5, 0.25]).double()
    ADMM(
        op, Smooth(), sigma_n=0.1, sigma_d=lambda k: level / (1 + k), alpha=lambda k: 1.0 + k, max_iter=3, tol=0,
        callback=seen.append,
    ).solve(op.A(x), truth=x)  # fmt: skip
    assert [at.alpha for at in seen] == [1.0, 2.0, 3.0]
    torch.testing.assert_close(seen[2].sigma_d, level / 3)
    assert 0 < seen[0].seconds < seen[1].seconds < seen[2].seconds
    for at in seen:
        assert at.snr == pytest.approx(10 * np.log10(float(x.square().sum() / (at.x - x).square().sum())))
