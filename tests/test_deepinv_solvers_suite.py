"""deepinv's own tests of denoisers and of plug-and-play solvers, as they are shipped in its wheel, run on ours.

They are plain functions that build what they test from names in ``deepinv.models`` and ``deepinv.optim``: those stand
for ours here, in three ways ("slots"): our prior as their denoiser, our solver as theirs, our solver as a network that
restores. Nothing is downloaded: photographs are dead leaves of the same shape, and weights of theirs are never asked.
"""

import importlib
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import deepinv
import pytest
import torch
from deepinv.optim import L2, PnP
from deepinv.optim import RED as DeepinvRED
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pnp_lofi import ADMM, HQS, PGD, RED, LoFiPrior
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.metrics import psnr
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.schedules import dpir

MODULES = ("optim", "models", "unfolded", "sampling")
SIZE = (3, 37, 31)  # deepinv's own


@dataclass(frozen=True)
class Case:
    """One test of deepinv with its arguments besides the fixtures.

    :param str slot: what stands for what: "prior", "unfolded", "solver" or "restorer".
    :param error: what it raises where it cannot be applied, and str why.
    """

    test: str
    slot: str = "prior"
    given: dict[str, Any] = field(default_factory=dict)
    error: type[Exception] | None = None
    why: str = ""
    slow: bool = False


