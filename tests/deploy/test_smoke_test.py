"""deploy/lifecycle/smoke_test.py: which picture it sends, and which answers of each task pass."""

import json
import re

import pytest

from common import CommandError
from lifecycle.smoke_test import TestPicture, judge, pick_picture

FAR = {"file": "z.jpg", "labels": None, "predicted": [3.5]}  # the values' range is 2 with it
VALUES = {"file": "cat.jpg", "labels": None, "predicted": [1.5]}
POINTS = {"file": "cat.jpg", "labels": None, "predicted": [[10, 20], [300.5, 40]], "size": [300, 400]}
SHARES = {"file": "cat.jpg", "labels": None, "predicted": {"cat": 0.3, "dog": 0.7}, "mask": "masks/0.png"}
LABEL = {"file": "cat.jpg", "labels": None, "predicted": ["cat"], "confidence": 0.9}
LABELS = {"file": "cat.jpg", "labels": ["cat"], "predicted": ["cat", "dog"], "confidence": 0.9}


def segmented(**shares):
    classes = [{"class": name, "share": share} for name, share in shares.items()]
    return {"classes": classes, "mask": "iVBO", "width": 3, "height": 2}


def classified(name, *names, confidence=0.9):
    return {"class": name, "confidence": confidence} | ({"classes": list(names)} if names else {})


@pytest.fixture
def build(tmp_path):
    """A function that writes a build folder with these entries, and pictures of these numbers of bytes."""

    def build(*entries, sizes=None):
        (tmp_path / "train").mkdir(exist_ok=True)
        for entry in entries:
            (tmp_path / "train" / entry["file"]).write_bytes(b"x" * (sizes or {}).get(entry["file"], 9))
        (tmp_path / "train" / "validation.json").write_text(json.dumps(entries))
        return tmp_path

    return build


# The picture


def named(file, **changed):
    return LABEL | {"file": file} | changed


@pytest.mark.parametrize(
    ("entries", "best"),
    [
        ([named("a", labels=["cat"]), named("b", labels=["dog"], confidence=1.0)], "a"),
        ([named("a", labels=["dog"]), named("b", labels=["dog"], confidence=1.0)], "b"),
        ([named("a"), named("b", confidence=0.95), named("c", confidence=0.1)], "b"),
        ([named("a", confidence=1.0), named("b", labels=["cat"], confidence=0.1)], "b"),
        ([VALUES | {"file": "a"}, VALUES | {"file": "b"}, VALUES | {"file": "c"}], "b"),
        ([POINTS | {"file": "a"}, POINTS | {"file": "b"}], "b"),
        ([SHARES | {"file": "a"}, SHARES | {"file": "b"}], "b"),
    ],
    ids=["right", "all wrong", "no labels", "few labels", "values", "points", "masks"],
)
def test_the_picture_is_the_most_confident_right_one_or_the_smallest(build, entries, best):
    sizes = {"a": 5000, "b": 100, "c": 4_000_001}
    assert pick_picture(build(*entries, sizes=sizes)).name == best


@pytest.mark.parametrize(
    "entries",
    [
        [],
        {},
        [7],
        [LABEL | {"predicted": 7}],
        [VALUES | {"predicted": ["1.5"]}],
        [VALUES, FAR | {"predicted": [1, 2]}],
        [POINTS | {"predicted": [[1]]}],
        [POINTS | {"size": "300 x 400"}],
        [SHARES | {"predicted": ["cat"]}],
    ],
)
def test_a_validation_json_of_another_shape_is_one_sentence(build, entries):
    folder = build(LABEL, FAR)
    (folder / "train" / "validation.json").write_text(json.dumps(entries))
    with pytest.raises(
        CommandError, match=r"names no picture for the smoke test .*: run `invoke train` first"
    ):
        pick_picture(folder)


# The answer


