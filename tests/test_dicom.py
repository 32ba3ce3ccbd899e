"""DICOM: what is written comes back, padding, series, broken files, and real slices where they are."""

import sys

import numpy as np
import pytest
import torch

from pnp_lofi.dicom import DicomSlices, dicom_series, read_slice
from pnp_lofi.dicom_writer import write_dicom, write_series
from pnp_lofi.hounsfield import attenuation, hounsfield, window

pydicom = pytest.importorskip("pydicom")


def picture(n: int = 12, low: float = -1000, high: float = 1500, seed: int = 0) -> torch.Tensor:
    return low + (high - low) * torch.rand(1, n, n, generator=torch.Generator().manual_seed(seed))


def change(path, **values):
    """Rewrite a file with other elements; None takes one out."""
    file = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    file.save_as(path)


@pytest.fixture
def path(tmp_path):
    write_dicom(tmp_path / "x.dcm", picture(), 0.7)
    return tmp_path / "x.dcm"


def test_round_trip(tmp_path):
    hu = picture()
    write_dicom(tmp_path / "x.dcm", hu, 0.71234567891)
    back, pixel = read_slice(tmp_path / "x.dcm")
    assert torch.equal(back, hu.round()) and back.dtype == torch.float32
    assert pixel == pytest.approx(0.71234567891, rel=1e-10)
    with pytest.raises(FileExistsError):
        write_dicom(tmp_path / "x.dcm", hu, 0.7)


def test_what_is_written_is_a_ct_image(path):
    file = pydicom.dcmread(path)
    assert list(file.ImageType) == ["DERIVED", "SECONDARY"] and file.Modality == "CT"
    assert file.SOPClassUID.name == "CT Image Storage" == file.file_meta.MediaStorageSOPClassUID.name
    assert file.SOPInstanceUID == file.file_meta.MediaStorageSOPInstanceUID and file.SOPInstanceUID.is_valid
    assert file.RescaleType == "HU" and file.pixel_array.dtype == np.int16


def test_like_joins_the_patient_and_keeps_the_field(path, tmp_path):
    change(path, PatientID="007", ImagePositionPatient=[10.0, 20.0, 30.0])
    hu = picture(6)
    write_dicom(tmp_path / "y.dcm", hu, 1.4, like=path)
    a, b = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "y.dcm")
    assert b.PatientID == "007" and b.StudyInstanceUID == a.StudyInstanceUID
    assert b.SeriesInstanceUID != a.SeriesInstanceUID and b.SOPInstanceUID != a.SOPInstanceUID
    assert b.SourceImageSequence[0].ReferencedSOPInstanceUID == a.SOPInstanceUID
    # the corner of the field is half a pixel before the middle of the first
    assert [p - 0.7 for p in b.ImagePositionPatient[:2]] == pytest.approx([10 - 0.35, 20 - 0.35])
    assert len(dicom_series(tmp_path)) == 2


def test_slope_and_intercept_come_before_padding(path):
    raw = np.array([[-2000, 0], [24, 1024]], np.int16)  # -3024, -1024, -1000 and 0 HU
    change(path, Rows=2, Columns=2, PixelData=raw.tobytes())
    assert read_slice(path).hu[0].tolist() == [[-1000, -1024], [-1000, 0]]
    change(path, RescaleSlope=2, RescaleIntercept=-24)
    assert read_slice(path).hu[0].tolist() == [[-1000, -24], [24, 2024]]


@pytest.mark.parametrize(
    ("values", "text"),
    [({"RescaleSlope": None, "RescaleIntercept": None}, r"no RescaleSlope.*RescaleIntercept.*pass rescale"),
     ({"RescaleIntercept": None}, "no RescaleSlope"), ({"RescaleSlope": 0}, "slope 0.0 and intercept -1024.0"),
     ({"RescaleType": "Z_EFF"}, "RescaleType HU, got Z_EFF")],
)  # fmt: skip
def test_numbers_that_need_not_be_hounsfield_units(path, values, text):
    change(path, **values)
    with pytest.raises(ValueError, match=rf"x\.dcm: .*{text}"):
        read_slice(path)
    raw = torch.from_numpy(pydicom.dcmread(path).pixel_array).float()
    assert torch.equal(read_slice(path, rescale=(2, -100)).hu[0], 2 * raw - 100)


@pytest.mark.parametrize("limit", [None, 40])
def test_padding_that_is_named(path, limit):
    raw = np.array([[0, 30], [40, 1024]], np.uint16)  # -1024, -994, -984 and 0 HU
    file = pydicom.dcmread(path)
    file.Rows = file.Columns = 2
    file.PixelRepresentation, file.PixelData = 0, raw.tobytes()
    file.add_new("PixelPaddingValue", "US", 30)
    if limit is not None:
        file.add_new("PixelPaddingRangeLimit", "US", limit)
    file.save_as(path)
    assert read_slice(path).hu[0].tolist() == [[-1024, -1000], [-984 if limit is None else -1000, 0]]


