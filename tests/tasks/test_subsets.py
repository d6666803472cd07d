"""Without these, a 1 % probe could learn from other patients each time, or from all of the rare ones."""

from __future__ import annotations

import numpy as np

from medvlp_jax.tasks import subsets


def corpus(patients: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Two images per patient; label 0 for half of the patients, label 1 for 5 %, on one image only."""
    subject = np.repeat(np.arange(patients) * 7 + 3, 2)
    positive = np.zeros((2 * patients, 2), bool)
    positive[:patients, 0] = True
    rare = np.arange(0, 2 * patients, 40)
    positive[rare, 1] = True
    return subject, positive


def test_whole_patients_and_the_wanted_number() -> None:
    subject, positive = corpus()
    for fraction, patients in ((0.01, 4), (0.1, 40), (0.5, 200), (1.0, 400), (0.0001, 1)):
        rows = subsets.patient_subset(subject, positive, fraction, seed=0)
        assert len(np.unique(subject[rows])) == patients
        assert len(rows) == 2 * patients
        assert (np.diff(rows) > 0).all()


def test_a_smaller_share_is_part_of_a_larger_one_and_seeds_differ() -> None:
    subject, positive = corpus()
    one, ten, half = (subsets.patient_subset(subject, positive, f, 3) for f in (0.01, 0.1, 0.5))
    assert set(one) < set(ten) < set(half)
    other = subsets.patient_subset(subject, positive, 0.1, 4)
    assert 0 < len(set(ten) & set(other)) < len(ten)


def test_it_depends_on_ids_alone() -> None:
    subject, positive = corpus()
    chosen = set(subject[subsets.patient_subset(subject, positive, 0.1, 0)])
    shuffled = np.random.default_rng(0).permutation(len(subject))
    again = subsets.patient_subset(subject[shuffled], positive[shuffled], 0.1, 0)
    assert set(subject[shuffled][again]) == chosen
    # A fixed list: a change of these ids would silently change every published number.
    few = subsets.patient_subset(np.arange(12), np.zeros((12, 1), bool), 0.34, 0)
    assert few.tolist() == [0, 4, 6, 10]


def test_every_label_keeps_its_share() -> None:
    subject, positive = corpus()
    rows = subsets.patient_subset(subject, positive, 0.1, 0)
    patients = {k: len(np.unique(subject[rows][positive[rows, k]])) for k in (0, 1)}
    assert patients[1] == 2  # of 20
    assert 19 <= patients[0] <= 21  # of 200


def test_a_rare_patient_is_taken_with_the_probability_of_the_share() -> None:
    subject = np.arange(100)
    positive = np.zeros((100, 1), bool)
    positive[17] = True
    taken = [17 in subsets.patient_subset(subject, positive, 0.1, seed) for seed in range(400)]
    assert 0.05 < np.mean(taken) < 0.16


def test_the_stratum_is_the_rarest_label() -> None:
    member = np.array([0, 0, 1, 2, 3])
    positive = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [0, 0]], bool)
    assert subsets.strata(member, positive).tolist() == [1, 0, 0, 2]


def test_few_per_class() -> None:
    subject = np.repeat(np.arange(10), 3)
    label = np.repeat((np.arange(10) < 4).astype(np.float32), 3)
    mask = np.ones(30)
    mask[:3] = 0  # patient 0 is unknown
    positive, negative = subsets.few_per_class(subject, label, mask, shots=3, seed=0)
    assert sorted(subject[positive]) == [1, 2, 3]  # one image each
    assert len(np.unique(subject[negative])) == 3
    assert set(subject[negative]) <= set(range(4, 10))
    positive, negative = subsets.few_per_class(subject, label, mask, shots=16, seed=0)
    assert len(positive) == 9  # all there are: then a patient gives several
    assert len(negative) == 16
    again = subsets.few_per_class(subject, label, mask, shots=16, seed=0)
    np.testing.assert_array_equal(again[0], positive)
    assert len(subsets.few_per_class(subject, label, np.zeros(30), 4, 0)[0]) == 0
