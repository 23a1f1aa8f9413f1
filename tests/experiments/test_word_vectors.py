"""Co-occurrences and their information, by hand and on a corpus of two topics."""

import numpy as np
import pytest

from experiments import word_vectors as job


def test_pairs_are_counted_within_documents():
    documents = [["a", "b", "c", "a"], ["b", "a"]]
    words, counts = job.cooccurrences(documents, vocabulary=2, window=2)
    assert words == ["a", "b"]
    # In the first document a–b at distance 1 and b–a at 2, where c keeps its place; a–a is at 3.
    np.testing.assert_array_equal(counts.toarray(), [[0, 3], [3, 0]])


def test_words_are_in_lower_case():
    found = job.words_of("Who's there? Nay, answer me:")
    assert found == ["who's", "there", "nay", "answer", "me"]


def test_positive_information_of_a_table():
    table = np.array([[4.0, 1.0, 0.0], [1.0, 6.0, 2.0], [0.0, 2.0, 1.0]])
    _, counts = job.cooccurrences([["x"]], vocabulary=1, window=1)
    found = job.positive_pmi(type(counts)(table)).toarray()
    shares = table / table.sum()
    with np.errstate(divide="ignore"):
        expected = np.log(shares / np.outer(shares.sum(1), shares.sum(0)))
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-12)


def test_words_of_one_topic_are_near_each_other():
    """Documents of either ten or ten other words: the second direction separates them."""
    rng = np.random.default_rng(0)
    topics = [[f"{name}{i}" for i in range(10)] for name in ("s", "t")]
    documents = [rng.choice(topics[i % 2], 30).tolist() for i in range(60)]
    documents.append([*topics[0], *topics[1]])
    words, counts = job.cooccurrences(documents, vocabulary=20, window=4)
    vectors = job.svd_vectors(job.positive_pmi(counts), 2, seed=0)
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = directions @ directions.T
    same = np.array([[one[0] == other[0] for other in words] for one in words])
    assert cosine[same].min() > 0.9 > 0.5 > cosine[~same].max()
    assert (np.linalg.norm(vectors, axis=0)[:1] >= np.linalg.norm(vectors, axis=0)[1:]).all()


def test_the_texts_are_english_without_markup():
    try:
        texts = job.read_texts()
    except FileNotFoundError:
        pytest.skip("the texts are not there")
    assert len(texts) > 2000
    assert not any("<SPEECH>" in text for text in texts)
