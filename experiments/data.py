"""Data sets: pairs of overlaid images, and tables.

`load`: pairs of overlaid images, two labels each, the Multi-MNIST recipe on four sources. Two
images of different classes are placed on a larger canvas, one towards the top left and one towards
the bottom right, each moved by a few pixels, and overlapped by the maximum; task 1 is the class of
the top-left image, task 2 that of the other (Sabour, Frosst, Hinton 2017; Lin et al. 2019). The
base images of train, validation and test are disjoint.

`load_table`, `load_pair`: tables of mixed columns as pandas data frames. `load_cells`: single
cells as matrices.

Files are looked for under the folder `DIVJAX_DATA_DIR`, then in the cache, then downloaded where
their source allows it; checksums decide.
"""

import gzip
import hashlib
import io
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from experiments.run_folder import write_atomically

DATASETS = ("digits", "multi_mnist", "multi_fashion", "multi_fashion_mnist")

PAIRS = ("ctgan", "vae")

# A folder of files, or an archive that holds them.
_SOURCES = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "adult": "https://archive.ics.uci.edu/static/public/2/adult.zip",
    "covertype": "https://archive.ics.uci.edu/static/public/31/covertype.zip",
}
# What must be fetched by hand, and where.
_BY_HAND = {
    "bike_sharing": "https://archive.ics.uci.edu/dataset/275",
    "california_housing": "https://ndownloader.figshare.com/files/5976036 (an archive, of which "
    "scikit-learn's fetch_california_housing makes its table)",
    "king_county": "https://www.kaggle.com/datasets/harlfoxem/housesalesprediction (an account)",
    "credit_default": "https://archive.ics.uci.edu/dataset/350 (a spreadsheet, to be saved as csv)",
    "adult_synth_2405.07822": "https://github.com/Patricia-A-Apellaniz/divergence_estimator "
    "(no licence is stated, so it is not downloaded for you)",
    "lightsb_msci": "https://github.com/ngushchin/LightSB, folder data "
    "(the terms of the data are not stated, so they are not downloaded for you)",
    "w2_benchmark": "https://github.com/iamalexkorotin/Wasserstein2Benchmark (its pairs' numbers, "
    "saved as arrays)",
    "sachs": "https://github.com/FenTechSolutions/CausalDiscoveryToolbox (the terms of the data "
    "are not stated, so they are not downloaded for you)",
    "text": "https://github.com/karpathy/char-rnn (tinyshakespeare.txt) and "
    "https://github.com/nltk/nltk_data (corpora, to be saved under text/nltk)",
}
_MD5 = {
    "mnist/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "mnist/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "mnist/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "mnist/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    "fashion_mnist/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "adult/adult.data": "5d7c39d7b8804f071cdd1f2a7c460872",
    "adult/adult.test": "35238206dfdf7f1fe215bbb874adecdc",
    "adult_synth_2405.07822/ctgan/gen_data.csv": "1a5e511dfcaddb6e1cf30ecbf87ce68b",
    "adult_synth_2405.07822/ctgan/real_data.csv": "c674823ee521187d7c537e3bc15a23dc",
    "adult_synth_2405.07822/vae/gen_data.csv": "f4c60b315b20daad690c9bfe5f0b662b",
    "adult_synth_2405.07822/vae/real_data.csv": "eecbbeaa06d1fa9059408a7aeafc2df1",
    "bike_sharing/Bike-Sharing-Dataset.zip": "eba5474d2220f3d227ddd8f8f65efbf2",
    "california_housing/cal_housing.data": "01d0b31df796a8d4b7a6ce4c37f42dbc",
    "covertype/covtype.20k.data": "e41ea3d6ffc44ed39da92686c3917683",
    "credit_default/credit-card-clients.csv": "b4c032de2325e194778792f7e7610d06",
    "lightsb_msci/full_cite_pcas_100_day_2.npy": "97f49c48399ce9c52827ec4c2a1b838e",
    "lightsb_msci/full_cite_pcas_100_day_3.npy": "b0ddf027f80a310e1f18ecb12420dc48",
    "lightsb_msci/full_cite_pcas_100_day_4.npy": "961739ca2a1ccc46b7137b0aae9ce4a2",
    "lightsb_msci/full_cite_pcas_100_day_7.npy": "1f11f71b47d08d89f7c90d430175c4b2",
    "lightsb_msci/full_cite_pcas_50_day_2.npy": "fc7d30c6bc0a252ca8f5fccc24d40237",
    "lightsb_msci/full_cite_pcas_50_day_3.npy": "9baeb9ef67b6f2fe6efbe40815248b29",
    "lightsb_msci/full_cite_pcas_50_day_4.npy": "7c11acfe5ecb968d6d5c90540e6c0027",
    "lightsb_msci/full_cite_pcas_50_day_7.npy": "99806fba5ed483a62c0d27d115910f08",
    "king_county/kc_house_data.csv": "b1e7bdf4f3e61792c0979a5697dc7145",
    "w2_benchmark/mix3tomix10_2.npz": "dcdda0373e25aa61f3572b03d9ab235b",
    "w2_benchmark/mix3tomix10_4.npz": "20eb35f5c267869a638871e11ef7720f",
    "w2_benchmark/mix3tomix10_16.npz": "0ae5a87943ee694ad3779cf513aa2f7c",
    "w2_benchmark/mix3tomix10_64.npz": "4f8713596882512aaf617ae77f599959",
    "w2_benchmark/mix3tomix10_128.npz": "fe3b8959694140c14d8f1c51171fa4b5",
    "sachs/cyto_full_data.csv": "88215b09fb2230dc2d3c83bcb925f865",
    "text/tinyshakespeare.txt": "6fb458f1232090904fb40fe944165e91",
    "text/nltk/genesis.zip": "2a76432753c01fe179684e0ae3a4d023",
    "text/nltk/inaugural.zip": "4e01cc9505ed7f9d04a330e67fb45509",
    "text/nltk/movie_reviews.zip": "155de2b77c6834dd8eea7cbe88e93acb",
    "text/nltk/shakespeare.zip": "2332b32a7d83d657092ba4667c2c84c3",
    "text/nltk/state_union.zip": "044f2d20c592b17a26ac0102111833c9",
}