def test_damaged_elements_name_the_file(path):
    whole = path.read_bytes()
    for good, bad in ((b"0.7\\0.7", b"a.7\\0.7"), (b"-1024", b"-1k24")):
        assert good in whole
        path.write_bytes(whole.replace(good, bad))
        with pytest.raises(ValueError, match=r"x\.dcm: broken, or not DICOM"):
            read_slice(path)
    path.write_bytes(whole.replace(b"0.0\\0.0\\0.0", b"0.0\\x.0\\0.0"))  # the place along the patient
    with pytest.raises(ValueError, match=r"none of 1 files can be read: .*x\.dcm: broken"):
        dicom_series(path.parent)


def test_pixel_spacing(path):
    change(path, PixelSpacing=None)
    with pytest.raises(ValueError, match=r"has no PixelSpacing.*pass spacing"):
        read_slice(path)
    assert read_slice(path, spacing=(0.5, 0.5)).pixel == 0.5
    with pytest.raises(ValueError, match=r"spacing of \(rows, columns\) in mm, got 0.5"):
        read_slice(path, spacing=0.5)
    with pytest.raises(ValueError, match="> 0 mm, got -1"):
        read_slice(path, spacing=(-1, 1))
    with pytest.raises(ValueError, match=r"pixels of 1.0 x 0.5 mm are not square; pass resample=True"):
        read_slice(path, spacing=(1.0, 0.5))
    square = read_slice(path, spacing=(1.0, 0.5), resample=True)
    assert square.hu.shape == (1, 24, 12) and square.pixel == 0.5
    torch.testing.assert_close(square.hu.mean(), read_slice(path, spacing=(1, 1)).hu.mean(), rtol=0.02, atol=0)


def test_no_ct_slices(path, tmp_path):
    for values, text in (({"Modality": "MR"}, "Modality CT, got MR"), ({"NumberOfFrames": 2}, "one frame, got 2"),
                         ({"SamplesPerPixel": 3}, "one channel"), ({"ImageType": ["ORIGINAL", "LOCALIZER"]}, "scout"),
                         ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"), ({"Rows": None}, "no image"),
                         ({"Rows": 6}, r"expected 6 x 12 pixels, got \(2, 6, 12\)")):  # fmt: skip
        write_dicom(path, picture(), 0.7, overwrite=True)
        change(path, **values)
        with pytest.raises(ValueError, match=text):
            read_slice(path)
    with pytest.raises(FileNotFoundError, match="no DICOM file"):
        read_slice(tmp_path / "none.dcm")


def test_compressed(path):
    file = pydicom.dcmread(path)
    file.compress(pydicom.uid.RLELossless)  # pydicom undoes that
    file.save_as(path)
    assert read_slice(path).hu.shape == (1, 12, 12)
    file.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless if not has_decoder() else pydicom.uid.MPEG2MPML
    file.save_as(path)
    with pytest.raises(ValueError, match=r"compressed as .*gdcmconv --raw"):
        read_slice(path)


def has_decoder() -> bool:
    return pydicom.pixels.get_decoder(pydicom.uid.HTJ2KLossless).is_available


def test_like_a_slice_that_says_little(path, tmp_path):
    change(path, PixelSpacing=[], ImagePositionPatient=[])
    write_dicom(tmp_path / "y.dcm", picture(), 0.7, like=path)
    assert pydicom.dcmread(tmp_path / "y.dcm").PixelSpacing == [0.7, 0.7]
    change(path, SOPInstanceUID=None)
    with pytest.raises(ValueError, match=r"x\.dcm: .*SOPInstanceUID"):
        write_dicom(tmp_path / "z.dcm", picture(), 0.7, like=path)


def test_series_are_sorted_along_the_patient(tmp_path):
    hu = torch.stack([picture(seed=k) for k in range(4)])
    write_series(tmp_path / "a", hu, 0.5, thickness=-2.0)  # the last is the lowest
    write_series(tmp_path / "b", hu[:2], 0.5)
    for name in ("001", "002"):  # without places the numbers count
        change(tmp_path / "b" / f"{name}.dcm", ImagePositionPatient=None, InstanceNumber=9 - int(name))
    found = sorted(dicom_series(tmp_path).values(), key=len)
    assert [f.name for f in found[1]] == ["004.dcm", "003.dcm", "002.dcm", "001.dcm"]
    assert [f.name for f in found[0]] == ["002.dcm", "001.dcm"]
    data = DicomSlices(tmp_path / "a", units="HU")
    assert len(data) == 4 and torch.equal(data[0], hu[3].round()) and len(set(data.series)) == 1


def test_units_and_size(tmp_path):
    write_series(tmp_path, torch.stack([picture(16)]), 0.5)
    mu, pixel = DicomSlices(tmp_path, units="1/pixel", size=8).slice(0)
    assert mu.shape == (1, 8, 8) and pixel == 1.0
    hu = DicomSlices(tmp_path, units="HU", size=8)[0]
    torch.testing.assert_close(mu, attenuation(hu, 1.0))
    assert float(DicomSlices(tmp_path)[0].mean()) == pytest.approx(0.02 * (1 + float(hu.mean()) / 1000), rel=0.01)
    with pytest.raises(ValueError, match="size of 1 pixel or more, got 0"):
        DicomSlices(tmp_path, size=0)
    with pytest.raises(ValueError, match="units of HU, 1/mm or 1/pixel, got '1/cm'"):
        DicomSlices(tmp_path, units="1/cm")