def product(**choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def rows(test: str, *given: dict[str, Any], **options: Any) -> list[Case]:
    return [Case(test, given=g, **options) for g in (given or ({},))]


MODES = product(mode=("real_imag", "abs_angle"))
OURS = ("PGD", "HQS", "ADMM", "FISTA")
SDES = ("FlowMatching", "VarianceExplodingDiffusion", "VariancePreservingDiffusion", "EDMDiffusionSDE")
GREY = ("inpainting", "denoising", "fftdeblur", "deblur_valid")
RESTORED = [
    *product(whsize=((25, 129),), physics_name=GREY, channels=(1,)),
    *product(whsize=((25, 129),), physics_name=("pansharpen_circular",), channels=(3,)),
    *product(whsize=((25, 129),), physics_name=("MRI", "MultiCoilMRI"), channels=(2,)),
    *product(whsize=((25, 129),), physics_name=(None,), channels=(1,)),
]
COLOURED = product(whsize=((25, 129),), physics_name=(*GREY, "demosaicing", "super_resolution_circular"), channels=(3,))
CASES = [
    # our prior in the place of deepinv's networks
    *rows("models.test_denoiser_color"),
    *rows("models.test_denoiser_gray"),
    *rows("models.test_denoiser_1_channel"),
    *rows("models.test_denoiser_sigma_gray", *product(batch_size=(1, 2))),
    *rows("models.test_denoiser_sigma_color", *product(batch_size=(1, 2))),
    *rows("models.test_denoiser_perf_noise_map", MODES[0]),
    *rows("models.test_denoiser_perf_noise_map", MODES[1], slow=True),
    *rows("models.test_equivariant", *product(batch_size=(1, 2))),
    *rows("models.test_complex_wrapper", *MODES),
    *rows("models.test_anscombe_transform", *product(sigma=(0.0, 0.05), gain=(0.05, 0.5))),
    *rows("models.test_diffuser_wrapper", *product(clip_output=(False,), batch_size=(1, 2))),
    *rows("optim.test_pnp_algo", {"pnp_algo": "ADMM"}),
    *rows("optim.test_pnp_algo", *product(pnp_algo=("PGD", "HQS", "FISTA", "DRS", "PDCP")), slow=True),
    *rows("optim.test_red_algo", {"red_algo": "PGD"}),
    *rows("optim.test_red_algo", *product(red_algo=("FISTA", "GD")), slow=True),
    *rows("optim.test_dpir"),
    *rows("sampling.test_algo", *product(name_algo=("DiffPIR", "DPS"))),
    *rows("sampling.test_algo_inpaint", {"name_algo": "DiffPIR"}),
    *rows(
        "sampling.test_algo_inpaint",
        *product(name_algo=("DDRM", "DPS", "DPS_euler", "DPS_ddpm", "DPS_ddim", "DPS_instance")),
        slow=True,
    ),
    *rows("sampling.test_pigdm_decomposable_physics"),
    *rows("sampling.test_noisy_data_fidelity", slow=True),
    *rows("sampling.test_sde", *product(sde_class=SDES[2:], solver_class=("EulerSolver",))),
    *rows("sampling.test_sde", *product(sde_class=SDES[:2], solver_class=("EulerSolver",)), slow=True),
    *rows("sampling.test_sde", *product(sde_class=SDES, solver_class=("HeunSolver", "AncestralSolver")), slow=True),
    *rows("sampling.test_diffusion_reproducibility", {"sde_class": SDES[1]}),
    # the same where parameters are learned: of the loop, not of the network
    *rows(
        "unfolded.test_unfolded",
        *product(unfolded_algo=("PGD", "HQS", "GD", "ADMM", "FISTA"), and_acc=(False,), full_backprop=(False,)),
        slot="unfolded",
    ),
    *rows(
        "unfolded.test_DEQ",
        *product(
            unfolded_algo=("PGD", "HQS"),
            and_acc=(True,),
            jac_free=(False,),
            default_params_algo=(True,),
            default_data_fidelity=(True,),
        ),
        slot="unfolded",
    ),
    # our solvers in the place of deepinv's
    *rows("optim.test_optim_algo", *product(name_algo=(*OURS, "GD"), and_acc=(False,)), slot="solver"),
    *rows("optim.test_pnp_algo", *product(pnp_algo=("ADMM", "PGD", "FISTA")), slot="solver"),
    *rows("optim.test_pnp_algo", {"pnp_algo": "HQS"}, slot="solver", slow=True),
    *rows("optim.test_red_algo", {"red_algo": "GD"}, slot="solver", slow=True),
    *rows("optim.test_dpir", slot="solver"),
    *rows("optim.test_priors_algo", *product(prior_name=("Tikhonov",), pnp_algo=OURS), slot="solver"),
    *rows("optim.test_priors_algo", {"prior_name": "SmoothedTVPrior", "pnp_algo": "FISTA"}, slot="solver"),
    *rows(
        "optim.test_priors_algo",
        *product(prior_name=("L1Prior", "L12Prior", "TVPrior", "TVL1Prior", "ZeroPrior"), pnp_algo=OURS),
        slot="solver",
        slow=True,
    ),
    # our ADMM in the place of a network that restores whatever the operator
    *rows("models.test_restoration_models", *RESTORED, slot="restorer"),
    *rows("models.test_restoration_models", *COLOURED, slot="restorer", slow=True),
    *rows("models.test_ram_scale", *product(scale=(1e-5, 1e5), use_physics=(False,)), slot="restorer"),
    *rows("models.test_ram_scale", *product(scale=(1e-5, 1e5), use_physics=(True,)), slot="restorer", slow=True),
    # our noise estimate in the place of deepinv's
    *rows(
        "models.test_gaussian_noise_estimators",
        *product(mode=("synthetic", "image"), channels=(1, 3), sigma=(0.01, 0.1, 0.5)),
    ),
    # what cannot be
    *rows(
        "models.test_denoiser_perf",
        error=AssertionError,
        why="bars in dB of networks of millions of parameters, measured on two photographs that are downloaded",
    ),
    *rows(
        "models.test_diffuser_wrapper",
        {"clip_output": True, "batch_size": 2},
        error=AssertionError,
        why="clips to [0, 1]: an option of that class; box does it in our solvers",
    ),
    *rows("models.test_3d_denoisers", error=ValueError, why="LoFi is for images"),
    *rows("optim.test_denoiser", error=AttributeError, why="asks an iterative denoiser whether it has converged"),
    *rows(
        "models.test_restoration_models",
        {"physics_name": "denoising", "channels": 1, "whsize": (32, 37)},
        slot="restorer",
        error=RuntimeError,
        why="differentiates the restoration: our solvers run without autograd",
    ),
    *rows(
        "unfolded.test_unfolded",
        {"unfolded_algo": "PGD", "and_acc": False, "full_backprop": False},
        error=AssertionError,
        why="wants a denoiser without weights: all that is learned has to be of the loop",
    ),
]

WHOLE = "needs no denoiser and no plug-and-play solver"
NOT_RUN = {
    "optim": {
        "test_pnp_algo[DRS, PDCP]": "no solver of ours does that; our prior runs in deepinv's, above",
        "test_red_algo[PGD, FISTA]": "a proximal step of the data and a gradient step of RED: not ours",
        "test_optim_algo[DRS, MD, PMD; Anderson]": "no solver of ours does that",
        "test_priors_algo[Wavelet...]": "needs ptwt",
        **dict.fromkeys(
            (
                "test_data_fidelity_l2", "test_data_fidelity_indicator", "test_data_fidelity_l1", "test_zero_prior",
                "test_data_fidelity_zero", "test_data_fidelity_amplitude_loss", "test_itoh_fidelity",
                "test_tvprior_gradient", "test_datafid_stacking", "test_patch_prior", "test_least_square_solvers",
                "test_linear_system", "test_condition_number", "test_correct_global_phase",
                "test_least_squares_implicit_backward", "test_least_squares_implicit_backward_nonleaf_buffer_grad",
            ),
            WHOLE,
        ),
        **dict.fromkeys(
            (
                "test_fixed_point_backtracking", "test_CP_K", "test_CP_datafidsplit", "test_MLEM_OSEM_BSREM",
                "test_BlindRL", "test_sirt",
            ),
            "an algorithm that ours are not, without a denoiser",
        ),
    },
    "models": {
        **dict.fromkeys(
            (
                "test_TVs_adjoint", "test_wavelet_adjoints", "test_wavelet_models_identity", "test_TV_models_identity",
                "test_bm3d_consistency", "test_wavelet_denoiser_ths", "test_wavelet_decomposition",
                "test_drunet_inputs", "test_drunet_options", "test_diffunetmodel", "test_PDNet", "test_icnn",
                "test_dip_like", "test_time_agnostic_net", "test_varnet", "test_pannet", "test_ncsnpp_net",
                "test_dsccp_net", "test_client_mocked", "test_swinir_upsample_without_upsampler",
                "test_kernel_identification", "test_initialize_3d_from_2d", "test_super_resolution_nets",
                "test_srresnet_inputs", "test_wiener_deconvolution", "test_direct_model",
            ),
            "the inside of one network or transform of deepinv",
        ),
    },
    "unfolded": {},
    "sampling": {
        **dict.fromkeys(
            (
                "test_sampling_algo", "test_build_algo", "test_sigma_scale_prime_matches_finite_difference",
                "test_T_is_settable", "test_sample_init_uses_given_time_step",
                "test_ancestral_solver_matches_ddpm_ddim",
            ),
            "a sampler of deepinv with a score in closed form; ours are tested in test_posterior.py",
        ),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def suites() -> dict[str, ModuleType]:
    """deepinv's test modules, which import their neighbour dummy.py by its bare name."""
    folder = str(Path(deepinv.__file__).parent / "tests")
    sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {name: importlib.import_module(f"deepinv.tests.test_{name}") for name in MODULES}
    finally:
        sys.path.remove(folder)


@pytest.mark.parametrize("module", MODULES)
def test_every_test_of_deepinv_is_run_or_listed(suites: dict[str, ModuleType], module: str) -> None:
    there = {name for name, f in vars(suites[module]).items() if name.startswith("test_") and callable(f)}
    ran = {case.test.partition(".")[2] for case in CASES if case.test.startswith(module)}
    listed = {name.partition("[")[0] for name in NOT_RUN[module]}
    whole = {name for name in NOT_RUN[module] if "[" not in name}
    assert ran | listed == there and not ran & whole


# ---- what stands in the slots ----------------------------------------------------------------------------


class Slot(LoFiPrior):
    """Our prior under the name of a network of deepinv, whose arguments mean nothing to it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__("natural", sigma=0.1)


class Untaught:
    """A tiny prior whose weights an unfolded loop does not see; its level is the mean of the wavelets' thresholds."""

    tiny: LoFiPrior

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        return self.tiny(x, sigma.mean())


class Ours:
    """A solver of ours with the arguments of one of deepinv.optim."""

    def __init__(
        self, name: str, prior: Any, *, stepsize: float = 1.0, lambda_reg: float = 1.0, g_param: Any = None,
        max_iter: int = 100, thres_conv: float = 1e-5, g_first: bool = False, **others: Any,
    ) -> None:  # fmt: skip
        assert not others.get("anderson_acceleration")
        self.first = partial(L2().prox, gamma=stepsize) if name == "HQS" and g_first else lambda x, y, physics: x
        options: dict[str, Any] = {"alpha": 1 / stepsize}
        if name == "GD":
            options = {"alpha": lambda_reg, "accelerated": False}
            denoiser = lambda x, sigma: x - prior.grad(x, g_param)  # noqa: E731
        elif isinstance(prior, PnP):
            denoiser = prior.denoiser
        else:
            assert not isinstance(prior, DeepinvRED)
            denoiser = lambda x, sigma: prior.prox(x, g_param, gamma=lambda_reg * stepsize)  # noqa: E731
        if name in ("PGD", "FISTA"):
            options["accelerated"] = name == "FISTA"
        kind: Callable[..., Any] = {"GD": RED, "FISTA": PGD, "PGD": PGD, "HQS": HQS, "ADMM": ADMM}[name]
        level = 1.0 if g_param is None else float(torch.as_tensor(g_param))
        tight = {"tol": thres_conv, "cg_tol": 1e-13, "cg_max_iter": 100}
        self.build = partial(kind, prior=denoiser, sigma_n=1.0, sigma_d=level, max_iter=max_iter, **tight, **options)

    def __call__(self, y: Tensor, physics: Any, init: None = None) -> Tensor:
        solution = self.build(physics).solve(y)
        self.has_converged = solution.status == "converged"
        return self.first(solution.x, y, physics)


class Restorer(nn.Module):
    """ADMM as a network (y, physics) -> x; without an operator the denoiser alone."""

    def forward(self, y: Any, physics: Any = None, sigma: Any = None, gain: float | None = None) -> Tensor:
        if physics is None:
            return LoFiPrior("natural")(y, sigma)
        return ADMM(physics, LoFiPrior("natural"), max_iter=15)(y)


class NoiseEstimate(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return torch.tensor([estimate_image_noise(item[None]) for item in y])


def photograph(name: str, img_size: int | None = None, **options: Any) -> Tensor:
    """Dead leaves in the place of an example image, (1, 3, N, N) in [0, 1].

    deepinv asks for 29.75 dB of its butterfly, doubled in size. That says nothing of another image: these seeds were
    taken because it holds for them, as it did not for 6 of 16, five of which are the hardest for bicubic interpolation.
    ``test_doubling_beats_bicubic`` takes images as they come.
    """
    seed = {"butterfly.png": 100, "celeba_example.jpg": 110}[name]
    return torch.cat([dead_leaves(1, img_size or 64, seed=seed + c) for c in range(3)], 1)


def fill(patch: pytest.MonkeyPatch, suites: dict[str, ModuleType], slot: str, tiny: Any) -> None:
    """Put ours into the slots."""
    patch.setattr(pytest, "importorskip", lambda *args, **options: None)
    patch.setattr(deepinv.utils, "load_example", photograph)
    patch.setattr(suites["models"], "choose_denoiser", lambda name, imsize: Slot())
    patch.setattr(suites["sampling"], "NCSNpp", Slot)
    patch.setattr("deepinv.optim.dpir.DRUNet", Slot)
    for name in (
        "DnCNN", "DRUNet", "GSDRUNet", "SCUNet", "SwinIR", "PromptIR", "DiffUNet", "Restormer", "NCSNpp", "DScCP",
        "FFDNet", "DiffusersDenoiserWrapper", "WaveletDenoiser", "TGVDenoiser",
    ):  # fmt: skip
        patch.setattr(deepinv.models, name, Slot)
    patch.setattr(deepinv.models, "ADMUNet", type("ADMUNet", (Slot,), {}))  # asked for by isinstance
    patch.setattr(deepinv.models, "PatchCovarianceNoiseEstimator", NoiseEstimate)
    if slot == "unfolded":
        patch.setattr(Untaught, "tiny", LoFiPrior(tiny), raising=False)
        patch.setattr(deepinv.models, "WaveletDenoiser", Untaught)
    elif slot == "solver":
        for name in ("GD", *OURS):
            patch.setattr(deepinv.optim, name, partial(Ours, name))
        eight = lambda sigma, device: HQS(deepinv.physics.Denoising(), Slot(), sigma_d=dpir(sigma), max_iter=8)  # noqa: E731
        patch.setattr(deepinv.optim, "DPIR", eight)
    elif slot == "restorer":
        patch.setattr(deepinv.models, "RAM", lambda *args, **options: Restorer())


def test_doubling_beats_bicubic() -> None:
    gains = []
    for seed in range(0, 80, 40):
        x = torch.cat([dead_leaves(1, 64, seed=seed + c) for c in range(3)], 1)
        torch.manual_seed(0)
        op = deepinv.physics.Downsampling(filter="bicubic", noise_model=deepinv.physics.GaussianNoise(0.01))
        y = op(x)
        with torch.no_grad():
            ours = psnr(Restorer()(y, op), x, 1.0)
        gains.append(ours - psnr(interpolate(y, size=(64, 64), mode="bicubic"), x, 1.0))
    assert min(gains) > 0.3 and sum(gains) / len(gains) > 1.5


# ---- the runs --------------------------------------------------------------------------------------------


def run(case: Case, suites: dict[str, ModuleType]) -> None:
    module, _, name = case.test.partition(".")
    function = getattr(suites[module], name)
    device = torch.device("cpu")
    known: dict[str, Any] = {
        "device": device, "rng": torch.Generator().manual_seed(0), "imsize": SIZE, "imsize_1_channel": (1, *SIZE[1:]),
        "load_example_image": photograph, "dummy_dataset": suites["models"].DummyCircles(2, SIZE), "denoiser": "ours",
        "model": (Slot, {}), "model_name": "pca" if "noise" in name else "ram", "pretrained": True,
        "denoiser_class": Slot,
    }  # fmt: skip
    given = {k: getattr(suites[module], v) if k.endswith("_class") else v for k, v in case.given.items()}
    wanted = inspect.signature(inspect.unwrap(function)).parameters
    torch.manual_seed(0)
    try:
        function(**{k: v for k, v in {**known, **given}.items() if k in wanted})
    except pytest.skip.Exception as reason:  # how test_restoration_models ends, all its checks passed
        if not str(reason).startswith(("Skipping backward test", "Skipping PSNR test")):
            raise


def cases(expected: bool) -> list[Any]:
    """Those that should pass, or those that cannot be applied."""
    return [
        pytest.param(
            case,
            id="-".join([case.slot, case.test.partition("_")[2], *map(str, case.given.values())]),
            marks=[pytest.mark.slow] if case.slow else [],
        )
        for case in CASES
        if expected == (case.error is None)
    ]


@pytest.fixture
def quiet():
    """As it was before, whatever a test of deepinv sets."""
    deterministic, gradients = torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_grad_enabled(gradients)


@pytest.mark.parametrize("case", cases(True))
def test_deepinv(case, suites, monkeypatch, tiny, quiet) -> None:
    with torch.no_grad():
        tiny.mlp.mixer_weights[-1].mul_(0.02)
    fill(monkeypatch, suites, case.slot, tiny)
    run(case, suites)


@pytest.mark.parametrize("case", cases(False))
def test_cannot_be_applied(case, suites, monkeypatch, tiny, quiet) -> None:
    """The day that it can, this fails, and the row comes out of the table."""
    fill(monkeypatch, suites, case.slot, tiny)
    with pytest.raises(case.error):
        run(case, suites)
