# BlitzNet300 on VOC in MMSegmentation's own way: its transforms, data preprocessing, loop, hooks and IoUMetric.
#   python tools/train_net.py --config-file configs/mmseg/blitznet_voc.py
#   python tools/test.py configs/mmseg/blitznet_voc.py output/blitznet_voc/model_final.pth
# To learn from a teacher too, add SceneKDLoadTeacher after SceneKDLoadAnnotations; see fcn_r18_soft_voc.py.
custom_imports = dict(imports=["scenekd.engines.mmengine"])
default_scope = "mmseg"

size = 300
data = dict(root="datasets/VOCdevkit")  # another VOC-layout folder: with classes=(...)
train_names = ("voc2012_seg_train",)
val_names = ("voc2012_seg_val",)

model = dict(
    type="BlitzNet",
    image_size=size,
    num_classes=20,
    trunk="resnet50",
    pretrained="torchvision",
    data_preprocessor=dict(type="SceneKDDataPreprocessor"),
)

load_image = dict(type="LoadImageFromFile", color_type="color_ignore_orientation")
# Every transform that moves pixels stands here, so that boxes and teachers' outputs follow exactly.
geometry = dict(
    type="SceneKDGeometry",
    transforms=[
        dict(type="RandomResize", scale=(size, size), ratio_range=(0.75, 2.0), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(size, size), cat_max_ratio=0.9),
        dict(type="RandomFlip", prob=0.5),
        dict(type="Pad", size=(size, size), pad_val=dict(img=(103, 116, 123), seg=255)),
    ],
    min_box_side=2.0,
)
train_pipeline = [
    load_image,
    dict(type="SceneKDLoadAnnotations"),
    geometry,
    dict(type="PhotoMetricDistortion"),
    dict(type="SceneKDPackInputs"),
]
# Labels are loaded after the resize: they stay at the original size, where predictions are scored.
test_pipeline = [
    load_image,
    dict(type="Resize", scale=(size, size), keep_ratio=False),
    dict(type="SceneKDLoadAnnotations"),
    dict(type="SceneKDPackInputs"),
]

workers = dict(num_workers=4, persistent_workers=True)
train_dataloader = dict(
    batch_size=32,
    **workers,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="SceneKDDataset", names=train_names, pipeline=train_pipeline, **data),
)
val_dataloader = dict(
    batch_size=1,
    **workers,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="SceneKDDataset", names=val_names, pipeline=test_pipeline, test_mode=True, **data),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="IoUMetric", iou_metrics=["mIoU"]),
    dict(type="SceneKDMetric", evaluator=dict(names=val_names, tasks=("bbox",), **data)),
]
test_evaluator = val_evaluator

optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-4, weight_decay=5e-5))
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=[40000, 50000], gamma=0.1)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=65000, val_interval=5000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=5000, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
visualizer = dict(
    type="SegLocalVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
randomness = dict(seed=0)
work_dir = "output/blitznet_voc"