class Images(NamedTuple):
    """Single images and their classes."""

    images: np.ndarray  # "n h w", uint8
    labels: np.ndarray  # "n", int32

    def take(self, index: np.ndarray) -> "Images":
        """Some of them."""
        return Images(self.images[index], self.labels[index])


class Pairs(NamedTuple):
    """Overlaid images, brightness 0 to 255 as bytes (a quarter of float32), and both labels."""

    images: np.ndarray  # "n h w", uint8
    labels: np.ndarray  # "n 2", int32


class Splits(NamedTuple):
    """Train on train, choose on validation, report on test."""

    train: Pairs
    validation: Pairs
    test: Pairs


def load(name: str, seed: int = 0, quick: bool = False) -> Splits:
    """A data set of overlaid pairs.

    Args:
        name: `digits`, scikit-learn's bundled 8 × 8 digits on a 12 × 12 canvas, moved by up to 1
            pixel: 8 000 pairs of 1 000 digits to train, 1 500 of 297 to validate, 3 000 of 500 to
                test. Or
            `multi_mnist`, `multi_fashion`, `multi_fashion_mnist` (task 1 is the MNIST digit, task 2
            the Fashion-MNIST article): 28 × 28 on 36 × 36, moved by up to 4 pixels, 120 000 / 10
            000 / 20 000 pairs; validation pairs are made of 5 000 train images set aside.
        seed: of the pairing, placing and (digits) splitting.
        quick: a twentieth of the pairs.

    Raises:
        ValueError: if the name is unknown.
        FileNotFoundError: if a file is neither under `DIVJAX_DATA_DIR` nor in the cache and cannot
            be downloaded.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}; got {name!r}.")
    rng = np.random.default_rng(seed)
    shrink = 20 if quick else 1
    if name == "digits":
        sources = _digits(rng)
        counts, canvas, move = (8_000, 1_500, 3_000), 12, 1
        pairs = [(source, source) for source in sources]
    else:
        first, second = {
            "multi_mnist": ("mnist", "mnist"),
            "multi_fashion": ("fashion_mnist", "fashion_mnist"),
            "multi_fashion_mnist": ("mnist", "fashion_mnist"),
        }[name]
        counts, canvas, move = (120_000, 10_000, 20_000), 36, 4
        pairs = list(zip(_idx_splits(first), _idx_splits(second), strict=True))
    return Splits(
        *(
            overlay(rng, *pair, count // shrink, canvas, move)
            for pair, count in zip(pairs, counts, strict=True)
        )
    )


def overlay(
    rng: np.random.Generator, first: Images, second: Images, count: int, canvas: int, move: int
) -> Pairs:
    """Pairs of different classes, first top left, second bottom right, the brighter pixel kept."""
    left = rng.integers(len(first.labels), size=count)
    right = rng.integers(len(second.labels), size=count)
    while (clash := first.labels[left] == second.labels[right]).any():
        right[clash] = rng.integers(len(second.labels), size=clash.sum())
    size = first.images.shape[1]
    images = np.zeros((count, canvas, canvas), np.uint8)
    corners = rng.integers(move + 1, size=(count, 4))
    far = canvas - size
    for index in range(count):
        a, b, c, d = corners[index]
        images[index, a : a + size, b : b + size] = first.images[left[index]]
        place = images[index, far - c : far - c + size, far - d : far - d + size]
        np.maximum(place, second.images[right[index]], out=place)
    labels = np.stack([first.labels[left], second.labels[right]], axis=1).astype(np.int32)
    return Pairs(images, labels)


def _digits(rng: np.random.Generator) -> tuple[Images, Images, Images]:
    """1 000, 297 and 500 of scikit-learn's digits, brightness 0…16 stretched to 0…255."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.round(np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)
    digits = Images(images, np.asarray(labels, np.int32))
    order = rng.permutation(len(digits.labels))
    train, validation, test = np.split(order, [1_000, 1_297])
    return digits.take(train), digits.take(validation), digits.take(test)


