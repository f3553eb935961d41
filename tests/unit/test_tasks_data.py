"""Data sets: digits, image folders and the user's arrays; every way that they can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from stages.config import Task as TaskConfig
from stages.errors import UsageError
from stages.tasks import make_task
from stages.tasks.augment import AUGMENT, affine, crop
from stages.tasks.data import digits, load_data, stratified


@pytest.fixture(scope="module")
def data():
    return digits(16, seed=0)


def test_digits_splits_are_disjoint_and_complete(data):
    rows = [row.tobytes() for split in ("train", "val", "test") for row in data.splits[split].images[:, 0].numpy()]
    original, _ = load_digits(return_X_y=True)
    assert len(rows) == len(original) == 1797
    assert len(set(rows)) == len({row.tobytes() for row in original})  # a shared image would make a row disappear from the count of another
    sizes = [len(data.splits[s].labels) for s in ("train", "val", "test")]
    assert sizes[0] in range(1195, 1206) and sizes[1] in range(292, 302) and sizes[2] in range(295, 306)


def test_digits_splits_are_stratified(data):
    for split in data.splits.values():
        share = torch.bincount(split.labels, minlength=10) / len(split.labels)
        assert share.min() > 0.09 and share.max() < 0.11


def test_digits_are_the_original_images_enlarged(data):
    original, labels = load_digits(return_X_y=True)
    image, label = data.splits["test"].images[0], int(data.splits["test"].labels[0])
    assert image.shape == (3, 16, 16) and torch.equal(image[0], image[2])
    small = image[0].reshape(8, 2, 8, 2).mean((1, 3)).numpy()  # bilinear enlargement by 2, averaged back, is close to the original
    best = np.argmin(np.abs(original.reshape(-1, 8, 8) / 16 - small).sum((1, 2)))
    assert labels[best] == label


def test_the_split_depends_on_the_seed_only(data):
    assert torch.equal(digits(16, 0).splits["val"].images, data.splits["val"].images)
    assert not torch.equal(digits(16, 1).splits["val"].labels, data.splits["val"].labels)


def test_stratified_by_hand():
    labels = np.array([0] * 10 + [1] * 20)
    a, b = stratified(labels, (0.7, 0.3), seed=3)
    assert sorted([*a, *b]) == list(range(30))
    assert (labels[b] == 0).sum() == 3 and (labels[b] == 1).sum() == 6


def test_batches_are_normalised_deterministic_and_cover_the_split():
    task = make_task(TaskConfig(model="npas_tiny", image_size=16))
    batches = list(task.batches("train"))
    assert sum(len(b.labels) for b in batches) == task.size("train") and len(batches) == task.steps()
    assert min(len(b.labels) for b in batches) > 32
    for first, again in zip(batches, task.batches("train"), strict=True):
        assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(next(task.batches("train", epoch=1)).labels, batches[0].labels)
    assert not torch.equal(next(task.batches("train", seed=1)).labels, batches[0].labels)
    plain = task.data.splits["train"].images
    assert torch.allclose(task.mean, plain.mean((0, 2, 3)), atol=0.01) and torch.allclose(task.std, plain.std((0, 2, 3)), atol=0.01)
    val = torch.cat([b.images for b in task.batches("val")])
    assert torch.allclose(val * task.std.view(1, 3, 1, 1) + task.mean.view(1, 3, 1, 1), task.data.splits["val"].images, atol=1e-5)
    assert abs(float(val.mean())) < 0.1 and abs(float(val.std()) - 1) < 0.1


def test_limits_count_samples():
    task = make_task(TaskConfig(model="npas_tiny", image_size=8, train_limit=100, batch_size=32))
    assert task.size("train") == 100 and task.steps() == 4 and task.steps(40) == 2
    assert sum(len(b.labels) for b in task.batches("train", limit=40)) == 40
    assert sum(len(b.labels) for b in task.batches("val", limit=7)) == 7


def test_augmentation_moves_images_a_little():
    images = torch.zeros(64, 3, 16, 16)
    images[:, :, 6:10, 6:10] = 1
    moved = affine(images, np.random.default_rng(0), flip=False)
    assert moved.shape == images.shape and not torch.equal(moved, images)
    assert (moved[:, :, 7:9, 7:9].mean((1, 2, 3)) > 0.3).all()  # the middle of the square is still there
    assert torch.equal(moved, affine(images, np.random.default_rng(0), flip=False))


@given(st.integers(8, 33), st.integers(0, 2**31), st.booleans())
def test_a_crop_is_a_window_of_the_padded_image(size, seed, flip):
    image = torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size).expand(1, 3, -1, -1) / size**2
    moved, margin = crop(image, np.random.default_rng(seed), flip), max(1, size // 8)
    windows = F.unfold(F.pad(image, (margin,) * 4, value=0.5), size).transpose(1, 2).view(-1, 3, size, size)
    assert moved.shape == image.shape
    assert any(torch.equal(moved[0], window) or (flip and torch.equal(moved[0], window.flip(2))) for window in windows)


@pytest.mark.parametrize("name", AUGMENT)
def test_augmentations_are_deterministic_and_keep_the_range(name):
    images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, again = (AUGMENT[name](images, np.random.default_rng(5), True) for _ in range(2))
    assert torch.equal(first, again) and first.shape == images.shape and float(first.min()) >= 0 and float(first.max()) <= 1
    assert not torch.equal(first, images)
    assert name != "none" or torch.equal(AUGMENT[name](images, np.random.default_rng(5), False), images)


def test_only_data_that_allows_it_is_mirrored():
    left = torch.zeros(64, 1, 16, 16)
    left[..., :4] = 1
    brighter_left = [
        affine(left, np.random.default_rng(0), flip=flip)[..., :8].mean((1, 2, 3))
        > affine(left, np.random.default_rng(0), flip=flip)[..., 8:].mean((1, 2, 3))
        for flip in (False, True)
    ]
    assert brighter_left[0].all() and 10 < int(brighter_left[1].sum()) < 54


# --- image folder


def write_folder(root: Path, counts: dict[str, dict[str, int]], size: tuple[int, int] = (20, 12), suffix: str = "png") -> Path:
    """One colour per class: class i is grey level 60 * (i + 1)."""
    for split, classes in counts.items():
        (root / split).mkdir(parents=True)
        for i, (name, count) in enumerate(classes.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB" if number % 2 else "L", size, (60 * (i + 1),) * 3 if number % 2 else 60 * (i + 1)).save(folder / f"{number}.{suffix}")
    return root


def test_folder_with_three_splits(tmp_path):
    counts = {"train": {"ant": 6, "bee": 4}, "val": {"ant": 2, "bee": 3}, "test": {"ant": 1, "bee": 1}}
    data = load_data(str(write_folder(tmp_path / "d", counts)), 16, seed=0)
    assert data.classes == ("ant", "bee") and data.flip
    assert [len(data.splits[s].labels) for s in ("train", "val", "test")] == [10, 5, 2]
    for split in data.splits.values():
        images = split.take(range(len(split.labels)))
        assert images.shape[1:] == (3, 16, 16) and images.dtype == torch.float32
        assert torch.allclose(images, (60 * (split.labels.view(-1, 1, 1, 1) + 1) / 255).expand_as(images), atol=1e-6)  # images and labels belong together


def test_folder_without_test_carves_val_out_of_train(tmp_path):
    root = write_folder(tmp_path / "d", {"train": {"ant": 20, "bee": 20}, "val": {"ant": 3, "bee": 3}}, suffix="jpg")
    data = load_data(str(root), 8, seed=0)
    train, val, test = (data.splits[s] for s in ("train", "val", "test"))
    assert len(train.paths) == 34 and len(val.paths) == 6 and not set(train.paths) & set(val.paths)
    assert torch.bincount(val.labels).tolist() == [3, 3]
    assert all("val" in p.parts for p in test.paths)


def test_folder_trains_a_network(tmp_path):
    root = write_folder(tmp_path / "d", {s: {"ant": 4, "bee": 4} for s in ("train", "val", "test")})
    task = make_task(TaskConfig(model="npas_tiny", data=str(root), image_size=16))
    assert task.model()(next(task.batches("train")).images).shape == (8, 2)


def test_pictures_are_cropped_not_squeezed(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255  # the middle square
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "d" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(wide).save(folder / "x.png")
    assert float(load_data(str(tmp_path / "d"), 8, 0).splits["val"].take([0]).min()) == 1.0


BAD_FOLDERS = {
    "no val": ({"train": {"a": 9, "b": 9}}, "no folder .*val"),
    "no train": ({"val": {"a": 9, "b": 9}}, "no folder .*train"),
    "no classes": ({"train": {}, "val": {}}, "0 class folders;"),
    "one class": ({"train": {"a": 9}, "val": {"a": 1}}, "1 class folder;"),
    "other classes": ({"train": {"a": 9, "b": 9}, "val": {"a": 1, "c": 1}}, "different classes: b, c"),
    "empty class": ({"train": {"a": 9, "b": 0}, "val": {"a": 1, "b": 1}}, "holds no PNG or JPEG"),
    "too few to carve": ({"train": {"a": 9, "b": 3}, "val": {"a": 1, "b": 1}}, "too few images"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder(tmp_path, case):
    counts, message = BAD_FOLDERS[case]
    with pytest.raises(UsageError, match=message) as caught:
        load_data(str(write_folder(tmp_path / "d", counts)), 8, 0)
    assert caught.value.hint


def test_no_such_data_set(tmp_path):
    with pytest.raises(UsageError, match="neither 'digits' nor a folder"):
        load_data(str(tmp_path / "nowhere"), 8, 0)


def test_unreadable_image_is_named(tmp_path):
    root = write_folder(tmp_path / "d", {s: {"a": 2, "b": 2} for s in ("train", "val", "test")})
    (root / "train" / "b" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UsageError, match=r"Can't read the image .*train/b/1\.png"):
        make_task(TaskConfig(model="npas_tiny", data=str(root)))


def test_truncated_image_is_named(tmp_path):
    root = write_folder(tmp_path / "d", {s: {"a": 2, "b": 2} for s in ("train", "val", "test")}, size=(64, 64), suffix="jpg")
    path = root / "val" / "a" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match=r"Can't read the image .*val/a/0\.jpg"):
        load_data(str(root), 8, 0).splits["val"].take([0, 1])


# --- the user's callable

USER_DATA = """
import numpy as np
rng = np.random.default_rng(0)
def pair(n, shape=(10, 10, 3), dtype=np.uint8, top=3):
    images = rng.integers(0, 255, (n, *shape)).astype(dtype) if dtype == np.uint8 else rng.random((n, *shape)).astype(dtype)
    return images, np.arange(n) % top
