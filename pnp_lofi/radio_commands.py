"""`pnp-lofi solve radio` and `pnp-lofi simulate radio`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pnp_lofi.options import Out, Overwrite, Precision, Prior, Resume, angle, console, example, finish, numbers, two

IMAGE, WEIGHTS, BEAMS, READ = "Image", "Weights and noise", "Beams", "What to read of the file"  # panels of the help
SIMULATE = example("pnp-lofi simulate radio --sky SKY.fits --hours 2 --snr 30 -o OBS.h5")
SOLVE = (
    example("pnp-lofi solve radio NIGHT.ms --field 2 --size 512 --weight briggs --robust 0 -o OUT.fits")
    + "  or  pnp-lofi solve radio M87.uvfits --cell 2uas --size 128 -o M87.fits"
)


def simulate_radio(
    sky: Annotated[Path, typer.Option("--sky", help="Image of the sky, FITS (Jy/pixel) or npy/PNG.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="OBS.h5, or a MeasurementSet, OBS.ms.")],
    array: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="meerkat, vla-a to vla-d, vla (its B), or a table of x y z or e,n,u in metres, or CASA's .cfg.",
        ),
    ] = "meerkat",
    latitude: Annotated[
        float | None, typer.Option(help="Of the array, degrees; needed for e,n,u where the table does not tell it.")
    ] = None,
    hours: Annotated[float, typer.Option(help="Length of the track about transit, hours.")] = 2.0,
    snr: Annotated[float, typer.Option(help="20 log10(|vis| / |noise|), dB.")] = 30.0,
    declination: Annotated[
        float | None,
        typer.Option(
            "--dec",
            "--declination",
            help="Of the phase centre, degrees; default: the FITS header's, else -30, of other arrays their latitude.",
        ),
    ] = None,
    frequency: Annotated[float, typer.Option("--freq", "--frequency", help="In Hz.")] = 1.4e9,
    channels: Annotated[int, typer.Option(help="Side by side about --freq.")] = 1,
    bandwidth: Annotated[float | None, typer.Option(help="Of all channels together, Hz.")] = None,
    spectral_index: Annotated[float, typer.Option(help="a: the sky is as (frequency / --freq)^a.")] = 0.0,
    integration: Annotated[float, typer.Option(help="Of one dump, seconds.")] = 240.0,
    min_elevation: Annotated[float, typer.Option(help="In degrees.")] = 15.0,
    cell: Annotated[
        float | None,
        typer.Option(help="Pixel in arcsec; default: the FITS header's, else the longest baseline at Nyquist."),
    ] = None,
    mapping: Annotated[
        Literal["physical", "quantifai"],
        typer.Option(help="quantifai: u and v each stretched to +-pi, to reproduce published figures only."),
    ] = "physical",
    wide_field: Annotated[bool, typer.Option("--wide-field", help="With the w-term, by ducc0's w-gridder.")] = False,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Observe a sky with MeerKAT, the VLA, or an array of yours."""
    from pnp_lofi.radio_simulation import simulate_file

    obs = simulate_file(
        sky, out, array=array, latitude=latitude, hours=hours, snr=snr, declination=declination, frequency=frequency,
        channels=channels, bandwidth=bandwidth, spectral_index=spectral_index, integration=integration,
        min_elevation=min_elevation, cell=cell, mapping=mapping, wide_field=wide_field, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    console.print(
        f"wrote {escape(str(out))}: {len(obs.vis)} visibilities, cell {obs.cell:.3f} arcsec, image {escape(str(sky))}"
    )


def solve_radio(
    observation: Annotated[Path, typer.Argument(help="OBS.h5, MeasurementSet, UVFITS, .mat, npz.")],
    out: Out,
    size: Annotated[
        int | None,
        typer.Option(help="Side of the image in pixels; default: the truth's, else 512.", rich_help_panel=IMAGE),
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(
            help="Pixel size in arcsec, or with a unit: 2uas, 5mas, 0.1arcmin; default: the file's, else from the "
            "longest baseline.",
            rich_help_panel=IMAGE,
        ),
    ] = None,
    super_resolution: Annotated[
        float | None,
        typer.Option(help="Pixels so much finer than the longest baseline needs, 1 to 2.5.", rich_help_panel=IMAGE),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="FITS image of the same phase centre whose size and cell to take.", rich_help_panel=IMAGE),
    ] = None,
    weight: Annotated[
        Literal["natural", "uniform", "briggs"],
        typer.Option(help="Of the visibilities; natural is the likelihood.", rich_help_panel=WEIGHTS),
    ] = "natural",
    robust: Annotated[
        float, typer.Option(help="Of --weight briggs: 2 is near natural, -2 near uniform.", rich_help_panel=WEIGHTS)
    ] = 0.0,
    taper: Annotated[
        str | None, typer.Option(help="Widen the beam by a Gaussian of this FWHM, as --cell.", rich_help_panel=WEIGHTS)
    ] = None,
    prior: Prior = "radio",
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Of a visibility of mean weight, Jy per real component; default: from the weights, else estimated.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations at most; default: 200, of CLEAN 50000.")] = None,
    precision: Precision = "float32",
    beam: Annotated[
        str | None,
        typer.Option(
            metavar="MAJ,MIN,PA",
            help="To restore with: arcsec, arcsec, degrees; default: fitted.",
            rich_help_panel=BEAMS,
        ),
    ] = None,
    primary_beam: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|FWHM",
            help="Also OUT_pb.fits, OUT_pbcor.fits: meerkat, vla, a table of radius and power, or a width in degrees.",
            rich_help_panel=BEAMS,
        ),
    ] = None,
    pb_cutoff: Annotated[
        float, typer.Option(help="OUT_pbcor.fits is blank where the primary beam is lower.", rich_help_panel=BEAMS)
    ] = 0.2,
    wide_field: Annotated[
        bool,
        typer.Option(
            "--wide-field", help="With the w-term, by ducc0's w-gridder in major cycles.", rich_help_panel=IMAGE
        ),
    ] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Hogbom's CLEAN, a baseline, instead of LoFi-ADMM.")] = False,
    field: Annotated[
        str | None, typer.Option(help="Of a MeasurementSet: name or number.", rich_help_panel=READ)
    ] = None,
    spw: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Its spectral windows, 0 or 0,3; default: all.", rich_help_panel=READ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="CORRECTED_DATA, DATA ...; default: corrected if there.", rich_help_panel=READ)
    ] = None,
    channels: Annotated[
        str | None, typer.Option(metavar="FIRST,END", help="Of its channels.", rich_help_panel=READ)
    ] = None,
    weight_column: Annotated[
        str | None, typer.Option(help="WEIGHT_SPECTRUM, WEIGHT, SIGMA ...", rich_help_panel=READ)
    ] = None,
    stokes: Annotated[
        str | None, typer.Option(help="I, or one hand of an unpolarised source: XX, RR ...", rich_help_panel=READ)
    ] = None,
    time_average: Annotated[
        float | None, typer.Option(help="Average over so many seconds.", rich_help_panel=READ)
    ] = None,
    channel_average: Annotated[int | None, typer.Option(help="Average so many channels.", rich_help_panel=READ)] = None,
    absolute_weights: Annotated[
        bool,
        typer.Option(
            "--absolute-weights",
            help="The file's weights are 1/sigma^2, as after CASA's statwt.",
            rich_help_panel=WEIGHTS,
        ),
    ] = False,
    phase_centre: Annotated[
        str | None,
        typer.Option(metavar="RA,DEC", help="In degrees, where the file tells none or another.", rich_help_panel=READ),
    ] = None,
    error_bars: Annotated[
        int | None, typer.Option(help="Also OUT_std.fits, from so many draws of the posterior; some 200 are good.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Image visibilities: FITS of the sky, dirty image, residual, dirty beam, restored image and error bars; pictures
    of all and of the restored one; a JSON of what was run. Channels and spectral windows go into one image."""
    from pnp_lofi.radio_chunks import Weighting
    from pnp_lofi.radio_file import image_file
    from pnp_lofi.radio_products import parse_beam

    chosen = {
        "field": int(field) if field and field.isdigit() else field, "column": column, "stokes": stokes,
        "spw": None if spw is None else numbers(spw, "--spw"), "weights": weight_column,
        "channels": None if channels is None else two(channels, "--channels FIRST,END, such as 4,60", int),
        "time_average": time_average, "channel_average": channel_average, "absolute_weights": absolute_weights or None,
        "phase_centre": None if phase_centre is None else two(phase_centre, "--phase-centre RA,DEC [deg]", float),
    }  # fmt: skip
    report = image_file(
        observation, out, selection={key: value for key, value in chosen.items() if value is not None},
        size=size, cell=None if cell is None else angle(cell, "--cell"), super_resolution=super_resolution, like=like,
        weighting=Weighting(weight, robust, 0.0 if taper is None else angle(taper, "--taper")), prior=prior,
        sigma=sigma, iterations=iterations, precision=precision, error_bars=error_bars,
        beam=None if beam is None else parse_beam(beam), primary_beam=primary_beam, pb_cutoff=pb_cutoff,
        wide_field=wide_field, clean=clean, resume=resume, overwrite=overwrite,
    )  # fmt: skip
    finish(out, report, overwrite)