def load_images(source: str) -> Images:
    """The training images of `mnist` or `fashion_mnist`, 60 000 × 28 × 28 bytes, and their classes.

    Raises:
        FileNotFoundError: if a file is not there and cannot be downloaded.
    """
    return Images(
        parse_idx(fetch(f"{source}/train-images-idx3-ubyte.gz")),
        parse_idx(fetch(f"{source}/train-labels-idx1-ubyte.gz")).astype(np.int32),
    )


def _idx_splits(source: str) -> tuple[Images, Images, Images]:
    """Train, validation and test images of a source of idx files."""
    parts = [
        Images(
            parse_idx(fetch(f"{source}/{part}-images-idx3-ubyte.gz")),
            parse_idx(fetch(f"{source}/{part}-labels-idx1-ubyte.gz")).astype(np.int32),
        )
        for part in ("train", "t10k")
    ]
    train, test = parts
    kept = np.arange(len(train.labels)) < len(train.labels) - 5_000
    return train.take(kept), train.take(~kept), test


def parse_idx(content: bytes) -> np.ndarray:
    """An idx file of unsigned bytes: a magic number, the sizes of the axes, the data."""
    raw = gzip.decompress(content)
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"not an idx file of unsigned bytes: it starts with {raw[:4]!r}.")
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load_table(name: str) -> pd.DataFrame:
    """A table of mixed columns.

    Args:
        name: `adult`, census income, 48 842 × 15, missing values in three columns;
            `king_county`, house sales, 21 613 × 20, without the `id`; `credit_default`, Taiwanese
            card holders, 30 000 × 24; `covertype`, the first 20 000 × 13, wilderness area and soil
            type each as one category instead of 4 and 40 indicators; `california_housing`, census
            blocks of 1990, 20 640 × 9; `bike_sharing`, hours of two years, 17 379 × 17.

    Raises:
        ValueError: if the name is unknown.
        FileNotFoundError: if a file is not there and cannot be downloaded.
    """
    if name not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}; got {name!r}.")
    return TABLES[name]()


