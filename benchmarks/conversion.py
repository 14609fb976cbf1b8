"""Converting against only reading the source and writing the output: `python -m benchmarks.conversion [SOURCE …]`.

Processor time of one process on the demo's phantoms, or with `--clinical` on a few of clinical size, both alternating.
Reading is the plainest way with SimpleITK, pydicom, SciPy or NumPy; writing is that of the converted files, from
memory, with SimpleITK's default compression. The target is at least half the speed.

`python -m benchmarks.conversion --zips 1000` converts so many UK Biobank style zips in one process and on a local Dask
cluster of two workers, one of which is killed half-way, and compares all bytes.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
import typer
from scipy.io import loadmat
from skimage.io import imread
from typer.testing import CliRunner

from benchmarks.clinical_phantoms import CLINICAL
from nnunet_qa.cli.convert import COMMANDS
from nnunet_qa.data import raw_dataset
from nnunet_qa.data.images import NATURAL_ENDINGS, read_array, read_volume, write_image
from nnunet_qa.dataset_conversion.engine import DONE
from nnunet_qa.environment import FOLDERS
from nnunet_qa.experiments.demo_sources import SOURCES

ROUNDS = 3
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".bmp")


def read(path: Path) -> None:
    """Read one file of a source, to pixels."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".dcm"):
                    _ = pydicom.dcmread(io.BytesIO(archive.read(name))).pixel_array
    elif path.suffix == ".mat":
        loadmat(path)
    elif path.suffix == ".npy":
        np.load(path)
    elif path.suffix in PICTURES:
        imread(path)
    elif path.suffix == ".dcm" or not path.suffix:
        _ = pydicom.dcmread(path).pixel_array
    elif path.suffix in (".gz", ".mhd", ".mha", ".nrrd"):
        sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(path)))


def outputs(folder: Path) -> list[Callable[[Path], None]]:
    """Writers of all images and labels of a converted dataset, from memory."""
    writers: list[Callable[[Path], None]] = []
    for pair in raw_dataset.FOLDERS.values():
        for name in pair:
            for path in sorted((folder / name).iterdir()) if name and (folder / name).is_dir() else []:
                picture = path.suffix in NATURAL_ENDINGS
                array, geometry = (read_array(path, volumes=False), None) if picture else read_volume(path)
                place = f"{name}_{path.name}"
                writers.append(
                    lambda target, array=array, geometry=geometry, place=place: write_image(
                        target / place, array, geometry
                    )
                )
    return writers


def convert(name: str, written: Path, number: int, *more: str) -> Path:
    """Convert a phantom with its command."""
    source = SOURCES[name]
    app = typer.Typer()  # not the whole command line, which takes longer to put together than a phantom to convert
    app.command()(COMMANDS[name])
    command = ["-i", str(written), "-d", str(number), "--name", source.name]
    result = CliRunner().invoke(app, [*command, *source.convert, *more])
    if result.exception is not None:
        raise result.exception
    return Path(os.environ["nnUNet_raw"]) / f"Dataset{number}_{source.name}"


def ratios(name: str, base: Path, *, clinical: bool) -> tuple[float, float]:
    """Time of only reading and writing over that of converting, medians of `ROUNDS` runs.

    The second ratio leaves out what a run costs that has nothing left to convert: finding the files, the case table and
    the folds. Phantoms are few and small, so this is a good part of the first one.
    """
    write = CLINICAL[name] if clinical else SOURCES[name].write
    written = write(base / "phantoms", np.random.default_rng(0))
    files = [path for path in sorted(written.rglob("*")) if path.is_file()] if written.is_dir() else [written]
    number = 900 + list(SOURCES).index(name)
    writers = outputs(convert(name, written, number))
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for path in files:
            read(path)
        for write_one in writers:
            write_one(base / "bare")
        middle = time.process_time()
        convert(name, written, number, "--overwrite")
        end = time.process_time()
        convert(name, written, number)
        idle = time.process_time() - end
        found.append(((middle - start) / (end - middle), (middle - start) / (end - middle - idle)))
    whole, without = np.median(found, axis=0)
    return float(whole), float(without)


def kill_half_way(process: int, done: Path, wanted: int, killed: threading.Event) -> None:
    """Kill a process once the file of what is done has so many lines; tell whether that succeeded."""
    while not done.is_file() or done.read_text(encoding="utf-8").count('{"unit"') < wanted:
        time.sleep(0.2)
    os.kill(process, signal.SIGKILL)  # raises where the process is gone
    killed.set()


def zips(base: Path, number: int) -> None:
    """Print whether one process and two Dask workers, one of them killed, write the same bytes."""
    from distributed import LocalCluster

    from nnunet_qa.data.cine_dicom import write_ukbiobank_zip
    from nnunet_qa.data.cine_files import write_labels
    from nnunet_qa.data.cine_phantom import short_axis_cine

    folder = base / "biobank"
    for index in range(number):
        rng = np.random.default_rng(index)
        cine = short_axis_cine(rng, frames=3, slices=7, shape=(32, 32), spacing=(10.0, 8.0, 8.0))
        write_ukbiobank_zip(folder, str(1000001 + index), cine, rng)
        if index % 10 == 0:
            write_labels(folder, str(1000001 + index), cine, annotated="ed_es")
    one = convert("ukbiobank", folder, 921)
    killed = threading.Event()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        worker = next(iter(cluster.workers.values())).process.pid
        done = Path(os.environ["nnUNet_raw"]) / f"Dataset922_{SOURCES['ukbiobank'].name}" / DONE
        threading.Thread(target=kill_half_way, args=(worker, done, number // 2, killed), daemon=True).start()
        two = convert("ukbiobank", folder, 922, "--dask", cluster.scheduler_address)
    left, right = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.*") if path.suffix != ".jsonl"}
        for root in (one, two)
    )
    print(f"{number} zips: {len(left)} files, the same bytes: {left == right}, a worker was killed: {killed.is_set()}")


def main() -> None:
    """Print the ratios, or compare one process with a cluster."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sources", nargs="*", help=", ".join(SOURCES))
    parser.add_argument("--clinical", action="store_true", help="phantoms of the size of clinical scans")
    parser.add_argument("--zips", type=int, help="compare one process and Dask on so many UK Biobank style zips")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        os.environ.update({variable: os.fspath(base / variable) for variable in FOLDERS})
        for variable in FOLDERS:
            (base / variable).mkdir()
        raw_dataset.check_integrity = lambda *_, **__: None  # nnU-Net's own work, in processes of its own
        if options.zips:
            zips(base, options.zips)
            return
        for source in options.sources or SOURCES:
            whole, without = ratios(source, base, clinical=options.clinical)
            print(
                f"{source}: {whole:.2f} of the speed of only reading and writing; a case {without:.2f} (target >= 0.5)"
            )


if __name__ == "__main__":
    main()
