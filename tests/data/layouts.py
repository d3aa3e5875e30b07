"""Layouts of labelled images as people have them and post them, each with its right reading or the right refusal."""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

Counts = dict[str, dict[str, int]]  # split ('' for none) -> class -> images


class Layout(NamedTuple):
    """Files of a folder, and how it must be read: `reads` is the images by split and class, or a part of the message.

    `files` are paths, in which ``{a,b}`` stands for each and ``*3`` for three names; `make` writes those that a path
    does not describe. `source` is what is named below the folder, `settings` other keys of `data`.
    """

    name: str
    files: str
    reads: Counts | str
    unused: int = 0
    source: tuple[str, ...] = ("",)
    settings: Mapping[str, Any] = {}
    make: Callable[[Path], None] = lambda root: None


def build(layout: Layout, root: Path) -> None:
    """Make the folder of a layout: files with an image's suffix are tiny images."""
    for pattern in layout.files.split():
        for path in expanded(pattern.replace("~", " ")):
            file = root / path
            if path.endswith("/"):
                file.mkdir(parents=True, exist_ok=True)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(IMAGE if file.suffix.lower() in SUFFIXES else b"path,label\n")
    layout.make(root)


def expanded(pattern: str) -> Iterator[str]:
    """``{a,b}/*2.png`` -> a/0.png, a/1.png, b/0.png, b/1.png"""
    parts = re.split(r"\{([^}]*)\}|\*(\d+)", pattern)
    choices = [
        [text] if kind == 0 else text.split(",") if kind == 1 else list(map(str, range(int(text))))
        for at, text in enumerate(parts)
        if text is not None
        for kind in [at % 3]
    ]
    yield from map("".join, itertools.product(*choices))


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    return stream.getvalue()


def table(name: str, *lines: str) -> Callable[[Path], None]:
    """A function that writes a CSV file."""
    return lambda root: (root / name).write_text("\n".join(lines) + "\n") and None


def parquet(files: Mapping[str, str]) -> Callable[[Path], None]:
    """A function that writes Parquet files, each with a row for each letter, which is its label."""

    def make(root: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for name, labels in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"image": [IMAGE] * len(labels), "label": list(labels)}), root / f"{name}.parquet")

    return make


def zipped(name: str, *patterns: str) -> Callable[[Path], None]:
    """A function that writes an archive with the files that the patterns name."""

    def make(root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / name, "w") as archive:
            for path in itertools.chain.from_iterable(map(expanded, patterns)):
                archive.writestr(path, IMAGE)

    return make


ROWS = [(1, "x", "train"), (2, "y", "train"), (3, "x", "test"), (4, "y", "test")]
IMAGE, SUFFIXES = _png(), (".png", ".jpg", ".jpeg", ".tif", ".webp", ".bmp")