def load_pair(synthesizer: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Adult and what a generator made of it, the files of Apellániz et al., arXiv 2405.07822.

    Args:
        synthesizer: `ctgan`, 10 000 and 10 000 rows, or `vae`, 10 000 and 9 500.

    Returns:
        The real table and the synthetic one, 14 columns each; all but `age` and `fnlwgt`, which are
        standardised, are codes of categories.

    Raises:
        ValueError: if the name is unknown.
        FileNotFoundError: if the files are not under `DIVJAX_DATA_DIR`: they are never downloaded.
    """
    if synthesizer not in PAIRS:
        raise ValueError(f"synthesizer must be one of {', '.join(PAIRS)}; got {synthesizer!r}.")
    real, synthetic = (
        _read_csv(f"adult_synth_2405.07822/{synthesizer}/{part}_data.csv")
        for part in ("real", "gen")
    )
    codes = {column: "int64" for column in real.columns if column not in ("age", "fnlwgt")}
    as_categories = dict.fromkeys(codes, "category")
    return real.astype(codes).astype(as_categories), synthetic.astype(codes).astype(as_categories)


def load_cells(components: int, day: int) -> np.ndarray:
    """Single cells as principal components, a row each, from the files of Korotin et al. 2024.

    Args:
        components: 50 or 100; signs differ between the two, which are not to be mixed.
        day: 2, 3, 4 or 7, with 6071, 7643, 8485 and 7195 cells.

    Raises:
        ValueError: if there is no such file.
        FileNotFoundError: if it is not under `DIVJAX_DATA_DIR`: it is never downloaded.
    """
    name = f"lightsb_msci/full_cite_pcas_{components}_day_{day}.npy"
    if name not in _MD5:
        raise ValueError(
            "components must be 50 or 100 and day 2, 3, 4 or 7; "
            f"got components {components!r} and day {day!r}."
        )
    return np.load(io.BytesIO(fetch(name)))


def _read_csv(name: str, **options: Any) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(fetch(name)), **options)


_ADULT_COLUMNS = """
    age workclass fnlwgt education education-num marital-status occupation relationship race sex
    capital-gain capital-loss hours-per-week native-country income
"""
_COVERTYPE_NUMBERS = """
    elevation aspect slope to-water to-water-vertical to-roads shade-9 shade-noon shade-15 to-fire
"""


def _adult() -> pd.DataFrame:
    options = {"names": _ADULT_COLUMNS.split(), "na_values": "?", "skipinitialspace": True}
    train = _read_csv("adult/adult.data", **options)
    test = _read_csv("adult/adult.test", **options, skiprows=1)
    table = pd.concat([train, test], ignore_index=True)
    return table.assign(income=table["income"].str.rstrip("."))


def _king_county() -> pd.DataFrame:
    table = _read_csv("king_county/kc_house_data.csv", dtype={"zipcode": "category"})
    return table.drop(columns="id").assign(date=pd.to_datetime(table["date"]))


def _credit_default() -> pd.DataFrame:
    return _read_csv("credit_default/credit-card-clients.csv")


def _covertype() -> pd.DataFrame:
    raw = _read_csv("covertype/covtype.20k.data", header=None).to_numpy()
    table = pd.DataFrame(raw[:, :10], columns=_COVERTYPE_NUMBERS.split())
    for column, indicators in (("wilderness", raw[:, 10:14]), ("soil", raw[:, 14:54])):
        table[column] = pd.Categorical(indicators.argmax(axis=1) + 1)
    return table.assign(cover=pd.Categorical(raw[:, 54]))


_CALIFORNIA_COLUMNS = """
    longitude latitude age rooms bedrooms population households income value
"""


def _california_housing() -> pd.DataFrame:
    names = _CALIFORNIA_COLUMNS.split()
    return _read_csv("california_housing/cal_housing.data", header=None, names=names)


def _bike_sharing() -> pd.DataFrame:
    with zipfile.ZipFile(io.BytesIO(fetch("bike_sharing/Bike-Sharing-Dataset.zip"))) as archive:
        return pd.read_csv(io.BytesIO(archive.read("hour.csv")), parse_dates=["dteday"])


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "adult": _adult,
    "king_county": _king_county,
    "credit_default": _credit_default,
    "covertype": _covertype,
    "california_housing": _california_housing,
    "bike_sharing": _bike_sharing,
}


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "divjax"


def fetch(name: str) -> bytes:
    """A file of `DIVJAX_DATA_DIR`, of the cache, or downloaded into it, its checksum verified."""
    given = os.environ.get("DIVJAX_DATA_DIR")
    for folder in ([Path(given)] if given else []) + [cache_folder()]:
        if (folder / name).exists():
            return _verified(name, (folder / name).read_bytes(), str(folder / name))
    source, file = name.split("/", 1)
    absent = (
        f"{name} is not under DIVJAX_DATA_DIR ({given or 'not set'}) nor in {cache_folder()}, and "
    )
    if source in _BY_HAND:
        raise FileNotFoundError(f"{absent}must be put there by hand, from {_BY_HAND[source]}.")
    archived = _SOURCES[source].endswith(".zip")
    url = _SOURCES[source] + file * (not archived)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise FileNotFoundError(f"{absent}{url} could not be read: {error}.") from error
    content = _verified(name, _extract(content, file) if archived else content, url)
    write_atomically(cache_folder() / name, content)
    return content


def _extract(archive: bytes, file: str) -> bytes:
    """A file of a zip archive; of covertype, the first 20 000 rows."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        if file != "covtype.20k.data":
            return opened.read(file)
        rows = gzip.decompress(opened.read("covtype.data.gz"))
        return b"".join(rows.splitlines(keepends=True)[:20_000])


def _verified(name: str, content: bytes, origin: str) -> bytes:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != _MD5[name]:
        raise ValueError(f"{origin} is damaged: its md5 is {found}, not {_MD5[name]}.")
    return content
