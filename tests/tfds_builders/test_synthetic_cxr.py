"""Without it the embedded corpus could drift: other images for a seed, or text that contradicts truth."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from tfds_builders.synthetic_cxr import acquisition, anatomy, generate, world
from tfds_builders.synthetic_cxr import findings as disease
from tfds_builders.synthetic_cxr import labels as L
from tfds_builders.synthetic_cxr import phrases as P
from tfds_builders.synthetic_cxr.questions import ask
from tfds_builders.synthetic_cxr.report import write_report

SIZE = 64
SIDED = (
    L.ATELECTASIS,
    L.CONSOLIDATION,
    L.EFFUSION,
    L.PNEUMOTHORAX,
    L.NODULE,
    L.FRACTURE,
    L.THICKENING,
    L.SCOLIOSIS,
    L.ELEVATION,
)
DENIAL = re.compile(
    r"^(no|neither|there is no|there are no|normal|clear|without|the lungs are (clear|not)|"
    r"heart size is normal|"
    r"the heart is not|the costophrenic angles are sharp|the pleural surfaces are smooth|"
    r"the hemidiaphragms are normal|cardiac silhouette is within|interval resolution|unremarkable|"
    r"the bony thorax is intact|the previously seen|the retrocardiac space is clear|osseous structures are|"
    r"the lungs are (fully|well) expanded|lung volumes are normal|the pleural spaces are)\b"
    r"|has resolved|no longer seen",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"possible|cannot be excluded|questionable|may represent|not excluded|raise the possibility|"
    r"equivocal|not definite",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def patients() -> list[world.Patient]:
    return [world.sample_patient(3, index, world.BENCHMARK) for index in range(400)]


@pytest.fixture(scope="module")
def examples() -> list[generate.Example]:
    return list(generate.generate(0, range(60), SIZE, workers=1))


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=\.)\s+(?:\d\. )?", text) if s]


def _reports(patients):
    for patient in patients:
        for study in patient.studies:
            yield study, write_report(study, rng=np.random.default_rng((study.seed, 0)))


def _finding(label: int, severity: int, seed: int = 0) -> disease.Finding:
    rng = np.random.default_rng((label, seed))
    finding = world.sample_finding(rng, label, world.BENCHMARK)
    return disease.Finding(label, severity, finding.parts)


def test_equal_seeds_give_equal_examples_and_other_seeds_do_not():
    first, again = (generate.patient_examples(1, 7, SIZE, world.BENCHMARK) for _ in range(2))
    assert len(first) == len(again)
    for a, b in zip(first, again, strict=True):
        for key in a:
            assert np.array_equal(a[key], b[key]) if key != "boxes" else str(a[key]) == str(b[key])
    other = generate.patient_examples(2, 7, SIZE, world.BENCHMARK)
    assert other[0]["image"] != first[0]["image"]


def test_examples_do_not_depend_on_the_number_of_workers():
    alone = list(generate.generate(5, range(6), SIZE, workers=1))
    pooled = list(generate.generate(5, range(6), SIZE, workers=2, chunk=2))
    assert [e["image_id"] for e in alone] == [e["image_id"] for e in pooled]
    for key in ("image", "mask", "text", "qa"):
        assert [e[key] for e in alone] == [e[key] for e in pooled]


def test_boxes_enclose_the_masks_and_agree_with_the_labels(examples):
    for example in examples:
        mask = cv2.imdecode(np.frombuffer(example["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert mask.dtype == np.uint16
        assert mask.shape == (SIZE, SIZE)
        boxed = {box["label"] for box in example["boxes"]}
        drawn = {k for k in range(len(L.LABEL_NAMES)) if (mask & (1 << k)).any()}
        assert boxed == drawn
        assert drawn <= {k for k, grade in enumerate(example["severity"]) if grade > 0}
        for box in example["boxes"]:
            ymin, xmin, ymax, xmax = box["bbox"]
            assert 0 <= ymin < ymax <= 1
            assert 0 <= xmin < xmax <= 1
        for label in drawn:
            rows, columns = np.nonzero(mask & (1 << label))
            corners = np.stack([box["bbox"] for box in example["boxes"] if box["label"] == label])
            lowest, highest = corners[:, :2].min(0) * SIZE, corners[:, 2:].max(0) * SIZE
            assert (rows.min(), columns.min()) == tuple(np.rint(lowest))
            assert (rows.max() + 1, columns.max() + 1) == tuple(np.rint(highest))


def test_label_is_the_truth_except_where_the_report_hedges(examples):
    for example in examples:
        label, severity = example["label"], example["severity"]
        assert label.dtype == np.int8
        assert set(np.unique(label)) <= {-1, 0, 1}
        assert np.all(severity[label == 1] > 0)
        assert np.all(severity[label == 0] == 0)
        assert np.all((example["side"] > 0) == (severity > 0))


@pytest.mark.parametrize("label", [label for label in SIDED if label != L.SCOLIOSIS])
@pytest.mark.parametrize("side", [L.RIGHT, L.LEFT])
def test_a_finding_of_the_right_lies_on_the_left_of_the_frontal_image(label, side):
    finding = _finding(label, 2)
    parts = tuple(dataclasses.replace(part, side=side) for part in finding.parts)
    finding = disease.Finding(label, 2, parts)
    shape = anatomy.sample_shape(np.random.default_rng(0), female=True, age=50)
    scene = anatomy.compose(disease.deform(shape, (finding,)), "PA", 96)
    columns = np.nonzero(np.any(disease.draw(scene, finding), 0))[1]
    assert columns.size
    assert (columns.mean() < 47.5) == (side == L.RIGHT)


@pytest.mark.parametrize("label", [k for k in range(len(L.LABEL_NAMES)) if k != L.DEVICE])
def test_every_finding_changes_the_image_more_the_more_severe_it_is(label):
    shape = anatomy.sample_shape(np.random.default_rng(1), female=False, age=60)
    healthy = anatomy.compose(shape, "PA", 96).attenuation
    change = []
    for severity in (1, 2, 3):
        finding = _finding(label, severity)
        scene = anatomy.compose(disease.deform(shape, (finding,)), "PA", 96)
        assert any(mask.any() for mask in disease.draw(scene, finding))
        change.append(float(np.abs(scene.attenuation - healthy).mean()))
    assert 0.0 < change[0] < change[1] < change[2]


def test_report_states_every_definite_finding_with_its_side(patients):
    for study, report in _reports(patients):
        sentences = [s for s in _sentences(report.findings) if not DENIAL.search(s)]
        stated = [s.lower() for s in sentences if not HEDGE.search(s)]
        for finding in study.findings:
            if finding.label in study.hedged:
                continue
            mine = [s for s in stated if any(word in s for word in P.KEYWORDS[finding.label])]
            assert mine, (L.LABEL_NAMES[finding.label], report.findings)
            if finding.label in SIDED:
                text = " ".join(mine)
                sides = {part.side for part in finding.parts}
                both = "bilateral" in text and len(sides) == 2
                assert both or all(L.SIDES[side] in text for side in sides), report.findings


def test_report_never_denies_a_finding_that_is_there(patients):
    for study, report in _reports(patients):
        label = study.label()
        for sentence in _sentences(f"{report.findings} {report.impression}"):
            if not DENIAL.search(sentence):
                continue
            for index, words in P.KEYWORDS.items():
                plain = sentence.lower().replace("abnormality", "")
                if any(word in plain for word in words) and index != L.DEVICE:
                    assert label[index] != L.PRESENT, (L.LABEL_NAMES[index], report.text)


def test_only_hedged_labels_are_worded_as_uncertain(patients):
    for study, report in _reports(patients):
        hedges = [s for s in _sentences(report.findings) if HEDGE.search(s)]
        assert len(hedges) == len(study.hedged)


def test_reports_vary_and_normal_studies_are_called_normal(patients):
    texts = [report.text for _, report in _reports(patients)]
    assert len(set(texts)) > 0.98 * len(texts)
    normal = [r for study, r in _reports(patients) if not study.label().any()]
    assert 0.08 < len(normal) / len(texts) < 0.25
    assert all(report.impression.rstrip(".") in P.NORMAL for report in normal)


def test_prevalence_of_every_finding_is_useful(patients):
    labels = np.stack([study.label() for patient in patients for study in patient.studies])
    rate = (labels == 1).mean(0)
    assert np.all(rate > 0.05)
    assert np.all(rate < 0.25)
    assert 0.005 < (labels == -1).mean() < 0.05


def test_sister_studies_keep_anatomy_and_chronic_findings(patients):
    followed = [patient for patient in patients if len(patient.studies) > 1]
    assert followed
    for patient in followed:
        for before, after in zip(patient.studies, patient.studies[1:], strict=False):
            assert after.prior_study_id == before.study_id
            assert after.days > before.days
            for finding in before.findings:
                if finding.label in world.TRANSIENT:
                    continue
                later = after.finding(finding.label)
                assert later is not None
                assert later.parts == finding.parts
    patient = followed[0]
    rng = np.random.default_rng
    images = [
        generate.render(patient, study, "PA", SIZE, world.BENCHMARK, rng=rng(0))[0].astype(float)
        for study in patient.studies[:2]
    ]
    stranger = generate.render(
        followed[1], patient.studies[0], "PA", SIZE, world.BENCHMARK, rng=rng(0)
    )
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.9
    assert not np.array_equal(stranger[0], images[0])


def test_changes_follow_from_the_severities(patients):
    seen = set()
    for patient in patients:
        for before, after in zip(patient.studies, patient.studies[1:], strict=False):
            for label, change in after.changes.items():
                prior, now = before.finding(label), after.finding(label)
                assert now is not None
                seen.add(change)
                if change == "new":
                    assert prior is None
                elif prior is not None:
                    sign = {"worse": 1, "improved": -1, "unchanged": 0}[change]
                    assert np.sign(now.severity - prior.severity) == sign
            gone = {f.label for f in before.findings} - {f.label for f in after.findings}
            assert {finding.label for finding in after.resolved} == gone
    assert seen == set(P.CHANGES)


def test_answers_agree_with_the_truth(patients):
    noun_of = {noun: label for label, noun in P.PLAIN_NOUNS.items()}
    for patient in patients[:150]:
        for study in patient.studies:
            label = study.label()
            for qa in ask(study, "PA", rng=np.random.default_rng(study.seed), count=50):
                question, answer = qa["question"], qa["answer"]
                assert (qa["answer_type"] == "CLOSED") == (answer in ("yes", "no"))
                found = re.match(
                    r"(?:Is there evidence of|Does the image show|Is) (?P<n>[a-z ]+?)(?: present)?\?$",
                    question,
                )
                if found and found["n"] in noun_of:
                    assert (answer == "yes") == (label[noun_of[found["n"]]] == 1)
                found = re.match(r"How severe is the (?P<n>.+)\?", question)
                if found:
                    finding = study.finding(noun_of[found["n"]])
                    assert finding is not None
                    assert answer == L.SEVERITIES[finding.severity]
                found = re.match(
                    r"(?:Which side is|On which side is) the (?P<n>.+?) (on|loc)", question
                )
                if found:
                    finding = study.finding(noun_of[found["n"]])
                    assert finding is not None
                    assert answer == L.SIDES[finding.side]


def test_exposure_maps_denser_tissue_to_brighter_pixels():
    rng = np.random.default_rng(0)
    exposure = acquisition.sample_exposure(rng, view="PA")
    exposure = dataclasses.replace(exposure, marker="", noise=0.0, vignette=0.0)
    ramp = np.tile(np.linspace(1.0, 3.5, SIZE, dtype=np.float32), (SIZE, 1))
    identity = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    image = acquisition.expose(ramp, exposure, identity)
    middle = image[SIZE // 2, 8:-8].astype(int)
    assert np.all(np.diff(middle) >= 0)
    assert middle[-1] - middle[0] > 60


def test_prompts_cover_every_label(root):
    path = root / "medvlp_jax" / "data" / "prompts" / "synthetic_cxr.json"
    prompts = json.loads(path.read_text(encoding="utf-8"))
    assert tuple(prompts) == L.LABEL_NAMES
    for ensembles in prompts.values():
        assert set(ensembles) == {"positive", "negative"}
        assert all(4 <= len(set(texts)) <= 8 for texts in ensembles.values())


_BUILD = """
import json, sys
import tensorflow_datasets as tfds
from tfds_builders.synthetic_cxr import SyntheticCxr, generate
builder = SyntheticCxr(config="tiny", data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
read = tfds.builder_from_directory(str(builder.data_path))
out = {"metadata": dict(read.info.metadata), "subjects": {}, "positives": {}}
for split in ("train", "validation", "test"):
    source = read.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    rows = [source[index] for index in range(len(source))]
    assert all(row["image"][:2] == b"\\xff\\xd8" for row in rows)
    assert all(row["mask"].dtype == "uint16" for row in rows)
    out["subjects"][split] = sorted({row["subject_id"].decode() for row in rows})
    out["positives"][split] = sum((row["label"] == 1).astype(int) for row in rows).tolist()
assert "tensorflow" not in sys.modules
print(json.dumps(out))
"""


def test_tiny_config_builds_and_reads_back_without_tensorflow(tmp_path, root):
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout.strip().splitlines()[-1])
    assert tuple(out["metadata"]["label_names"]) == L.LABEL_NAMES
    subjects = [set(out["subjects"][split]) for split in ("train", "validation", "test")]
    assert sum(map(len, subjects)) == len(set.union(*subjects))
    assert min(out["positives"]["train"]) > 0
    assert min(out["positives"]["test"]) > 0


@pytest.mark.slow
def test_two_thousand_images_take_less_than_a_minute():
    started, count = time.perf_counter(), 0
    for _ in generate.generate(0, range(10_000), 256, workers=2):
        count += 1
        if count == 2000:
            break
    assert count == 2000
    assert time.perf_counter() - started < 60.0