LAYOUTS = (
    # class folders alone
    Layout("flowers", "{daisy,rose,tulip}/*2.jpg", {"": {"daisy": 2, "rose": 2, "tulip": 2}}),
    Layout(
        "keras flower_photos",
        "flower_photos/{daisy,rose}/*2.jpg flower_photos/LICENSE.txt",
        {"": {"daisy": 2, "rose": 2}},
        1,
    ),
    Layout("wrapped twice", "photos/photos/{ants,bees}/*2.jpg", {"": {"ants": 2, "bees": 2}}),
    Layout(
        "kaggle cats and dogs",
        "PetImages/{Cat,Dog}/*2.jpg PetImages/Cat/Thumbs.db readme[1].txt MSR-LA.docx",
        {"": {"Cat": 2, "Dog": 2}},
        3,
    ),
    Layout("land use", "UCMerced_LandUse/Images/{beach,forest}/*2.tif", {"": {"beach": 2, "forest": 2}}),
    Layout("faces, one image a class", "lfw/{Ann,Bob,Cid}/*1.jpg", {"": {"Ann": 1, "Bob": 1, "Cid": 1}}),
    Layout(
        "birds with lists",
        "CUB/images/{001.Albatross,002.Auklet}/*2.jpg CUB/images.txt CUB/attributes/a.txt",
        {"": {"001.Albatross": 2, "002.Auklet": 2}},
        2,
    ),
    Layout(
        "caltech with annotations",
        "101_ObjectCategories/{ant,crab}/*2.jpg Annotations/{ant,crab}/a.mat",
        {"": {"ant": 2, "crab": 2}},
        2,
    ),
    Layout(
        "dogs with annotations",
        "Images/{n01-Chihuahua,n02-Pug}/*2.jpg Annotation/{n01-Chihuahua,n02-Pug}/n_1",
        {"": {"n01-Chihuahua": 2, "n02-Pug": 2}},
        2,
    ),
    Layout("folders in class folders", "cat/{2019,2020}/*1.jpg dog/2021/1.jpg", {"": {"cat": 2, "dog": 1}}),
    Layout("folders beside images", "{cat,dog}/1.jpg {cat,dog}/augmented/*2.jpg", {"": {"cat": 3, "dog": 3}}),
    Layout("one folder in each class", "{cat,dog}/images/*2.jpg {cat,dog}/boxes.txt", {"": {"cat": 2, "dog": 2}}, 2),
    Layout(
        "blanks and scripts",
        "{hot~dog,\u65e5\u672c~\u8a9e,\u00e9cole}/*2.jpg",
        {"": {"hot dog": 2, "\u65e5\u672c \u8a9e": 2, "\u00e9cole": 2}},
    ),
    Layout("suffixes of all kinds", "{a,b}/{1.JPG,2.jpeg,3.PNG,4.webp,5.bmp}", {"": {"a": 5, "b": 5}}),
    Layout("a class called train", "{bus,car,train}/*2.jpg", {"": {"bus": 2, "car": 2, "train": 2}}),
    Layout("a class called test tube", "{beaker,test~tube}/*2.jpg", {"": {"beaker": 2, "test tube": 2}}),
    Layout("valid and invalid", "{valid,invalid}/*2.jpg", {"": {"valid": 2, "invalid": 2}}),
    Layout("numbers", "{0,1,2}/*2.png", {"": {"0": 2, "1": 2, "2": 2}}),
    Layout("numbered classes", "{class_1,class_2}/*2.png", {"": {"class_1": 2, "class_2": 2}}),
    Layout(
        "a zip of macOS",
        "photos/{a,b}/*2.jpg __MACOSX/photos/{a,b}/._*2.jpg photos/.DS_Store photos/a/._0.jpg",
        {"": {"a": 2, "b": 2}},
        6,
    ),
    Layout(
        "checkpoints of jupyter",
        "{a,b}/*2.jpg a/.ipynb_checkpoints/0-checkpoint.jpg .ipynb_checkpoints/",
        {"": {"a": 2, "b": 2}},
        1,
    ),
    Layout("windows", "{a,b}/*2.jpg a/desktop.ini Thumbs.db", {"": {"a": 2, "b": 2}}, 2),
    Layout("a repository", "{a,b}/*2.jpg .git/objects/*3 .gitignore README.md", {"": {"a": 2, "b": 2}}, 5),
    Layout("a cover beside the classes", "{a,b}/*2.jpg cover.jpg", {"": {"a": 2, "b": 2}}, 1),
    Layout("a cover beside the wrapper", "photos/{a,b}/*2.jpg cover.jpg", {"": {"a": 2, "b": 2}}, 1),
    # folders of splits
    Layout(
        "ants and bees",
        "{train,val}/{ants,bees}/*2.jpg",
        {"train": {"ants": 2, "bees": 2}, "val": {"ants": 2, "bees": 2}},
    ),
    Layout(
        "chest x-ray",
        "chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*1.jpeg",
        {s: {"NORMAL": 1, "PNEUMONIA": 1} for s in ("train", "val", "test")},
    ),
    Layout(
        "chest x-ray with its copy",
        "xray/{train,test}/{NORMAL,PNEUMONIA}/*1.jpeg xray/xray/{train,test}/{NORMAL,PNEUMONIA}/*1.jpeg",
        "test, train look like splits, but xray does not",
    ),
    Layout(
        "intel scenes",
        "seg_train/seg_train/{sea,street}/*2.jpg seg_test/seg_test/{sea,street}/*1.jpg seg_pred/seg_pred/*3.jpg",
        {"train": {"sea": 2, "street": 2}, "test": {"sea": 1, "street": 1}},
        3,
    ),
    Layout(
        "brain tumours",
        "Training/{glioma,notumor}/*2.jpg Testing/{glioma,notumor}/*1.jpg",
        {"train": {"glioma": 2, "notumor": 2}, "test": {"glioma": 1, "notumor": 1}},
    ),
    Layout(
        "tensorflow's cats",
        "cats_and_dogs_filtered/{train,validation}/{cats,dogs}/*1.jpg cats_and_dogs_filtered/vectorize.py",
        {"train": {"cats": 1, "dogs": 1}, "val": {"cats": 1, "dogs": 1}},
        1,
    ),
    Layout(
        "training_set twice", "{training_set,test_set}/{training_set,test_set}/{cats,dogs}/*1.jpg", "of the same names"
    ),
    Layout(
        "training_set nested",
        "training_set/training_set/{cats,dogs}/*1.jpg test_set/test_set/{cats,dogs}/*1.jpg",
        {"train": {"cats": 1, "dogs": 1}, "test": {"cats": 1, "dogs": 1}},
    ),
    Layout(
        "imagenette",
        "imagenette2/{train,val}/{n01440764,n02102040}/*1.JPEG imagenette2/noisy.csv",
        {"train": {"n01440764": 1, "n02102040": 1}, "val": {"n01440764": 1, "n02102040": 1}},
        1,
    ),
    Layout(
        "roboflow",
        "{train,valid,test}/{a,b}/*1.jpg README.roboflow.txt",
        {s: {"a": 1, "b": 1} for s in ("train", "val", "test")},
        1,
    ),
    Layout(
        "mnist as png",
        "mnist_png/{training,testing}/{0,1}/*1.png",
        {"train": {"0": 1, "1": 1}, "test": {"0": 1, "1": 1}},
    ),
    Layout("dev and eval", "{Train,Dev,TEST}/{a,b}/*1.jpg", {s: {"a": 1, "b": 1} for s in ("train", "val", "test")}),
    Layout("train alone", "train/{a,b}/*2.jpg", {"train": {"a": 2, "b": 2}}),
    Layout(
        "a competition",
        "train/{Charlock,Maize}/*2.png test/*3.png sample_submission.csv",
        {"train": {"Charlock": 2, "Maize": 2}},
        4,
    ),
    Layout(
        "drivers", "imgs/train/{c0,c1}/*2.jpg imgs/test/*3.jpg driver_imgs_list.csv", {"train": {"c0": 2, "c1": 2}}, 4
    ),
    Layout(
        "sign language",
        "asl_train/asl_train/{A,B}/*2.jpg asl_test/asl_test/{A,B}_test.jpg",
        {"train": {"A": 2, "B": 2}},
        2,
    ),
    Layout(
        "traffic signs",
        "Train/{0,1}/*2.png Test/*2.png Meta/*2.png {Meta,Test,Train}.csv",
        {"train": {"0": 2, "1": 2}},
        7,
    ),
    Layout(
        "a table beside the classes",
        "train/{a,b}/*2.jpg test/{a,b}/*1.jpg train.csv",
        {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}},
        1,
    ),
    # labels in tables and names
    Layout(
        "dogs vs cats, labels in the names",
        "train/{cat,dog}.*2.jpg",
        {"": {"cat": 2, "dog": 2}},
        settings={"labels": r"(cat|dog)\.\d+"},
    ),
    Layout(
        "classes that hold the same folders",
        "{cat,dog}/{indoor,outdoor}/*2.jpg",
        {"": {"cat": 4, "dog": 4}},
        settings={"labels": "^([^/]+)/"},
    ),
    Layout(
        "covid radiography, images alone",
        "{COVID,Normal}/{images,masks}/*2.png",
        {"": {"COVID": 2, "Normal": 2}},
        4,
        settings={"labels": "^([^/]+)/images/"},
    ),
    Layout(
        "images and a table, named",
        "images/{a,b,c}.jpg",
        {"": {"ant": 2, "bee": 1}},
        1,
        settings={"labels": "labels.csv"},
        make=table("labels.csv", "filename,label", "a.jpg,ant", "b.jpg,bee", "c.jpg,ant"),
    ),
    Layout(
        "a table of paths and splits",
        "img/{1,2,3,4}.png",
        {"train": {"x": 1, "y": 1}, "test": {"x": 1, "y": 1}},
        1,
        settings={"labels": "meta.csv"},
        make=table("meta.csv", "path,class,split", *(f"img/{n}.png,{c},{s}" for n, c, s in ROWS)),
    ),
    Layout(
        "parts with their table",
        "HAM_images_part_1/{a,b}.jpg HAM_images_part_2/{c,d}.jpg",
        {"": {"mel": 2, "nv": 2}},
        1,
        settings={"labels": "meta.csv"},
        make=table("meta.csv", "image_id,dx", "a,nv", "b,mel", "c,mel", "d,nv"),
    ),
    # Parquet and archives
    Layout(
        "parquet of the hub",
        "README.md",
        {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}},
        1,
        make=parquet({"data/train-00000-of-00001": "abab", "data/test-00000-of-00001": "ab"}),
    ),
    Layout(
        "beans",
        "",
        {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}},
        make=parquet({"beans_train": "abab", "beans_validation": "ab", "beans-test/0000": "ab"}),
    ),
    Layout(
        "parquet converted by the hub",
        "",
        {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 1}},
        make=parquet({"default/train/0000": "ab", "default/validation/0000": "ab"}),
    ),
    Layout("parquet without splits", "", {"": {"a": 2, "b": 2}}, make=parquet({"0000": "ab", "0001": "ab"})),
    Layout("parquet, some of it by split", "", "belongs to no split", make=parquet({"train-0": "ab", "extra": "ab"})),
    Layout("parquet of a test split alone", "", {"": {"a": 1, "b": 1}}, make=parquet({"test-0": "ab"})),
    Layout(
        "a zip of class folders",
        "",
        {"": {"a": 2, "b": 2}},
        2,
        ("set.zip",),
        make=zipped("set.zip", "photos/{a,b}/*2.jpg", "__MACOSX/photos/a/._0.jpg", "photos/.DS_Store"),
    ),
    Layout(
        "a zip of splits",
        "",
        {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}},
        source=("set.zip",),
        make=zipped("set.zip", "{train,test}/{a,b}/*1.png"),
    ),
    Layout("a zip of folds", "", "or several", source=("set.zip",), make=zipped("set.zip", "fold{1,2}/{a,b}/*1.png")),
    Layout("medmnist", "pathmnist.npz", "pathmnist.npz' cannot be read as .npz", source=("pathmnist.npz",)),
    # refused
    Layout("dogs vs cats", "train/{cat,dog}.*2.jpg test1/*2.jpg", "in the names of the files, give --data.labels"),
    Layout(
        "cassava",
        "train_images/*3.jpg test_images/*1.jpg train.csv sample_submission.csv",
        "add --data.labels train.csv",
    ),
    Layout("images and a table", "images/*3.jpg labels.csv", "add --data.labels labels.csv"),
    Layout("loose images", "*3.jpg", "no images in class folders"),
    Layout(
        "tiny imagenet",
        "train/{n01,n02}/images/*2.JPEG val/images/*2.JPEG val/val_annotations.txt test/images/*2.JPEG",
        "lie in no class folders",
    ),
    Layout("imagenet's val", "train/{n01,n02}/*2.JPEG val/*2.JPEG", "lie in no class folders"),
    Layout(
        "roboflow, several labels",
        "{train,valid}/*2.jpg {train,valid}/_classes.csv",
        "table (such as train/_classes.csv)",
    ),
    Layout(
        "coco", "images/{train2017,val2017}/*2.jpg annotations/instances_train2017.json", "no images in class folders"
    ),
    Layout("yolo", "images/{train,val}/*2.jpg labels/{train,val}/*2.txt data.yaml", "no images in class folders"),
    Layout(
        "oxford pets",
        "images/{Pug,Sphynx}_*2.jpg annotations/trimaps/{Pug,Sphynx}_*2.png",
        "as images and their masks do",
    ),
    Layout("segmentation", "{images,masks}/*3.png", "as images and their masks do"),
    Layout(
        "classes of images and masks", "{images,masks}/{cat,dog}/*2.png", "hold folders of the same names, cat, dog"
    ),
    Layout(
        "covid radiography", "{COVID,Normal}/{images,masks}/*2.png", "hold folders of the same names, images, masks"
    ),
    Layout("copies with a split each", "{raw,resized}/train/{a,b}/*1.jpg", "hold folders of the same names, train"),
    Layout("another class in test", "train/{a,b}/*1.jpg test/c/*1.jpg", "differ from those of train"),
    Layout("test of unknown classes", "train/{a,b}/*1.jpg test/unknown/*1.jpg", {"train": {"a": 1, "b": 1}}, 1),
    Layout("folds", "{fold1,fold2,fold3}/{a,b}/*1.jpg", "or several, --data"),
    Layout(
        "a standardized copy", "{original,standardized}/{Ape,Bat}/*1.jpg", "hold folders of the same names, Ape, Bat"
    ),
    Layout("splits in classes", "{cat,dog}/{train,test}/*2.jpg", "hold folders of the same names, test, train"),
    Layout(
        "parts of one folder", "HAM10000_images_part_{1,2}/*2.jpg HAM10000_metadata.csv", "look like parts of one set"
    ),
    Layout("parts with wrappers", "images_{001,002}/images/*2.png Data_Entry_2017.csv", "look like parts of one set"),
    Layout(
        "food-11", "{training,validation,evaluation}/{Bread,Egg}/*1.jpg", "look like splits, but evaluation does not"
    ),
    Layout("more than splits", "{train,test,extra}/{a,b}/*1.jpg", "look like splits, but extra does not"),
    Layout(
        "a split among classes",
        "{ant,bee}/*2.jpg test/{ant,bee}/*1.jpg",
        "test looks like a split, but ant, bee do not",
    ),
    Layout(
        "anomalies",
        "bottle/train/good/*2.png bottle/test/{good,broken}/*1.png bottle/ground_truth/broken/*1.png",
        "not in train: broken",
    ),
    Layout(
        "two test folders",
        "fruits/{Training,Test}/{Apple,Fig}/*1.jpg fruits/test-multiple_fruits/*2.jpg",
        "Test and test-multiple_fruits for the test split",
    ),
    Layout("cyclegan", "horse2zebra/{trainA,trainB,testA,testB}/*1.jpg", "for the test split"),
    Layout("test without train", "test/{a,b}/*1.jpg", "but no train folder"),
    Layout("val twice", "{train,val,valid}/{a,b}/*1.jpg", "val and valid for the val split"),
    Layout("other classes in test", "train/{a,b}/*1.jpg test/{a,b,c}/*1.jpg", "not in train: c"),
    Layout(
        "a rare class in train alone",
        "{train,val}/{a,b}/*1.jpg train/rare/1.jpg",
        {"train": {"a": 1, "b": 1, "rare": 1}, "val": {"a": 1, "b": 1}},
    ),
    Layout("an empty class", "{a,b}/*1.jpg c/", "contains no images"),
    Layout("a single class", "cat/*3.jpg", "a single class, 'cat'"),
    # several sources
    Layout("two folds", "fold{1,2,3}/{a,b}/*1.jpg", {"": {"a": 2, "b": 2}}, source=("fold1", "fold3")),
    Layout(
        "train and test by name",
        "{train,test}/{a,b}/*1.jpg extra/a/1.jpg",
        {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}},
        source=("train", "test"),
    ),
    Layout("classes of two sources", "one/{a,b}/*1.jpg two/{a,B}/*1.jpg", "has the classes", source=("one", "two")),
)