def test_broken_files_are_named_and_skipped(tmp_path):
    write_series(tmp_path, torch.stack([picture(seed=k) for k in range(3)]), 0.5)
    found = [pydicom.dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))]
    assert all(len({f[name].value for f in found}) == 1 for name in ("StudyInstanceUID", "FrameOfReferenceUID"))
    assert len({f.StudyInstanceUID for f in found} | {f.SeriesInstanceUID for f in found}) == 2
    assert all(f.SliceThickness == 1 for f in found)
    whole = (tmp_path / "002.dcm").read_bytes()
    (tmp_path / "notes.txt").write_text("words")
    for content in (whole[:-10], whole[:200], b"words"):
        (tmp_path / "002.dcm").write_bytes(content)
        with pytest.warns(UserWarning, match=r"skipped 1 of 3 files: .*002\.dcm"):
            assert len(DicomSlices(tmp_path)) == 2
    for name in ("001", "003"):
        (tmp_path / f"{name}.dcm").write_text("words")
    with pytest.raises(ValueError, match=r"none of 3 files can be read: .*001\.dcm"):
        dicom_series(tmp_path)


def test_folders_without_slices(tmp_path):
    with pytest.raises(FileNotFoundError, match="no DICOM folder"):
        dicom_series(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(ValueError, match="no DICOM file"):
        dicom_series(tmp_path)


def test_windows():
    hu = torch.tensor([-3000.0, -160, 40, 240, 3000])
    assert window(hu).tolist() == [0, 0, 0.5, 1, 1]
    assert window(hu, (40, 800))[1] == 0.25
    for name in ("lung", "bone", "brain"):
        assert window(hu, name).min() >= 0 and window(hu, name).max() <= 1
    with pytest.raises(ValueError, match="expected a window of lung"):
        window(hu, "liver")


def test_attenuation():
    torch.testing.assert_close(attenuation(torch.tensor([-2000.0, 0, 1000])), torch.tensor([0, 0.02, 0.04]))
    torch.testing.assert_close(attenuation(torch.tensor([0.0]), 0.7), torch.tensor([0.014]))
    hu = torch.tensor([-1000.0, -3, 1700])
    torch.testing.assert_close(hounsfield(attenuation(hu, 0.7), 0.7), hu, rtol=0, atol=1e-3)


def test_writer_errors(tmp_path):
    for hu, pixel, text in ((torch.zeros(2, 4, 4), 1, r"\(H, W\)"), (torch.full((4, 4), torch.nan), 1, "finite"),
                            (torch.full((4, 4), 4e4), 1, "16 bits"), (torch.zeros(4, 4), 0, "> 0 mm"),
                            (torch.zeros(4, 4, dtype=torch.complex64), 1, "real")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            write_dicom(tmp_path / "x.dcm", hu, pixel)
    with pytest.raises(FileNotFoundError, match=r"no DICOM file '.*none\.dcm'"):
        write_dicom(tmp_path / "x.dcm", torch.zeros(4, 4), 1, like=tmp_path / "none.dcm")
    with pytest.raises(ValueError, match=r"write_series expects \(n, 1, H, W\)"):
        write_series(tmp_path, torch.zeros(0, 1, 4, 4), 1)
    assert not list(tmp_path.iterdir())


def test_without_pydicom(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"pip install 'pnp_lofi\[ct\]'"):
        read_slice(path)


@pytest.mark.parametrize(("folder", "series", "count"), [("head", 1, 7), ("chest", 3, 4)])
def test_real_slices(shared_data, tmp_path, folder, series, count):
    found = dicom_series(shared_data / "ct" / folder)
    assert len(found) == series and sum(map(len, found.values())) == count
    if folder == "head":  # one series, upwards
        assert [f.stem for f in next(iter(found.values()))] == ["06", "10", "12", "15", "18", "22", "26"]
    data = DicomSlices(shared_data / "ct" / folder, units="HU")
    for k, path in enumerate(data.files):
        hu, pixel = data.slice(k)
        assert hu.shape == (1, 512, 512) and -1024 <= hu.min() <= -990 and 0.4 < pixel < 1.1
        write_dicom(tmp_path / f"{k}.dcm", hu, pixel, like=path)
        back = read_slice(tmp_path / f"{k}.dcm")
        assert (back.hu - hu).abs().max() <= 0.5 and back.pixel == pytest.approx(pixel)
        old, new = pydicom.dcmread(path), pydicom.dcmread(tmp_path / f"{k}.dcm")
        assert [float(p) for p in new.ImagePositionPatient] == pytest.approx(
            [float(p) for p in old.ImagePositionPatient]
        )
