"""The Multi-MNIST recipe, the tables, and files that are missing or damaged."""

import gzip
import hashlib
import io
import itertools
import urllib.error
import zipfile

import numpy as np
import pytest

from experiments import data


def test_digits_are_overlaid_pairs_of_disjoint_splits():
    splits = data.load("digits")
    assert [len(split.labels) for split in splits] == [8000, 1500, 3000]
    for split in splits:
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (12, 12)
        assert (split.labels[:, 0] != split.labels[:, 1]).all()
    train, validation, test = data._digits(np.random.default_rng(0))
    seen = [{image.tobytes() for image in part.images} for part in (train, validation, test)]
    for one, other in itertools.combinations(seen, 2):
        assert not one & other


def test_the_seed_decides():
    one, two, other = (data.load("digits", seed=seed, quick=True) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.test.images, two.test.images)
    assert (one.test.images != other.test.images).any()


def test_overlaying_keeps_the_brighter_pixel():
    """A block of 100 and a block of 200: every pixel is one of them, where its image was put."""
    first = data.Images(np.full((1, 4, 4), 100, np.uint8), np.array([0]))
    second = data.Images(np.full((1, 4, 4), 200, np.uint8), np.array([1]))
    pairs = data.overlay(np.random.default_rng(0), first, second, 200, canvas=6, move=1)
    places = set()
    for image in pairs.images:
        rows, columns = np.nonzero(image == 200)
        assert (rows.max() - rows.min(), columns.max() - columns.min()) == (3, 3)
        assert len(rows) == 16
        low = (rows.min(), columns.min())
        places.add(low)
        assert min(low) >= 1  # towards the bottom right
        assert set(np.unique(image)) <= {0, 100, 200}
        left = image[:5, :5]
        assert (left > 0).sum() >= 16  # the other, towards the top left, brighter pixels on top
    assert places == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert (pairs.labels == [0, 1]).all()


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes())


def test_idx_files_are_read():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(data.parse_idx(idx(array)), array)
    with pytest.raises(ValueError, match="not an idx file"):
        data.parse_idx(gzip.compress(b"not at all"))


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((1, 28, 28), np.uint8)))
    monkeypatch.setenv("DIVJAX_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        data.load("multi_mnist")


def test_a_missing_file_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.delenv("DIVJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data.urllib.request, "urlopen", offline)
    with pytest.raises(FileNotFoundError, match=r"DIVJAX_DATA_DIR \(not set\).*could not be read"):
        data.load("multi_fashion")
    assert not any(tmp_path.rglob("*.gz"))


def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch):
    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self):
            return b"truncated"

    monkeypatch.delenv("DIVJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data.urllib.request, "urlopen", lambda *_, **__: Response())
    with pytest.raises(ValueError, match="is damaged"):
        data.load("multi_mnist")
    assert not any(tmp_path.rglob("*.gz"))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="dataset must be one of digits, multi_mnist"):
        data.load("cifar")


ADULT = {
    "adult/adult.data": b"39, Private, 77516, HS-grad, 9, Divorced, ?, Wife, White, Female, 0, 0, "
    b"40, Cuba, <=50K\n",
    "adult/adult.test": b"|1x3 Cross validator\n25, ?, 226802, 11th, 7, Divorced, Sales, "
    b"Own-child, Black, Male, 0, 0, 40, Peru, >50K.\n",
}


def checksums(monkeypatch, files):
    for name, content in files.items():
        monkeypatch.setitem(data._MD5, name, hashlib.md5(content).hexdigest())


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.split("/")[-1], content)
    return buffer.getvalue()


def served(monkeypatch, content):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(data.urllib.request, "urlopen", urlopen)
    return asked


