# MMSegmentation as it comes (PascalVOCDataset, its transforms, FCN on ResNet-18 with an auxiliary head, its schedule),
# with four changes: SceneKDEncoderDecoder, SceneKDLoadAnnotations, SceneKDLoadTeacher and SceneKDPackInputs, between
# which SceneKDGeometry moves a teacher's saved outputs along with the pixels.
#   python tools/train_net.py --config-file configs/mmseg/fcn_r18_stock_voc.py
#   python tools/test.py configs/mmseg/fcn_r18_stock_voc.py output/fcn_r18_stock_voc/model_final.pth
custom_imports = dict(imports=["scenekd.engines.mmengine"])
default_scope = "mmseg"

data_root = "datasets/VOCdevkit/VOC2012"
voc = dict(
    type="PascalVOCDataset",
    data_root=data_root,
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
)
workers = dict(num_workers=4, persistent_workers=True)
crop_size = (512, 512)

model = dict(
    type="SceneKDEncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=crop_size,
        pad_val=0,
        seg_pad_val=255,
    ),
    pretrained="torchvision://resnet18",
    backbone=dict(
        type="ResNet",
        depth=18,
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=dict(type="BN"),
        style="pytorch",
        contract_dilation=True,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=512,
        in_index=3,
        channels=128,
        num_convs=2,
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=dict(type="BN"),
        loss_decode=[
            dict(type="CrossEntropyLoss", loss_weight=1.0),
            dict(type="SceneKDHintonLoss", temperature=2.0, loss_weight=0.5),
        ],
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=256,
        in_index=2,
        channels=64,
        num_convs=1,
        num_classes=21,
        norm_cfg=dict(type="BN"),
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4),
    ),
    test_cfg=dict(mode="whole"),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="SceneKDLoadAnnotations", allow_missing=True
    ),  # an image without a mask file learns from the teacher
    dict(
        type="SceneKDLoadTeacher",
        teacher=dict(SEGMENTATION=dict(TYPE="folder", WEIGHTS=f"{data_root}/TeacherSegmentation")),
        distill=dict(
            SEGMENTATION=dict(POLICY="combined", GT_WEIGHT=1.0, TEACHER_WEIGHT=1.0, TARGET="logits")
        ),
    ),
    dict(
        type="SceneKDGeometry",
        transforms=[
            dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
        ],
    ),
    dict(type="PhotoMetricDistortion"),
    dict(type="SceneKDPackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(
    batch_size=4,
    **workers,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(ann_file="ImageSets/Segmentation/train.txt", pipeline=train_pipeline, **voc),
)
val_dataloader = dict(
    batch_size=1,
    **workers,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="ImageSets/Segmentation/val.txt", pipeline=test_pipeline, **voc),
)
test_dataloader = val_dataloader
# Our evaluator of the same images, by name; with bootstrap=1000 it gives intervals too.
val_evaluator = dict(
    type="SceneKDMetric", evaluator=dict(names=("voc_seg_val",), root=data_root, tasks=("sem_seg",))
)
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0005)
)
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=20000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=20000, val_interval=2000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2000, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
visualizer = dict(
    type="SegLocalVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
randomness = dict(seed=0)
work_dir = "output/fcn_r18_stock_voc"
