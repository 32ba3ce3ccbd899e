"""CT images written as DICOM. Needs pydicom: pip install 'pnp_lofi[ct]'."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.dicom import import_pydicom, named, read_file
from pnp_lofi.files import written_whole
from pnp_lofi.hounsfield import WINDOWS

if TYPE_CHECKING:
    from pydicom import Dataset

LEAST, MOST = -31744, 31743  # [HU] of 16 bits with an intercept of -1024


def write_dicom(
    path: str | os.PathLike[str],
    hu: Tensor,
    pixel: float,
    *,
    like: str | os.PathLike[str] | None = None,
    series: str | None = None,
    number: int = 1,
    place: float = 0.0,
    thickness: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write a reconstruction as a derived CT image, rounded to whole HU.

    With ``like`` it joins that slice's patient, study and place, in a series of its own: mind whose name that is.

    :param torch.Tensor hu: (H, W) or (1, H, W) [HU].
    :param float pixel: side of a pixel [mm].
    :param like: the DICOM slice it was made from.
    :param str series: SeriesInstanceUID that the slices of a series share; default a new one.
    :param int number: InstanceNumber; float place, thickness: along the patient [mm], without ``like``.
    :raises ValueError: for another shape, or values that 16 bits do not hold.
    :raises FileExistsError: if the path exists and overwrite is not asked for.
    """
    pydicom = import_pydicom()
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    image = hu[0] if hu.ndim == 3 and hu.shape[0] == 1 else hu
    if image.ndim != 2 or image.is_complex() or image.numel() == 0 or not bool(torch.isfinite(image).all()):
        raise ValueError(f"write_dicom expects finite real (H, W) or (1, H, W) in HU, got {tuple(hu.shape)} {hu.dtype}")
    if not 0 < pixel < math.inf:
        raise ValueError(f"expected a pixel of > 0 mm, got {pixel}")
    if float(image.min()) < LEAST or float(image.max()) > MOST:
        raise ValueError(f"expected HU that 16 bits hold, got {float(image.min()):g} to {float(image.max()):g}")
    raw = (image.detach().cpu().double().round() + 1024).to(torch.int16).numpy()

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = pydicom.Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    file.PatientName = file.PatientID = file.PatientBirthDate = file.PatientSex = file.StudyID = ""
    file.StudyDate = file.StudyTime = file.AccessionNumber = file.ReferringPhysicianName = ""
    series = series or generate_uid()
    file.StudyInstanceUID, file.FrameOfReferenceUID = (
        generate_uid(entropy_srcs=[series, of]) for of in ("study", "frame")
    )
    file.ImageOrientationPatient, file.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0.0, 0.0, place]
    file.PatientPosition, file.SliceThickness, file.KVP = "HFS", thickness, None
    if like is not None:
        source = read_file(Path(like), pixels=False)
        with named(Path(like)):
            _copy(file, source, (image.shape[0], image.shape[1]), pixel)
    file.Modality, file.Manufacturer, file.ConversionType = "CT", "pnp_lofi", "WSD"
    file.ImageType, file.DerivationDescription = ["DERIVED", "SECONDARY"], "reconstructed by pnp_lofi"
    file.SeriesInstanceUID, file.SeriesNumber = series, None
    file.InstanceNumber, file.AcquisitionNumber, file.PositionReferenceIndicator = number, None, ""
    file.Rows, file.Columns = raw.shape
    file.PixelSpacing = [format(pixel, ".12g")] * 2
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 1
    file.RescaleSlope, file.RescaleIntercept, file.RescaleType = 1, -1024, "HU"
    file.WindowCenter, file.WindowWidth = WINDOWS["soft"]
    file.PixelData = raw.astype("<i2").tobytes()
    with written_whole(path, overwrite=overwrite) as part:
        file.save_as(part, enforce_file_format=True)


def _copy(file: "Dataset", source: "Dataset", shape: tuple[int, int], pixel: float) -> None:
    """Take over whose slice it is and where it lies; the field of view stays where it was if it is as large."""
    pydicom = import_pydicom()
    for name in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
        "StudyID", "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
        "PatientPosition", "SliceThickness", "SliceLocation", "KVP", "ImageOrientationPatient", "ImagePositionPatient",
    ):  # fmt: skip
        if name in source:
            setattr(file, name, source[name].value)
    old = [float(s) for s in source.get("PixelSpacing") or (pixel, pixel)]
    sides = [n * s for n, s in zip((source.Rows, source.Columns), old, strict=True)]
    same = all(math.isclose(n * pixel, side, rel_tol=0.01) for n, side in zip(shape, sides, strict=True))
    if same and source.get("ImagePositionPatient") and source.get("ImageOrientationPatient"):
        place, (row, column) = np.array(source.ImagePositionPatient, float), _axes(source)
        place += row * (pixel - old[1]) / 2 + column * (pixel - old[0]) / 2
        file.ImagePositionPatient = [format(p, ".10g") for p in place]
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    file.SourceImageSequence = pydicom.Sequence([reference])


def _axes(file: "Dataset") -> np.ndarray:
    """Directions along a row and along a column, (2, 3)."""
    return np.array(file.ImageOrientationPatient, float).reshape(2, 3)


def write_series(
    folder: str | os.PathLike[str],
    hu: Tensor,
    pixel: float,
    *,
    thickness: float = 1.0,
    overwrite: bool = False,
) -> None:
    """Write slices as one series, ``001.dcm`` and on.

    :param torch.Tensor hu: (n, 1, H, W) [HU]; float pixel, thickness: [mm].
    :param folder: made if it is not there.
    :raises ValueError: for another shape.
    """
    if hu.ndim != 4 or not len(hu):
        raise ValueError(f"write_series expects (n, 1, H, W) in HU, got {tuple(hu.shape)}")
    uid = str(import_pydicom().uid.generate_uid())
    Path(folder).mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(hu):
        path, place = Path(folder) / f"{k + 1:03d}.dcm", k * thickness
        write_dicom(
            path, image, pixel, series=uid, number=k + 1, place=place, thickness=abs(thickness), overwrite=overwrite
        )