@pytest.mark.parametrize(
    ("entry", "answer", "passed", "sentence"),
    [
        (LABEL, classified("cat"), True, "cat.jpg is cat (90.0%), as training said"),
        (LABEL, classified("dog"), False, "the answer is that cat.jpg is dog (90.0%), but training said cat"),
        (LABELS, classified("cat", "dog", "cat"), True, "cat.jpg is cat (90.0%), as training said"),
        (LABELS, classified("cat", "cat"), False, "cat.jpg is cat (90.0%), but training said cat, dog"),
        (VALUES, {"values": [1.519]}, True, "cat.jpg has the value 1.519, as training said "
         "(largest difference 0.019)"),
        (VALUES, {"values": [1.521]}, False, "the answer is that cat.jpg has the value 1.521, but training "
         "said the value 1.5 (largest difference 0.021)"),
        (VALUES, {"values": [1.5, 2]}, False, "cat.jpg has the values 1.5, 2, but training said the "),
        (POINTS, {"points": [[10, 20], [300.5, 43.9]]}, True, "cat.jpg has 2 points: (10, 20), (300.5, "
         "43.9), as training said (largest difference 3.9 pixels)"),
        (POINTS, {"points": [[10, 20], [303.5, 43]]}, False, "but training said 2 points: (10, 20), "
         "(300.5, 40) (largest difference 4.2 pixels)"),
        (POINTS, {"points": [[10, 20]]}, False, "cat.jpg has 1 point: (10, 20), but training said 2 points"),
        (SHARES, segmented(dog=0.695, cat=0.305), True, "cat.jpg is 69.5% dog, 30.5% cat, as training said "
         "(largest difference 0.5% of the pixels)"),
        (SHARES, segmented(dog=0.68, cat=0.32), False, "cat.jpg is 68.0% dog, 32.0% cat, but training said "
         "70.0% dog, 30.0% cat (largest difference 2.0% of the pixels)"),
        (SHARES, segmented(dog=0.7, cow=0.3), False, "(largest difference 30.0% of the pixels)"),
        (SHARES, segmented(dog=0.7, cat=0.29, cow=0.005, horse=0.005), True, "cat.jpg is 70.0% dog, 29.0% "
         "cat, 0.5% cow, ..., as training said (largest difference 1.0% of the pixels)"),
        (SHARES, segmented(), False, "cat.jpg is nothing, but training said 70.0% dog, 30.0% cat"),
        (VALUES, classified("cat"), False, "cat.jpg is cat (90.0%), but training said the value 1.5"),
        (LABEL, {"values": [1, 2, 3, 4]}, False, "has the values 1, 2, 3, ..., but training said cat"),
        (POINTS, segmented(cat=1), False, "cat.jpg is 100.0% cat, but training said 2 points: "),
        (SHARES, {"points": [[1, 2]]}, False, "cat.jpg has 1 point: (1, 2), but training said 70.0% dog, "),
    ],
)  # fmt: skip
def test_an_answer_is_compared_with_trainings(build, entry, answer, passed, sentence):
    picture = pick_picture(build(entry, *([FAR] if entry is VALUES else []), sizes={"z.jpg": 99}))
    found, said = judge(json.dumps(answer).encode(), picture)
    assert found == passed
    assert said == sentence if passed else said.endswith(sentence) or sentence in said


@pytest.mark.parametrize("answer", [classified("cat"), {"values": [1]}, {"points": [[1, 2]]}, segmented(a=1)])
def test_any_prediction_passes_where_training_said_nothing(answer):
    passed, said = judge(json.dumps(answer).encode(), TestPicture("a grey picture", b"", None))
    assert passed
    assert re.fullmatch("a grey picture (is|has) .*, answered by an older archive", said)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[" * 100_000,
        "7",
        '"class"',
        "{}",
        json.dumps({"class": None, "confidence": 0.9}),
        json.dumps({"class": "cat", "confidence": "0.9"}),
        json.dumps({"class": "cat", "confidence": True}),
        '{"class": "cat", "confidence": NaN}',
        '{"class": "cat", "confidence": 1' + "0" * 400 + "}",
        json.dumps({"class": "cat", "confidence": 0.9, "classes": 7}),
        json.dumps({"values": []}),
        json.dumps({"values": 7}),
        json.dumps({"values": [None]}),
        '{"values": [Infinity]}',
        json.dumps({"points": []}),
        json.dumps({"points": [[1]]}),
        json.dumps({"points": ["ab"]}),
        json.dumps({"classes": []}),
        json.dumps(segmented(cat=1) | {"mask": 7}),
        json.dumps(segmented(cat=1) | {"classes": [{"class": 7, "share": 1}]}),
        json.dumps(segmented(cat=1) | {"classes": [{"class": ["cat"], "share": 1}]}),
        json.dumps(segmented(cat=1) | {"classes": ["cat"]}),
    ],
    ids=lambda body: body[:40],
)
@pytest.mark.parametrize(
    "entry", [LABEL, VALUES, POINTS, SHARES], ids=["labels", "values", "points", "masks"]
)
def test_anything_else_is_not_a_prediction(build, entry, body):
    passed, said = judge(body.encode(), pick_picture(build(entry)))
    assert (passed, said) == (False, f"its response to cat.jpg is not a prediction: {body[:200]}")


@pytest.mark.parametrize("answer", [classified("\x1b]0;x\x07\n" * 99), segmented(**{"\x1b]0;x\x07\n": 1.0})])
def test_names_of_classes_are_printed_safely_in_one_line(build, answer):
    said = judge(json.dumps(answer).encode(), pick_picture(build(LABEL)))[1]
    assert "\\x1b]0;x\\x07" in said
    assert not re.search("[\x07\x1b\n]", said)
    assert len(said) < 2000


# On an endpoint


@pytest.mark.parametrize(
    ("entry", "answer", "sentence"),
    [
        (VALUES, {"values": [1.5]}, "cat.jpg has the value 1.5, as training said (largest difference 0)"),
        (POINTS, {"points": [[10, 20], [300, 40]]}, "as training said (largest difference 0.5 pixels)"),
        (SHARES, segmented(dog=0.7, cat=0.3), "as training said (largest difference 0.0% of the pixels)"),
        (LABEL, classified("cat"), "cat.jpg is cat (90.0%), as training said"),
    ],
    ids=["values", "points", "masks", "no labels"],
)
def test_an_endpoint_of_every_task_is_proven_to_be_live(cloud, run_verb, entry, answer, sentence):
    (run_verb.folder / "train" / "validation.json").write_text(json.dumps([entry]))
    cloud.answer = lambda *_: (200, json.dumps(answer).encode())
    assert sentence in run_verb("deploy")
    cloud.answer = lambda *_: (200, b'{"values": [7]}')
    (run_verb.folder / "model.tar.gz").write_bytes(b"two")
    assert "has the value 7, but training said" in run_verb("deploy", code=1)