def test_adult_is_downloaded_joined_and_its_question_marks_are_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("DIVJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checksums(monkeypatch, ADULT)
    asked = served(monkeypatch, zipped(ADULT))
    for _ in range(2):
        table = data.load_table("adult")
        assert table.shape == (2, 15)
        assert table["income"].tolist() == ["<=50K", ">50K"]
        assert table["workclass"].isna().tolist() == [False, True]
        assert table["occupation"].isna().tolist() == [True, False]
        assert table["age"].tolist() == [39, 25]
    assert len(asked) == 2  # one for each file; the second time they are in the cache


def test_covertype_is_the_first_rows_of_its_archive(tmp_path, monkeypatch):
    """Wilderness area 3, soil type 40, then 1 and 2."""
    monkeypatch.delenv("DIVJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def row(wilderness, soil, cover):
        indicators = [int(k == wilderness) for k in range(1, 5)]
        indicators += [int(k == soil) for k in range(1, 41)]
        return ",".join(
            map(str, [2596, 51, 3, 258, 0, 510, 221, 232, 148, 6279, *indicators, cover])
        )

    kept = (row(3, 40, 5) + "\n" + (row(1, 2, 7) + "\n") * 19_999).encode()
    checksums(monkeypatch, {"covertype/covtype.20k.data": kept})
    served(monkeypatch, zipped({"covtype.data.gz": gzip.compress(kept + b"1,2,3\n")}))
    table = data.load_table("covertype")
    assert table.shape == (20_000, 13)
    assert table.iloc[0][["elevation", "wilderness", "soil", "cover"]].tolist() == [2596, 3, 40, 5]
    assert table.iloc[1][["to-fire", "wilderness", "soil", "cover"]].tolist() == [6279, 1, 2, 7]


def test_what_is_not_downloaded_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("DIVJAX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = served(monkeypatch, b"")
    with pytest.raises(FileNotFoundError, match=r"ctgan/real_data\.csv.*by hand.*no licence"):
        data.load_pair("ctgan")
    with pytest.raises(FileNotFoundError, match=r"kc_house_data\.csv.*by hand.*kaggle"):
        data.load_table("king_county")
    assert not asked


def test_tables_in_a_local_folder_are_read(tmp_path, monkeypatch):
    """House ids go, dates are dates, zip codes are categories; the pair's codes are too.

    California's columns have names, and of the bikes' archive the hours are read.
    """
    real = b"age,workclass,fnlwgt,label\n-1.5,1.0,0.25,0.0\n0.5,0.0,0.5,1.0\n"
    files = {
        "king_county/kc_house_data.csv": b"id,date,price,zipcode\n1,20141013T000000,221900,98178\n",
        "adult_synth_2405.07822/vae/real_data.csv": real,
        "adult_synth_2405.07822/vae/gen_data.csv": real.replace(b"1.0", b"1"),
        "california_housing/cal_housing.data": b"-122.23,37.88,41,880,129,322,126,8.3252,452600\n",
        "bike_sharing/Bike-Sharing-Dataset.zip": zipped(
            {"hour.csv": b"instant,dteday,cnt\n1,2011-01-01,16\n", "day.csv": b"instant\n1\n"}
        ),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    checksums(monkeypatch, files)
    monkeypatch.setenv("DIVJAX_DATA_DIR", str(tmp_path))
    houses = data.load_table("king_county")
    assert list(houses) == ["date", "price", "zipcode"]
    assert houses["date"][0].isoformat() == "2014-10-13T00:00:00"
    assert houses["zipcode"].dtype == "category"
    one, other = data.load_pair("vae")
    assert one.equals(other)
    assert one["workclass"].tolist() == [1, 0]
    assert one["age"].tolist() == [-1.5, 0.5]
    assert [str(dtype) for dtype in one.dtypes] == ["float64", "category", "float64", "category"]
    blocks, hours = (data.load_table(name) for name in ("california_housing", "bike_sharing"))
    assert (blocks["latitude"][0], blocks["income"][0], blocks["value"][0]) == (
        37.88,
        8.3252,
        452600,
    )
    assert (hours["dteday"][0].isoformat(), hours["cnt"][0]) == ("2011-01-01T00:00:00", 16)


def test_unknown_tables_are_refused():
    with pytest.raises(ValueError, match="table must be one of adult, king_county"):
        data.load_table("iris")
    with pytest.raises(ValueError, match="synthesizer must be one of ctgan, vae"):
        data.load_pair("gan")