def good(): return {"train": pair(9), "val": pair(6), "test": pair(3), "classes": ["x", "y", "z"]}
def floats(): return {s: pair(4, (1, 12, 12), np.float32) for s in ("train", "val", "test")}
def grey(): return {s: pair(4, (10, 10)) for s in ("train", "val", "test")}
def raises(): raise RuntimeError("disk on fire")
def no_test(): return {"train": pair(9), "val": pair(6)}
def a_list(): return [1]
def bad_shape(): return {s: pair(4, (10, 10, 5)) for s in ("train", "val", "test")}
def bad_labels(): return {s: (pair(4)[0], np.arange(3)) for s in ("train", "val", "test")}
def float_labels(): return {s: (pair(4)[0], np.ones(4)) for s in ("train", "val", "test")}
def nan(): return {s: (np.full((4, 3, 8, 8), np.nan), np.arange(4)) for s in ("train", "val", "test")}
def no_pair(): return {s: 3 for s in ("train", "val", "test")}
def pretrained(): return good() | {"flip": True, "mean": (0.1, 0.2, 0.3), "std": [1, 2, 4]}
def half_statistics(): return good() | {"mean": (0.1, 0.2, 0.3)}
def bad_std(): return good() | {"mean": (0.1, 0.2, 0.3), "std": (1, 0, 1)}
def few_names(): return good() | {"classes": ["x"]}
constant = 3
"""


@pytest.fixture
def user_data(project, monkeypatch):
    (project / "npas_user_data.py").write_text(USER_DATA)
    monkeypatch.delitem(__import__("sys").modules, "npas_user_data", raising=False)
    monkeypatch.syspath_prepend(str(project))


@pytest.mark.parametrize("name", ["good", "floats", "grey"])
def test_user_data(user_data, name):
    data = load_data(f"npas_user_data:{name}", 8, 0)
    for split in data.splits.values():
        images = split.take([0, 1])
        assert images.shape == (2, 3, 8, 8) and float(images.min()) >= 0 and float(images.max()) <= 1
    assert data.classes == (("x", "y", "z") if name == "good" else ("0", "1", "2"))


def test_user_data_brings_its_statistics(user_data):
    data = load_data("npas_user_data:pretrained", 8, 0)
    assert data.flip and data.statistics()[0].tolist() == pytest.approx([0.1, 0.2, 0.3]) and data.statistics()[1].tolist() == [1, 2, 4]


def test_bytes_of_the_right_size_stay_bytes_and_mean_the_same(user_data):
    kept, scaled = (load_data("npas_user_data:good", size, 0).splits["train"] for size in (10, 9))
    assert kept.images.dtype == torch.uint8 and scaled.images.dtype == torch.float32
    assert torch.equal(kept.take([3, 1]), kept.images[[3, 1]].float() / 255)


BAD_USER_DATA = {
    "raises": "raised RuntimeError: disk on fire", "no_test": r"a mapping with \['train', 'val'\]", "a_list": "returned a list", "bad_shape": "have shape",
    "bad_labels": "Labels of the split 'train'", "float_labels": "Labels of the split", "nan": "not finite", "no_pair": "not a pair", "few_names": "names 1 classes",
    "half_statistics": "only one of mean and std", "bad_std": "a std of",
    "constant": "not something to call", "god": "has no 'god'",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_USER_DATA)
def test_bad_user_data(user_data, name):
    with pytest.raises(UsageError, match=BAD_USER_DATA[name]) as caught:
        load_data(f"npas_user_data:{name}", 8, 0)
    assert caught.value.hint
    assert name != "god" or caught.value.hint == "Did you mean 'good'?"
