"""The frameworks' own data sets by name in DATASETS, ours in detectron2's catalogs, and its loaders."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ENGINES
from PIL import Image

import scenekd.engines.datasets  # noqa: F401 - plugs the loaders in
from scenekd.config import get_cfg
from scenekd.data.catalog import load_dataset, load_datasets
from scenekd.errors import UserError

detectron2_only = [
    pytest.mark.detectron2,
    pytest.mark.skipif("detectron2" not in ENGINES, reason="detectron2 is not installed"),
]
CLASSES = ("person", "tree", "bird", "car", "house", "boat", "cup", "bottle", "cow", "kite")


@pytest.fixture
def voc_like(tmp_path):
    """Two images and masks as MMSegmentation's PascalVOCDataset wants them."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / f"a{i}.jpg")
        Image.fromarray(np.full((6, 8), i, np.uint8)).save(tmp_path / "masks" / f"a{i}.png")
    (tmp_path / "list.txt").write_text("a0\na1\n")
    return {
        "type": "PascalVOCDataset",
        "data_root": str(tmp_path),
        "ann_file": "list.txt",
        "data_prefix": {"img_path": "images", "seg_map_path": "masks"},
    }


def test_mmsegmentation_dataset_by_its_dictionary(voc_like):
    """Masks and classes without background; no boxes."""
    dataset = load_dataset(str(voc_like))
    assert dataset.classes[0] == "aeroplane" and len(dataset.classes) == 20
    assert dataset.image_ids == ["a0", "a1"]
    record = dataset.records[1]
    assert record.has_sem_seg and not record.has_boxes
    assert (dataset.read_sem_seg(record) == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "NoSuchDataset"}, "cannot build"),
        ({"ann_file": "gone.txt"}, "cannot build"),
        ({"type": "CityscapesDataset", "data_prefix": {"img_path": "images"}}, "no background class"),
    ],
)
def test_mmsegmentation_dataset_that_cannot_be_had(voc_like, change, message):
    """One line instead of MMEngine's traceback."""
    with pytest.raises(UserError, match=message):
        load_dataset(str({**voc_like, **change}))


def test_broken_dictionary():
    """Not a Python literal."""
    with pytest.raises(UserError, match="cannot build"):
        load_dataset("{'type': oops}")


def _catalog():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    return DatasetCatalog, MetadataCatalog


@pytest.fixture
def detectron2_names():
    """Names registered in a test, taken away afterwards."""
    catalog, metadata = _catalog()
    names = []
    yield names
    for name in names:
        if name in catalog.list():
            catalog.remove(name)
        if name in metadata.list():
            metadata.remove(name)


class TestDetectron2:
    pytestmark = detectron2_only

    def test_own_name(self, detectron2_names):
        """Boxes of either mode, crowds ignored in evaluation, missing annotations kept apart from empty ones."""
        from detectron2.structures import BoxMode

        catalog, metadata = _catalog()
        boxes = [
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1},
        ]
        items = [
            {"file_name": "a.jpg", "image_id": 1, "height": 9, "width": 9, "annotations": boxes},
            {"file_name": "b.jpg", "image_id": 2, "height": 9, "width": 9, "annotations": []},
            {"file_name": "c.jpg", "image_id": 3, "height": 9, "width": 9, "sem_seg_file_name": "c.png"},
        ]
        detectron2_names.append("their_set")
        catalog.register("their_set", lambda: items)
        metadata.get("their_set").set(thing_classes=["cat", "dog"])
        dataset = load_dataset("their_set")
        assert dataset.classes == ("cat", "dog")
        first, second, third = dataset.records
        np.testing.assert_array_equal(first.boxes, [[1, 2, 4, 6], [1, 2, 3, 4]])  # 1 + 3, 2 + 4
        assert first.crowd.tolist() == first.difficult.tolist() == [False, True]
        assert second.has_boxes and len(second.boxes) == 0 and not second.has_sem_seg
        assert not third.has_boxes and third.has_sem_seg
        with pytest.raises(UserError, match="differ from those of their_set"):
            load_dataset("their_set", classes=("cat", "cow"))

    def test_missing_files_of_a_built_in_name(self, tmp_path, monkeypatch):
        """The line says where detectron2 looks."""
        with pytest.raises(UserError, match="set DETECTRON2_DATASETS"):
            load_dataset("voc_2007_train", root=str(tmp_path))

    def test_there_and_back(self, scenes, detectron2_names):
        """What is registered comes back the same, whichever labels are missing."""
        from scenekd.engines.datasets import _load_detectron2, register_in_detectron2

        cfg = _config(scenes, KEEP_BOXES=0.5, KEEP_SEM_SEG=0.5)
        data = load_datasets(("voc_seg_train",), cfg, train=True)
        data.records[0].difficult = (
            np.ones(len(data.records[0].boxes), bool) if data.records[0].has_boxes else None
        )
        detectron2_names.append(register_in_detectron2(data, "scenes_there"))
        back = _load_detectron2("scenes_there", "", (), "raise")
        assert back.classes == CLASSES
        for ours, theirs in zip(data.records, back.records):
            assert (ours.image_id, ours.sem_seg_file) == (theirs.image_id, theirs.sem_seg_file)
            assert ours.has_boxes == theirs.has_boxes
            for name in ("boxes", "labels", "difficult", "crowd") if ours.has_boxes else ():
                wanted = getattr(ours, name)
                wanted = np.zeros(len(ours.boxes), bool) if wanted is None else wanted
                np.testing.assert_allclose(getattr(theirs, name), wanted)
        metadata = _catalog()[1].get("scenes_there")
        assert metadata.stuff_classes[0] == "background" and metadata.stuff_colors[1] == (128, 0, 0)

    def test_images_without_boxes_reach_the_model(self, scenes, detectron2_names):
        """detectron2's loader hands on every image, labels marked; its own filter is refused by our mapper."""
        from detectron2.data import build_detection_train_loader

        from scenekd.engines.detectron2 import SceneKDDatasetMapper, register_datasets

        cfg = _detectron2_config(scenes)
        register_datasets(cfg)
        detectron2_names.extend(("voc_seg_train", "voc_seg_val"))
        loader = iter(build_detection_train_loader(cfg, mapper=SceneKDDatasetMapper(cfg)))
        targets = {}
        for _ in range(3):
            for item in next(loader):
                assert item["image"].shape == (3, 64, 64)
                targets[item["target"].image_id] = item["target"]
        assert len(targets) == 12  # one pass of the sampler
        assert sum(t.has_boxes for t in targets.values()) == 6
        assert sum(t.has_sem_seg for t in targets.values()) == 6
        assert sum(t.has_boxes and t.has_sem_seg for t in targets.values()) < 6
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
        with pytest.raises(UserError, match="FILTER_EMPTY_ANNOTATIONS"):
            SceneKDDatasetMapper(cfg)

    def test_detectron2_own_mapper_keeps_the_flags(self, scenes, detectron2_names):
        """DatasetMapper's dictionaries become targets with the same labels missing."""
        from detectron2.data import DatasetMapper

        from scenekd.engines.detectron2 import register_datasets
        from scenekd.engines.detectron2_model import target_of

        cfg = _detectron2_config(scenes)
        register_datasets(cfg)
        detectron2_names.extend(("voc_seg_train", "voc_seg_val"))
        items = _catalog()[0].get("voc_seg_train")
        mapper = DatasetMapper(cfg, is_train=True)
        targets = [target_of(mapper(item), 64) for item in items]
        assert [t.has_boxes for t in targets] == [item["has_boxes"] for item in items]
        assert [t.has_sem_seg for t in targets] == [item["has_sem_seg"] for item in items]
        assert {True, False} == {t.has_boxes for t in targets} == {t.has_sem_seg for t in targets}

    def test_teacher_fills_in(self, scenes, tmp_path, detectron2_names):
        """The mapper asks the teacher for the images without a mask, at the network's own map."""
        from scenekd.engines.detectron2 import SceneKDDatasetMapper

        for file in (scenes / "SegmentationClass").glob("*.png"):
            mask = np.array(Image.open(file))
            mask[mask == 255] = 0
            total = np.zeros(mask.shape, np.float32)
            np.savez_compressed(
                tmp_path / f"{file.stem}.npz", classes=mask[None], logits=total[None] - 0.01, logsumexp=total
            )
        cfg = _detectron2_config(scenes)
        cfg.TEACHER.SEGMENTATION.TYPE, cfg.TEACHER.SEGMENTATION.WEIGHTS = "folder", str(tmp_path)
        cfg.DISTILL.SEGMENTATION.POLICY, cfg.DISTILL.SEGMENTATION.TARGET = "fill_missing", "logits"
        mapper = SceneKDDatasetMapper(cfg)
        for image_id, record in mapper.records.items():
            target = mapper({"image_id": image_id})["target"]
            assert (target.soft_seg is None) == record.has_sem_seg
            if target.soft_seg is not None:
                assert target.soft_seg.shape[1:] == (16, 16) or target.soft_seg.shape[1:] == (8, 8)
        cfg.DISTILL.SEGMENTATION.POLICY = "per_batch"
        with pytest.raises(UserError, match="per_batch needs SceneKD's own loader"):
            SceneKDDatasetMapper(cfg)


def _config(scenes, **options):
    cfg = get_cfg()
    cfg.DATASETS.ROOT, cfg.DATASETS.CLASSES = str(scenes), CLASSES
    for key, value in options.items():
        cfg.DATASETS[key] = value
    return cfg


def _detectron2_config(scenes):
    from detectron2.config import get_cfg as theirs

    from scenekd.engines.detectron2 import add_scenekd_config

    cfg = theirs()
    add_scenekd_config(cfg)
    values = {
        "MODEL.META_ARCHITECTURE": "BlitzNet",
        "MODEL.DEVICE": "cpu",
        "MODEL.BLITZNET.TRUNK": "resnet18",
        "MODEL.BLITZNET.PRETRAINED": "",
        "DATASETS.ROOT": str(scenes),
        "DATASETS.CLASSES": CLASSES,
        "DATASETS.TRAIN": ("voc_seg_train",),
        "DATASETS.TEST": ("voc_seg_val",),
        "DATASETS.KEEP_BOXES": 0.5,
        "DATASETS.KEEP_SEM_SEG": 0.5,
        "INPUT.SIZE": 64,
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "SOLVER.IMS_PER_BATCH": 4,
    }
    cfg.merge_from_list([part for pair in values.items() for part in pair])
    return cfg
